"""Common parts of all DICOM results: equipment, UIDs, patient and study.

UIDs are derived from the inputs of an object, so that the same model on the same series produces the same object again
and not a second one.
"""

from __future__ import annotations

import copy
import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pydicom
from pydicom.config import RAISE
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.valuerep import validate_value

from semiseg.errors import VolumeError
from semiseg.outputs.report import NOTICE, ModelIdentity
from semiseg.system.durable_files import atomic_file
from semiseg.volumes.dicom_series import DicomSeries
from semiseg.volumes.segmentation import Segment, Segmentation
from semiseg.volumes.volume import same_grid

MANUFACTURER = "semiseg"
SERIES_NUMBERS = {"SEG": 900, "RTSTRUCT": 901, "SR": 902, "overlay": 903}  # far above those of scanners
LONG_STRING, LONG_TEXT = 64, 10240  # characters (PS3.5 table 6.2-1)
REQUIRED_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
PATIENT_AND_STUDY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex",
    "AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
"""Attributes of the Patient and General Study modules that must be present, possibly empty (PS3.3 C.7.1.1, C.7.2.1)."""
_ALSO_REPEATED = (
    "IssuerOfPatientID", "TypeOfPatientID", "IssuerOfPatientIDQualifiersSequence", "PatientBirthTime",
    "OtherPatientIDsSequence", "OtherPatientNames", "ReferencedPatientSequence", "PatientSpeciesDescription",
    "PatientSpeciesCodeSequence", "PatientBreedDescription", "PatientBreedCodeSequence", "BreedRegistrationSequence",
    "ResponsiblePerson", "ResponsiblePersonRole", "ResponsibleOrganization", "StrainDescription",
    "PatientAge", "PatientSize", "PatientWeight", "PatientSexNeutered",
    "StudyDescription", "IssuerOfAccessionNumberSequence", "ReferencedStudySequence", "ProcedureCodeSequence",
    "LongitudinalTemporalInformationModified",
)  # fmt: skip
"""Attributes of these modules and of the Patient Study module (C.7.2.2) that are copied if the source has them.

Without the issuer a Patient ID is ambiguous in a hospital with two registries; without the species an animal's scan
appears to be a person's; the group 0012 states that a scan was de-identified, and for which trial.
"""
_METHOD_UNKNOWN = "not stated by the source images"
_TRIAL_GROUP = 0x0012
_WHOSE = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate")
_NAMESPACE = uuid.UUID("0d5a6d9e-1f0b-5b8e-9a35-6c1f5b3c7e21")


@dataclass(frozen=True)
class Algorithm:
    """The model that made a segmentation.

    Attributes:
        name: Name of the model.
        version: Version of the model.
        model_sha256: SHA-256 of the model file, as hexadecimal digits.
    """

    name: str
    version: str
    model_sha256: str

    @classmethod
    def from_identity(cls, model: ModelIdentity) -> Algorithm:
        """Convert the identity of a model in a report."""
        return cls(name=model.name, version=model.version, model_sha256=model.sha256 or "not exported")


def require_same_grid(segmentation: Segmentation, series: DicomSeries, what: str) -> None:
    """Check that a segmentation is on the grid of a series, and that the series has the UIDs to refer to.

    Args:
        segmentation: The segmentation.
        series: The series.
        what: Kind of object for the error message, such as "SEG".

    Raises:
        VolumeError: The grids differ, or an image lacks a UID.
    """
    if segmentation.shape != series.volume.shape or not same_grid(
        segmentation.affine, series.volume.affine, series.volume.shape
    ):
        raise VolumeError(
            f"A DICOM {what} must be on the grid of its series, but the segmentation is on another grid: its shape is "
            f"{segmentation.shape}, the series' is {series.volume.shape}, or their affines differ."
        )
    for instance in series.instances:
        for keyword in REQUIRED_UIDS:
            if not instance.get(keyword):
                raise VolumeError(
                    f"The source images lack {keyword} (removed by an anonymiser?), so no {what} can refer to them; "
                    f"use NIfTI instead."
                )


