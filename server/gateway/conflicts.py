"""Conflicts: instances received again under the same UID with different content, and studies of two patients.

The instance that was received first stays in place. Later versions are kept beside it until an operator decides:

    studies/STUDY/newer/N/INSTANCE.dcm     version N of an instance, from 1
    studies/STUDY/newer/differs-KEYWORD    an empty file for each attribute that differs

Differences caused by another transfer syntax or by the passage through an archive are ignored.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian

from semiseg.system.durable_files import sync
from server.gateway.patient_marks import (
    PatientHashes,
    conflicting_attributes,
    delete_other_marks,
    hash_patient,
    is_same_patient,
    mark_names,
    patient_hashes,
    read_values,
)
from server.gateway.uid_hasher import UidHasher

NEWER, DIFFERS, SUFFIX = "newer", "differs-", ".dcm"
ConflictChoice = Literal["old", "new"]
_CHUNK = 2**20
# Attributes that archives write when they return an instance, and the encoding of its text.
_OF_THE_WAY = {"SpecificCharacterSet", "RetrieveAETitle", "RetrieveURL", "InstanceAvailability"}
_OF_THE_SYNTAX = {"PhotometricInterpretation", "PlanarConfiguration", "PixelData"}  # differ between transfer syntaxes


@dataclass(frozen=True)
class StudyConflict:
    """Conflict of a study that an operator has to decide.

    Attributes:
        versions: Number of instances with another version.
        attributes: Keywords of the attributes that differ between versions.
        patients: Names of the patient attributes for which the study has several values.
    """

    versions: int
    attributes: tuple[str, ...]
    patients: tuple[str, ...]

    def describe(self) -> str:
        """Describe the conflict, without any value."""
        told = []
        if self.patients:
            told.append(f"It has instances of two patients: {_and(self.patients)} differ.")
        if self.versions:
            shown = ", ".join(self.attributes[:8]) + (", ..." if len(self.attributes) > 8 else "")
            told.append(f"{self.versions} instance(s) were received again with different content ({shown}).")
        return " ".join(told)


def find_conflict(folder: Path) -> StudyConflict | None:
    """Return the conflict of the study in ``folder``; None if there is none."""
    newer = folder / NEWER
    versions = {file.name for file in newer.glob(f"*/*{SUFFIX}")}
    patients = tuple(conflicting_attributes(folder))
    if not versions and not patients:
        return None
    attributes = sorted(mark.name.removeprefix(DIFFERS) for mark in newer.glob(f"{DIFFERS}*"))
    return StudyConflict(len(versions), tuple(attributes), patients)


def keep_other_version(folder: Path, name: str, file: Path, attributes: Sequence[str]) -> None:
    """Keep another version of an instance, unless the same version is kept already.

    Args:
        folder: Folder of the study.
        name: File name of the instance, which is in ``folder``.
        file: File of the other version, which is not moved.
        attributes: Keywords of the attributes that differ.
    """
    newer = folder / NEWER
    newer.mkdir(exist_ok=True)
    number = 1
    while (there := newer / str(number) / name).exists():
        if filecmp.cmp(there, file, shallow=False):
            return
        number += 1
    there.parent.mkdir(exist_ok=True)
    for keyword in attributes[:20]:
        (newer / f"{DIFFERS}{keyword}").touch()
    os.link(file, there)
    for one in (there.parent, newer, folder):
        sync(one)


def differing_attributes(old: Path, new: Path) -> list[str]:
    """Return the keywords of the attributes that differ between two versions of an instance, in order."""
    if filecmp.cmp(old, new, shallow=False):
        return []
    try:
        return _differences(old, new)
    except Exception:  # noqa: BLE001 - pydicom raises many kinds; a version that cannot be compared counts as different
        return ["UnreadableAttribute"]


def _differences(old: Path, new: Path) -> list[str]:
    with old.open("rb") as one, new.open("rb") as other:
        first = pydicom.dcmread(one, stop_before_pixels=True, force=True)
        second = pydicom.dcmread(other, stop_before_pixels=True, force=True)
        same_syntax = first.file_meta.get("TransferSyntaxUID") == second.file_meta.get("TransferSyntaxUID")
        found = []
        for tag in sorted({*first.keys(), *second.keys()}):
            if tag.element == 0 or (tag in first and tag in second and first[tag].value == second[tag].value):
                continue
            keyword = pydicom.datadict.keyword_for_tag(tag) or ("Private" if tag.is_private else "Unknown")
            if keyword not in _OF_THE_WAY and keyword not in found:
                found.append(keyword)
        if not same_syntax:
            return [keyword for keyword in found if keyword not in _OF_THE_SYNTAX]
        if first.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            same = pydicom.dcmread(old).get("PixelData") == pydicom.dcmread(new).get("PixelData")
        else:  # both streams are at the beginning of the pixels
            same = _same_rest(one, other)
    return found if same else [*found, "PixelData"]


def _same_rest(one: BinaryIO, other: BinaryIO) -> bool:
    while True:
        first, second = one.read(_CHUNK), other.read(_CHUNK)
        if first != second:
            return False
        if not first:
            return True


def count_changes(folder: Path, hasher: UidHasher, choice: ConflictChoice) -> tuple[int, int]:
    """Return the numbers of instances that a decision would replace, and of another patient that it would delete."""
    newer = {file.name: file for file in _versions(folder)}  # last version of each instance
    replaced = newer if choice == "new" else {}
    kept = _chosen(folder, choice)
    there = {file.name: file for file in folder.glob(f"*{SUFFIX}")} | replaced
    deleted = sum(not is_same_patient(hash_patient(read_values(file), hasher), kept) for file in there.values())
    return len(replaced), deleted


def resolve_conflict(folder: Path, hasher: UidHasher, choice: ConflictChoice) -> None:
    """Keep the versions and the patient that were received first, or those received last; can be resumed.

    Instances of another patient are deleted, because a study belongs to one patient.

    Args:
        folder: Folder of the study.
        hasher: Keyed hashes of the patients' attributes.
        choice: Versions to keep: ``old`` or ``new``.
    """
    kept = _chosen(folder, choice)
    if choice == "new":
        for file in _versions(folder):
            Path(file).replace(folder / file.name)
        sync(folder)
    marks: set[str] = set()
    for file in folder.glob(f"*{SUFFIX}"):
        values = read_values(file)
        if is_same_patient(hash_patient(values, hasher), kept):
            marks.update(mark_names(values, hasher))
        else:
            file.unlink()
    with suppress(FileNotFoundError):
        shutil.rmtree(folder / NEWER)
    delete_other_marks(folder, marks)
    sync(folder)


def _versions(folder: Path) -> list[Path]:
    """Return the files of the other versions, earlier ones first."""
    return sorted((folder / NEWER).glob(f"*/*{SUFFIX}"), key=lambda file: int(file.parent.name))


def _chosen(folder: Path, choice: ConflictChoice) -> PatientHashes:
    at = 0 if choice == "old" else -1
    return {kind: values[at] for kind, values in patient_hashes(folder).items() if values}


def _and(words: tuple[str, ...]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
