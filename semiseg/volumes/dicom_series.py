"""A DICOM series of single-frame images as one volume, or a sentence that says why it is none."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import UID

from semiseg.errors import VolumeError
from semiseg.volumes.dicom_file import PARSING_ERRORS, is_dicom, numbers, one_line, read_dicom, text, value
from semiseg.volumes.dicom_geometry import Plane, affine_of, measure, plane_of, require_volume
from semiseg.volumes.nifti import MAX_VOXEL_BYTES
from semiseg.volumes.volume import Volume

_LOG = logging.getLogger(__name__)
_MAX_SLICE_PIXELS = 2**26  # 8192 x 8192: beyond any CT or MR slice
_INDEX_TAGS = ["SOPClassUID", "SeriesInstanceUID", "Modality", "SeriesDescription", "Rows"]
_NOT_IMAGES = {
    "SEG": "segmentation",
    "SR": "structured report",
    "KO": "key object selection",
    "PR": "presentation state",
    "RTSTRUCT": "radiotherapy structure set",
    "RTPLAN": "radiotherapy plan",
    "RTDOSE": "radiotherapy dose grid",
    "RTRECORD": "radiotherapy treatment record",
    "REG": "registration",
    "PMAP": "parametric map",
}
_NOT_IMAGE_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.5": "surface segmentation",
    "1.2.840.10008.5.1.4.1.1.30": "parametric map",
}
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """One image series as a volume, with what an answer in DICOM has to refer to.

    Attributes:
        uid: Series Instance UID; "" where an anonymiser has emptied it (such a series can be segmented, but no
            answer in DICOM can refer to it).
        study_uid: Study Instance UID.
        modality: such as "MR" or "CT".
        description: Series Description, "" if absent.
        instances: the slices' attributes without pixel data, in the order of the array's third axis.
        volume: array (X = columns, Y = rows, Z = slices along the normal), affine to RAS+ mm. Rescale slope and
            intercept are applied: integers stay integers where slope and intercept are, else the values are float32.
    """

    uid: str
    study_uid: str
    modality: str
    description: str
    instances: tuple[pydicom.Dataset, ...]
    volume: Volume


@dataclass(frozen=True)
class _Entry:
    """What one file is, from a glance at its header."""

    path: Path
    series_uid: str
    modality: str
    description: str
    not_image: str | None


def group_series(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Sort files by Series Instance UID; images and other objects alike.

    Files that are not DICOM, DICOMDIRs and damaged headers are left out and counted in the log.
    """
    groups: dict[str, list[Path]] = {}
    for entry in _index(paths)[0]:
        groups.setdefault(entry.series_uid, []).append(entry.path)
    return groups


def read_series(paths: Sequence[Path], *, series_uid: str | None = None) -> DicomSeries:
    """Read the one image series among ``paths``, or the one named.

    Slices are placed and sorted by Image Position and Image Orientation (Patient) alone; the order of the files does
    not matter. Objects that are not images (SEG, SR, RT) may lie beside the images and are left alone.

    Raises:
        VolumeError: no image series, several and none named, an unknown UID, slices that do not make one regular
            volume, pixel data that cannot be decoded.
    """
    entries, left_out = _index(paths)
    chosen = _choose(entries, left_out, series_uid)
    name = _name(chosen[0])
    try:
        return _read([entry.path for entry in chosen])
    except VolumeError as error:
        raise VolumeError(f"{name}: {error}") from error


def _index(paths: Iterable[Path]) -> tuple[list[_Entry], list[str]]:
    """The DICOM objects among ``paths``, and a sentence for each file left out."""
    entries: list[_Entry] = []
    left_out: list[str] = []
    for path in paths:
        try:
            entry = _glance(Path(path))
        except VolumeError as error:
            left_out.append(str(error))
            continue
        if entry is None:
            left_out.append(f"{path}: a DICOMDIR, not an image.")
        else:
            entries.append(entry)
    if left_out:
        _LOG.info("%d of %d files are no DICOM objects and were left out", len(left_out), len(left_out) + len(entries))
    return entries, left_out


def _glance(path: Path) -> _Entry | None:
    if not is_dicom(path):
        raise VolumeError(f"{path}: not a DICOM file.")
    header = read_dicom(path, pixels=False, tags=_INDEX_TAGS)
    sop_class = text(header, "SOPClassUID", path) or text(header.file_meta, "MediaStorageSOPClassUID", path)
    if sop_class == _MEDIA_DIRECTORY:
        return None
    uid = text(header, "SeriesInstanceUID", path)
    image = value(header, "Rows", path) is not None
    if not sop_class or not (uid or image):
        raise VolumeError(f"{path}: the DICOM file lacks a SOP Class UID or Series Instance UID.")
    modality = text(header, "Modality", path)
    not_image = _NOT_IMAGE_CLASSES.get(sop_class) or _NOT_IMAGES.get(modality)
    if not_image is None and not image:
        not_image = f"{UID(sop_class).name} without an image"
    return _Entry(path, uid, modality or "no modality", text(header, "SeriesDescription", path), not_image)


