"""What a collection took, what it refused, and why: one entry for each thing that was looked at.

The entries name folders, files and UIDs of the source, so the report lies beside the mapping and never in the dataset.
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

EntryStatus = Literal["labelled", "unlabelled", "refused", "left out", "already there", "note"]
EntryKind = Literal["scan", "label", "structure", "file", "patient", "dataset"]


@dataclass(frozen=True)
class ReportEntry:
    """One thing that was looked at.

    Attributes:
        status: "labelled" and "unlabelled" are scans that are in the dataset; "refused" is what could not be used,
            "left out" what was not asked for, "already there" a scan that the dataset had; a "note" is worth reading.
        what: the kind of thing.
        source: where it is: a path relative to the source folder, with the series' UID where there is one.
        reason: a sentence; "" where there is nothing to say.
        case: the case id of a scan that is in the dataset.
    """

    status: EntryStatus
    what: EntryKind
    source: str
    reason: str = ""
    case: str = ""


def count_entries(entries: Iterable[ReportEntry]) -> dict[str, int]:
    """How many entries there are of each kind, by "status what"."""
    return dict(Counter(f"{entry.status} {entry.what}" for entry in entries))


def write_report(entries: list[ReportEntry], path: Path) -> tuple[Path, Path]:
    """Write the entries as ``path`` + ``.csv`` and ``.json``, readable by their owner alone; returns both paths."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=[field.name for field in fields(ReportEntry)])
    writer.writeheader()
    writer.writerows(asdict(entry) for entry in entries)
    table, document = path.with_name(path.name + ".csv"), path.with_name(path.name + ".json")
    with atomic_file(table, private=True) as file:
        file.write(text.getvalue().encode())
    with atomic_file(document, private=True) as file:
        content = {"counts": count_entries(entries), "lines": [asdict(entry) for entry in entries]}
        file.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    return table, document
