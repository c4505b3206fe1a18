"""Keyed hashes of the patient and the order of instances, stored as names of empty files in the study's folder.

    patient-id-HASH      Patient ID
    patient-name-HASH    Patient's Name: its alphabetic component group, ignoring case
    patient-birth-HASH   Patient's Birth Date
    accession-HASH       Accession Number

With them, studies can be found by patient ID or accession number, and studies with instances of two patients can be
detected. Values cannot be derived from them without the installation's key. An empty attribute leaves no mark, so an
object without a birth date conflicts with nothing.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from semiseg.errors import VolumeError
from semiseg.volumes.dicom_file import read_dicom, value
from server.gateway.uid_hasher import UidHasher

PATIENT, ACCESSION = "patient-", "accession-"
PATIENT_KEYWORDS = {"id": "PatientID", "name": "PatientName", "birth": "PatientBirthDate"}
PATIENT_ATTRIBUTE_NAMES = {"id": "Patient ID", "name": "Patient's Name", "birth": "Patient's Birth Date"}
PATIENT_TAGS = ["SpecificCharacterSet", *PATIENT_KEYWORDS.values(), "AccessionNumber"]
PatientHashes = dict[str, str]  # hash of each attribute that is not empty, by the keys of PATIENT_KEYWORDS


def hash_patient(values: Mapping[str, str], hasher: UidHasher) -> PatientHashes:
    """Return the hashes of a patient's attributes that are not empty.

    Args:
        values: Text of the attributes, by keyword.
        hasher: Keyed hashes.
    """
    told = {kind: _plain(kind, values.get(keyword, "")) for kind, keyword in PATIENT_KEYWORDS.items()}
    return {kind: hasher.hash(f"{kind}\n{value}") for kind, value in told.items() if value}


def mark_names(values: Mapping[str, str], hasher: UidHasher) -> list[str]:
    """Return the names of the mark files for the patient and the order of an instance."""
    marks = [f"{PATIENT}{kind}-{value}" for kind, value in hash_patient(values, hasher).items()]
    accession = values.get("AccessionNumber", "").strip()
    return [*marks, accession_mark(accession, hasher)] if accession else marks


def patient_id_mark(patient_id: str, hasher: UidHasher) -> str:
    """Return the name of the mark file of a patient ID."""
    return f"{PATIENT}id-{hash_patient({PATIENT_KEYWORDS['id']: patient_id}, hasher)['id']}"


def accession_mark(accession: str, hasher: UidHasher) -> str:
    """Return the name of the mark file of an accession number."""
    hashed = hasher.hash(f"accession\n{accession}")
    return f"{ACCESSION}{hashed}"


def read_values(file: Path) -> dict[str, str]:
    """Read the text of the attributes of an instance; damaged attributes are omitted."""
    try:
        return readable_values(read_dicom(file, pixels=False, tags=PATIENT_TAGS), file)
    except VolumeError:
        return {}


def readable_values(header: Dataset, file: Path) -> dict[str, str]:
    """Return the text of the attributes in a header; damaged ones are omitted, because they are no reason to refuse."""
    found = {}
    for keyword in PATIENT_TAGS[1:]:
        with suppress(VolumeError):
            one = value(header, keyword, file)
            # pydicom splits an identifier with a backslash into several values.
            found[keyword] = "\\".join(map(str, one)) if isinstance(one, MultiValue) else str(one or "").strip()
    return found


def patient_hashes(folder: Path) -> dict[str, list[str]]:
    """Return the hashes of each attribute from the marks in a study's folder, in order of arrival."""
    found: dict[str, list[tuple[float, str]]] = {kind: [] for kind in PATIENT_KEYWORDS}
    for mark in folder.glob(f"{PATIENT}*"):
        kind, _, value = mark.name.removeprefix(PATIENT).partition("-")
        if kind in found:
            found[kind].append((mark.stat().st_mtime_ns, value))
    return {kind: [value for _, value in sorted(values)] for kind, values in found.items()}


def conflicting_attributes(folder: Path) -> list[str]:
    """Return the names of the patient attributes for which a study has several values."""
    return [PATIENT_ATTRIBUTE_NAMES[kind] for kind, values in patient_hashes(folder).items() if len(values) > 1]


def is_same_patient(patient: PatientHashes, other: PatientHashes) -> bool:
    """Return True if no attribute that both have differs."""
    return all(other.get(kind, value) == value for kind, value in patient.items())


def delete_other_marks(folder: Path, kept: Iterable[str]) -> None:
    """Delete the marks of patients and orders that are not among ``kept``."""
    wanted = set(kept)
    for kind in (PATIENT, ACCESSION):
        for mark in folder.glob(f"{kind}*"):
            if mark.name not in wanted:
                mark.unlink(missing_ok=True)


def _plain(kind: str, value: str) -> str:
    value = value.strip()
    if kind != "name":
        return value
    alphabetic = value.split("=")[0] or value
    return " ".join(unicodedata.normalize("NFC", alphabetic).casefold().rstrip("^ ").split())
