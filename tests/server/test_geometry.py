"""A mask comes back on the grid of the NIfTI file that was sent, with the right voxels set, however the file lies."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.bundles import expected_mask, make_threshold_bundle, scan_array
from tests.server.harness import RunningServer, running_server

SHAPE = (21, 17, 9)  # longer, about as long, and shorter than the window of 16
ORIENTATIONS = [
    (axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1.0, -1.0), repeat=3)
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    bundle = make_threshold_bundle(folder / "bundle")
    with running_server(bundle.folder, folder / "process") as server:
        yield server


def affine_of(
    axes: tuple[int, int, int] = (0, 1, 2),
    signs: tuple[float, float, float] = (1.0, 1.0, 1.0),
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (row, sign, step) in enumerate(zip(axes, signs, spacing, strict=True)):
        affine[row, column] = sign * step
    affine[:3, 3] = (-31.5, 12.25, 7.0)
    return affine


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    out = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        out = out @ turn
    return out


def assert_mask_on_the_scans_grid(server: RunningServer, image: nib.Nifti1Image, name: str = "scan.nii") -> None:
    answer = server.segment(image.to_bytes(), names=[name])
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/gzip"
    mask = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
    sent = nib.Nifti1Image.from_bytes(image.to_bytes())  # as a reader of the file sees it
    assert mask.shape == sent.shape
    assert np.array_equal(mask.affine, sent.affine)
    values = np.asanyarray(sent.dataobj)
    assert mask.get_data_dtype() == np.uint8
    assert np.array_equal(np.asanyarray(mask.dataobj), expected_mask(values))
    assert set(np.unique(expected_mask(values))) == {0, 1, 2}  # else a lost segment would go unnoticed


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_mask_lies_on_the_grid_of_a_scan_in_any_of_the_48_orientations(server, axes, signs):
    """INF-01."""
    image = nib.Nifti1Image(scan_array(SHAPE, seed=3), affine_of(axes, signs, (0.75, 1.5, 3.0)))
    assert_mask_on_the_scans_grid(server, image)


@pytest.mark.parametrize("degrees", [(20, 0, 0), (-33, 12, 5), (44, 44, 44), (0, 170, -80)])
def test_mask_lies_on_the_grid_of_an_oblique_scan(server, degrees):
    affine = affine_of(spacing=(0.9, 1.1, 4.0))
    affine[:3, :3] = rotation(degrees) @ affine[:3, :3]
    assert_mask_on_the_scans_grid(server, nib.Nifti1Image(scan_array(SHAPE, seed=4), affine))


def test_mask_lies_on_the_grid_of_a_sheared_scan(server):
    affine = affine_of(spacing=(1, 1, 2))
    affine[1, 2] = 0.6
    image = nib.Nifti1Image(scan_array(SHAPE, seed=5), None)
    image.set_sform(affine, 1)
    image.header["qform_code"] = 0
    assert_mask_on_the_scans_grid(server, image)


@pytest.mark.parametrize("spacing", [(0.3, 0.3, 8.0), (12.0, 0.5, 0.5), (1.0, 0.01, 5.0)])
def test_mask_lies_on_the_grid_of_an_anisotropic_scan(server, spacing):
    assert_mask_on_the_scans_grid(server, nib.Nifti1Image(scan_array(SHAPE, seed=6), affine_of(spacing=spacing)))


def test_single_volume_4d_scan_is_answered_in_4d(server):
    image = nib.Nifti1Image(scan_array(SHAPE, seed=7)[..., None], affine_of(signs=(-1, -1, 1)))
    assert image.shape == (*SHAPE, 1)
    assert_mask_on_the_scans_grid(server, image)


def test_nifti_2_is_read(server):
    image = nib.Nifti2Image(scan_array(SHAPE, seed=8), affine_of(signs=(-1, 1, -1)))
    answer = server.segment(image.to_bytes())
    assert answer.status_code == 200, answer.text
    mask = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
    assert np.array_equal(mask.affine, image.affine)
    assert np.array_equal(np.asanyarray(mask.dataobj), expected_mask(np.asanyarray(image.dataobj)))


def test_place_said_by_qform_alone_is_repeated_by_qform(server):
    image = nib.Nifti1Image(scan_array(SHAPE, seed=9), None)
    image.set_qform(affine_of(signs=(-1, -1, 1), spacing=(1, 1, 2.5)), 1)
    image.header["sform_code"] = 0
    assert_mask_on_the_scans_grid(server, image)


@pytest.mark.parametrize("shape", [(1, 1, 1), (40, 1, 3), (16, 16, 16), (33, 16, 47)])
def test_mask_of_a_scan_of_any_size_has_its_size(server, shape):
    values = scan_array(shape, seed=10)
    values.flat[0] = 999
    answer = server.segment(nib.Nifti1Image(values, affine_of()).to_bytes())
    assert answer.status_code == 200, answer.text
    mask = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
    assert np.array_equal(np.asanyarray(mask.dataobj), expected_mask(values))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_stored_type_does_not_change_the_mask(server, dtype):
    values = (scan_array(SHAPE, seed=11) % 256 if dtype == np.uint8 else scan_array(SHAPE, seed=11)).astype(dtype)
    image = nib.Nifti1Image(values, affine_of())
    if dtype == np.uint8:
        image.header.set_slope_inter(4, 0)
        raw = nib.Nifti1Image.from_bytes(image.to_bytes())
        values = np.asanyarray(raw.dataobj)
    answer = server.segment(image.to_bytes())
    assert answer.status_code == 200, answer.text
    mask = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
    assert np.array_equal(np.asanyarray(mask.dataobj), expected_mask(values))


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.zip", "brain", "../../etc/passwd", "Ärztin Müller.dcm"])
def test_name_of_the_file_does_not_matter(server, name):
    packed = gzip.compress(nib.Nifti1Image(scan_array(SHAPE, seed=12), affine_of()).to_bytes())
    answer = server.segment(packed, names=[name])
    assert answer.status_code == 200, answer.text
    mask = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
    assert np.array_equal(np.asanyarray(mask.dataobj), expected_mask(scan_array(SHAPE, seed=12)))


def test_nothing_of_these_scans_is_left_on_disk(server: RunningServer):
    assert server.segment(nib.Nifti1Image(scan_array(SHAPE), affine_of()).to_bytes()).status_code == 200
    assert server.leftovers() == []
    assert list(Path(server.home).iterdir()) == []
