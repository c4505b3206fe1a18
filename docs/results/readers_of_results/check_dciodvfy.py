"""Check each case's results with dciodvfy of dicom3tools; a Markdown table.

    apt-get install dicom3tools
    python docs/results/readers_of_results/check_dciodvfy.py FOLDER > docs/results/readers_of_results/dciodvfy.md

FOLDER is the one that cases.py wrote. A cell holds the number of errors, and below the table stands each of them once.
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
        for name in RESULTS:
            path = case / f"{name}.dcm"
            found = errors_of(path) if path.exists() else None
            every.update(f"{name}: {line}" for line in found or ())
            cells.append("-" if found is None else str(len(found)))
        print(f"| {case.name} | {' | '.join(cells)} |", flush=True)
    print("\nErrors:" if every else "\nNo error.")
    for line, count in every.most_common():
        print(f"- {count} times: `{line}`")


if __name__ == "__main__":
    main()
