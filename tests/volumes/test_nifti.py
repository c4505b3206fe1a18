"""NIfTI files come back as they went in, and what is not one volume is refused with a sentence."""

from __future__ import annotations

import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from semiseg.errors import VolumeError
from semiseg.volumes.nifti import (
    is_nifti,
    read_labels,
    read_nifti,
    read_nifti_channels,
    write_nifti,
    write_segmentation,
)
from semiseg.volumes.segmentation import Segment, Segmentation
from semiseg.volumes.volume import affine_axcodes, reorient
from tests.grids import AXIS_ORIENTATIONS, make_affine
from tests.volumes.volume_files import numbered_array


def oblique_affine(degrees: tuple[float, float, float], spacing: tuple[float, float, float]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * spacing
    affine[:3, 3] = (-80.0, 15.5, 33.0)
    # As NIfTI stores it, so that equality can be exact.
    return affine.astype(np.float32).astype(np.float64)


def test_there_are_48_axis_orientations() -> None:
    assert len(set(AXIS_ORIENTATIONS)) == 48


@pytest.mark.parametrize("axcodes", AXIS_ORIENTATIONS)
def test_array_and_affine_survive_a_round_trip_in_every_axis_orientation(axcodes: str, tmp_path: Path) -> None:
    """VOL-02."""
    affine = make_affine(axcodes)
    write_nifti(tmp_path / "scan.nii.gz", numbered_array(), affine)
    volume = read_nifti(tmp_path / "scan.nii.gz")
    assert volume.axcodes == axcodes
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, numbered_array())
    np.testing.assert_array_equal(volume.affine, affine)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64])
def test_an_oblique_anisotropic_scan_keeps_values_type_and_affine(dtype: type, tmp_path: Path) -> None:
    affine = oblique_affine((12.0, -7.0, 33.0), (0.5, 0.9, 4.0))
    write_nifti(tmp_path / "scan.nii", numbered_array(dtype=dtype), affine)
    volume = read_nifti(tmp_path / "scan.nii")
    assert volume.array.dtype == dtype
    np.testing.assert_array_equal(volume.array, numbered_array(dtype=dtype))
    np.testing.assert_array_equal(volume.affine, affine)


@given(
    degrees=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 8.0)] * 3),
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    target=st.sampled_from(AXIS_ORIENTATIONS),
)
def test_reorienting_keeps_every_voxel_at_its_world_coordinates_and_has_an_inverse(
    degrees: tuple[float, float, float],
    spacing: tuple[float, float, float],
    shape: tuple[int, int, int],
    target: str,
) -> None:
    affine = oblique_affine(degrees, spacing)
    array = numbered_array(shape)
    turned, turned_affine = reorient(array, affine, target)
    assert affine_axcodes(turned_affine) == target
    index = np.argwhere(np.ones(shape, bool))
    world = {int(array[tuple(i)]): affine[:3, :3] @ i + affine[:3, 3] for i in index}
    for i in np.argwhere(np.ones(turned.shape, bool)):
        place = turned_affine[:3, :3] @ i + turned_affine[:3, 3]
        np.testing.assert_allclose(place, world[int(turned[tuple(i)])], atol=1e-6)
    back, back_affine = reorient(turned, turned_affine, affine_axcodes(affine))
    np.testing.assert_array_equal(back, array)
    np.testing.assert_allclose(back_affine, affine, atol=1e-6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(degrees=st.tuples(*[st.floats(-180, 180)] * 3), spacing=st.tuples(*[st.floats(0.2, 8.0)] * 3))
def test_any_oblique_affine_survives_a_round_trip(
    degrees: tuple[float, float, float], spacing: tuple[float, float, float], tmp_path: Path
) -> None:
    """VOL-02."""
    affine = oblique_affine(degrees, spacing)
    write_nifti(tmp_path / "scan.nii", numbered_array(), affine)
    np.testing.assert_array_equal(read_nifti(tmp_path / "scan.nii").affine, affine)


def test_scaled_integers_come_back_as_float32_with_the_scaling_applied(tmp_path: Path) -> None:
    """VOL-03."""
    image = nib.Nifti1Image(numbered_array(), np.eye(4))
    image.header.set_slope_inter(0.5, -1024)
    nib.save(image, tmp_path / "scaled.nii")
    with (tmp_path / "scaled.nii").open("r+b") as file:  # nibabel recomputes the scaling when it saves
        file.seek(112)
        file.write(struct.pack("<ff", 0.5, -1024.0))
    stored = np.asanyarray(nib.load(tmp_path / "scaled.nii").dataobj.get_unscaled())
    volume = read_nifti(tmp_path / "scaled.nii")
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, stored.astype(np.float32) * 0.5 - 1024)


