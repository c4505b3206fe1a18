"""What a collection took, what it refused, and why: one line for each thing that was looked at.

The lines name folders, files and UIDs of the source, so the report lies beside the mapping and never in the dataset.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from semiseg.system.durable_files import atomic_file

Status = Literal["labelled", "unlabelled", "refused", "left out", "already there", "note"]
What = Literal["scan", "label", "structure", "file", "patient", "dataset"]


@dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    Attributes:
        status: "labelled" and "unlabelled" are scans that are in the dataset; "refused" is what could not be used,
            "left out" what was not asked for, "already there" a scan that the dataset had; a "note" is worth reading.
        what: the kind of thing.
        source: where it is: a path relative to the source folder, with the series' UID where there is one.
        reason: a sentence; "" where there is nothing to say.
        case: the case id of a scan that is in the dataset.
    """

    status: Status
    what: What
    source: str
    reason: str = ""
    case: str = ""


def counts(lines: Iterable[Line]) -> dict[str, int]:
    """How many lines there are of each kind, by "status what"."""
    return dict(Counter(f"{line.status} {line.what}" for line in lines))


def write_report(lines: list[Line], path: Path) -> tuple[Path, Path]:
    """Write the lines as ``path`` + ``.csv`` and ``.json``, readable by their owner alone; returns both paths."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=[field.name for field in fields(Line)])
    writer.writeheader()
    writer.writerows(asdict(line) for line in lines)
    table, document = path.with_name(path.name + ".csv"), path.with_name(path.name + ".json")
    with atomic_file(table, private=True) as file:
        file.write(text.getvalue().encode())
    with atomic_file(document, private=True) as file:
        content = {"counts": counts(lines), "lines": [asdict(line) for line in lines]}
        file.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    return table, document
