"""Instances that came again under the same UID with another content, and studies with instances of two patients.

The instance that came first stays where it is. Later versions are kept beside it until an operator decides:

    studies/STUDY/newer/N/INSTANCE.dcm     version N of an instance, from 1
    studies/STUDY/newer/differs-KEYWORD    an empty file for each attribute that differs

A difference that another transfer syntax or the way through an archive makes is none.
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
# What archives write when they give an instance, and how its text is encoded.
_OF_THE_WAY = {"SpecificCharacterSet", "RetrieveAETitle", "RetrieveURL", "InstanceAvailability"}
_OF_THE_SYNTAX = {"PhotometricInterpretation", "PlanarConfiguration", "PixelData"}  # when it is another one


@dataclass(frozen=True)
class StudyConflict:
    """What is to be decided of a study.

    Attributes:
        versions: Number of instances of which another version came.
        attributes: Keywords of the attributes that differ between versions.
        patients: Attributes of the patient of which the study has several values, in words.
    """

    versions: int
    attributes: tuple[str, ...]
    patients: tuple[str, ...]

    def describe(self) -> str:
        """What is in conflict, without any value."""
        told = []
        if self.patients:
            told.append(f"It has instances of two patients: {_and(self.patients)} differ.")
        if self.versions:
            shown = ", ".join(self.attributes[:8]) + (", ..." if len(self.attributes) > 8 else "")
            told.append(f"{self.versions} instance(s) came again with another content ({shown}).")
        return " ".join(told)


def find_conflict(folder: Path) -> StudyConflict | None:
    """What is to be decided of the study in ``folder``; None where nothing is."""
    newer = folder / NEWER
    versions = {file.name for file in newer.glob(f"*/*{SUFFIX}")}
    patients = tuple(conflicting_attributes(folder))
    if not versions and not patients:
        return None
    attributes = sorted(mark.name.removeprefix(DIFFERS) for mark in newer.glob(f"{DIFFERS}*"))
    return StudyConflict(len(versions), tuple(attributes), patients)


def keep_other_version(folder: Path, name: str, file: Path, attributes: Sequence[str]) -> None:
    """Keep another version of an instance, unless it is kept already.

    Args:
        folder: Folder of the study.
        name: File name of the instance, which is in ``folder``.
        file: The other version, which stays where it is.
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
    """Keywords of the attributes that differ between two versions of an instance, in order."""
    if filecmp.cmp(old, new, shallow=False):
        return []
    try:
        return _differences(old, new)
    except Exception:  # noqa: BLE001 - pydicom raises many kinds; what cannot be compared is taken to differ
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
        else:  # both streams stand where the pixels begin
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
    """What a decision would do: how many instances it replaces, and how many of another patient it deletes."""
    newer = {file.name: file for file in _versions(folder)}  # the last version of each
    replaced = newer if choice == "new" else {}
    kept = _chosen(folder, choice)
    there = {file.name: file for file in folder.glob(f"*{SUFFIX}")} | replaced
    deleted = sum(not is_same_patient(hash_patient(read_values(file), hasher), kept) for file in there.values())
    return len(replaced), deleted


def resolve_conflict(folder: Path, hasher: UidHasher, choice: ConflictChoice) -> None:
    """Keep the versions and the patient that came first, or take those that came last; begun again it does the rest.

    Instances of another patient are deleted, since a study is of one patient.

    Args:
        folder: Folder of the study.
        hasher: Keyed hashes of the patients' attributes.
        choice: ``old`` or ``new``.
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
    """Files of the other versions, earlier ones first."""
    return sorted((folder / NEWER).glob(f"*/*{SUFFIX}"), key=lambda file: int(file.parent.name))


def _chosen(folder: Path, choice: ConflictChoice) -> PatientHashes:
    at = 0 if choice == "old" else -1
    return {kind: values[at] for kind, values in patient_hashes(folder).items() if values}


def _and(words: tuple[str, ...]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
