"""Print what the environment that runs this is made of: its largest packages, their sum, the system below."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

SHOWN = 12


def size_on_disk(folder: Path) -> int:
    """Bytes of all files below ``folder`` on the same file system, links not followed, hard links counted once."""
    seen: set[int] = set()
    total = 0
    device = folder.lstat().st_dev
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if (Path(parent) / name).lstat().st_dev == device]
        for name in files:
            status = (Path(parent) / name).lstat()
            if status.st_ino not in seen:
                seen.add(status.st_ino)
                total += status.st_size
    return total


def package_size(package: metadata.Distribution) -> int:
    """Bytes of the files that ``package`` recorded when it was installed, compiled ones included."""
    paths = {Path(str(package.locate_file(file))) for file in package.files or ()}
    return sum(path.lstat().st_size for path in paths if path.is_file())


def main() -> None:
    """The table, largest first."""
    sizes = {package.name: package_size(package) for package in metadata.distributions()}
    largest = sorted(sizes.items(), key=lambda item: -item[1])
    rows = largest[:SHOWN]
    rows.append((f"{len(largest) - SHOWN} others", sum(size for _, size in largest[SHOWN:])))
    rows.append(("Python packages together", size_on_disk(Path(sys.prefix))))
    rows.append(("the operating system", size_on_disk(Path("/usr"))))
    for name, size in rows:
        print(f"{size / 1e6:8.1f}  {name}")


if __name__ == "__main__":
    main()
