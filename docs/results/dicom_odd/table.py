"""What happens to each odd DICOM file, alone and with the others of its folder, as a Markdown table.

python docs/results/dicom_odd/table.py DATA/dicom_odd > docs/results/dicom_odd/files.md
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from semiseg.errors import SemisegError
from semiseg.volumes.inspection import InspectedItem, inspect_files
from semiseg.volumes.scan import files_in

root = Path(sys.argv[1])


def told(sentence: str) -> str:
    """A sentence without the folder, ready for a cell."""
    return sentence.replace(f"{root}/", "").replace("|", "\\|")


def row(thing: InspectedItem) -> str:
    grid = thing.facts[-1].split(", values")[0] if thing.volume is not None else ""
    return told(f"{thing.outcome.removesuffix('.') if grid else thing.outcome}{f' ({grid})' if grid else ''}")


def outcomes(path: Path) -> list[str]:
    """One line for each series or file."""
    try:
        with files_in(path) as files:
            things, left_out = inspect_files(files)
            return [row(thing) for thing in things] + [f"Left out: {told(one.sentence)}" for one in left_out]
    except SemisegError as error:
        return [f"Refused: {told(str(error))}"]


files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != "INDEX.json")
kinds: Counter[str] = Counter()
lines = ["| file | alone |", "|---|---|"]
for path in files:
    (outcome,) = outcomes(path) if "DICOMDIR" not in path.name else ["; ".join(outcomes(path))[:600]]
    kinds[outcome.split(":")[0].split(" (")[0]] += 1
    name = str(path.relative_to(root))
    lines.append(f"| {name} | {outcome.replace(f'{name}: ', '', 1)} |")
print("# Every odd file\n")
print(f"{len(files)} files: " + ", ".join(f"{count} x {kind.lower()}" for kind, count in kinds.most_common()) + ".\n")
print("\n".join(lines))
print("\n| folder | series by series |\n|---|---|")
for folder in sorted({path.parent for path in files}):
    found = [line for line in outcomes(folder) if not line.startswith("Left out")]
    print(f"| {folder.relative_to(root)} | {'<br>'.join(found)} |")
