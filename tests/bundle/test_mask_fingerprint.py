"""A mask unlike every training mask is flagged for a person, with figures."""

from __future__ import annotations

import numpy as np
import pytest

from semiseg.bundle.mask_fingerprint import MaskFingerprint, MaskMeasures, measure_mask
from semiseg.volumes.segmentation import Segment, Segmentation

SEGMENTS = (Segment(name="liver", label=1), Segment(name="cyst", label=2))

NONE = (0.0, 0.0, 0.0)


@pytest.fixture
def seen() -> MaskFingerprint:
    """The liver in every scan, the cyst in some."""
    return MaskFingerprint.from_measures(
        [
            {"liver": (1200.0, 1.0, 0.05), "cyst": (0.0, 0.0, 0.0)},
            {"liver": (1800.0, 3.0, 0.10), "cyst": (4.0, 2.0, 0.20)},
        ]
    )


@pytest.mark.parametrize(
    ("liver", "cyst", "told"),
    [
        ((1500.0, 2.0, 0.08), NONE, []),
        ((2600.0, 7.0, 0.14), (5.0, 5.0, 0.29), []),  # just within
        ((2800.0, 1.0, 0.05), NONE, ["unlike_volume: liver has 2.8e+03 ml; in the training scans it had 1.2e+03"]),
        ((700.0, 1.0, 0.05), NONE, ["unlike_volume: liver has 700 ml"]),
        (NONE, NONE, ["unlike_volume: No liver was found; in the training scans it had 1.2e+03"]),
        ((1500.0, 8.0, 0.05), NONE, ["unlike_pieces: liver is in 8 pieces; in the training scans it was in 3"]),
        ((1500.0, 1.0, 0.16), NONE, ["unlike_entropy: The network is unsure of liver (entropy 0.16; in the"]),
        (
            (1500.0, 1.0, 0.05),
            (9.0, 1.0, 0.5),
            ["unlike_volume: cyst has 9 ml", "unlike_entropy: The network is unsure"],
        ),
    ],
)
def test_masks_unlike_those_of_training_are_flagged(
    seen: MaskFingerprint, liver: MaskMeasures, cyst: MaskMeasures, told: list[str]
) -> None:
    found = seen.out_of_distribution_warnings({"liver": liver, "cyst": cyst})
    assert len(found) == len(told)
    for remark, words in zip(found, told, strict=True):
        assert f"{remark.code}: {remark.text}".startswith(words)
        assert remark.text.endswith("Have a person look at it.")


def test_a_segment_that_no_training_scan_had_is_flagged_when_it_is_found() -> None:
    none = MaskFingerprint.from_measures([{"liver": (1000.0, 1.0, 0.1), "cyst": (0.0, 0.0, 0.0)}])
    (remark,) = none.out_of_distribution_warnings({"liver": (1000.0, 1.0, 0.1), "cyst": (0.1, 1.0, 0.1)})
    assert remark.text.startswith("cyst was found, and in none of the 1 training scans.")
    assert none.out_of_distribution_warnings({"liver": (1000.0, 1.0, 0.1), "cyst": (0.0, 0.0, 0.0)}) == ()


def test_a_mask_is_measured_in_ml_and_in_pieces_that_touch_at_no_corner() -> None:
    array = np.zeros((8, 8, 8), np.uint8)
    array[0:2, 0:2, 0:2] = 1
    array[2, 2, 2] = 1  # touches at a corner
    array[6, 6, 6] = 1
    spacing = np.diag([10.0, 10.0, 10.0, 1.0])
    found = measure_mask(Segmentation(SEGMENTS, array, spacing), np.array([0.25, np.nan]))
    assert found == {"liver": pytest.approx((10.0, 2.0, 0.25)), "cyst": NONE}
    assert MaskFingerprint.model_validate_json(MaskFingerprint.from_measures([found]).model_dump_json()).always == (
        "liver",
    )
