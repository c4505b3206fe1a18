"""Cleaning removes what it was asked to remove, in millilitres, and touches no other segment."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from semiseg.bundle.postprocessing import Postprocessing, SegmentCleaning

ML = 0.001  # a voxel of 1 mm


def blobs(*boxes: tuple[slice, slice, slice]) -> NDArray[np.bool_]:
    out = np.zeros((12, 12, 12), bool)
    for box in boxes:
        out[box] = True
    return out


def box(start: int, side: int) -> tuple[slice, slice, slice]:
    one = slice(start, start + side)
    return (one, one, one)


LARGE, SMALL = box(0, 4), box(7, 2)  # 64 and 8 voxels


def test_only_the_largest_component_stays() -> None:
    found = SegmentCleaning(largest_component=True).apply(blobs(LARGE, SMALL), ML)
    np.testing.assert_array_equal(found, blobs(LARGE))


def test_components_below_the_minimum_volume_go_and_those_at_it_stay() -> None:
    both = blobs(LARGE, SMALL)
    for minimum, kept in ((0.008, both), (0.009, blobs(LARGE)), (0.064, blobs(LARGE)), (0.065, blobs())):
        np.testing.assert_array_equal(SegmentCleaning(minimum_ml=minimum).apply(both, ML), kept)


def test_the_minimum_volume_follows_the_size_of_a_voxel() -> None:
    both = blobs(LARGE, SMALL)
    np.testing.assert_array_equal(SegmentCleaning(minimum_ml=0.1).apply(both, ML), blobs())
    np.testing.assert_array_equal(SegmentCleaning(minimum_ml=0.1).apply(both, 20 * ML), both)


def test_a_largest_component_below_the_minimum_volume_goes_too() -> None:
    cleaning = SegmentCleaning(largest_component=True, minimum_ml=1.0)
    assert not cleaning.apply(blobs(LARGE, SMALL), ML).any()


def test_components_that_touch_at_a_corner_are_one() -> None:
    touching = blobs(box(0, 3), box(3, 2))
    np.testing.assert_array_equal(SegmentCleaning(largest_component=True).apply(touching, ML), touching)


def test_an_enclosed_hole_is_filled_and_an_open_one_is_not() -> None:
    shell = blobs(box(2, 5))
    shell[4, 4, 4] = False
    np.testing.assert_array_equal(SegmentCleaning(fill_holes=True).apply(shell, ML), blobs(box(2, 5)))
    tunnel = blobs(box(2, 5))
    tunnel[4, 4, :] = False
    np.testing.assert_array_equal(SegmentCleaning(fill_holes=True).apply(tunnel, ML), tunnel)


@pytest.mark.parametrize("cleaning", [SegmentCleaning(largest_component=True, minimum_ml=0.01, fill_holes=True)])
def test_an_empty_mask_stays_empty(cleaning: SegmentCleaning) -> None:
    assert not cleaning.apply(blobs(), ML).any()


def test_without_settings_the_mask_is_left_as_the_network_drew_it() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (6, 6, 6), dtype=np.uint8)
    np.testing.assert_array_equal(Postprocessing().apply(labels, {"a": 1, "b": 2}, ML), labels)
    for mask in (labels == 1, labels > 0):
        np.testing.assert_array_equal(SegmentCleaning().apply(mask, ML), mask)


def test_only_the_named_segment_of_a_label_map_is_cleaned() -> None:
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[LARGE], labels[SMALL], labels[box(10, 1)] = 5, 5, 9
    cleaning = Postprocessing(segments={"organ": SegmentCleaning(largest_component=True)})
    found = cleaning.apply(labels, {"other": 9, "organ": 5}, ML)
    np.testing.assert_array_equal(found, np.where(blobs(SMALL), 0, labels))
    assert found.dtype == np.uint8
    assert labels[SMALL].all(), "the network's own answer is left as it was"


def test_a_hole_of_a_label_map_is_filled_only_where_no_other_segment_lies() -> None:
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[1:7, 1:7, 1:7] = 1
    labels[2:6, 2:6, 2:6] = 0
    labels[3, 3, 3] = 2
    found = Postprocessing(segments={"wall": SegmentCleaning(fill_holes=True)}).apply(labels, {"wall": 1, "in": 2}, ML)
    assert found[3, 3, 3] == 2
    assert np.count_nonzero(found == 1) == 6**3 - 1


def test_masks_are_cleaned_one_by_one() -> None:
    masks = np.stack([blobs(LARGE, SMALL), blobs(LARGE, SMALL)])
    cleaning = Postprocessing(segments={"second": SegmentCleaning(largest_component=True)})
    found = cleaning.apply(masks, {"first": 1, "second": 2}, ML)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, np.stack([blobs(LARGE, SMALL), blobs(LARGE)]))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.booleans(), st.floats(0, 0.02), st.booleans())
def test_cleaning_twice_is_cleaning_once(seed: int, largest: bool, minimum: float, holes: bool) -> None:
    mask = np.random.default_rng(seed).random((7, 7, 7)) < 0.12
    # Filling comes last and can only enlarge a component, so a second pass finds nothing to do.
    cleaning = SegmentCleaning(largest_component=largest, minimum_ml=minimum, fill_holes=holes)
    once = cleaning.apply(mask, ML)
    np.testing.assert_array_equal(cleaning.apply(once, ML), once)
    if not holes:
        assert not (once & ~mask).any()


@pytest.mark.parametrize("document", [{"minimum_ml": -1}, {"largest": True}, {"fill_holes": "perhaps"}])
def test_settings_that_mean_nothing_are_refused(document: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SegmentCleaning.model_validate(document)
