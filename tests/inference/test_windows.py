"""Windows cover every voxel, the last one flush with the end; how often each counts is known without counting."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semiseg.inference.windows import (
    Blending,
    coverage_along,
    padding_for,
    starts_along,
    weights_along,
    window_weights,
)

overlaps = st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.8, 0.9]) | st.floats(0, 0.95)
blendings = st.sampled_from(["constant", "gaussian"])


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 120), overlaps)
def test_windows_cover_every_voxel_and_end_flush(window: int, more: int, overlap: float) -> None:
    size = window + more
    starts = starts_along(size, window, overlap)
    assert starts[0] == 0 and starts[-1] == size - window
    steps = np.diff(starts)
    assert (steps > 0).all(), "no window is run twice"
    assert (steps <= window).all(), "no voxel is left out"
    # All steps are the wanted one, but for the last, which may be shorter.
    wanted = max(1, int(window * (1 - overlap) + 1e-6))
    assert (steps[:-1] == wanted).all() and (steps[-1:] <= wanted).all()


@pytest.mark.parametrize(
    ("size", "window", "overlap", "expected"),
    [
        (8, 4, 0.5, [0, 2, 4]),
        (9, 4, 0.5, [0, 2, 4, 5]),
        (8, 4, 0.0, [0, 4]),
        (9, 4, 0.0, [0, 4, 5]),
        (8, 4, 0.75, [0, 1, 2, 3, 4]),
        (9, 5, 0.5, [0, 2, 4]),
        (5, 5, 0.5, [0]),
        (96 + 48, 96, 0.5, [0, 48]),
        # 10 * (1 - 0.8) is 1.9999999999999996 in floating point.
        (16, 10, 0.8, [0, 2, 4, 6]),
        (120, 100, 0.9, [0, 10, 20]),
        (3, 1, 0.9, [0, 1, 2]),
    ],
)
def test_starts_by_hand(size: int, window: int, overlap: float, expected: list[int]) -> None:
    assert starts_along(size, window, overlap) == expected


def test_a_scan_smaller_than_the_window_has_to_be_padded_first() -> None:
    with pytest.raises(ValueError, match="3 voxels cannot hold a window of 4"):
        starts_along(3, 4, 0.5)


@given(st.integers(1, 300), blendings)
def test_every_voxel_of_a_window_counts_and_both_halves_alike(window: int, blending: Blending) -> None:
    weights = weights_along(window, blending)
    assert weights.dtype == np.float32 and weights.shape == (window,)
    assert (weights > 0).all() and weights.max() <= 1
    np.testing.assert_array_equal(weights, weights[::-1])
    if blending == "constant":
        assert (weights == 1).all()
    else:
        assert (np.diff(weights[: (window + 1) // 2]) >= 0).all(), "weights rise towards the middle"


def test_the_gaussian_is_an_eighth_of_the_window_wide() -> None:
    weights = weights_along(17, "gaussian")
    assert weights[8] == 1
    np.testing.assert_allclose(weights[8 + 2], np.exp(-0.5 * (2 / (17 / 8)) ** 2), rtol=1e-6)
    assert weights[0] == np.float32(1e-3), "exp(-7.1) would be less: the floor holds"


def test_the_windows_weight_is_a_product_shared_and_read_only() -> None:
    weights = window_weights((4, 6, 8), "gaussian")
    x, y, z = (weights_along(n, "gaussian") for n in (4, 6, 8))
    np.testing.assert_allclose(weights, np.einsum("i,j,k->ijk", x, y, z), rtol=1e-6)
    assert window_weights((4, 6, 8), "gaussian") is weights
    with pytest.raises(ValueError, match="read-only"):
        weights[0, 0, 0] = 1


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(*[st.integers(1, 6)] * 3), st.tuples(*[st.integers(0, 9)] * 3), st.sampled_from([0, 0.25, 0.5]), blendings
)
def test_the_product_of_three_sums_is_the_volume_of_counts(
    window: tuple[int, int, int], more: tuple[int, int, int], overlap: float, blending: Blending
) -> None:
    size = tuple(w + m for w, m in zip(window, more, strict=True))
    starts = [starts_along(n, w, overlap) for n, w in zip(size, window, strict=True)]
    counted = np.zeros(size)
    for x, y, z in itertools.product(*starts):
        place = tuple(slice(s, s + w) for s, w in zip((x, y, z), window, strict=True))
        counted[place] += window_weights(window, blending)
    cx, cy, cz = (coverage_along(n, w, s, blending) for n, w, s in zip(size, window, starts, strict=True))
    np.testing.assert_allclose(cx[:, None, None] * cy[None, :, None] * cz, counted, rtol=1e-5)
    assert (counted > 0).all()


@given(st.tuples(*[st.integers(1, 50)] * 3), st.tuples(*[st.integers(1, 50)] * 3))
def test_padding_makes_room_for_one_window_and_keeps_the_scan_in_the_middle(
    shape: tuple[int, int, int], window: tuple[int, int, int]
) -> None:
    for n, w, (before, after) in zip(shape, window, padding_for(shape, window), strict=True):
        assert n + before + after == max(n, w)
        assert 0 <= after - before <= 1
