"""Pin what an image installs, with hashes: `python -m deploy.lock serve >deploy/serve.lock`, and the same for gateway.

Asks pip, of the Python that runs this, what it would install for an extra within constraints.txt. The hashes are those
of the files for this platform, and the markers of pins are evaluated here, so it is to be run where the images are
built: Linux x86-64, Debian's Python 3.11.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]


def ask_pip(extras: str, constraints: Path) -> list[dict[str, Any]]:
    """What pip would install for some extras in an empty environment, as its report has it."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report), "-c", str(constraints), f"{REPOSITORY}[{extras}]"]
        subprocess.run(command, check=True)
        return list(json.loads(report.read_text())["install"])


def main(extra: str) -> None:
    found = ask_pip(extra, REPOSITORY / "constraints.txt")
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    print(f"# What the image of the extra `{extra}` installs: {sys.platform}, Python {python}. Made by deploy/lock.py.")
    lines = []
    for one in found:
        about = one["metadata"]
        if about["name"] == "semiseg":
            continue
        digest = one["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{about['name'].lower()}=={about['version']} --hash=sha256:{digest}")
    print("\n".join(sorted(lines)))


if __name__ == "__main__":
    main(sys.argv[1])
