"""Generated DICOM series whose volume is known by construction: classic single-frame objects and enhanced ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import generate_uid

from docs.readers.pixel_encoding import LOSSY, Format, encode

ROOT = "2.25.{}"
ROWS, COLUMNS, SLICES = 11, 13, 4
SPACING = (0.8, 1.25)  # between rows, between columns
GAP = 2.5
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

Layout = Literal["classic", "enhanced", "enhanced_shuffled", "enhanced_own_planes"]

ORIENTATIONS: dict[str, tuple[float, ...]] = {
    "axial": (1, 0, 0, 0, 1, 0),
    "axial_prone": (-1, 0, 0, 0, -1, 0),
    "axial_decubitus": (0, 1, 0, -1, 0, 0),
    "axial_feet_first": (-1, 0, 0, 0, 1, 0),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "coronal": (1, 0, 0, 0, 0, -1),
    "oblique": (0.96, 0.28, 0, -0.28, 0.96, 0),
    "double_oblique": (0.8, 0.36, 0.48, 0, 0.8, -0.6),
}

_CLASSES = {
    ("classic", "CT"): "1.2.840.10008.5.1.4.1.1.2",
    ("classic", "MR"): "1.2.840.10008.5.1.4.1.1.4",
    ("classic", "PT"): "1.2.840.10008.5.1.4.1.1.128",
    ("enhanced", "CT"): "1.2.840.10008.5.1.4.1.1.2.1",
    ("enhanced", "MR"): "1.2.840.10008.5.1.4.1.1.4.1",
    ("enhanced", "PT"): "1.2.840.10008.5.1.4.1.1.130",
}


@dataclass(frozen=True)
class Rescale:
    """Rescale Slope and Intercept of each slice, and where they stand.

    Attributes:
        name: name in the table.
        pairs: slope and intercept of each slice, or one pair of all; none for absent.
        where: ``own`` (the object's, or the frame's functional group), ``shared`` (functional group), or ``root`` (an
            enhanced object's own attributes beside absent functional groups).
        beside_root: an enhanced object's root says something else besides, which must not count (PS3.3 C.7.6.16).
    """

    name: str
    pairs: tuple[tuple[float, float], ...] = ()
    where: Literal["own", "shared", "root"] = "own"
    beside_root: tuple[float, float] | None = None

    def slope_and_intercept(self, z: int) -> tuple[float, float]:
        """Slope and intercept of a slice."""
        return (1.0, 0.0) if not self.pairs else self.pairs[z % len(self.pairs)]


@dataclass(frozen=True)
class GeneratedSeries:
    """One generated series."""

    name: str
    layout: Layout
    modality: str
    syntax: str
    form: Format
    rescale: Rescale
    orientation: str
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """What a series is by construction: values (X, Y, Z) in the order of its positions, affine to RAS+ mm."""

    array: NDArray[np.float64]
    affine: NDArray[np.float64]


def write_series(case: GeneratedSeries, folder: Path, rng: np.random.Generator) -> GroundTruth:
    """Write a series into an empty folder.

    Raises:
        RuntimeError: an encoder does not take such pixels.
    """
    values = case.form.values((SLICES, ROWS, COLUMNS), rng, smooth=case.syntax in LOSSY)
    cells = case.form.cells(values, rng)
    positions, affine = slice_positions(case.orientation)
    if case.layout == "classic":
        kept = _classic(case, folder, cells, positions, rng)
    else:
        kept = _enhanced(case, folder, cells, positions, rng)
    meant = values if kept is None else kept.astype(np.int64)
    scaled = [
        meant[z] * case.rescale.slope_and_intercept(z)[0] + case.rescale.slope_and_intercept(z)[1]
        for z in range(SLICES)
    ]
    return GroundTruth(np.stack([frame.T for frame in scaled], axis=2).astype(np.float64), affine)


def slice_positions(orientation: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions (N, 3) of the slices along their normal, LPS+ mm, and the affine of their stack, RAS+."""
    cosines = np.array(ORIENTATIONS[orientation], dtype=np.float64)
    normal = np.cross(cosines[:3], cosines[3:])
    first = np.array([-31.5, 12.25, 48.0])
    positions = first + np.arange(SLICES)[:, None] * GAP * normal
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = cosines[:3] * SPACING[1], cosines[3:] * SPACING[0]
    affine[:3, 2], affine[:3, 3] = normal * GAP, first
    return positions, LPS_TO_RAS @ affine


def base_dataset(case: GeneratedSeries, *, enhanced: bool, uids: dict[str, str]) -> Dataset:
    """An object without pixels, places and rescaling."""
    out = Dataset()
    out.file_meta = FileMetaDataset()
    out.SOPClassUID = _CLASSES["enhanced" if enhanced else "classic", case.modality]
    out.SOPInstanceUID = generate_uid()
    out.file_meta.MediaStorageSOPClassUID = out.SOPClassUID
    out.file_meta.MediaStorageSOPInstanceUID = out.SOPInstanceUID
    out.ImageType = ["ORIGINAL", "PRIMARY", "M" if case.modality == "MR" else "AXIAL", "NONE"]
    out.Modality, out.SeriesDescription = case.modality, case.name
    out.Manufacturer = "nobody"
    out.PatientID, out.PatientName, out.PatientPosition = "nobody", "nobody", "HFS"
    out.StudyDate = out.SeriesDate = out.AcquisitionDate = "20000101"
    out.StudyTime = out.SeriesTime = out.AcquisitionTime = "120000"
    out.StudyInstanceUID, out.SeriesInstanceUID = uids["study"], uids["series"]
    out.FrameOfReferenceUID = uids["frame"]
    out.SeriesNumber, out.AcquisitionNumber = 1, 1
    out.Rows, out.Columns, out.SamplesPerPixel = ROWS, COLUMNS, 1
    out.PhotometricInterpretation = "MONOCHROME2"
    out.BitsAllocated, out.BitsStored, out.HighBit = case.form.allocated, case.form.stored, case.form.stored - 1
    out.PixelRepresentation = int(case.form.signed)
    if case.syntax in LOSSY:
        out.LossyImageCompression = "01"
    if case.form.unused == "overlay":
        _overlay(out, case.form.stored)
    for keyword, value in case.extra.items():
        if isinstance(value, int) and keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
            out.add_new(keyword, "SS" if case.form.signed else "US", value)
        else:
            setattr(out, keyword, value)
    return out


def new_uids() -> dict[str, str]:
    """UIDs of a study, a series and a frame of reference."""
    return {name: generate_uid() for name in ("study", "series", "frame")}


def decimal_strings(values: Iterable[float]) -> list[str]:
    """Decimal strings of 16 characters at most."""
    return [f"{value:.10g}"[:16] for value in values]


def _classic(
    case: GeneratedSeries, folder: Path, cells: NDArray[Any], positions: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[Any] | None:
    uids, kept = new_uids(), []
    for z, name in enumerate(rng.permutation(len(cells))):
        out = base_dataset(case, enhanced=False, uids=uids)
        out.InstanceNumber = z + 1
        out.ImagePositionPatient = decimal_strings(positions[z])
        out.ImageOrientationPatient = decimal_strings(ORIENTATIONS[case.orientation])
        out.PixelSpacing = decimal_strings(SPACING)
        out.SliceThickness = "2.0"
        if case.rescale.pairs:
            _rescaled(out, case.rescale.slope_and_intercept(z))
        kept.append(encode(out, cells[z : z + 1], case.form, case.syntax, folder / f"{name:03d}.dcm"))
    return None if kept[0] is None else np.concatenate([frame for frame in kept if frame is not None])


def _enhanced(
    case: GeneratedSeries, folder: Path, cells: NDArray[Any], positions: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[Any] | None:
    out = base_dataset(case, enhanced=True, uids=new_uids())
    out.NumberOfFrames, out.InstanceNumber = len(cells), 1
    order = rng.permutation(len(cells)) if case.layout == "enhanced_shuffled" else np.arange(len(cells))
    add_dimension_module(out)
    shared = Dataset()
    if case.layout != "enhanced_own_planes":
        add_pixel_measures(shared)
        add_plane_orientation(shared, case.orientation)
    if case.rescale.where == "shared" and case.rescale.pairs:
        _transformed(shared, case.rescale.slope_and_intercept(0))
    if case.rescale.where == "root" and case.rescale.pairs:
        _rescaled(out, case.rescale.slope_and_intercept(0))
    if case.rescale.beside_root is not None:
        _rescaled(out, case.rescale.beside_root)
    out.SharedFunctionalGroupsSequence = [shared]
    out.PerFrameFunctionalGroupsSequence = []
    for z in order:
        frame = frame_item(int(z), positions[z])
        if case.layout == "enhanced_own_planes":
            add_pixel_measures(frame)
            add_plane_orientation(frame, case.orientation)
        if case.rescale.where == "own" and case.rescale.pairs:
            _transformed(frame, case.rescale.slope_and_intercept(int(z)))
        out.PerFrameFunctionalGroupsSequence.append(frame)
    kept = encode(out, cells[order], case.form, case.syntax, folder / "object.dcm")
    return None if kept is None else kept[np.argsort(order)]


def add_dimension_module(out: Dataset) -> None:
    """The Multi-frame Dimension module (PS3.3 C.7.6.17): stack, position in the stack."""
    organisation = Dataset()
    organisation.DimensionOrganizationUID = generate_uid()
    out.DimensionOrganizationSequence = [organisation]
    out.DimensionIndexSequence = []
    for pointer in ("StackID", "InStackPositionNumber"):
        index = Dataset()
        index.DimensionOrganizationUID = organisation.DimensionOrganizationUID
        index.DimensionIndexPointer = pydicom.datadict.tag_for_keyword(pointer)
        index.FunctionalGroupPointer = pydicom.datadict.tag_for_keyword("FrameContentSequence")
        out.DimensionIndexSequence.append(index)


def frame_item(z: int, position: NDArray[np.float64]) -> Dataset:
    """Functional groups of a frame: its content and its position."""
    frame, content, plane = Dataset(), Dataset(), Dataset()
    content.StackID, content.InStackPositionNumber = "1", z + 1
    content.DimensionIndexValues = [1, z + 1]
    content.FrameAcquisitionNumber = 1
    frame.FrameContentSequence = [content]
    plane.ImagePositionPatient = decimal_strings(position)
    frame.PlanePositionSequence = [plane]
    return frame


def add_pixel_measures(group: Dataset) -> None:
    """Pixel Measures."""
    item = Dataset()
    item.PixelSpacing, item.SliceThickness, item.SpacingBetweenSlices = (
        decimal_strings(SPACING),
        "2.0",
        decimal_strings([GAP])[0],
    )
    group.PixelMeasuresSequence = [item]


def add_plane_orientation(group: Dataset, name: str) -> None:
    """Plane Orientation."""
    item = Dataset()
    item.ImageOrientationPatient = decimal_strings(ORIENTATIONS[name])
    group.PlaneOrientationSequence = [item]


def _rescaled(out: Dataset, pair: tuple[float, float]) -> None:
    out.RescaleSlope, out.RescaleIntercept = decimal_strings(pair)
    out.RescaleType = "HU" if out.get("Modality") == "CT" else "US"


def _transformed(group: Dataset, pair: tuple[float, float]) -> None:
    item = Dataset()
    _rescaled(item, pair)
    group.PixelValueTransformationSequence = [item]


def _overlay(out: Dataset, bit: int) -> None:
    """An overlay in the bit above the pixel's (PS3.3 C.9.2, retired there: Overlay Bit Position other than 0)."""
    for element, vr, value in (
        (0x0010, "US", ROWS), (0x0011, "US", COLUMNS), (0x0040, "CS", "G"), (0x0050, "SS", [1, 1]),
        (0x0100, "US", out.BitsAllocated), (0x0102, "US", bit),
    ):  # fmt: skip
        out.add_new((0x6000, element), vr, value)
