"""NIfTI files come back as they went in, and what is not one volume is refused with a sentence."""

from __future__ import annotations

import gzip
import itertools
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
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
from semiseg.volumes.volume import Volume, axcodes_of, reorient

AXIS_ORIENTATIONS = [
    "".join(signs) for order in itertools.permutations(("RL", "AP", "SI")) for signs in itertools.product(*order)
]


def affine_along(axcodes: str, spacing: tuple[float, float, float] = (1.5, 0.75, 3.0)) -> np.ndarray:
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, code in enumerate(axcodes):
        world = "RLAPSI".index(code) // 2
        affine[world, axis] = spacing[axis] * (1 if code in "RAS" else -1)
    affine[:3, 3] = (-12.5, 40.25, 7.0)
    return affine


def oblique_affine(degrees: tuple[float, float, float], spacing: tuple[float, float, float]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * spacing
    affine[:3, 3] = (-80.0, 15.5, 33.0)
    # As NIfTI stores it, so that equality can be exact.
    return affine.astype(np.float32).astype(np.float64)


def numbered(shape: tuple[int, ...] = (4, 5, 6), dtype: type = np.int16) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def test_there_are_48_axis_orientations() -> None:
    assert len(set(AXIS_ORIENTATIONS)) == 48


@pytest.mark.parametrize("axcodes", AXIS_ORIENTATIONS)
def test_array_and_affine_survive_a_round_trip_in_every_axis_orientation(axcodes: str, tmp_path: Path) -> None:
    """VOL-02."""
    affine = affine_along(axcodes)
    write_nifti(tmp_path / "scan.nii.gz", numbered(), affine)
    volume = read_nifti(tmp_path / "scan.nii.gz")
    assert volume.axcodes == axcodes
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, numbered())
    np.testing.assert_array_equal(volume.affine, affine)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64])