def copy_patient_and_study(made: pydicom.Dataset, instance: pydicom.Dataset) -> None:
    """Copy the source's patient and study attributes unchanged, so that an archive files the objects together.

    An optional age, number, date, time or code with a value that its value representation does not allow, such as the
    age "42" instead of "042Y" (PS3.5 table 6.2-1), is left out, because it would make the object invalid.
    """
    for keyword in PATIENT_AND_STUDY:
        setattr(made, keyword, "")
    trial = [tag for tag in map(Tag, instance.keys()) if tag.group == _TRIAL_GROUP]
    for tag in map(Tag, PATIENT_AND_STUDY):
        if tag in instance:
            made[tag] = _decoded(instance[tag])
    for tag in [*map(Tag, _ALSO_REPEATED), *trial]:
        if tag in instance and _worth_repeating(instance[tag]):
            made[tag] = _decoded(instance[tag])
    methods = ("DeidentificationMethod", "DeidentificationMethodCodeSequence")
    if made.get("PatientIdentityRemoved") == "YES" and not any(method in made for method in methods):
        made.DeidentificationMethod = _METHOD_UNKNOWN  # type 1C (PS3.3 C.7.1.1), but empty in some scans


def _worth_repeating(element: pydicom.DataElement) -> bool:
    """Return True if an optional attribute has a valid value for its value representation (PS3.5 6.2)."""
    if element.is_empty or element.VR not in ("AS", "CS", "DA", "DS", "TM"):
        return not element.is_empty
    try:
        for one in element.value if isinstance(element.value, MultiValue) else [element.value]:
            validate_value(element.VR, str(one), RAISE)
    except ValueError:
        return False
    return True


def _decoded(element: pydicom.DataElement) -> pydicom.DataElement:
    """Return a copy with decoded text, because the object is written in UTF-8 regardless of the source's encoding."""
    repeated = copy.deepcopy(element)
    if repeated.VR == "SQ":
        for item in repeated.value:
            for _ in item.iterall():  # pydicom decodes elements when they are accessed
                pass
    return repeated


def series_description(algorithm: Algorithm) -> str:
    """Return the Series Description: the model's name and the notice."""
    room = LONG_STRING - len(NOTICE) - 1
    return f"{algorithm.name[:room]} {NOTICE}"


def content_hash(series: DicomSeries, algorithm: Algorithm, segments: Sequence[Segment]) -> str:
    """Return a hash of the inputs of an object: source instances, model, segments, version of semiseg, and patient.

    An object contains the version of semiseg, so another version must produce other UIDs. An object also contains the
    patient: after a correction of the patient, an archive must not confuse the new object with the one that it has.
    """
    parts = [_package_version(), series.uid, algorithm.name, algorithm.version, algorithm.model_sha256]
    parts += [segment.model_dump_json() for segment in segments]
    parts += [str(instance.get("SOPInstanceUID")) for instance in series.instances]
    parts += [str(series.instances[0].get(keyword) or "") for keyword in _WHOSE]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def derive_uid(identity: str, role: str) -> str:
    """Return a UID of the form 2.25.<UUID as a decimal number> (PS3.5 B.2), the same for the same arguments."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, f'{identity} {role}').int}"


def software_versions(algorithm: Algorithm) -> tuple[str, str]:
    """Return the versions of semiseg and of the model."""
    return (f"semiseg {_package_version()}"[:LONG_STRING], algorithm.version[:LONG_STRING])


def _package_version() -> str:
    try:
        return version("semiseg")
    except PackageNotFoundError:
        return "unknown"


def write_dicom(path: Path, made: pydicom.Dataset) -> None:
    """Write an object as a DICOM file atomically."""
    with atomic_file(Path(path)) as file:
        made.save_as(file, enforce_file_format=True)
