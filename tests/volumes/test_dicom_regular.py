"""Slices that lean, lie unevenly, are missing or there twice: each value ends up where it is in the patient, or not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.uid import generate_uid
from scipy.spatial.transform import Rotation

from semiseg.errors import VolumeError
from semiseg.phantoms.anatomy import make_phantom
from semiseg.volumes.dicom_geometry import Plane, find_irregularities, make_plane, stack_planes
from semiseg.volumes.dicom_resampling import RegularGrid, make_regular_grid
from semiseg.volumes.dicom_series import read_series
from semiseg.volumes.volume import Volume

COLUMNS, ROWS = 13, 11
SPACING = (0.9, 0.7)  # rows, columns


def planes_at(heights: list[float], tilt: tuple[float, float], turn: NDArray[np.float64]) -> list[Plane]:
    """Planes at ``heights`` mm along their normal, leaning by ``tilt`` mm a mm along rows and columns."""
    return [
        make_plane(
            list(turn @ (tilt[0] * h - 7, tilt[1] * h + 5, h + 3)), [*turn[:, 0], *turn[:, 1]], SPACING, (ROWS, COLUMNS)
        )
        for h in heights
    ]


def sampled(planes: list[Plane], field: NDArray[np.float64]) -> NDArray[np.float64]:
    """A linear function of the place (LPS mm) at the pixels of planes: (columns, rows, N)."""
    x, y = np.arange(COLUMNS)[:, None, None], np.arange(ROWS)[None, :, None]
    out = []
    for p in planes:
        place = (
            np.array(p.position)
            + x * p.column_spacing * np.array(p.along_row)
            + y * p.row_spacing * np.array(p.along_column)
        )
        out.append(place @ field)
    return np.stack(out, axis=-1)


def expected(grid: RegularGrid, field: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same function at the grid's voxels."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    ras = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    return np.asarray(ras @ (field * (-1, -1, 1)))


@given(
    gaps=st.lists(st.sampled_from([1.0, 1.7, 2.0, 3.1]), min_size=1, max_size=9),
    tilt=st.tuples(*[st.sampled_from([0.0, -0.5, -0.23, 0.2, 0.41])] * 2),  # or more than a slice may lie aside
    degrees=st.tuples(*[st.floats(-180, 180)] * 3),
    seed=st.integers(0, 2**31),
)
def test_every_voxel_between_slices_has_the_value_of_its_place(
    gaps: list[float], tilt: tuple[float, float], degrees: tuple[float, float, float], seed: int
) -> None:
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    planes = planes_at([0.0, *np.cumsum(gaps).tolist()], tilt, turn)
    stack = stack_planes([planes[i] for i in np.random.default_rng(seed).permutation(len(planes))])
    grid = make_regular_grid(stack, find_irregularities(stack))
    field = np.array([0.3, -0.8, 0.5])
    # Where a slice does not reach there is air: a mask of what is between covered pixels is carried along.
    image = grid.image(sampled(list(stack.planes), field).astype(np.float32) + 1000)
    inside = (
        grid.image(np.pad(np.ones((COLUMNS - 2, ROWS - 2, len(planes)), np.float32), ((1, 1), (1, 1), (0, 0)))) > 0.999
    )
    assert inside.any()
    np.testing.assert_allclose(image[inside], expected(grid, field)[inside] + 1000, atol=2e-3)
    assert all(n >= m for n, m in zip(grid.shape[:2], (COLUMNS, ROWS), strict=True))


@given(tilt=st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5)), seed=st.integers(0, 2**31))
def test_a_mask_on_leaning_slices_goes_to_the_grid_and_back(tilt: tuple[float, float], seed: int) -> None:
    stack = stack_planes(planes_at([0.0, 2.0, 4.0, 6.0, 8.0], tilt, np.eye(3)))
    grid = make_regular_grid(stack, find_irregularities(stack))
    mask = np.random.default_rng(seed).integers(0, 3, (COLUMNS, ROWS, 5)).astype(np.uint8)
    np.testing.assert_array_equal(grid.on_slices(grid.labels(mask)), mask)
    several = np.stack([mask == 1, mask == 2])
    np.testing.assert_array_equal(grid.on_slices(np.stack([grid.labels(m) for m in several])), several)


def test_planes_are_as_close_as_the_closest_slices_but_not_closer_than_half_the_median() -> None:
    for heights, gap in (([0, 4, 8, 9, 16], 2.0), ([0, 4, 7, 11, 15], 3.0), ([0.0, 2.0, 4.0, 8.0], 2.0)):
        stack = stack_planes(planes_at([float(h) for h in heights], (0, 0), np.eye(3)))
        grid = make_regular_grid(stack, find_irregularities(stack))
        assert np.linalg.norm(grid.affine[:3, 2]) == pytest.approx(gap)
        assert (grid.shape[2] - 1) * gap == pytest.approx(heights[-1])


@pytest.fixture
def phantom() -> Volume:
    return make_phantom(7, (26, 22, 12), (3.6, 4.2, 4.0)).image


def changed(path: Path, target: Path, **values: object) -> Path:
    dataset = pydicom.dcmread(path)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(target)
    return target


def test_a_missing_slice_is_interpolated_and_told(files: list[Path]) -> None:
    """VOL-04."""
    whole = read_series(files)
    series = read_series([*files[:4], *files[5:]])
    assert series.volume.shape == whole.volume.shape
    np.testing.assert_allclose(series.volume.affine, whole.volume.affine, atol=1e-6)
    kept = [z for z in range(12) if z != 4]
    np.testing.assert_array_equal(series.volume.array[:, :, kept], whole.volume.array[:, :, kept])
    between = (whole.volume.array[:, :, 3].astype(int) + whole.volume.array[:, :, 5]) / 2
    np.testing.assert_allclose(series.volume.array[:, :, 4], between, atol=0.5)
    (remark,) = series.warnings
    assert remark.code == "missing_slices"
    assert remark.text.startswith("1 slice(s) are missing: between slices 4 and 5 of 11 (from ")
    assert remark.text.endswith("the volume has 12 planes 4 mm apart.")
    assert len(series.slices) == 11
    mask = np.zeros(series.volume.shape, dtype=np.uint8)
    mask[..., 4], mask[..., 5] = 1, 2
    assert [int(m.max()) for m in np.moveaxis(series.on_slices(mask), 2, 0)] == [0] * 4 + [2] + [0] * 6
    with pytest.raises(VolumeError, match=r"1 slice\(s\) are missing.* Send the whole series\."):
        read_series([*files[:4], *files[5:]], strict=True)


def test_equal_slices_of_one_place_are_left_out_and_told(files: list[Path], tmp_path: Path) -> None:
    double = changed(files[2], tmp_path / "double", SOPInstanceUID=generate_uid(), InstanceNumber=99)
    shutil.copy(files[3], tmp_path / "copy")
    series = read_series([*files, double, tmp_path / "copy"])
    np.testing.assert_array_equal(series.volume.array, read_series(files).volume.array)
    assert [(r.code, r.text.split(" ")[0]) for r in series.warnings] == [("copies", "1"), ("copies", "1")]
    for one, words in ((double, "lie where another one does"), (tmp_path / "copy", "an object that another file")):
        with pytest.raises(VolumeError, match=words):
            read_series([*files, one], strict=True)


def test_a_damaged_file_beside_the_series_is_told(files: list[Path], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.write_bytes(files[0].read_bytes()[:400])
    (tmp_path / "note.txt").write_text("not DICOM")
    series = read_series([*files[1:], damaged, tmp_path / "note.txt"])
    assert [r.code for r in series.warnings] == ["damaged_files"]
    with pytest.raises(VolumeError, match="It may be a slice of the series"):
        read_series([*files[1:], damaged], strict=True)
    assert read_series([*files, tmp_path / "note.txt"], strict=True).warnings == ()


def test_a_regular_series_is_left_as_it_is(files: list[Path]) -> None:
    series = read_series(files, strict=True)
    assert series.grid is None
    assert series.warnings == ()
    mask = np.zeros(series.volume.shape, dtype=np.uint8)
    assert series.on_slices(mask) is mask
