"""Pictures of the slices with burnt-in outlines, as a series of Secondary Capture images (PS3.3 A.8.1).

The series is meant for viewers without SEG support. It has a picture for every slice, so that it scrolls like the scan.
It is for viewing only, because the masks cannot be recovered from it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds
from scipy import ndimage

from semiseg.errors import SemisegError
from semiseg.outputs.dicom_common import (
    LONG_STRING,
    MANUFACTURER,
    SERIES_NUMBERS,
    Algorithm,
    content_hash,
    copy_patient_and_study,
    derive_uid,
    require_same_grid,
    series_description,
    software_versions,
)
from semiseg.outputs.overlay import rescale_to_uint8
from semiseg.outputs.report import NOTICE
from semiseg.system.durable_files import atomic_file
from semiseg.volumes.dicom_geometry import Plane
from semiseg.volumes.dicom_pixels import decode_slices
from semiseg.volumes.dicom_series import DicomSeries
from semiseg.volumes.dicom_slices import Slice
from semiseg.volumes.segmentation import Segmentation


def segmentation_to_overlays(
    segmentation: Segmentation, series: DicomSeries, *, algorithm: Algorithm
) -> Iterator[pydicom.Dataset]:
    """Yield a picture of each slice of ``series``, in its order, with the outlines of ``segmentation``.

    Raises:
        VolumeError: The grids differ, or the source lacks UIDs that a series must refer to.
        SemisegError: The source's attributes cannot be copied into valid images.
    """
    require_same_grid(segmentation, series, "overlay")
    identity = content_hash(series, algorithm, segmentation.segments)
    grey = rescale_to_uint8(series.volume.array if series.grid is None else decode_slices(series.slices)[0])
    masks = series.on_slices(np.stack([segmentation.mask(k) for k in range(len(segmentation.segments))]))
    for number, one in enumerate(series.slices, start=1):
        rgb = np.repeat(grey[:, :, number - 1].T[..., None], 3, axis=2)
        for segment, mask in zip(segmentation.segments, masks[..., number - 1], strict=True):
            rgb[_border(mask.T)] = segment.colour
        yield _image(rgb, one, number, identity, algorithm)


def write_overlays(path: Path, images: Iterator[pydicom.Dataset]) -> None:
    """Write a series as a zip of DICOM files atomically."""
    with atomic_file(Path(path)) as file, zipfile.ZipFile(file, "w") as archive:
        for number, image in enumerate(images, start=1):
            content = io.BytesIO()
            image.save_as(content, enforce_file_format=True)
            name = zipfile.ZipInfo(f"overlay/{number:05d}.dcm")
            archive.writestr(name, content.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=1)


def _border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of a mask that touch pixels outside it; the edge of the picture does not count."""
    return np.asarray(mask & ~ndimage.binary_erosion(mask, border_value=1))


def _image(
    rgb: NDArray[np.uint8],
    one: Slice,
    number: int,
    identity: str,
    algorithm: Algorithm,
) -> pydicom.Dataset:
    source, plane = one.header, one.plane
    try:
        image: pydicom.Dataset = hd.sc.SCImage(
            pixel_array=np.ascontiguousarray(rgb),
            photometric_interpretation=hd.PhotometricInterpretationValues.RGB,
            bits_allocated=8,
            coordinate_system=hd.CoordinateSystemNames.PATIENT,
            study_instance_uid=source.StudyInstanceUID,
            series_instance_uid=derive_uid(identity, "overlay series"),
            series_number=SERIES_NUMBERS["overlay"],
            sop_instance_uid=derive_uid(identity, f"overlay {number}"),
            instance_number=number,
            manufacturer=MANUFACTURER,
            patient_orientation=_letters(plane),
            pixel_spacing=(plane.row_spacing, plane.column_spacing),
            series_description=series_description(algorithm),
            manufacturer_model_name=algorithm.name[:LONG_STRING],
            software_versions=software_versions(algorithm),
            # Not compressed, because the archive compresses it, and gdcm's RLE encoder aborts the process on an odd
            # number of bytes.
            transfer_syntax_uid=ExplicitVRLittleEndian,
            specific_character_set="ISO_IR 192",
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SemisegError(f"No valid overlay can be made for the series ({error}).") from error
    copy_patient_and_study(image, source)
    image.BurnedInAnnotation = "NO"
    image.Laterality = str(source.get("Laterality") or "")  # must be present, empty if unknown
    image.ImageComments = f"{NOTICE}."
    image.FrameOfReferenceUID = source.FrameOfReferenceUID
    # Written from the plane, not copied: enhanced objects have these values in functional groups, and some scanners
    # write decimal strings of more than the allowed 16 characters.
    image.ImagePositionPatient = [format_number_as_ds(v) for v in plane.position]
    image.ImageOrientationPatient = [format_number_as_ds(v) for v in (*plane.along_row, *plane.along_column)]
    thickness = one.value("SliceThickness", "PixelMeasuresSequence", "SliceThickness")
    if thickness:
        image.SliceThickness = format_number_as_ds(float(thickness))
    return image


def _letters(plane: Plane) -> tuple[str, str]:
    """Return Patient Orientation (PS3.3 C.7.6.1.1.1): the nearest directions of rows and columns."""
    pairs = (("L", "R"), ("P", "A"), ("H", "F"))
    found = []
    for along in (plane.along_row, plane.along_column):
        vector = np.array(along)
        axis = int(np.abs(vector).argmax())
        found.append(pairs[axis][0 if vector[axis] > 0 else 1])
    return (found[0], found[1])
