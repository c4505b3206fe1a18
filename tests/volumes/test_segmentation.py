"""Segments as one label map, and what a segmentation refuses to be."""

from __future__ import annotations

import numpy as np
import pytest

from semiseg.errors import InputError, VolumeError
from semiseg.volumes.segmentation import Segment, Segmentation, segmentation_from_labels

BRATS = (
    Segment(name="WT", label=1, values=(1, 2, 3), painted=2),
    Segment(name="TC", label=2, values=(1, 3), painted=1),
    Segment(name="ET", label=3, values=(3,), painted=3),
)


def test_regions_painted_in_their_order_are_the_label_map_they_came_from() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (6, 5, 4))
    regions = segmentation_from_labels(BRATS, labels, np.eye(4))
    assert regions.array.shape == (3, 6, 5, 4)
    np.testing.assert_array_equal(regions.label_map(), labels)
    assert regions.label_map().dtype == np.uint8


def test_the_label_map_of_exclusive_segments_is_theirs() -> None:
    labels = np.random.default_rng(0).choice([0, 4, 9], (6, 5, 4))
    segments = (Segment(name="liver", label=4), Segment(name="spleen", label=9))
    np.testing.assert_array_equal(segmentation_from_labels(segments, labels, np.eye(4)).label_map(), labels)


def test_regions_whose_values_nobody_declared_are_no_label_map() -> None:
    silent = tuple(s.model_copy(update={"painted": None}) if s.name == "TC" else s for s in BRATS)
    with pytest.raises(InputError, match=r"^TC may overlap other regions.*regions_class_order"):
        Segmentation(silent, np.zeros((3, 2, 2, 2), bool), np.eye(4)).label_map()


def test_probabilities_of_another_shape_are_refused() -> None:
    with pytest.raises(VolumeError, match=r"The probabilities of 1 segments of shape \(2, 2, 2\)"):
        Segmentation(BRATS[:1], np.zeros((2, 2, 2), np.uint8), np.eye(4), np.zeros((2, 2, 2, 2), np.uint8))
