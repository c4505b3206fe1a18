"""The real DICOM series and the odd files: each is read at its true place or refused with a sentence."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from semiseg.errors import VolumeError
from semiseg.volumes.dicom_series import group_series, read_series
from semiseg.volumes.nifti import read_labels, read_nifti
from semiseg.volumes.volume import reorient


def test_every_real_odd_file_is_read_or_refused_with_a_sentence(semiseg_data: Path) -> None:
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
    assert len(group_series(files)) > 20
    assert refused == len(files)  # no single file among them is a volume


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
    ],
)
def test_real_series_of_every_codec_are_read(folder: str, shape: tuple[int, int, int], semiseg_data: Path) -> None:
    assert read_series(sorted((semiseg_data / folder).iterdir())).volume.shape == shape


@pytest.mark.parametrize(
    ("folder", "sentence"),
    [
        ("dicom/ct_head_ge_tilt_irregular", r"lean by 18\.5 degrees \(gantry tilt\)"),
        ("dicom_odd/d2n_gantry_tilt_ct", r"lean by 14\.0 degrees \(gantry tilt\)"),
        ("dicom_odd/d2n_mixed_orientation", "2 orientations"),
        ("dicom_odd/d2n_rgb_series", "is RGB"),
        ("dicom_odd/d2n_single_slice", "single slice"),
        ("dicom_odd/d2n_philips_enhanced_multiframe", "multi-frame"),
        ("dicom_odd/d2n_hyperfine_multiframe", "multi-frame"),
        ("dicom_odd/dcmqi_23x38x3", "2 image series"),
    ],
)
def test_real_series_that_are_no_volume_are_refused(folder: str, sentence: str, semiseg_data: Path) -> None:
    with pytest.raises(VolumeError, match=sentence):
        read_series(sorted(p for p in (semiseg_data / folder).rglob("*") if p.is_file()))


def test_a_real_ct_lies_where_its_segmentation_in_nifti_lies(semiseg_data: Path) -> None:
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
