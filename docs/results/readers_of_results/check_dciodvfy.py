"""Check each case's results with dciodvfy of dicom3tools; a Markdown table.

    apt-get install dicom3tools
    python docs/results/readers_of_results/check_dciodvfy.py FOLDER > docs/results/readers_of_results/dciodvfy.md

FOLDER is the one that cases.py wrote. A cell holds the number of errors, and below the table stands each of them once.
Results repeat patient and study letter for letter, so errors that dciodvfy finds in the source, too, are counted apart:
``0 (+2)`` are two of these.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

from truth import cases

RESULTS = ("seg", "seg-fractional", "seg-labelmap", "rtstruct", "sr", "overlay")


def errors_of(path: Path) -> list[str]:
    """Lines of dciodvfy that begin with "Error"."""
    result = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, errors="replace", check=False)
    return [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("Error")]


def main() -> None:
    """Print the table."""
    every: Counter[str] = Counter()
    print(f"| case | {' | '.join(RESULTS)} |\n|{'---|' * (len(RESULTS) + 1)}")
    for case in cases(Path(sys.argv[1])):
        cells = []
        of_source = set(errors_of(next((case / "source").iterdir())))
        for name in RESULTS:
            path = case / f"{name}.dcm"
            if not path.exists():
                cells.append("-")
                continue
            found = errors_of(path)
            own = [line for line in found if line not in of_source]
            every.update(f"{name}: {line}" for line in own)
            cells.append(f"{len(own)} (+{len(found) - len(own)})" if len(own) < len(found) else str(len(own)))
        print(f"| {case.name} | {' | '.join(cells)} |", flush=True)
    print("\nErrors:" if every else "\nNo error.")
    for line, count in every.most_common():
        print(f"- {count} times: `{line}`")


if __name__ == "__main__":
    main()
