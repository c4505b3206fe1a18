"""The entropy of a mask, against the definition, however the windows were blended."""

from __future__ import annotations

import numpy as np
import pytest

from semiseg.inference.segment_entropy import SegmentEntropy
from semiseg.inference.sliding_window import CompletedRegion

SHAPE = (4, 5, 6)


def coverage(seed: int = 3) -> list[np.ndarray]:
    return [np.random.default_rng(seed + k).uniform(0.5, 4, n).astype(np.float32) for k, n in enumerate(SHAPE)]


def weight() -> np.ndarray:
    x, y, z = coverage()
    return x[:, None, None] * y[None, :, None] * z


def part(sums: np.ndarray, planes: slice = slice(None), over: list[np.ndarray] | None = None) -> CompletedRegion:
    x, y, z = coverage() if over is None else over
    return CompletedRegion(sums[:, planes], (x[planes], y, z), (planes, slice(None), slice(None)), SHAPE)


@pytest.mark.parametrize("logits", [True, False])
def test_exclusive_segments(logits: bool) -> None:
    values = np.random.default_rng(0).normal(0, 2, (3, *SHAPE)).astype(np.float32)
    p = np.exp(values) / np.exp(values).sum(axis=0)
    doubt = SegmentEntropy(2, "softmax")
    sums = (values if logits else p) * weight()
    for x in range(SHAPE[0]):  # plane by plane
        one = part(sums, slice(x, x + 1))
        doubt.add(one, one.sums.argmax(axis=0).astype(np.uint8), logits=logits)
    entropy = -(p * np.log(p)).sum(axis=0) / np.log(3)
    found = p.argmax(axis=0)
    np.testing.assert_allclose(doubt.mean(), [entropy[found == k].mean() for k in (1, 2)], rtol=1e-4)


@pytest.mark.parametrize("logits", [True, False])
def test_regions(logits: bool) -> None:
    values = np.random.default_rng(1).normal(0, 2, (2, *SHAPE)).astype(np.float32)
    p = 1 / (1 + np.exp(-values))
    doubt = SegmentEntropy(2, "sigmoid")
    doubt.add(part((values if logits else p) * weight()), p >= 0.5, logits=logits)
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    np.testing.assert_allclose(doubt.mean(), [entropy[k][p[k] >= 0.5].mean() for k in (0, 1)], rtol=1e-4)


def test_a_guess_is_one_certainty_is_nought_and_nothing_is_nothing() -> None:
    ones = [np.ones(n, np.float32) for n in SHAPE]
    doubt = SegmentEntropy(3, "softmax")
    sure = np.zeros((4, *SHAPE), np.float32)
    sure[1, :2] = 50
    sure[2, 2:] = 1e-6
    doubt.add(part(sure, over=ones), sure.argmax(axis=0).astype(np.uint8), logits=True)
    certain, guess, nothing = doubt.mean()
    assert certain == pytest.approx(0, abs=1e-4)
    assert guess == pytest.approx(1, abs=1e-4)
    assert np.isnan(nothing)


def test_of_a_large_segment_a_part_is_enough_and_of_a_small_one_every_voxel_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape = (40, 40, 40)
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 2, (3, *shape)).astype(np.float32)
    logits[2] -= 20
    logits[2, 3, 4, 5:8] += 40  # three voxels of the second segment
    ones = [np.ones(n, np.float32) for n in shape]
    labels = logits.argmax(axis=0).astype(np.uint8)
    means = []
    for enough in (500, 10**6):
        monkeypatch.setattr("semiseg.inference.segment_entropy.MAX_SAMPLED_VOXELS", enough)
        doubt = SegmentEntropy(2, "softmax")
        doubt.add(CompletedRegion(logits, tuple(ones), (slice(None),) * 3, shape), labels, logits=True)
        means.append(doubt.mean())
    few, all_of_them = means
    assert np.sum(labels == 1) > 10_000 and np.sum(labels == 2) == 3
    assert few[0] != all_of_them[0] and few[0] == pytest.approx(all_of_them[0], rel=0.1)
    assert few[1] == all_of_them[1]
