"""Several contours of a structure on one slice: holes, islands, strokes that cross, repeats, and exclusive or."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from semiseg.collection.contour_relations import contour_relation
from semiseg.collection.contour_sets import Contour, FilledArea, fill_contours
from tests.collection.centre_contours import centre_contours, simplify_contour

SIZE = (61, 47)
COLUMN, ROW = np.indices(SIZE)
Points = NDArray[np.float64]


def circle(centre: tuple[float, float], radius: float, points: int = 400) -> Points:
    angle = np.arange(points) * 2 * math.pi / points
    return np.column_stack([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)])


def disc(centre: tuple[float, float], radius: float) -> NDArray[np.bool_]:
    return np.asarray(np.hypot(COLUMN - centre[0], ROW - centre[1]) < radius)


def box(left: float, top: float, right: float, bottom: float) -> Points:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def pixels(left: int, top: int, right: int, bottom: int) -> NDArray[np.bool_]:
    """Pixels from (left, top) to (right, bottom), both included."""
    return np.asarray((left <= COLUMN) & (right >= COLUMN) & (top <= ROW) & (bottom >= ROW))


def read(*contours: Points, exclusive: bool = False) -> FilledArea:
    return fill_contours([Contour(points, exclusive=exclusive) for points in contours], SIZE)


def orders(contours: Sequence[Points]) -> list[list[Points]]:
    """The same contours in other orders, from other starts and the other way round."""
    rng = np.random.default_rng(2)
    out = [list(contours)]
    for _ in range(5):
        mixed = [
            np.roll(contours[k], int(rng.integers(len(contours[k]))), axis=0) for k in rng.permutation(len(contours))
        ]
        out.append([points[:: int(rng.choice([-1, 1]))] for points in mixed])
    return out


def same_however_written(contours: Sequence[Points], expected: NDArray[np.bool_], conventions: set[str]) -> None:
    for written in orders(contours):
        area = read(*written)
        np.testing.assert_array_equal(area.mask, expected)
        assert area.conventions == conventions


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_contours_within_each_other_are_by_turns_holes_and_islands(levels: int) -> None:
    radii = [18.1, 13.3, 8.2, 4.4][:levels]
    expected = np.zeros(SIZE, dtype=bool)
    for radius in radii:
        expected ^= disc((30, 23), radius)
    same_however_written([circle((30, 23), r, 3000) for r in radii], expected, {"hole"} if levels > 1 else set())


def test_two_holes_and_an_island_in_one_of_them() -> None:
    contours = [
        box(3.5, 3.5, 50.5, 40.5),
        box(7.5, 7.5, 20.5, 20.5),
        box(29.5, 7.5, 40.5, 20.5),
        box(9.5, 9.5, 12.5, 12.5),
    ]
    expected = pixels(4, 4, 50, 40) & ~pixels(8, 8, 20, 20) & ~pixels(30, 8, 40, 20) | pixels(10, 10, 12, 12)
    same_however_written(contours, expected, {"hole"})


def test_separate_contours_are_no_matter_of_convention() -> None:
    contours = [box(3.5, 3.5, 10.5, 10.5), box(10.5, 3.5, 20.5, 10.5), box(25, 3, 30, 9), box(3.5, 10.5, 10.5, 20.5)]
    expected = pixels(4, 4, 20, 10) | pixels(25, 3, 30, 9) | pixels(4, 11, 10, 20)
    same_however_written(contours, expected, set())


def test_contours_that_cross_are_united() -> None:
    contours = [circle((22, 23), 12.3, 3000), circle((34, 23), 12.3, 3000)]
    same_however_written(contours, disc((22, 23), 12.3) | disc((34, 23), 12.3), {"united"})


def test_contours_that_cross_without_a_corner_in_each_other_are_united() -> None:
    contours = [box(3.5, 15.5, 50.5, 20.5), box(15.5, 3.5, 20.5, 40.5)]
    same_however_written(contours, pixels(4, 16, 50, 20) | pixels(16, 4, 20, 40), {"united"})


@pytest.mark.parametrize("times", [2, 3, 4])
@pytest.mark.parametrize("points", [circle((30, 23), 12.3), box(10, 12, 20, 22), box(9.5, 11.5, 20.5, 22.5)])
def test_a_contour_that_is_repeated_counts_once(points: Points, times: int) -> None:
    same_however_written([points] * times, read(points).mask, {"united"})


def test_a_repeated_contour_with_other_points_or_fewer_decimals_counts_once() -> None:
    points = box(9.5, 11.5, 20.5, 22.5)
    denser = np.concatenate(
        [
            points[k] + np.linspace(0, 1, 9, endpoint=False)[:, None] * (np.roll(points, -1, 0)[k] - points[k])
            for k in range(4)
        ]
    )
    same_however_written([points, denser], pixels(10, 12, 20, 22), {"united"})
    drawn = circle((30, 23), 12.3)
    assert read(drawn, np.round(drawn, 2)).mask.sum() == pytest.approx(read(drawn).mask.sum(), abs=2)


def test_a_repeated_outline_keeps_its_hole() -> None:
    contours = [box(3.5, 3.5, 40.5, 40.5)] * 2 + [box(9.5, 9.5, 20.5, 20.5)]
    same_however_written(contours, pixels(4, 4, 40, 40) & ~pixels(10, 10, 20, 20), {"united", "hole"})


def test_holes_that_cross_are_one_hole_without_a_line_through_it() -> None:
    contours = [box(3, 3, 40, 40), box(9, 9, 20, 20), box(15, 15, 30, 30)]
    expected = pixels(3, 3, 40, 40) & ~pixels(10, 10, 19, 19) & ~pixels(16, 16, 29, 29)
    same_however_written(contours, expected, {"united", "hole"})


def test_outlines_that_cross_have_a_hole_in_the_part_that_both_enclose() -> None:
    contours = [box(3.5, 3.5, 30.5, 30.5), box(10.5, 10.5, 40.5, 40.5), box(15.5, 15.5, 20.5, 20.5)]
    expected = (pixels(4, 4, 30, 30) | pixels(11, 11, 40, 40)) & ~pixels(16, 16, 20, 20)
    same_however_written(contours, expected, {"united", "hole"})


def test_a_chain_of_strokes_around_a_void_leaves_it_and_an_island_in_it() -> None:
    strokes = [
        box(3.5, 3.5, 40.5, 8.5),
        box(3.5, 30.5, 40.5, 35.5),
        box(5.5, 5.5, 9.5, 33.5),
        box(33.5, 5.5, 38.5, 33.5),
    ]
    expected = pixels(4, 4, 40, 8) | pixels(4, 31, 40, 35) | pixels(6, 6, 9, 33) | pixels(34, 6, 38, 33)
    same_however_written([*strokes, box(14.5, 14.5, 20.5, 20.5)], expected | pixels(15, 15, 20, 20), {"united"})


@pytest.mark.parametrize(
    "hole",
    [
        pytest.param(box(3.5, 9.5, 12.5, 20.5), id="shares a part of an edge"),
        pytest.param(box(3.5, 3.5, 12.5, 40.5), id="shares three edges"),
        pytest.param(np.array([[3.5, 12.5], [9.5, 9.5], [9.5, 20.5]]), id="touches an edge with a corner"),
        pytest.param(np.array([[3.5, 3.5], [9.5, 6.5], [6.5, 9.5]]), id="touches a corner with a corner"),
    ],
)
def test_a_hole_may_touch_its_outline(hole: Points) -> None:
    same_however_written(
        [box(3.5, 3.5, 40.5, 40.5), hole], pixels(4, 4, 40, 40) & ~read(hole).mask | edge(hole), {"hole"}
    )


def edge(points: Points) -> NDArray[np.bool_]:
    """The pixels whose centres lie on a contour."""
    return read(points).mask & ~read(points, points, exclusive=True).mask & on(points)


def on(points: Points) -> NDArray[np.bool_]:
    out = np.zeros(SIZE, dtype=bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        cross = (x1 - x0) * (ROW - y0) - (y1 - y0) * (COLUMN - x0)
        out |= (np.abs(cross) < 1e-9) & ((COLUMN - x0) * (COLUMN - x1) <= 0) & ((ROW - y0) * (ROW - y1) <= 0)
    return out


def test_a_line_in_an_area_takes_nothing_from_it_and_a_line_out_of_it_adds_its_pixels() -> None:
    area = box(3, 3, 20, 20)
    same_however_written([area, np.array([[5.0, 5.0], [9.0, 5.0]])], pixels(3, 3, 20, 20), set())
    same_however_written([area, np.array([[15.0, 5.0]])], pixels(3, 3, 20, 20), set())
    out = np.array([[15.0, 5.0], [25.0, 5.0]])
    same_however_written([area, out], pixels(3, 3, 20, 20) | pixels(15, 5, 25, 5), set())


def test_a_line_across_a_hole_leaves_the_hole() -> None:
    contours = [box(3, 3, 30, 30), box(9, 9, 20, 20), np.array([[1.0, 12.0], [26.0, 12.0], [26.0, 14.0], [26.0, 12.0]])]
    expected = pixels(3, 3, 30, 30) & ~pixels(10, 10, 19, 19) | pixels(1, 12, 26, 12)
    same_however_written(contours, expected, {"hole"})


def test_contours_of_type_xor_are_combined_by_exclusive_or() -> None:
    left, right = box(3.5, 3.5, 20.5, 20.5), box(10.5, 10.5, 30.5, 30.5)
    area = read(left, right, exclusive=True)
    np.testing.assert_array_equal(area.mask, pixels(4, 4, 20, 20) ^ pixels(11, 11, 30, 30))
    assert not area.conventions
    rings = [circle((30, 23), r, 3000) for r in (18.1, 12.3, 5.2)]
    area = read(*rings, exclusive=True)
    np.testing.assert_array_equal(area.mask, disc((30, 23), 18.1) ^ disc((30, 23), 12.3) ^ disc((30, 23), 5.2))
    assert not area.conventions


@pytest.mark.parametrize(("times", "left"), [(2, 0), (3, 1), (4, 0)])
def test_repeated_contours_of_type_xor_cancel_each_other_in_pairs(times: int, left: int) -> None:
    area = read(*[box(3, 3, 20, 20)] * times, exclusive=True)
    np.testing.assert_array_equal(area.mask, pixels(3, 3, 20, 20) if left else np.zeros(SIZE, dtype=bool))
    assert area.conventions == {"cancelled"}


def test_both_types_on_one_slice_are_combined_by_exclusive_or() -> None:
    contours = [Contour(box(3.5, 3.5, 20.5, 20.5)), Contour(box(10.5, 10.5, 30.5, 30.5), exclusive=True)]
    area = fill_contours(contours, SIZE)
    np.testing.assert_array_equal(area.mask, pixels(4, 4, 20, 20) ^ pixels(11, 11, 30, 30))
    assert area.conventions == {"mixed"}


def test_a_contour_that_overlaps_itself_is_told() -> None:
    turn = np.linspace(0, 2 * math.pi, 400, endpoint=False)
    away = 6 + 12 * np.cos(turn)
    limacon = np.column_stack([30 + away * np.cos(turn), 23 + away * np.sin(turn)])
    area = read(limacon)
    assert area.conventions == {"twice"}
    assert area.mask[45, 23] and not area.mask[33, 23], "the loop within is a hole, as in a keyhole"
    eight = np.array([[5.5, 5.5], [20.5, 20.5], [20.5, 5.5], [5.5, 20.5]])
    assert not read(eight).conventions


def masks(width: int, height: int) -> st.SearchStrategy[NDArray[np.bool_]]:
    """Of any density: dense ones have holes."""
    values = st.lists(st.integers(0, 99), min_size=width * height, max_size=width * height)
    return st.tuples(values, st.integers(10, 90)).map(
        lambda drawn: np.array(drawn[0]).reshape(width, height) < drawn[1]
    )


@settings(max_examples=300, deadline=None)
@given(mask=masks(9, 8), simple=st.booleans())
def test_contours_through_pixel_centres_give_the_mask_back(mask: NDArray[np.bool_], simple: bool) -> None:
    contours = centre_contours(mask)
    # A ring that is one pixel thick and slanted all around has the same contour outside and inside: who reads it
    # cannot tell it from a contour that was written twice.
    places = [frozenset(map(tuple, points.tolist())) for points in contours]
    assume(len(set(places)) == len(places))
    drawn = [Contour(simplify_contour(points) if simple else points) for points in contours]
    area = fill_contours(drawn, mask.shape)
    np.testing.assert_array_equal(area.mask, mask)
    assert area.conventions <= {"hole"}


@settings(max_examples=100, deadline=None)
@given(mask=masks(5, 4), zoom=st.integers(2, 3))
def test_contours_through_pixel_centres_of_regions_of_several_pixels_give_the_mask_back(
    mask: NDArray[np.bool_], zoom: int
) -> None:
    mask = np.kron(mask, np.ones((zoom, zoom), dtype=bool))
    area = fill_contours([Contour(simplify_contour(points)) for points in centre_contours(mask)], mask.shape)
    np.testing.assert_array_equal(area.mask, mask)


boxes = st.tuples(*[st.integers(0, 18)] * 4).filter(lambda b: b[0] != b[2] and b[1] != b[3])


@settings(max_examples=200, deadline=None)
@given(st.lists(boxes, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_the_order_start_and_way_of_contours_do_not_matter(drawn: list[tuple[int, ...]], random: object) -> None:
    contours = [box(*map(float, one)) for one in drawn]
    first = read(*contours)
    for written in orders(contours)[1:]:
        other = read(*written)
        np.testing.assert_array_equal(other.mask, first.mask)
        assert other.conventions == first.conventions
    turned = fill_contours([Contour(points[:, ::-1]) for points in contours], SIZE[::-1])
    np.testing.assert_array_equal(turned.mask, first.mask.T)


@settings(max_examples=200, deadline=None)
@given(st.lists(boxes, min_size=2, max_size=2))
def test_two_boxes_lie_to_each_other_as_their_pixels_do(drawn: list[tuple[int, ...]]) -> None:
    """Against arithmetic on the sides, which knows nothing of edges."""
    (a0, a1, a2, a3), (b0, b1, b2, b3) = [(min(i, k), min(j, m), max(i, k), max(j, m)) for i, j, k, m in drawn]
    found = contour_relation(box(a0, a1, a2, a3).astype(float), box(b0, b1, b2, b3).astype(float), 1e-4)
    overlap = min(a2, b2) > max(a0, b0) and min(a3, b3) > max(a1, b1)
    if (a0, a1, a2, a3) == (b0, b1, b2, b3):
        expected = "same"
    elif not overlap:
        expected = "apart"
    elif b0 <= a0 and b1 <= a1 and a2 <= b2 and a3 <= b3:
        expected = "inside"
    elif a0 <= b0 and a1 <= b1 and b2 <= a2 and b3 <= a3:
        expected = "around"
    else:
        expected = "crossing"
    assert found == expected


def test_rounding_makes_no_crossing_of_a_shared_edge() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        outer = box(3.5, 3.5, 40.5, 40.5) + rng.uniform(-0.02, 0.02, (4, 2))
        hole = box(3.5, 9.5, 12.5, 20.5) + rng.uniform(-0.02, 0.02, (4, 2))
        area = fill_contours([Contour(outer, 0.05), Contour(hole, 0.05)], SIZE)
        np.testing.assert_array_equal(area.mask, pixels(4, 4, 40, 40) & ~pixels(4, 10, 12, 20))
