"""What every DICOM object made from a series has in common: who made it, its UIDs, the patient and the study.

UIDs are derived from what an object was made of, so that the same model on the same series gives the same object again
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
from semiseg.outputs.report import NOTICE
from semiseg.system.durable_files import atomic_file
from semiseg.volumes.dicom_series import DicomSeries
from semiseg.volumes.segmentation import Segment, Segmentation
from semiseg.volumes.volume import same_grid

MANUFACTURER = "semiseg"
SERIES_NUMBERS = {"SEG": 900, "RTSTRUCT": 901, "SR": 902, "overlay": 903}  # far behind those of a scanner
LONG_STRING, LONG_TEXT = 64, 10240  # characters (PS3.5 table 6.2-1)
REQUIRED_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
PATIENT_AND_STUDY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex",
    "AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
"""Attributes of the Patient and General Study modules that have to be there, if only empty (PS3.3 C.7.1.1, C.7.2.1)."""
_ALSO_REPEATED = (
    "IssuerOfPatientID", "TypeOfPatientID", "IssuerOfPatientIDQualifiersSequence", "PatientBirthTime",
    "OtherPatientIDsSequence", "OtherPatientNames", "ReferencedPatientSequence", "PatientSpeciesDescription",
    "PatientSpeciesCodeSequence", "PatientBreedDescription", "PatientBreedCodeSequence", "BreedRegistrationSequence",
    "ResponsiblePerson", "ResponsiblePersonRole", "ResponsibleOrganization", "StrainDescription",
    "PatientAge", "PatientSize", "PatientWeight", "PatientSexNeutered",
    "StudyDescription", "IssuerOfAccessionNumberSequence", "ReferencedStudySequence", "ProcedureCodeSequence",
    "LongitudinalTemporalInformationModified",
)  # fmt: skip
"""Attributes of these modules and of the Patient Study module (C.7.2.2) that are repeated where the source has them.

Without the issuer a Patient ID is another patient's in a hospital with two registries; without the species an animal's
scan is a person's; the group 0012 says that a scan was de-identified, and for which trial.
"""
_METHOD_UNKNOWN = "not stated by the source images"
_TRIAL_GROUP = 0x0012
_WHOSE = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate")
_NAMESPACE = uuid.UUID("0d5a6d9e-1f0b-5b8e-9a35-6c1f5b3c7e21")


@dataclass(frozen=True)
class Algorithm:
    """Which model drew a segmentation.

    Attributes:
        name: the model's name.
        version: its version.
        model_sha256: SHA-256 of the model file, as hexadecimal digits.
    """

    name: str
    version: str
    model_sha256: str


def require_same_grid(segmentation: Segmentation, series: DicomSeries, what: str) -> None:
    """Refuse a segmentation that was not drawn on a series, and a series that nothing can refer to.

    Raises:
        VolumeError: the grids differ, or an image lacks a UID; the sentence says so of a ``what``, such as "SEG".
    """
    if segmentation.shape != series.volume.shape or not same_grid(
        segmentation.affine, series.volume.affine, series.volume.shape
    ):
        raise VolumeError(
            f"A DICOM {what} lies on its series' own grid, and the segmentation lies on another one: its shape is "
            f"{segmentation.shape}, the series' is {series.volume.shape}, or their affines differ."
        )
    for instance in series.instances:
        for keyword in REQUIRED_UIDS:
            if not instance.get(keyword):
                raise VolumeError(
                    f"The source images lack {keyword} (removed by an anonymiser?), so no {what} can refer to them; "
                    f"ask for NIfTI instead."
                )


def copy_patient_and_study(made: pydicom.Dataset, instance: pydicom.Dataset) -> None:
    """Give an object the source's patient and study, letter for letter, so that an archive files them together.

    An optional age, number, date, time or code whose value its representation does not allow, such as the age "42" for
    "042Y" (PS3.5 table 6.2-1), is left out: it would make the object invalid.
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
        made.DeidentificationMethod = _METHOD_UNKNOWN  # type 1C (PS3.3 C.7.1.1), and some scans leave it empty


def _worth_repeating(element: pydicom.DataElement) -> bool:
    """Whether what need not be there says something, in the form of its kind: an age of "42" is none (PS3.5 6.2)."""
    if element.is_empty or element.VR not in ("AS", "CS", "DA", "DS", "TM"):
        return not element.is_empty
    try:
        for one in element.value if isinstance(element.value, MultiValue) else [element.value]:
            validate_value(element.VR, str(one), RAISE)
    except ValueError:
        return False
    return True


def _decoded(element: pydicom.DataElement) -> pydicom.DataElement:
    """A copy whose text is decoded: the object is in UTF-8, whatever character set the source was in."""
    repeated = copy.deepcopy(element)
    if repeated.VR == "SQ":
        for item in repeated.value:
            for _ in item.iterall():  # pydicom decodes what is looked at
                pass
    return repeated


def series_description(algorithm: Algorithm) -> str:
    """The model and the notice."""
    room = LONG_STRING - len(NOTICE) - 1
    return f"{algorithm.name[:room]} {NOTICE}"


def content_hash(series: DicomSeries, algorithm: Algorithm, segments: Sequence[Segment]) -> str:
    """One hash of everything an object is made of: source instances, model, segments, and the version that makes it.

    An object says which version made it, so another version makes another object, with other UIDs. It also says whose
    it is: after a correction of the patient an archive must not take the new object for the one that it has.
    """
    parts = [_package_version(), series.uid, algorithm.name, algorithm.version, algorithm.model_sha256]
    parts += [segment.model_dump_json() for segment in segments]
    parts += [str(instance.get("SOPInstanceUID")) for instance in series.instances]
    parts += [str(series.instances[0].get(keyword) or "") for keyword in _WHOSE]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def derive_uid(identity: str, role: str) -> str:
    """A UID of the form 2.25.<UUID as a decimal number> (PS3.5 B.2), the same for the same arguments."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, f'{identity} {role}').int}"


def software_versions(algorithm: Algorithm) -> tuple[str, str]:
    """Of semiseg and of the model."""
    return (f"semiseg {_package_version()}"[:LONG_STRING], algorithm.version[:LONG_STRING])


def _package_version() -> str:
    try:
        return version("semiseg")
    except PackageNotFoundError:
        return "unknown"


def write_dicom(path: Path, made: pydicom.Dataset) -> None:
    """Write an object as a DICOM file, atomically."""
    with atomic_file(Path(path)) as file:
        made.save_as(file, enforce_file_format=True)
