"""The slab holds what windows still touch, and no more."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semiseg.engines.slab import Slab, plan_slab
from semiseg.inference.windows import starts_along


@settings(deadline=None, max_examples=150)
@given(st.tuples(*[st.integers(1, 6)] * 3), st.tuples(*[st.integers(0, 9)] * 3), st.floats(0, 0.9), st.integers(0, 99))
def test_sums_are_those_of_the_whole_volume(
    window: tuple[int, int, int], more: tuple[int, int, int], overlap: float, seed: int
) -> None:
    """In whatever order of the axes, for steps of any length, whole numbers add up exactly."""
    shape = tuple(w + m for w, m in zip(window, more, strict=True))
    starts = [starts_along(n, w, overlap) for n, w in zip(shape, window, strict=True)]
    plan = plan_slab(shape, window, starts)
    slab = Slab(plan, 2, "none", lambda size: np.zeros(size, np.int64))
    rng = np.random.default_rng(seed)
    expected, found = np.zeros((2, *shape), np.int64), np.full((2, *shape), -1, np.int64)
    order = (plan.outer, plan.middle, 3 - plan.outer - plan.middle)
    ends = {(axis, at): (*starts[axis], shape[axis])[k + 1] for axis in range(3) for k, at in enumerate(starts[axis])}
    for at in product(*(starts[axis] for axis in order)):
        start = tuple(at[order.index(axis)] for axis in range(3))
        values = rng.integers(0, 100, (2, *window))
        expected[(slice(None), *(slice(s, s + w) for s, w in zip(start, window, strict=True)))] += values
        for target, part, _ in slab.parts(values, start):
            target += part
        if start[order[2]] == starts[order[2]][-1]:
            place = [slice(None)] * 4
            for axis in order[:2]:
                place[1 + axis] = slice(start[axis], ends[axis, start[axis]])
            planes, rows = (place[1 + axis].stop - place[1 + axis].start for axis in order[:2])
            found[tuple(place)] = np.concatenate(slab.completed(planes, rows), axis=1 + order[0])
            slab.advance(planes, rows)
    np.testing.assert_array_equal(found, expected)
    assert slab.voxels == 2 * plan.voxels <= 2 * np.prod(shape)


@pytest.mark.parametrize(
    ("shape", "outer"),
    [((512, 512, 200), 0), ((512, 512, 1200), 2), ((200, 512, 512), 1), ((96, 96, 96), 0)],
)
def test_rows_follow_one_another_along_the_axis_that_holds_least(shape: tuple[int, int, int], outer: int) -> None:
    window = (96, 96, 96)
    starts = [starts_along(n, w, 0.5) for n, w in zip(shape, window, strict=True)]
    assert plan_slab(shape, window, starts).outer == outer


def test_half_overlap_holds_about_half_a_row_of_windows() -> None:
    shape, window = (528, 512, 400), (96, 96, 96)  # 528 = 96 + 9 * 48: no two rows share more than half
    plan = plan_slab(shape, window, [starts_along(n, w, 0.5) for n, w in zip(shape, window, strict=True)])
    assert plan.carried == 48
    assert plan.voxels == 48 * 512 * 400 + 48 * 96 * 400