def test_an_oblique_anisotropic_scan_keeps_values_type_and_affine(dtype: type, tmp_path: Path) -> None:
    affine = oblique_affine((12.0, -7.0, 33.0), (0.5, 0.9, 4.0))
    write_nifti(tmp_path / "scan.nii", numbered(dtype=dtype), affine)
    volume = read_nifti(tmp_path / "scan.nii")
    assert volume.array.dtype == dtype
    np.testing.assert_array_equal(volume.array, numbered(dtype=dtype))
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
    array = numbered(shape)
    turned, turned_affine = reorient(array, affine, target)
    assert axcodes_of(turned_affine) == target
    index = np.argwhere(np.ones(shape, bool))
    world = {int(array[tuple(i)]): affine[:3, :3] @ i + affine[:3, 3] for i in index}
    for i in np.argwhere(np.ones(turned.shape, bool)):
        place = turned_affine[:3, :3] @ i + turned_affine[:3, 3]
        np.testing.assert_allclose(place, world[int(turned[tuple(i)])], atol=1e-6)
    back, back_affine = reorient(turned, turned_affine, axcodes_of(affine))
    np.testing.assert_array_equal(back, array)
    np.testing.assert_allclose(back_affine, affine, atol=1e-6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(degrees=st.tuples(*[st.floats(-180, 180)] * 3), spacing=st.tuples(*[st.floats(0.2, 8.0)] * 3))
def test_any_oblique_affine_survives_a_round_trip(
    degrees: tuple[float, float, float], spacing: tuple[float, float, float], tmp_path: Path
) -> None:
    """VOL-02."""
    affine = oblique_affine(degrees, spacing)
    write_nifti(tmp_path / "scan.nii", numbered(), affine)
    np.testing.assert_array_equal(read_nifti(tmp_path / "scan.nii").affine, affine)


def test_scaled_integers_come_back_as_float32_with_the_scaling_applied(tmp_path: Path) -> None:
    """VOL-03."""
    image = nib.Nifti1Image(numbered(), np.eye(4))
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
    image = nib.Nifti1Image(numbered().astype(">i2"), affine_along("LPS"), header)
    image.to_filename(tmp_path / "big.nii")
    volume = read_nifti(tmp_path / "big.nii")
    assert volume.array.dtype.isnative
    np.testing.assert_array_equal(volume.array, numbered())
    np.testing.assert_array_equal(volume.affine, affine_along("LPS"))


def test_gzip_is_recognised_by_content_and_not_by_name(tmp_path: Path) -> None:
    write_nifti(tmp_path / "scan.nii.gz", numbered(), np.eye(4))
    (tmp_path / "scan.nii.gz").rename(tmp_path / "0001")
    assert is_nifti(tmp_path / "0001")
    np.testing.assert_array_equal(read_nifti(tmp_path / "0001").array, numbered())


def test_nifti_2_is_read(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(numbered(), affine_along("PIR")), tmp_path / "two.nii")
    assert is_nifti(tmp_path / "two.nii")
    volume = read_nifti(tmp_path / "two.nii")
    np.testing.assert_array_equal(volume.array, numbered())
    np.testing.assert_array_equal(volume.affine, affine_along("PIR"))


def test_a_single_volume_in_4d_is_one_volume(tmp_path: Path) -> None:
    write_nifti(tmp_path / "scan.nii", numbered((4, 5, 6, 1)), affine_along("RAS"))
    assert nib.load(tmp_path / "scan.nii").shape == (4, 5, 6, 1)
    np.testing.assert_array_equal(read_nifti(tmp_path / "scan.nii").array, numbered())


def test_several_volumes_in_4d_are_channels_in_the_order_of_the_names(tmp_path: Path) -> None:
    array = numbered((4, 5, 6, 2))
    write_nifti(tmp_path / "scan.nii", array, affine_along("RAS"))
    channels = read_nifti_channels(tmp_path / "scan.nii", ["T1", "FLAIR"])
    assert list(channels) == ["T1", "FLAIR"]
    np.testing.assert_array_equal(channels["FLAIR"].array, array[..., 1])
    with pytest.raises(VolumeError, match="holds 2"):
        read_nifti(tmp_path / "scan.nii")
    with pytest.raises(VolumeError, match=r"3 channel\(s\) \(T1, T2, FLAIR\), but the file holds 2"):
        read_nifti_channels(tmp_path / "scan.nii", ["T1", "T2", "FLAIR"])


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0)])
def test_header_units_become_millimetres(unit: str, factor: float, tmp_path: Path) -> None:
    image = nib.Nifti1Image(numbered(), np.diag([0.5, 0.5, 2.0, 1.0]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "scan.nii")
    np.testing.assert_allclose(read_nifti(tmp_path / "scan.nii").spacing, np.array([0.5, 0.5, 2.0]) * factor)


def test_a_file_without_sform_and_qform_is_placed_by_its_voxel_sizes(tmp_path: Path) -> None:
    image = nib.Nifti1Image(numbered(), None)
    image.header.set_zooms((1.0, 2.0, 3.0))
    nib.save(image, tmp_path / "bare.nii")
    volume = read_nifti(tmp_path / "bare.nii")
    assert volume.spacing == (1.0, 2.0, 3.0)
    np.testing.assert_array_equal(volume.affine, nib.load(tmp_path / "bare.nii").affine)


def test_a_mask_written_like_its_scan_repeats_codes_and_both_transforms(tmp_path: Path) -> None:
    affine = oblique_affine((10, 20, 30), (1, 1, 2))
    image = nib.Nifti1Image(numbered(), affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=4)
    nib.save(image, tmp_path / "scan.nii")
    bare = nib.Nifti1Image(numbered(), None)
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
    write_nifti(tmp_path / "sheared.nii", numbered(), affine)
    header = nib.load(tmp_path / "sheared.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    np.testing.assert_array_equal(read_nifti(tmp_path / "sheared.nii").affine, affine)


def test_labels_stored_as_float_are_read_as_integers_and_fractions_are_refused(tmp_path: Path) -> None:
    labels = (numbered() % 3).astype(np.float32)
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
    blocks = np.kron(numbered() % 4, np.ones((3, 3, 3))).astype(np.float32)
    moved = ndimage.shift(blocks, (0.3, 0, 0), order=1)
    with pytest.raises(VolumeError, match="was the label map resampled with interpolation"):
        read_labels(stored_labels(tmp_path / "linear.nii", moved))
    raw = np.rint(moved / moved.max() * 255).astype(np.uint8)
    with pytest.raises(VolumeError, match="was the label map resampled with interpolation"):
        read_labels(stored_labels(tmp_path / "scaled.nii", raw, moved.max() / 255))


def test_the_number_of_nan_and_infinite_voxels_is_said(tmp_path: Path) -> None:
    array = numbered(dtype=np.float32)
    array[0, 0, :3] = np.nan
    array[1, 1, 1] = np.inf
    write_nifti(tmp_path / "scan.nii", array, np.eye(4))
    with pytest.raises(VolumeError, match=r"scan\.nii: 4 of 120 voxels are NaN or infinite"):
        read_nifti(tmp_path / "scan.nii")


def test_segments_are_written_as_a_label_map_or_as_one_mask_each(tmp_path: Path) -> None:
    segments = (Segment(name="whole", label=1), Segment(name="core", label=2))
    label_map = Segmentation(segments, (numbered() % 3).astype(np.uint8), affine_along("LAS"))
    write_segmentation(tmp_path / "map.nii.gz", label_map)
    np.testing.assert_array_equal(read_labels(tmp_path / "map.nii.gz").array, label_map.array)
    masks = np.stack([numbered() > 10, numbered() > 60])
    write_segmentation(tmp_path / "masks.nii.gz", Segmentation(segments, masks, affine_along("LAS")))
    written = nib.load(tmp_path / "masks.nii.gz")
    assert (written.shape, written.get_data_dtype()) == ((4, 5, 6, 2), np.uint8)
    np.testing.assert_array_equal(np.asanyarray(written.dataobj)[..., 1], masks[1])


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "scan.nii"
    write_nifti(target, numbered(), np.eye(4))
    before = target.read_bytes()
    with pytest.raises(VolumeError):
        write_nifti(target, np.array([[[2**40]]]), np.eye(4))
    with pytest.raises(VolumeError):
        write_nifti(target, numbered().astype(complex), np.eye(4))
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_equal_masks_are_equal_files(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", numbered(dtype=np.uint8), np.eye(4))
    write_nifti(tmp_path / "b.nii.gz", numbered(dtype=np.uint8), np.eye(4))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def lying_header(tmp_path: Path, shape: tuple[int, ...], packed: bool) -> Path:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header["dim"][: len(shape) + 1] = (len(shape), *shape)
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    content = header.binaryblock + bytes(4) + bytes(600)
    path = tmp_path / "liar.nii"
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", [(3000, 3000, 3000), (32767, 32767, 32767), (200, 200, 100)])
def test_a_small_file_cannot_ask_for_much_memory(shape: tuple[int, ...], packed: bool, tmp_path: Path) -> None:
    """VOL-06."""
    path = lying_header(tmp_path, shape, packed)
    assert path.stat().st_size < 1100
    with pytest.raises(VolumeError, match=r"liar\.nii: the header declares"):
        read_nifti(path)


def damaged_files() -> dict[str, bytes]:
    image = nib.Nifti1Image(numbered((8, 8, 8)), np.eye(4))
    whole = image.to_bytes()
    packed = gzip.compress(whole)
    dims = bytearray(whole)
    dims[40:44] = struct.pack("<hh", 3, -4)
    pair = bytearray(whole)
    pair[344:348] = b"ni1\0"
    analyze = bytearray(whole)
    analyze[344:348] = bytes(4)
    code = bytearray(whole)
    code[70:72] = struct.pack("<h", 999)
    offset = bytearray(whole)
    offset[108:112] = struct.pack("<f", float("nan"))
    flat = bytearray(whole)
    flat[280:296] = bytes(16)
    unit = bytearray(whole)
    unit[123] = 7
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    five = nib.Nifti1Image(numbered((2, 2, 2, 3, 2)), np.eye(4)).to_bytes()
    rgb = nib.Nifti1Image(np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]), np.eye(4)).to_bytes()
    return {
        "empty": b"",
        "text": b"this is not a scan\n" * 40,
        "only the first half of the header": whole[:200],
        "header without voxels": whole[:352],
        "voxels cut short": whole[:-100],
        "gzip cut short": packed[: len(packed) // 2],
        "gzip with a flipped byte": bytes(flipped),
        "gzip garbage": b"\x1f\x8b" + bytes(range(256)),
        "gzip of nothing": gzip.compress(b""),
        "negative dimension": bytes(dims),
        "half of a pair": bytes(pair),
        "ANALYZE": bytes(analyze),
        "unknown data type": bytes(code),
        "offset that is no number": bytes(offset),
        "unknown unit": bytes(unit),
        "sform without extent": bytes(flat),
        "five dimensions": five,
        "colour": rgb,
        "complex": nib.Nifti1Image(np.ones((3, 3, 3), np.complex64), np.eye(4)).to_bytes(),
        "2D": nib.Nifti1Image(numbered((8, 8)), np.eye(4)).to_bytes(),
    }


@pytest.mark.parametrize("what", list(damaged_files()))
def test_damaged_files_are_refused_with_a_sentence_that_names_them(what: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.nii"
    path.write_bytes(damaged_files()[what])
    for reader in (read_nifti, read_labels):
        with pytest.raises(VolumeError, match=r"broken\.nii: .*\.$") as caught:
            reader(path)
        assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match=r"nowhere\.nii: cannot be read"):
        read_nifti(tmp_path / "nowhere.nii")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(place=st.integers(0, 351), value=st.integers(0, 255))
def test_any_changed_header_byte_gives_a_volume_or_a_volume_error(place: int, value: int, tmp_path: Path) -> None:
    """VOL-06."""
    content = bytearray(nib.Nifti1Image(numbered(), np.eye(4)).to_bytes())
    content[place] = value
    path = tmp_path / "changed.nii"
    path.write_bytes(bytes(content))
    try:
        volume = read_nifti(path)
    except VolumeError:
        return
    assert isinstance(volume, Volume)
    assert np.isfinite(volume.affine).all()
