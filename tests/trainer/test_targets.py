"""What logits mean: classes that exclude one another, and regions that overlap."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from semiseg.volumes.segmentation import Segment
from trainer.cases import encode_labels, encode_prediction, sample_segment_voxels
from trainer.targets import ExclusiveClasses, OverlappingRegions, Targets, make_targets

KINDS = [ExclusiveClasses(2), OverlappingRegions(3)]
WT = Segment(name="WT", label=1, values=(1, 2, 3))
TC = Segment(name="TC", label=2, values=(2, 3))
ET = Segment(name="ET", label=3, values=(3,))


def labels_for(targets: Targets) -> torch.Tensor:
    return torch.randint(0, targets.codes, (2, 3, 4, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("targets", KINDS, ids=["classes", "regions"])
def test_deciding_undoes_encoding(targets: Targets) -> None:
    labels = labels_for(targets)
    encoded = targets.encode(labels)
    assert encoded.shape == (2, targets.channels, 3, 4, 5)
    assert torch.equal(targets.decide(encoded), labels)


@pytest.mark.parametrize("targets", KINDS, ids=["classes", "regions"])
def test_the_divergence_from_a_decided_target_is_the_cross_entropy_over_the_channels(targets: Targets) -> None:
    logits = torch.randn((2, targets.channels, 3, 4, 5), generator=torch.Generator().manual_seed(1))
    target = targets.encode(labels_for(targets))
    crossed = targets.cross_entropy(logits, target).mean()
    share = targets.channels if isinstance(targets, ExclusiveClasses) else 1  # regions are averaged already
    torch.testing.assert_close(targets.divergence(logits, target).mean(), crossed / share)


@pytest.mark.parametrize("targets", KINDS, ids=["classes", "regions"])
def test_the_divergence_is_zero_where_the_prediction_is_the_target(targets: Targets) -> None:
    logits = torch.randn((2, targets.channels, 3, 4, 5), generator=torch.Generator().manual_seed(1))
    assert float(targets.divergence(logits, targets.probabilities(logits)).mean()) == pytest.approx(0.0, abs=1e-6)


def test_the_cross_entropy_of_classes_is_torchs() -> None:
    logits = torch.randn((2, 3, 4, 4, 4), generator=torch.Generator().manual_seed(1))
    labels = torch.randint(0, 3, (2, 4, 4, 4))
    ours = ExclusiveClasses(2).cross_entropy(logits, functional.one_hot(labels, 3).movedim(-1, 1).float())
    torch.testing.assert_close(ours, functional.cross_entropy(logits, labels, reduction="none"))


@pytest.mark.parametrize("targets", KINDS, ids=["classes", "regions"])
def test_entropy_is_a_share_of_the_largest_and_its_slope_stays_finite(targets: Targets) -> None:
    nothing_known = torch.full((1, targets.channels, 1), 0.5 if targets.channels == targets.segments else 1 / 3)
    torch.testing.assert_close(targets.entropy(nothing_known), torch.ones((1, 1)))
    logits = torch.tensor([200.0, *[-200.0] * (targets.channels - 1)]).reshape(1, -1, 1).requires_grad_()
    entropy = targets.entropy(targets.probabilities(logits))
    assert float(entropy.detach()) == pytest.approx(0.0, abs=1e-5)
    entropy.sum().backward()
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


@pytest.mark.parametrize("segments", [1, 2, 13])
def test_a_voxel_between_two_classes_is_one_bit_ambiguous_for_any_number_of_classes(segments: int) -> None:
    p = torch.zeros(1, segments + 1, 3)
    p[0, 0] = torch.tensor([1.0, 0.5, 0.9])
    p[0, segments] = torch.tensor([0.0, 0.5, 0.1])
    by_hand = torch.tensor([[0.0, 1.0, -(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1))]])
    torch.testing.assert_close(ExclusiveClasses(segments).ambiguity(p), by_hand, atol=1e-5, rtol=0)


@pytest.mark.parametrize("segments", [1, 2, 8])
def test_a_voxel_of_which_one_region_is_not_known_is_one_bit_ambiguous_for_any_number_of_regions(segments: int) -> None:
    p = torch.zeros(1, segments, 2)
    p[0, -1] = torch.tensor([0.5, 1.0])
    torch.testing.assert_close(OverlappingRegions(segments).ambiguity(p), torch.tensor([[1.0, 0.0]]), atol=1e-5, rtol=0)


def test_the_entropy_of_two_classes_by_hand() -> None:
    p = torch.tensor([[[0.9], [0.1]]])
    by_hand = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(2)
    assert float(ExclusiveClasses(1).entropy(p)) == pytest.approx(by_hand, abs=1e-6)


def test_regions_of_a_label_map_become_bits_and_come_back() -> None:
    labels = np.array([[[0, 1, 2, 3, 9]]])
    encoded = encode_labels(labels, (WT, TC, ET))
    assert encoded.tolist() == [[[0, 0b001, 0b011, 0b111, 0]]]
    masks = np.stack([np.isin(labels, s.values) for s in (WT, TC, ET)])
    assert np.array_equal(encode_prediction(masks, (WT, TC, ET)), encoded)
    places = sample_segment_voxels(encoded, (WT, TC, ET))
    assert [len(p) for p in places] == [3, 2, 1]
    regions = make_targets(3, overlapping=True)
    assert np.array_equal(
        regions.encode(torch.from_numpy(encoded).long())[:, :, 0].numpy()[0], masks[:, 0, 0][:, None][:, 0]
    )


def test_exclusive_labels_become_classes_in_order() -> None:
    segments = (Segment(name="a", label=7), Segment(name="b", label=3))
    labels = np.array([[[0, 3, 7, 200]]])
    assert encode_labels(labels, segments).tolist() == [[[0, 2, 1, 0]]]
    assert encode_prediction(labels, segments).tolist() == [[[0, 2, 1, 0]]]
    assert make_targets(2, overlapping=False).channels == 3


def test_confidence_is_the_probability_of_the_decision_and_of_regions_of_the_least_certain() -> None:
    p = torch.tensor([0.2, 0.7, 0.1]).view(1, 3, 1)
    assert float(ExclusiveClasses(2).confidence(p)) == pytest.approx(0.7)
    assert float(OverlappingRegions(3).confidence(torch.tensor([0.2, 0.6, 0.95]).view(1, 3, 1))) == pytest.approx(0.6)


@pytest.mark.parametrize("targets", [ExclusiveClasses(2), OverlappingRegions(3)], ids=["classes", "regions"])
def test_the_distributions_of_a_voxel_are_those_of_its_decisions(targets: Targets) -> None:
    logits = torch.randn(2, 3, 4)
    found = targets.log_distributions(logits).exp()
    torch.testing.assert_close(found.sum(1), torch.ones_like(found[:, 0]))
    p = targets.probabilities(logits)
    torch.testing.assert_close(found[:, :, 0] if isinstance(targets, ExclusiveClasses) else found[:, 0], p)
