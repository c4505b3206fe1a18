"""Case ids that say nothing of a patient, and the one file that says whose they are.

Ids are numbered in a random order: in the source's order the numbers would follow the alphabet of the patients' names
or the dates of their scans. A hash of a UID would be no pseudonym, since whoever knows the UID can compute it.
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
    """Where a scan comes from; what of it identifies a patient goes into the mapping alone.

    Attributes:
        key: what makes it the same scan in another run: its Series Instance UID, or its path where it has none.
        patient, study, series, folder, description: as the source has them, "" where it has not.
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
    """Case ids and the origins of their scans, as one file holds them."""

    path: Path
    rows: Mapping[str, SourceRecord] = field(repr=False)  # case id -> origin

    @property
    def case_of(self) -> dict[str, str]:
        """Case id by an origin's key."""
        return {origin.key: case for case, origin in self.rows.items()}


def read_mapping(path: Path) -> Pseudonyms:
    """Read a mapping; one that does not exist is empty.

    Raises:
        DatasetError: the file is something else, or names a case or a scan twice.
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
        raise DatasetError(f"{path} is no mapping of semiseg collect; name another file with --mapping.")
    rows: dict[str, SourceRecord] = {}
    for number, row in enumerate(table, start=2):
        case = row.pop("case")
        if not _ID.fullmatch(case) or None in row or None in row.values():
            raise DatasetError(
                f"{path}, line {number}: '{case}' with its origin is expected to be case_NNNN and six values."
            )
        if case in rows:
            raise DatasetError(f"{path}, line {number}: {case} is there twice.")
        rows[case] = SourceRecord(**row)
    mapping = Pseudonyms(path, rows)
    if len(mapping.case_of) < len(rows):
        raise DatasetError(f"{path} gives one scan two case ids; keep one of the lines.")
    return mapping


def assign_case_ids(mapping: Pseudonyms, origins: Iterable[SourceRecord], taken: Iterable[str] = ()) -> Pseudonyms:
    """The mapping with an id for every origin: known ones keep theirs, new ones are numbered in random order.

    Args:
        mapping: the ids so far.
        origins: all scans of this run.
        taken: ids that the dataset has, which are not given again.
    """
    known = mapping.case_of
    new = [origin for origin in origins if origin.key not in known]
    numbers = [int(found[1]) for case in (*mapping.rows, *taken) if (found := _ID.fullmatch(case))]
    first = max(numbers, default=0) + 1
    random.SystemRandom().shuffle(new)
    named = {f"case_{number:04d}": origin for number, origin in enumerate(new, start=first)}
    return Pseudonyms(mapping.path, {**mapping.rows, **named})


def write_mapping(mapping: Pseudonyms) -> None:
    """Write the mapping with mode 600; the rows that were there are there again.

    Raises:
        DatasetError: it cannot be written.
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
