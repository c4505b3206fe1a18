"""Windows near marked blocks, and voxels that a selection of windows decides, compared with counting one by one."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from semiseg.inference.window_grid import WindowGrid, plane_reader

SIDES = st.tuples(*[st.integers(1, 6)] * 3)


@st.composite
def grids(draw: st.DrawFn) -> WindowGrid:
    window = draw(SIDES)
    x, y, z = (side + draw(st.integers(0, 12)) for side in window)
    a, b, c = (draw(st.sampled_from([0.0, 0.25, 0.5, 0.8])) for _ in range(3))
    return WindowGrid.covering((x, y, z), window, (a, b, c))


def boxes(grid: WindowGrid) -> dict[tuple[int, ...], tuple[slice, ...]]:
    """The voxels of each window, by its place in the grid."""
    return {
        index: tuple(
            slice(grid.starts[axis][k], grid.starts[axis][k] + grid.window[axis]) for axis, k in enumerate(index)
        )
        for index in itertools.product(*(range(len(along)) for along in grid.starts))
    }


def some(shape: tuple[int, ...], share: float, seed: int) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(shape) < share


@settings(deadline=None, max_examples=60)
@given(grids(), SIDES, st.tuples(*[st.floats(0, 5)] * 3), st.floats(0, 0.2), st.integers(0, 99))
def test_windows_within_the_margin_of_a_marked_block_are_found_and_no_others(
    grid: WindowGrid, block: tuple[int, int, int], margin: tuple[float, float, float], share: float, seed: int
) -> None:
    blocks = tuple(-(-n // step) for n, step in zip(grid.shape, block, strict=True))
    hot = some(blocks, share, seed)
    near = grid.windows_near(hot, block, margin)
    for index, box in boxes(grid).items():
        # A block touches the window grown by the margin, both as intervals of voxels.
        touched = any(
            all(
                place * step < cut.stop + math.ceil(far) and (place + 1) * step > cut.start - math.ceil(far)
                for place, step, cut, far in zip(found, block, box, margin, strict=True)
            )
            for found in np.argwhere(hot)
        )
        assert near[index] == touched


@settings(deadline=None, max_examples=60)
@given(grids(), st.floats(0, 1), st.integers(0, 99), st.data())
def test_a_voxel_belongs_to_the_region_if_all_its_windows_are_run(
    grid: WindowGrid, share: float, seed: int, data: st.DataObject
) -> None:
    needed = some(tuple(len(along) for along in grid.starts), share, seed)
    planned, run = np.zeros(grid.shape, int), np.zeros(grid.shape, int)
    for index, box in boxes(grid).items():
        planned[box] += 1
        run[box] += int(needed[index])
    expected = planned == run
    region = grid.region(needed)
    assert region.count == np.count_nonzero(needed)
    x, y, z = np.indices(grid.shape).reshape(3, -1)
    np.testing.assert_array_equal(region.contains((x, y, z)), expected.reshape(-1))
    bounds = [sorted((data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, n)))) for n in grid.shape]
    a, b, c = (slice(low, max(high, low + 1)) for low, high in bounds)
    found = region.crop((a, b, c))
    inside = np.zeros(grid.shape, bool)
    if found is not None:
        box, mask = found
        inside[box] = True if mask is None else mask
    here = np.zeros(grid.shape, bool)
    here[a, b, c] = expected[a, b, c]
    np.testing.assert_array_equal(inside, here)


@settings(deadline=None, max_examples=60)
@given(grids(), st.floats(0.2, 1), st.floats(0, 0.3), st.integers(0, 99), st.booleans())
def test_a_mask_meets_the_border_where_a_neighbour_is_not_decided(
    grid: WindowGrid, share: float, filled: float, seed: int, regions: bool
) -> None:
    region = grid.region(some(tuple(len(along) for along in grid.starts), share, seed))
    x, y, z = np.indices(grid.shape).reshape(3, -1)
    decided = region.contains((x, y, z)).reshape(grid.shape)
    mask = some(grid.shape, filled, seed + 1) & decided
    meets = False
    for axis in range(3):
        before = [slice(None)] * 3
        after = [slice(None)] * 3
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        b, a = tuple(before), tuple(after)
        meets |= bool((mask[b] & ~decided[a]).any() or (mask[a] & ~decided[b]).any())
    drawn = np.stack([mask, np.zeros_like(mask)]) if regions else mask.astype(np.uint8) * 3
    assert region.reached_at_border(plane_reader(drawn)) == meets
