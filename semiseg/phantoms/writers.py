"""Writers of phantoms: a dataset folder for training, or a DICOM series."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage
from pydicom.valuerep import format_number_as_ds

from semiseg.errors import VolumeError
from semiseg.phantoms.anatomy import SEGMENTS, Modality, make_phantom
from semiseg.volumes.dicom_geometry import lps_to_ras
from semiseg.volumes.nifti import write_nifti, write_segmentation
from semiseg.volumes.volume import Volume

_NAMESPACE = uuid.UUID("8c1b2f60-3d0e-5f6b-8a55-2f0a7c1d9e44")


def write_dataset(
    folder: Path,
    *,
    cases: int = 40,
    labelled: int = 4,
    test: int = 8,
    development: int = 0,
    seed: int = 0,
    shape: tuple[int, int, int] = (64, 64, 40),
    spacing: tuple[float, float, float] = (1.5, 1.5, 2.5),
) -> list[str]:
    """Write a dataset folder in the format of the Medical Segmentation Decathlon, with a split.

    ``dataset.json``, ``imagesTr/`` and ``labelsTr/`` contain every case, including the labels of unlabelled ones, so
    that results can be evaluated. ``split.json`` lists the test, labelled and unlabelled cases.

    Args:
        folder: Folder of the dataset; it is created if it does not exist.
        cases: Total number of phantoms.
        labelled: Number of training cases that are labelled.
        test: Number of test cases.
        development: Number of further cases for the choice of settings.
        seed: Seed of the first phantom, from which the seeds of the others follow.
        shape: Number of voxels along X, Y, Z.
        spacing: Voxel spacing in mm.

    Returns:
        Ids of the cases.
    """
    train = cases - test - development
    if not 0 < labelled <= train:
        raise ValueError(f"{cases} cases less {test + development} held out leave {train}, not {labelled}, to label.")
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    ids = [f"phantom_{number:03d}" for number in range(1, cases + 1)]
    for number, case in enumerate(ids):
        phantom = make_phantom(seed * 100_003 + number, shape, spacing)
        write_nifti(folder / "imagesTr" / f"{case}.nii.gz", phantom.image.array, phantom.image.affine)
        write_segmentation(folder / "labelsTr" / f"{case}.nii.gz", phantom.labels)
    _write_json(folder / "dataset.json", _description(ids))
    # All cases are independent random draws, so the first ones can be the test cases.
    held_out, rest = ids[:test], ids[test:]
    learning = sorted(rest[development:])
    split = {
        "seed": seed,
        "method": "Phantoms are independent draws, so the split is by number: test, development, train.",
        "test": held_out,
        "train": learning,
        "labelled": {str(labelled): learning[:labelled]},
        "unlabelled": {str(labelled): learning[labelled:]},
        "development": rest[:development],
    }
    _write_json(folder / "split.json", split)
    return ids


def write_dicom_series(
    folder: Path,
    volume: Volume,
    *,
    patient_id: str = "PHANTOM",
    description: str = "Phantom",
    seed: int = 0,
    modality: Modality = "MR",
) -> list[Path]:
    """Write a volume as a series of single-frame MR or CT images (PS3.3 A.4, A.3); it may be oblique.

    The order of the file names differs from the order of the slices. The same arguments give the same UIDs.

    Args:
        folder: Folder of the files; it is created if it does not exist.
        volume: Volume of integers that fit into 16 bits; the affine may be rotated, but not sheared.
        patient_id: Patient ID; the patient's name is Phantom^<patient_id>.
        description: Series Description.
        seed: Seed of the order of the file names and, with the id and description, of the UIDs.
        modality: Modality, "MR" or "CT".

    Returns:
        Paths of the files, in the order of the array's slices.

    Raises:
        VolumeError: The images cannot represent the values or the geometry of the volume.
    """
    offset = 1024 if modality == "CT" else 0
    low, high = int(volume.array.min()) + offset, int(volume.array.max()) + offset
    if volume.array.dtype.kind not in "iu" or low < -(2**15) or high >= 2**15:
        raise VolumeError(f"DICOM images need 16-bit integers; this volume is {volume.array.dtype}, {low} to {high}.")
    lps = lps_to_ras(volume.affine)
    lengths = np.linalg.norm(lps[:3, :3], axis=0)
    directions = lps[:3, :3] / lengths
    if not np.allclose(directions.T @ directions, np.eye(3), atol=1e-4):
        raise VolumeError("A DICOM series has perpendicular axes; this volume's affine is sheared.")
    folder.mkdir(parents=True, exist_ok=True)
    names = np.random.default_rng(seed).permutation(volume.shape[2])
    files = []
    for z in range(volume.shape[2]):
        image = _image(volume, lps, z, modality, f"{patient_id} {description} {seed}")
        image.PatientID = patient_id
        image.PatientName = f"Phantom^{patient_id}"
        image.SeriesDescription = description
        image.PixelData = (volume.array[:, :, z].T.astype(np.int32) + offset).astype("<i2").tobytes()
        files.append(folder / f"IM{int(names[z]) + 1:04d}.dcm")
        image.save_as(files[-1], enforce_file_format=True)
    return files


def _image(volume: Volume, lps: Any, z: int, modality: Modality, identity: str) -> pydicom.Dataset:
    """Return one slice with the required attributes of the IOD and the geometry of the volume."""
    image = pydicom.Dataset()
    image.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    image.SOPInstanceUID = _uid(identity, f"instance {z}")
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SpecificCharacterSet = "ISO_IR 192"
    image.StudyInstanceUID, image.SeriesInstanceUID = _uid(identity, "study"), _uid(identity, "series")
    image.FrameOfReferenceUID = _uid(identity, "frame of reference")
    for keyword in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
        setattr(image, keyword, "20260101")
    for keyword in ("StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime"):
        setattr(image, keyword, "120000")
    for keyword in ("AccessionNumber", "ReferringPhysicianName", "PatientBirthDate", "PatientSex", "StudyID"):
        setattr(image, keyword, "")
    image.PositionReferenceIndicator = ""
    image.StudyID, image.SeriesNumber, image.AcquisitionNumber, image.InstanceNumber = "1", 1, 1, z + 1
    image.Modality, image.Manufacturer, image.PatientPosition = modality, "semiseg phantoms", "HFS"
    image.BodyPartExamined = "ABDOMEN"
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "OTHER"]
    _geometry(image, volume, lps, z)
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    if modality == "CT":
        image.RescaleIntercept, image.RescaleSlope, image.RescaleType = -1024, 1, "HU"
        image.KVP, image.WindowCenter, image.WindowWidth = 120, 60, 400
    else:
        image.ScanningSequence, image.SequenceVariant, image.ScanOptions = "GR", "NONE", ""
        image.MRAcquisitionType, image.RepetitionTime, image.EchoTime, image.EchoTrainLength = "2D", 100, 4, 1
    return image


def _geometry(image: pydicom.Dataset, volume: Volume, lps: Any, z: int) -> None:
    x_mm, y_mm, z_mm = volume.spacing
    position = lps[:3, 3] + z * lps[:3, 2]
    image.ImagePositionPatient = [format_number_as_ds(float(v)) for v in position]
    cosines = [*(lps[:3, 0] / x_mm), *(lps[:3, 1] / y_mm)]
    image.ImageOrientationPatient = [format_number_as_ds(float(v)) for v in cosines]
    image.PixelSpacing = [format_number_as_ds(y_mm), format_number_as_ds(x_mm)]
    image.SliceThickness = format_number_as_ds(z_mm)
    image.Columns, image.Rows, _ = volume.shape


def _description(ids: list[str]) -> dict[str, Any]:
    return {
        "name": "Phantoms",
        "description": "Procedural abdomens made by semiseg; not patients",
        "licence": "CC0-1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "MR"},
        "channel_names": {"0": "MR"},
        "labels": {"0": "background", **{str(s.label): s.name for s in SEGMENTS}},
        "numTraining": len(ids),
        "numTest": 0,
        "training": [
            {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in ids
        ],
        "test": [],
    }  # fmt: skip


def _uid(identity: str, role: str) -> str:
    return f"2.25.{uuid.uuid5(_NAMESPACE, f'{identity} {role}').int}"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8", newline="\n")
