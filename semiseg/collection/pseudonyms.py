"""Assigns pseudonymous case ids, and reads and writes the file that maps them to patients.

Ids are numbered in random order: in the source's order the numbers would follow the alphabet of the patients' names or
the dates of their scans. A hash of a UID would not be a pseudonym, since anyone who knows the UID can compute it.
"""

from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from semiseg.errors import DatasetError
from semiseg.system.durable_files import atomic_file

_ID = re.compile(r"case_(\d{4,})")


@dataclass(frozen=True)
class SourceRecord:
    """Origin of a scan; data that identify a patient are written to the mapping only.

    Attributes:
        key: Key by which another run recognises the scan: its Series Instance UID, or its path if it has none.
        patient, study, series, folder, description: Values from the source, "" if absent.
    """

    key: str
    patient: str = ""
    study: str = ""
    series: str = ""
    folder: str = ""
    description: str = ""


_COLUMNS = ["case", *(f.name for f in fields(SourceRecord))]


@dataclass(frozen=True)
class Pseudonyms:
    """Case ids and the origins of their scans, which are stored in one file."""

    path: Path
    rows: Mapping[str, SourceRecord] = field(repr=False)  # case id -> origin

    @property
    def case_of(self) -> dict[str, str]:
        """Case ids by the key of the origin."""
        return {origin.key: case for case, origin in self.rows.items()}


def read_mapping(path: Path) -> Pseudonyms:
    """Read a mapping; it is empty if the file does not exist.

    Raises:
        DatasetError: The file is not a mapping, or names a case or a scan twice.
    """
    if not path.exists():
        return Pseudonyms(path, {})
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            table = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read as a mapping ({error}).") from error
    if reader.fieldnames != _COLUMNS:
        raise DatasetError(f"{path} is not a mapping of semiseg collect; name another file with --mapping.")
    rows: dict[str, SourceRecord] = {}
    for number, row in enumerate(table, start=2):
        case = row.pop("case")
        if not _ID.fullmatch(case) or None in row or None in row.values():
            raise DatasetError(
                f"{path}, line {number}: expected case_NNNN and six values, not '{case}' and its values."
            )
        if case in rows:
            raise DatasetError(f"{path}, line {number}: {case} occurs twice.")
        rows[case] = SourceRecord(**row)
    mapping = Pseudonyms(path, rows)
    if len(mapping.case_of) < len(rows):
        raise DatasetError(f"{path} gives one scan two case ids; keep one of the lines.")
    return mapping


def assign_case_ids(mapping: Pseudonyms, origins: Iterable[SourceRecord], taken: Iterable[str] = ()) -> Pseudonyms:
    """Return the mapping with an id for every origin; known ones keep their ids, new ones are numbered in random order.

    Args:
        mapping: Mapping with the existing ids.
        origins: Origins of all scans of this run.
        taken: Ids that the dataset has already; they are not assigned again.
    """
    known = mapping.case_of
    new = [origin for origin in origins if origin.key not in known]
    numbers = [int(found[1]) for case in (*mapping.rows, *taken) if (found := _ID.fullmatch(case))]
    first = max(numbers, default=0) + 1
    random.SystemRandom().shuffle(new)
    named = {f"case_{number:04d}": origin for number, origin in enumerate(new, start=first)}
    return Pseudonyms(mapping.path, {**mapping.rows, **named})


def write_mapping(mapping: Pseudonyms) -> None:
    """Write the mapping with mode 600, including all rows that it had before.

    Raises:
        DatasetError: The file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=_COLUMNS)
    writer.writeheader()
    for case, origin in sorted(mapping.rows.items()):
        writer.writerow({"case": case, **asdict(origin)})
    try:
        with atomic_file(mapping.path, private=True) as file:
            file.write(text.getvalue().encode())
    except OSError as error:
        raise DatasetError(f"{mapping.path} cannot be written: {error.strerror or error}.") from error