def test_big_endian_files_are_read_in_native_order(tmp_path: Path) -> None:
    """VOL-03."""
    header = nib.Nifti1Header(endianness=">")
    image = nib.Nifti1Image(numbered_array().astype(">i2"), make_affine("LPS"), header)
    image.to_filename(tmp_path / "big.nii")
    volume = read_nifti(tmp_path / "big.nii")
    assert volume.array.dtype.isnative
    np.testing.assert_array_equal(volume.array, numbered_array())
    np.testing.assert_array_equal(volume.affine, make_affine("LPS"))


def test_gzip_is_recognised_by_content_and_not_by_name(tmp_path: Path) -> None:
    write_nifti(tmp_path / "scan.nii.gz", numbered_array(), np.eye(4))
    (tmp_path / "scan.nii.gz").rename(tmp_path / "0001")
    assert is_nifti(tmp_path / "0001")
    np.testing.assert_array_equal(read_nifti(tmp_path / "0001").array, numbered_array())


def test_nifti_2_is_read(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(numbered_array(), make_affine("PIR")), tmp_path / "two.nii")
    assert is_nifti(tmp_path / "two.nii")
    volume = read_nifti(tmp_path / "two.nii")
    np.testing.assert_array_equal(volume.array, numbered_array())
    np.testing.assert_array_equal(volume.affine, make_affine("PIR"))


def test_a_single_volume_in_4d_is_one_volume(tmp_path: Path) -> None:
    write_nifti(tmp_path / "scan.nii", numbered_array((4, 5, 6, 1)), make_affine("RAS"))
    assert nib.load(tmp_path / "scan.nii").shape == (4, 5, 6, 1)
    np.testing.assert_array_equal(read_nifti(tmp_path / "scan.nii").array, numbered_array())


