"""Report of a collection: one entry for each item that was collected, refused or left out, with the reason.

The entries name folders, files and UIDs of the source, so the report is stored beside the mapping and never in the
dataset.
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
    """One item of the report.

    Attributes:
        status: Status: "labelled" and "unlabelled" for scans that are in the dataset, "refused" for items that could
            not be used, "left out" for items that were not selected, "already there" for a scan that the dataset had
            before, "note" for other information.
        what: Type of the item.
        source: Path relative to the source folder, with the UID of the series if there is one.
        reason: Reason as a sentence; "" if there is none.
        case: Case id of a scan that is in the dataset.
    """

    status: EntryStatus
    what: EntryKind
    source: str
    reason: str = ""
    case: str = ""


def count_entries(entries: Iterable[ReportEntry]) -> dict[str, int]:
    """Count the entries of each status and type, by "status what"."""
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