def _choose(entries: list[_Entry], left_out: list[str], series_uid: str | None) -> list[_Entry]:
    if not entries:
        total = len(left_out)
        if total < 2:
            raise VolumeError(left_out[0] if left_out else "There are no files to read.")
        raise VolumeError(f"None of the {total} files is a DICOM image; the first: {left_out[0]}")
    series: dict[str, list[_Entry]] = {}
    for entry in entries:
        series.setdefault(entry.series_uid, []).append(entry)
    images = {uid: members for uid, members in series.items() if any(e.not_image is None for e in members)}
    if series_uid is not None:
        if series_uid not in series:
            raise VolumeError(f"No series {series_uid} is among the files; there are: {_listed(series)}.")
        images = {series_uid: series[series_uid]}
    elif len(images) > 1:
        raise VolumeError(f"The files hold {len(images)} image series; name one of them: {_listed(images)}.")
    elif not images:
        kinds = ", ".join(sorted({str(e.not_image) for e in entries}))
        raise VolumeError(f"{entries[0].path}: no images among the DICOM files, only: {kinds}.")
    (members,) = images.values()
    others = [e for e in members if e.not_image is not None]
    if len(others) == len(members):
        raise VolumeError(f"{_name(members[0])} is no image but a {others[0].not_image}.")
    if others:
        raise VolumeError(f"{_name(members[0])} mixes images with {len(others)} {others[0].not_image} object(s).")
    return members


def _name(entry: _Entry) -> str:
    return f"Series {entry.series_uid or 'without UID'} ({entry.modality}, {entry.description or 'no description'})"


def _listed(series: dict[str, list[_Entry]]) -> str:
    shown = [
        f"{_name(members[0]).removeprefix('Series ')[:-1]}, {len(members)} files)"
        for members in list(series.values())[:20]
    ]
    return "; ".join(shown) + ("" if len(series) <= 20 else f"; and {len(series) - 20} more")


def _read(paths: list[Path]) -> DicomSeries:
    """Headers, geometry, then pixels: nothing is decoded of a series whose slices make no volume."""
    headers = _without_copies([(path, read_dicom(path, pixels=False)) for path in paths])
    _require_one_origin(headers)
    planes = [_plane(header, path) for path, header in headers]
    stack = measure(planes)
    require_volume(stack)
    ordered = [headers[i] for i in stack.order]
    array = _pixels(ordered, stack.planes[0])
    path, first = ordered[0]
    return DicomSeries(
        uid=text(first, "SeriesInstanceUID", path),
        study_uid=text(first, "StudyInstanceUID", path),
        modality=text(first, "Modality", path),
        description=text(first, "SeriesDescription", path),
        instances=tuple(header for _, header in ordered),
        volume=Volume(array, affine_of(stack)),
    )


def _without_copies(headers: list[tuple[Path, pydicom.Dataset]]) -> list[tuple[Path, pydicom.Dataset]]:
    """Drop files that are the same object twice."""
    kept: dict[str, tuple[Path, pydicom.Dataset]] = {}
    for path, header in headers:
        # Without any UID (anonymised away) nothing says that two files are one object.
        uid = text(header, "SOPInstanceUID", path) or text(header.file_meta, "MediaStorageSOPInstanceUID", path)
        uid = uid or str(path)
        if uid not in kept:
            kept[uid] = (path, header)
            continue
        places = [numbers(h, "ImagePositionPatient", p) for p, h in (kept[uid], (path, header))]
        if places[0] != places[1]:
            raise VolumeError(f"{path} and {kept[uid][0]} claim to be one object (SOP Instance UID) but differ.")
    return list(kept.values())


def _require_one_origin(headers: list[tuple[Path, pydicom.Dataset]]) -> None:
    for keyword, words in (("FrameOfReferenceUID", "frames of reference"), ("StudyInstanceUID", "studies")):
        found = {text(header, keyword, path) for path, header in headers}
        if len(found) > 1:
            raise VolumeError(f"The slices belong to {len(found)} {words}, so their positions cannot be compared.")
    localisers = sum("LOCALIZER" in text(header, "ImageType", path).upper() for path, header in headers)
    if 0 < localisers < len(headers):
        raise VolumeError(f"The series mixes {localisers} localiser image(s) with {len(headers) - localisers} others.")


