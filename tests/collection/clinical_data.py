"""What a clinic's folders hold, made for one test: series with SEG and RTSTRUCT objects drawn on them."""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from scipy.spatial.transform import Rotation

from semiseg.collection import CollectionResult, ReportEntry
from semiseg.dataset import check_dataset, load_dataset
from semiseg.outputs.dicom_common import Algorithm, write_dicom
from semiseg.outputs.dicom_seg import segmentation_to_seg
from semiseg.phantoms.anatomy import make_phantom
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.dicom_geometry import lps_to_ras
from semiseg.volumes.dicom_series import DicomSeries, read_series
from semiseg.volumes.segmentation import Segmentation
from semiseg.volumes.volume import Volume, reorient

ALGORITHM = Algorithm(name="reader", version="1", model_sha256="0" * 64)
DIRECTIONS = {"axial": "LPS", "sagittal": "PIR", "coronal": "LIA", "oblique": "LPS", "upside down": "RAI"}
"""The way the columns, rows and slices of a series run, besides a turn for the oblique one."""


NAMES = {"liver": 1, "spleen": 2, "kidneys": 3}
"""The phantom's segments and their labels."""

Case = tuple[DicomSeries, NDArray[np.uint8]]
"""A series and the labels on its grid."""


def make_scan(seed: int, direction: str = "axial") -> tuple[Volume, NDArray[np.uint8]]:
    """A phantom's image and labels with its axes along ``direction``."""
    phantom = make_phantom(seed, (26, 22, 12), (3.7, 4.3, 8.0))
    codes = DIRECTIONS[direction]
    image, affine = reorient(phantom.image.array, phantom.image.affine, codes)
    labels, _ = reorient(phantom.labels.array, phantom.image.affine, codes)
    if direction == "oblique":
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_euler("xyz", (17, -9, 28), degrees=True).as_matrix()
        affine = turn @ affine
    return Volume(np.ascontiguousarray(image), affine), np.ascontiguousarray(labels)


def write_scan(
    folder: Path, seed: int, direction: str = "axial", *, patient: str = "", description: str = "Phantom"
) -> tuple[DicomSeries, NDArray[np.uint8]]:
    """Write a phantom as a DICOM series; the series as the reader has it, and the labels on that grid."""
    volume, labels = make_scan(seed, direction)
    files = write_dicom_series(folder, volume, seed=seed, patient_id=patient or f"P{seed}", description=description)
    series = read_series(files)
    if not np.array_equal(series.volume.array, volume.array):  # the reader sorts slices along their normal
        labels = labels[:, :, ::-1]
        assert np.array_equal(series.volume.array, volume.array[:, :, ::-1])
    return series, np.ascontiguousarray(labels)


def files_by_position(folder: Path) -> list[Path]:
    """The files of a series along their normal; their names and numbers are in another order."""
    return [one.path for one in read_series(sorted(folder.glob("IM*.dcm"))).slices]


def make_segmentation(series: DicomSeries, labels: NDArray[np.uint8]) -> Segmentation:
    """The phantom's labels as liver, spleen and kidneys."""
    phantom = make_phantom(0, (8, 8, 4))
    return Segmentation(phantom.labels.segments, labels, series.volume.affine)


def write_labels_as_seg(path: Path, series: DicomSeries, labels: NDArray[np.uint8]) -> pydicom.Dataset:
    """Write the labels as a SEG on their series."""
    seg = segmentation_to_seg(make_segmentation(series, labels), series, algorithm=ALGORITHM)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_dicom(path, seg)
    return seg


