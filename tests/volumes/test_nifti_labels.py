"""Labels in NIfTI files: integers that storage has rounded are read exactly, and interpolated labels are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from semiseg.errors import VolumeError
from semiseg.volumes.nifti import (
    read_labels,
    write_nifti,
)
from tests.volumes.volume_files import numbered_array


def test_labels_stored_as_float_are_read_as_integers_and_fractions_are_refused(tmp_path: Path) -> None:
    labels = (numbered_array() % 3).astype(np.float32)
    write_nifti(tmp_path / "labels.nii.gz", labels, np.eye(4))
    read = read_labels(tmp_path / "labels.nii.gz")
    assert read.array.dtype == np.int32
    np.testing.assert_array_equal(read.array, labels)
    labels[1, 2, 3] = 1.25
    write_nifti(tmp_path / "labels.nii.gz", labels, np.eye(4))
    with pytest.raises(VolumeError, match=r"labels\.nii\.gz: labels are integers, but 1 voxel.*1\.25"):
        read_labels(tmp_path / "labels.nii.gz")


def stored_labels(path: Path, raw: NDArray[Any], slope: float = 1.0, intercept: float = 0.0) -> Path:
    """A NIfTI file of ``raw`` numbers with scl_slope and scl_inter in its header."""
    image = nib.Nifti1Image(raw, np.eye(4), dtype=raw.dtype)
    image.header.set_data_dtype(raw.dtype)
    nib.save(image, path)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([slope, intercept], dtype="<f4").tobytes()
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize(
    ("raws", "slope", "intercept"),
    [
        ([0, 51, 102, 255], 1 / 51, 0),  # 1.00000002 in float32
        ([0, 255], 0.00392157, 0),  # 1/255 as %g prints it
        ([0, 85, 170, 255], 0.0117647, 0),
        ([0, 1, 2, 3], 1.0000001, 0),
        ([-30000, -29997, -29994], 1 / 3, 10000),  # two large numbers that nearly cancel
        ([128, 129, 131], 1, -128),
        ([0, 10, 20, 2550], 0.1, 0),
        ([3, 2, 0], -1, 3),
    ],
)
def test_scaled_labels_are_the_integers_that_rounding_moved_them_away_from(
    raws: list[int], slope: float, intercept: float, tmp_path: Path
) -> None:
    raw = np.resize(np.array(raws, dtype=np.int16), (4, 5, 6))
    read = read_labels(stored_labels(tmp_path / "labels.nii", raw, slope, intercept))
    np.testing.assert_array_equal(read.array, np.rint(raw * slope + intercept))
    assert read.array.dtype == np.int32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1 / 51, 0.00392157 * 255, 1 / 3, 0.1])
def test_floating_labels_are_the_integers_that_arithmetic_in_float32_moved_them_away_from(
    dtype: type[np.floating[Any]], scale: float, tmp_path: Path
) -> None:
    labels = np.resize(np.array([0, 1, 2, 37, 254, 255]), (4, 5, 6))
    values = (labels.astype(np.float32) / np.float32(scale)) * np.float32(scale) + np.float32(1e-7)
    read = read_labels(stored_labels(tmp_path / "labels.nii", values.astype(dtype)))
    np.testing.assert_array_equal(read.array, labels)
    if scale == 1 / 51:
        assert (values != labels).any(), "nothing was rounded"


@given(label=st.integers(0, 255), wrong=st.floats(-2e-6, 2e-6), dtype=st.sampled_from([np.float32, np.float64]))
def test_a_share_of_a_millionth_is_rounding_and_a_hundredth_is_not(
    label: int, wrong: float, dtype: type[np.floating[Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("labels") / "labels.nii"
    near = np.full((2, 2, 2), label * (1 + wrong), dtype=dtype)
    assert (read_labels(stored_labels(path, near)).array == label).all()
    with pytest.raises(VolumeError, match="labels are integers, but 8 voxel"):
        read_labels(stored_labels(path, np.full((2, 2, 2), label + 0.01, dtype=dtype)))


@pytest.mark.parametrize("value", [0.37, 1.5, 0.5, 2.999, 1.00002, 0.0001, 254.99, -0.25, 20000.02])
@pytest.mark.parametrize("form", ["float32", "float64", "scaled"])
def test_interpolated_labels_are_refused_however_they_are_stored(value: float, form: str, tmp_path: Path) -> None:
    if form == "scaled":
        raw = np.zeros((4, 5, 6), dtype=np.int32)
        raw[1, 2, 3] = round(value * 1e5)
        path = stored_labels(tmp_path / "labels.nii", raw, 1e-5)
    else:
        raw = np.zeros((4, 5, 6), dtype=form)
        raw[1, 2, 3] = value
        path = stored_labels(tmp_path / "labels.nii", raw)
    with pytest.raises(
        VolumeError, match=r"labels\.nii: labels are integers, but 1 voxel.*resampled with interpolation"
    ):
        read_labels(path)


def test_a_map_that_was_resampled_with_interpolation_is_refused(tmp_path: Path) -> None:
    blocks = np.kron(numbered_array() % 4, np.ones((3, 3, 3))).astype(np.float32)
    moved = ndimage.shift(blocks, (0.3, 0, 0), order=1)
    with pytest.raises(VolumeError, match="was the label map resampled with interpolation"):
        read_labels(stored_labels(tmp_path / "linear.nii", moved))
    raw = np.rint(moved / moved.max() * 255).astype(np.uint8)
    with pytest.raises(VolumeError, match="was the label map resampled with interpolation"):
        read_labels(stored_labels(tmp_path / "scaled.nii", raw, moved.max() / 255))
