"""The real DICOM series and the odd files: each is read at its true place or refused with a sentence."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from scipy import ndimage

from semiseg.errors import VolumeError
from semiseg.volumes.dicom_index import index_files
from semiseg.volumes.dicom_series import read_series
from semiseg.volumes.nifti import read_labels, read_nifti
from semiseg.volumes.series_rules import group_by_series
from semiseg.volumes.volume import reorient


def test_every_real_odd_file_is_read_or_refused_with_a_sentence(semiseg_data: Path) -> None:
    """VOL-06."""
    folders = [semiseg_data / "dicom", semiseg_data / "dicom_odd"]
    files = sorted(p for folder in folders for p in folder.rglob("*") if p.is_file())
    assert len(files) > 250
    refused = 0
    for path in files:
        try:
            read_series([path])
        except VolumeError as error:
            refused += 1
            assert "\n" not in str(error)
            assert str(error).endswith(".")
    assert len(group_by_series(index_files(files)[0])) > 20
    assert len(files) - refused == 4  # the enhanced multi-frame objects whose frames say where they lie


@pytest.mark.parametrize(
    ("folder", "shape"),
    [
        ("dicom/ct_body_siemens_j2k", (512, 512, 20)),
        ("dicom/ct_head_phantom_philips", (512, 512, 28)),
        ("dicom/mr_t1w_head_slab", (274, 384, 28)),
        ("dicom_odd/d2n_j2k_series", (256, 256, 4)),
        ("dicom_odd/d2n_jpeg_lossless_series", (256, 256, 4)),
        ("dicom_odd/d2n_jpegls_series", (256, 256, 4)),
        ("dicom_odd/d2n_rle_series", (256, 256, 4)),
        ("dicom_odd/d2n_non_isotropic_pixels", (64, 28, 4)),
        ("dicom_odd/d2n_only_two_slices", (256, 256, 2)),
        ("dicom_odd/dcmqi_23x38x3/image", (23, 38, 3)),
        ("dicom_odd/dcmqi_23x38x3/multiframe", (23, 38, 3)),
        ("dicom_odd/d2n_philips_enhanced_multiframe", (256, 256, 8)),
        ("dicom_odd/d2n_hyperfine_multiframe", (112, 138, 8)),
    ],
)
def test_real_series_of_every_codec_are_read(folder: str, shape: tuple[int, int, int], semiseg_data: Path) -> None:
    assert read_series(sorted((semiseg_data / folder).iterdir())).volume.shape == shape


@pytest.mark.parametrize(
    ("folder", "sentence"),
    [
        ("dicom_odd/d2n_mixed_orientation", "2 orientations"),
        ("dicom_odd/d2n_rgb_series", "is RGB"),
        ("dicom_odd/d2n_single_slice", "1 slice"),
        ("dicom_odd/dcmqi_23x38x3", "2 image series"),
    ],
)
def test_real_series_that_are_no_volume_are_refused(folder: str, sentence: str, semiseg_data: Path) -> None:
    """VOL-04."""
    with pytest.raises(VolumeError, match=sentence):
        read_series(sorted(p for p in (semiseg_data / folder).rglob("*") if p.is_file()))


def test_a_real_ct_lies_where_its_segmentation_in_nifti_lies(semiseg_data: Path) -> None:
    """VOL-02."""
    series = read_series(sorted((semiseg_data / "dicom/ct_body_siemens_j2k").iterdir()))
    labels = read_labels(semiseg_data / "dicom/ct_body_siemens_j2k_seg.nii.gz")
    image, affine = reorient(series.volume.array, series.volume.affine, "RAS")
    mask, mask_affine = reorient(labels.array, labels.affine, "RAS")
    np.testing.assert_allclose(affine, mask_affine, atol=1e-3)
    assert 80 < image[mask == 5].mean() < 110  # the liver, in HU
    assert image[mask == 5].std() < 60


@pytest.mark.parametrize("study", ["mr_hippocrop_study1", "mr_hippocrop_study2"])
def test_the_hippocampus_crops_come_out_the_right_way_round(study: str, semiseg_data: Path) -> None:
    """Their positions are LPS; stacked as they come, the first two axes would be mirrored."""
    series = read_series(sorted((semiseg_data / "dicom" / study).iterdir()))
    turned, _ = reorient(series.volume.array, series.volume.affine, "RAS")
    naive = series.volume.array
    mean = mean_hippocampus(semiseg_data)
    assert correlation(turned, mean) > 0.6
    assert correlation(naive, mean) < 0.4


GRID = (36, 50, 35)


def fitted(array: np.ndarray) -> np.ndarray:
    array = np.asarray(array, dtype=np.float64)
    array = (array - array.mean()) / array.std()
    return ndimage.zoom(array, np.array(GRID) / array.shape, order=1)


def mean_hippocampus(data: Path) -> np.ndarray:
    paths = sorted((data / "hippocampus/imagesTr").glob("*.nii.gz"))[::6]
    images = [read_nifti(path) for path in paths]
    return np.mean([fitted(reorient(i.array, i.affine, "RAS")[0]) for i in images], axis=0)


def correlation(array: np.ndarray, mean: np.ndarray) -> float:
    return float(np.corrcoef(fitted(array).ravel(), mean.ravel())[0, 1])


def test_real_nifti_files_are_read_as_nibabel_reads_them(semiseg_data: Path) -> None:
    for path in sorted((semiseg_data / "ct_labelled/images").glob("*.nii.gz")):
        volume, reference = read_nifti(path), nib.load(path)
        np.testing.assert_allclose(volume.array, np.asanyarray(reference.dataobj), rtol=1e-6)
        np.testing.assert_array_equal(volume.affine, reference.affine)


def test_a_tilted_head_with_uneven_slices_stands_upright_and_keeps_its_values(semiseg_data: Path) -> None:
    files = sorted((semiseg_data / "dicom/ct_head_ge_tilt_irregular").iterdir())
    series = read_series(files)
    assert [remark.code for remark in series.warnings] == ["gantry_tilt", "uneven_slices"]
    assert "tilted by 18.5 degrees" in series.warnings[0].text  # the header's Gantry/Detector Tilt says so too
    assert pydicom.dcmread(files[0], stop_before_pixels=True).GantryDetectorTilt == 18.5
    volume = series.volume
    axes = volume.affine[:3, :3] / volume.spacing
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    # Pixels of slices as they were taken, looked up in the volume by their place, where a slice lies on a plane.
    seen = 0
    for k, one in enumerate(series.slices):
        if abs(series.grid.planes[k] - round(series.grid.planes[k])) > 0.02:
            continue
        pixels = pydicom.dcmread(one.path).pixel_array * one.slope + one.intercept
        smooth = ndimage.uniform_filter(pixels.astype(float), 5)
        rows, columns = np.meshgrid(np.arange(60, 450, 30), np.arange(60, 450, 30), indexing="ij")
        plane = one.plane
        places = (
            np.array(plane.position)
            + columns[..., None] * plane.column_spacing * np.array(plane.along_row)
            + rows[..., None] * plane.row_spacing * np.array(plane.along_column)
        ) * (-1, -1, 1)
        index = (places - volume.affine[:3, 3]) @ np.linalg.inv(volume.affine[:3, :3]).T
        z = round(series.grid.planes[k])
        found = ndimage.map_coordinates(
            ndimage.uniform_filter(volume.array[:, :, z].astype(float), 5), np.moveaxis(index[..., :2], -1, 0), order=1
        )
        assert np.median(np.abs(found - smooth[rows, columns])) < 3
        seen += 1
    assert seen >= 2
    with pytest.raises(VolumeError, match=r"tilted by 18\.5 degrees \(gantry tilt\).*Correct the tilt first"):
        read_series(files, strict=True)


def test_a_multi_frame_object_is_the_volume_of_its_single_frame_images(semiseg_data: Path) -> None:
    odd = semiseg_data / "dicom_odd"
    several = read_series([odd / "dcmqi_23x38x3/multiframe/mf.dcm"])
    single = read_series(sorted((odd / "dcmqi_23x38x3/image").iterdir()))
    np.testing.assert_allclose(several.volume.affine, single.volume.affine, atol=1e-4)
    np.testing.assert_array_equal(several.volume.array, single.volume.array)


@pytest.mark.parametrize("folder", ["d2n_philips_enhanced_multiframe", "d2n_hyperfine_multiframe"])
def test_enhanced_objects_lie_where_another_program_puts_them(
    folder: str, semiseg_data: Path, tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    source = semiseg_data / "dicom_odd" / folder
    command = [require_program("dcm2niix"), "-f", "out", "-z", "n", "-o", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    other = read_nifti(tmp_path / "out.nii")
    ours = read_series(sorted(source.iterdir())).volume
    image, affine = reorient(ours.array, ours.affine, "RAS")
    theirs, their_affine = reorient(other.array, other.affine, "RAS")
    np.testing.assert_allclose(affine, their_affine, atol=2e-3)
    # dcm2niix keeps stored values where they can be scaled later: equal up to a factor and an offset.
    assert np.corrcoef(image.ravel(), theirs.ravel())[0, 1] > 0.99999