def _plane(header: pydicom.Dataset, path: Path) -> Plane:
    frames = numbers(header, "NumberOfFrames", path)
    if "SharedFunctionalGroupsSequence" in header or (frames is not None and frames[0] != 1):
        count = "several" if frames is None else f"{frames[0]:.0f}"
        raise VolumeError(
            f"{path}: an (enhanced) multi-frame object of {count} frames is not read yet; "
            f"send the series as single-frame images."
        )
    samples = numbers(header, "SamplesPerPixel", path)
    photometric = text(header, "PhotometricInterpretation", path)
    if (samples is not None and samples[0] != 1) or not photometric.startswith("MONOCHROME"):
        raise VolumeError(f"{path}: a grey-value image is needed, but this one is {photometric or 'of unknown kind'}.")
    if "ModalityLUTSequence" in header:
        raise VolumeError(f"{path}: grey values behind a Modality LUT (a table instead of a rescale) are not read.")
    keywords = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
    found = {keyword: numbers(header, keyword, path) for keyword in keywords}
    missing = [keyword for keyword, values in found.items() if values is None]
    if missing:
        raise VolumeError(f"{path}: the image lacks {' and '.join(missing)}, so its place in the patient is unknown.")
    position, orientation, spacing, height, width = (values for values in found.values() if values is not None)
    rows, columns = int(height[0]), int(width[0])
    if rows * columns > _MAX_SLICE_PIXELS:
        raise VolumeError(f"{path}: a slice of {rows} x {columns} pixels is beyond any scan; the header is damaged.")
    try:
        return plane_of(position, orientation, spacing, (rows, columns))
    except VolumeError as error:
        raise VolumeError(f"{path}: {error}") from error


def _pixels(ordered: list[tuple[Path, pydicom.Dataset]], plane: Plane) -> NDArray[Any]:
    """Decode and rescale the slices into one array (columns, rows, slices)."""
    scales = [_rescale(header, path) for path, header in ordered]
    whole = all(slope == 1 and intercept == int(intercept) for slope, intercept in scales)
    shape = (plane.columns, plane.rows, len(ordered))
    if 4 * np.prod(shape, dtype=object) > MAX_VOXEL_BYTES:
        raise VolumeError(f"A volume of {shape[0]} x {shape[1]} x {shape[2]} voxels is beyond the limit.")
    array = np.empty(shape, dtype=np.int32 if whole else np.float32, order="F")
    for z, ((path, _), (slope, intercept)) in enumerate(zip(ordered, scales, strict=True)):
        pixels = _decoded(path)
        if pixels.shape != (plane.rows, plane.columns) or pixels.dtype.kind not in "iu":
            raise VolumeError(f"{path}: pixel data of shape {pixels.shape} ({pixels.dtype}) is no grey-value slice.")
        if whole:
            if pixels.dtype.itemsize > 2 and (pixels.min() < -(2**30) or pixels.max() > 2**30):
                raise VolumeError(f"{path}: pixel values beyond 30 bits are not read.")
            array[:, :, z] = pixels.T.astype(np.int32) + int(intercept)
        else:
            array[:, :, z] = pixels.T * slope + intercept
    if whole and array.min() >= -(2**15) and array.max() < 2**15:
        array = array.astype(np.int16)
    return array


def _rescale(header: pydicom.Dataset, path: Path) -> tuple[float, float]:
    """Rescale Slope and Intercept (PS3.3 C.11.1), (1, 0) where absent."""
    slope = numbers(header, "RescaleSlope", path)
    intercept = numbers(header, "RescaleIntercept", path)
    pair = (1.0 if slope is None else slope[0], 0.0 if intercept is None else intercept[0])
    if not np.isfinite(pair).all() or pair[0] == 0 or max(map(abs, pair)) > 2**30:
        raise VolumeError(f"{path}: Rescale Slope {pair[0]} and Intercept {pair[1]} make no grey values.")
    return pair


def _decoded(path: Path) -> NDArray[Any]:
    dataset = read_dicom(path, pixels=True)
    syntax = UID(text(dataset.file_meta, "TransferSyntaxUID", path))
    try:
        return np.asarray(dataset.pixel_array)
    except PARSING_ERRORS as error:
        compressed = syntax.is_transfer_syntax and syntax.is_compressed
        what = f"pixel data compressed as {syntax.name}" if compressed else "pixel data"
        raise VolumeError(f"{path}: the {what} cannot be decoded ({one_line(error)}).") from error