def trace_contours(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Closed contours (N, 3), LPS mm, along the edges of the voxels of a mask, slice by slice; holes are contours."""
    out = []
    to_lps = lps_to_ras(affine)
    for k in np.flatnonzero(mask.any(axis=(0, 1))):
        for loop in _loops(mask[:, :, k]):
            points = np.column_stack([loop, np.full(len(loop), k)])
            out.append(points @ to_lps[:3, :3].T + to_lps[:3, 3])
    return out


def _loops(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Loops of corners around the pixels of a mask: the edges that two pixels share cancel."""
    edges: set[tuple[tuple[int, int], tuple[int, int]]] = set()
    for i, j in np.argwhere(mask).tolist():
        corners = [(i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)]
        for start, end in zip(corners, [*corners[1:], corners[0]], strict=True):
            if (end, start) in edges:
                edges.remove((end, start))
            else:
                edges.add((start, end))
    following: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for start, end in sorted(edges):
        following[start].append(end)
    loops = []
    while following:
        first = point = next(iter(following))
        loop = []
        while True:
            loop.append(point)
            ends = following[point]
            after = ends.pop()
            if not ends:
                del following[point]
            point = after
            if point == first:
                break
        loops.append(np.array(loop, dtype=np.float64) - 0.5)
    return loops


def make_rtstruct(
    series: DicomSeries, structures: Mapping[str, Sequence[NDArray[np.float64]]], kind: str = "CLOSED_PLANAR"
) -> pydicom.Dataset:
    """A structure set (PS3.3 A.19) on a series, from contours (N, 3) in LPS mm."""
    first = series.instances[0]
    out = pydicom.Dataset()
    out.file_meta = FileMetaDataset()
    out.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out.SOPClassUID, out.SOPInstanceUID = RTStructureSetStorage, generate_uid()
    out.SeriesInstanceUID, out.StudyInstanceUID = generate_uid(), series.study_uid
    out.Modality, out.PatientID, out.PatientName = "RTSTRUCT", first.PatientID, first.PatientName
    images = []
    for instance in series.instances:
        image = pydicom.Dataset()
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = instance.SOPClassUID, instance.SOPInstanceUID
        images.append(image)
    one, study, frame = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    one.SeriesInstanceUID, one.ContourImageSequence = series.uid, images
    study.ReferencedSOPInstanceUID, study.RTReferencedSeriesSequence = series.study_uid, [one]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = first.FrameOfReferenceUID, [study]
    out.ReferencedFrameOfReferenceSequence = [frame]
    out.StructureSetROISequence, out.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(structures.items(), start=1):
        roi, drawn = pydicom.Dataset(), pydicom.Dataset()
        roi.ROINumber, roi.ROIName = number, name
        roi.ReferencedFrameOfReferenceUID = first.FrameOfReferenceUID
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for points in contours:
            contour = pydicom.Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [f"{v:.4f}" for v in np.asarray(points).ravel()]
            drawn.ContourSequence.append(contour)
        out.StructureSetROISequence.append(roi)
        out.ROIContourSequence.append(drawn)
    return out


def save_rtstruct(struct: pydicom.Dataset, folder: Path) -> Path:
    """Write an RTSTRUCT as rt.dcm in ``folder``; its path."""
    struct.save_as(folder / "rt.dcm", enforce_file_format=True)
    return folder / "rt.dcm"


def write_labels_as_rtstruct(path: Path, series: DicomSeries, labels: NDArray[np.uint8]) -> pydicom.Dataset:
    """Write the labels as contours along the voxels' edges."""
    names = {segment.name: segment.label for segment in make_segmentation(series, labels).segments}
    struct = make_rtstruct(series, {n: trace_contours(labels == v, series.volume.affine) for n, v in names.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    struct.save_as(path, enforce_file_format=True)
    return struct


def find_lines(collected: CollectionResult, status: str, what: str) -> list[ReportEntry]:
    return [line for line in collected.entries if (line.status, line.what) == (status, what)]


def find_case_id(collected: CollectionResult, folder: str) -> str:
    """The case id that the mapping gives the scan of a folder."""
    with collected.mapping.open(newline="") as file:
        (found,) = [row["case"] for row in csv.DictReader(file) if row["folder"] == folder]
    return found


def dataset_errors(folder: Path) -> list[str]:
    return [f.sentence for f in check_dataset(load_dataset(folder)) if f.severity == "error"]


def read_tree(folder: Path) -> bytes:
    """Names and bytes of all files, unpacked and as they are."""
    parts = []
    for path in sorted(folder.rglob("*")):
        parts.append(str(path.relative_to(folder)).encode())
        if path.is_file():
            content = path.read_bytes()
            parts += [content, gzip.decompress(content) if content[:2] == b"\x1f\x8b" else b""]
    return b"\n".join(parts)
