"""Pictures of every slice with the outlines burnt in, where the slices lie."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from scipy import ndimage

from semiseg.errors import VolumeError
from semiseg.outputs.dicom_common import Algorithm
from semiseg.outputs.dicom_overlay import segmentation_to_overlays, write_overlays
from semiseg.phantoms.anatomy import SEGMENTS, make_phantom
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.dicom_series import DicomSeries, read_series
from semiseg.volumes.segmentation import Segmentation

ALGORITHM = Algorithm(name="phantom abdomen", version="1.2", model_sha256="ab" * 32)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[DicomSeries, Segmentation]:
    phantom = make_phantom(21, (61, 53, 12), (3.2, 3.6, 8.0))  # an odd number of pixels
    series = read_series(write_dicom_series(tmp_path_factory.mktemp("series"), phantom.image))
    labels = phantom.labels.array
    if not np.array_equal(series.volume.array, phantom.image.array):
        labels = np.ascontiguousarray(labels[:, :, ::-1])
    return series, Segmentation(SEGMENTS, labels, series.volume.affine)


@pytest.fixture(scope="module")
def pictures(case: tuple[DicomSeries, Segmentation], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("overlay")
    write_overlays(folder / "overlay.zip", segmentation_to_overlays(case[1], case[0], algorithm=ALGORITHM))
    with zipfile.ZipFile(folder / "overlay.zip") as archive:
        archive.extractall(folder)
    return sorted((folder / "overlay").iterdir())


def test_each_slice_is_pictured_at_its_place(case: tuple[DicomSeries, Segmentation], pictures: list[Path]) -> None:
    series = case[0]
    assert len(pictures) == len(series.slices)
    uids = set()
    for path, one in zip(pictures, series.slices, strict=True):
        picture = pydicom.dcmread(path)
        assert picture.ImagePositionPatient == one.header.ImagePositionPatient
        assert picture.FrameOfReferenceUID == series.frame_of_reference
        assert picture.pixel_array.shape == (one.plane.rows, one.plane.columns, 3)
        assert "RESEARCH USE ONLY" in picture.SeriesDescription
        assert picture.PatientID == one.header.PatientID
        uids.add(picture.SeriesInstanceUID)
    assert len(uids) == 1


def test_borders_are_coloured_and_everything_else_is_grey(
    case: tuple[DicomSeries, Segmentation], pictures: list[Path]
) -> None:
    segmentation = case[1]
    for z, path in enumerate(pictures):
        rgb = pydicom.dcmread(path).pixel_array.astype(int)
        coloured = np.ptp(rgb, axis=2) > 0
        expected = np.zeros_like(coloured)
        for k, segment in enumerate(segmentation.segments):
            mask = segmentation.mask(k)[:, :, z].T
            border = mask & ~ndimage.binary_erosion(mask, border_value=1)
            expected |= border
            assert (rgb[border] == segment.colour).all()
        np.testing.assert_array_equal(coloured, expected)
    assert Image.fromarray(rgb.astype(np.uint8)).size == (61, 53)


def test_the_pictures_are_valid_and_made_again_alike(
    case: tuple[DicomSeries, Segmentation], pictures: list[Path], require_program: Callable[[str], str]
) -> None:
    """OUT-02, OUT-03."""
    checked = subprocess.run(
        [require_program("dciodvfy"), str(pictures[6])], capture_output=True, text=True, check=False
    )
    said = (checked.stdout + checked.stderr).splitlines()
    assert any("SCImage" in line for line in said), said
    assert [line for line in said if line.startswith("Error")] == []
    again = next(segmentation_to_overlays(case[1], case[0], algorithm=ALGORITHM))
    assert again.SOPInstanceUID == pydicom.dcmread(pictures[0]).SOPInstanceUID


def test_another_grid_is_refused(case: tuple[DicomSeries, Segmentation]) -> None:
    moved = case[1].affine.copy()
    moved[0, 3] += 1
    with pytest.raises(VolumeError, match="is on another grid"):
        next(
            segmentation_to_overlays(Segmentation(case[1].segments, case[1].array, moved), case[0], algorithm=ALGORITHM)
        )