def test_several_volumes_in_4d_are_channels_in_the_order_of_the_names(tmp_path: Path) -> None:
    array = numbered_array((4, 5, 6, 2))
    write_nifti(tmp_path / "scan.nii", array, make_affine("RAS"))
    channels = read_nifti_channels(tmp_path / "scan.nii", ["T1", "FLAIR"])
    assert list(channels) == ["T1", "FLAIR"]
    np.testing.assert_array_equal(channels["FLAIR"].array, array[..., 1])
    with pytest.raises(VolumeError, match="holds 2"):
        read_nifti(tmp_path / "scan.nii")
    with pytest.raises(VolumeError, match=r"3 channel\(s\) \(T1, T2, FLAIR\), but the file holds 2"):
        read_nifti_channels(tmp_path / "scan.nii", ["T1", "T2", "FLAIR"])


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0)])
def test_header_units_become_millimetres(unit: str, factor: float, tmp_path: Path) -> None:
    image = nib.Nifti1Image(numbered_array(), np.diag([0.5, 0.5, 2.0, 1.0]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "scan.nii")
    np.testing.assert_allclose(read_nifti(tmp_path / "scan.nii").spacing, np.array([0.5, 0.5, 2.0]) * factor)


def test_a_file_without_sform_and_qform_is_placed_by_its_voxel_sizes(tmp_path: Path) -> None:
    image = nib.Nifti1Image(numbered_array(), None)
    image.header.set_zooms((1.0, 2.0, 3.0))
    nib.save(image, tmp_path / "bare.nii")
    volume = read_nifti(tmp_path / "bare.nii")
    assert volume.spacing == (1.0, 2.0, 3.0)
    np.testing.assert_array_equal(volume.affine, nib.load(tmp_path / "bare.nii").affine)


def test_a_mask_written_like_its_scan_repeats_codes_and_both_transforms(tmp_path: Path) -> None:
    affine = oblique_affine((10, 20, 30), (1, 1, 2))
    image = nib.Nifti1Image(numbered_array(), affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=4)
    nib.save(image, tmp_path / "scan.nii")
    bare = nib.Nifti1Image(numbered_array(), None)
    nib.save(bare, tmp_path / "bare.nii")
    for name, codes in (("scan", (4, 1)), ("bare", (0, 0))):
        volume = read_nifti(tmp_path / f"{name}.nii")
        mask = volume.array > 7
        write_nifti(tmp_path / "mask.nii.gz", mask, volume.affine, like=tmp_path / f"{name}.nii")
        written = nib.load(tmp_path / "mask.nii.gz")
        assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == codes
        assert written.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(written.affine, volume.affine)
        np.testing.assert_array_equal(written.get_qform(), nib.load(tmp_path / f"{name}.nii").get_qform())


def test_a_sheared_affine_is_written_as_sform_only(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[1, 2] = 0.3
    affine = affine.astype(np.float32).astype(float)
    write_nifti(tmp_path / "sheared.nii", numbered_array(), affine)
    header = nib.load(tmp_path / "sheared.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    np.testing.assert_array_equal(read_nifti(tmp_path / "sheared.nii").affine, affine)


def test_the_number_of_nan_and_infinite_voxels_is_said(tmp_path: Path) -> None:
    array = numbered_array(dtype=np.float32)
    array[0, 0, :3] = np.nan
    array[1, 1, 1] = np.inf
    write_nifti(tmp_path / "scan.nii", array, np.eye(4))
    with pytest.raises(VolumeError, match=r"scan\.nii: 4 of 120 voxels are NaN or infinite"):
        read_nifti(tmp_path / "scan.nii")


def test_segments_are_written_as_a_label_map_or_as_one_mask_each(tmp_path: Path) -> None:
    segments = (Segment(name="whole", label=1), Segment(name="core", label=2))
    label_map = Segmentation(segments, (numbered_array() % 3).astype(np.uint8), make_affine("LAS"))
    write_segmentation(tmp_path / "map.nii.gz", label_map)
    np.testing.assert_array_equal(read_labels(tmp_path / "map.nii.gz").array, label_map.array)
    masks = np.stack([numbered_array() > 10, numbered_array() > 60])
    write_segmentation(tmp_path / "masks.nii.gz", Segmentation(segments, masks, make_affine("LAS")))
    written = nib.load(tmp_path / "masks.nii.gz")
    assert (written.shape, written.get_data_dtype()) == ((4, 5, 6, 2), np.uint8)
    np.testing.assert_array_equal(np.asanyarray(written.dataobj)[..., 1], masks[1])


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "scan.nii"
    write_nifti(target, numbered_array(), np.eye(4))
    before = target.read_bytes()
    with pytest.raises(VolumeError):
        write_nifti(target, np.array([[[2**40]]]), np.eye(4))
    with pytest.raises(VolumeError):
        write_nifti(target, numbered_array().astype(complex), np.eye(4))
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_equal_masks_are_equal_files(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", numbered_array(dtype=np.uint8), np.eye(4))
    write_nifti(tmp_path / "b.nii.gz", numbered_array(dtype=np.uint8), np.eye(4))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_missing_file_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match=r"nowhere\.nii: cannot be read"):
        read_nifti(tmp_path / "nowhere.nii")
