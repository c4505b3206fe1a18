"""The outlines burnt into pictures of the slices, as a series of Secondary Capture images (PS3.3 A.8.1).

For viewers that show no SEG. A picture for every slice, so that one scrolls through it as through the scan; it is for
looking at and for nothing else, since the masks cannot be got out of it again.
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
    """Make a picture of each slice of ``series``, in its order, with the outlines of ``segmentation``.

    Raises:
        VolumeError: the grids differ, or the source lacks what a series must refer to.
        SemisegError: the source's attributes cannot be repeated in valid images.
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
    """Write a series as a zip of DICOM files, atomically."""
    with atomic_file(Path(path)) as file, zipfile.ZipFile(file, "w") as archive:
        for number, image in enumerate(images, start=1):
            content = io.BytesIO()
            image.save_as(content, enforce_file_format=True)
            name = zipfile.ZipInfo(f"overlay/{number:05d}.dcm")
            archive.writestr(name, content.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=1)


def _border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a mask that touch what is outside of it; the picture's edge is no border."""
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
            # The archive compresses it. RLE would be made by gdcm, which ends the process on an odd number of bytes.
            transfer_syntax_uid=ExplicitVRLittleEndian,
            specific_character_set="ISO_IR 192",
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SemisegError(f"No valid overlay can be made for the series ({error}).") from error
    copy_patient_and_study(image, source)
    image.BurnedInAnnotation = "NO"
    image.Laterality = str(source.get("Laterality") or "")  # empty where nobody said, and it has to be there
    image.ImageComments = f"{NOTICE}."
    image.FrameOfReferenceUID = source.FrameOfReferenceUID
    # Written anew and not copied: of an enhanced object the functional groups have them, and scanners write decimal
    # strings of more than the 16 characters that there may be.
    image.ImagePositionPatient = [format_number_as_ds(v) for v in plane.position]
    image.ImageOrientationPatient = [format_number_as_ds(v) for v in (*plane.along_row, *plane.along_column)]
    thickness = one.value("SliceThickness", "PixelMeasuresSequence", "SliceThickness")
    if thickness:
        image.SliceThickness = format_number_as_ds(float(thickness))
    return image


def _letters(plane: Plane) -> tuple[str, str]:
    """Patient Orientation (PS3.3 C.7.6.1.1.1): the nearest direction of rows and of columns."""
    pairs = (("L", "R"), ("P", "A"), ("H", "F"))
    found = []
    for along in (plane.along_row, plane.along_column):
        vector = np.array(along)
        axis = int(np.abs(vector).argmax())
        found.append(pairs[axis][0 if vector[axis] > 0 else 1])
    return (found[0], found[1])
