"""Confident learning on cases worked out by hand, and on labels spoilt on purpose."""

from __future__ import annotations

import pytest
import torch

from trainer.confident_learning import estimated_joint, label_errors


def test_the_joint_by_hand() -> None:
    given = torch.tensor([0, 0, 0, 1, 1])
    p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
    # Thresholds: class 0 (.9 + .8 + .1) / 3 = .6, class 1 (.8 + .7) / 2 = .75. The third example reaches class 1's, the
    # last one reaches none and is not counted; the row of class 1 is scaled up to the two labels given.
    assert estimated_joint(given, p).tolist() == [[2.0, 1.0], [0.0, 2.0]]


def test_labels_spoilt_on_purpose_are_found() -> None:
    random = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 3, (2, 12, 12, 12), generator=random)
    logits = 4.0 * torch.nn.functional.one_hot(truth, 3).movedim(-1, 1).float()
    logits += 0.5 * torch.randn(logits.shape, generator=random)
    spoilt = torch.rand(truth.shape, generator=random) < 0.1
    labels = torch.where(spoilt, (truth + 1) % 3, truth)
    found = label_errors(labels, torch.softmax(logits, dim=1))
    right = (found & spoilt).sum()
    assert int(right) / int(found.sum()) > 0.95
    assert int(right) / int(spoilt.sum()) > 0.9


@pytest.mark.parametrize("classes", [2, 4])
def test_labels_that_agree_with_the_probabilities_have_no_error(classes: int) -> None:
    labels = torch.randint(0, classes, (1, 6, 6, 6), generator=torch.Generator().manual_seed(1))
    certain = torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).float() * 0.9 + 0.1 / classes
    assert not bool(label_errors(labels, certain).any())


def test_a_class_that_nobody_has_takes_no_voxel() -> None:
    labels = torch.zeros((1, 4, 4, 4), dtype=torch.long)
    labels[0, :2] = 1
    p = torch.softmax(3 * torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(2)), dim=1)
    joint = estimated_joint(labels.flatten(), p.movedim(1, -1).reshape(-1, 3))
    assert joint[2].tolist() == [0.0, 0.0, 0.0], "nobody was given it"
    assert joint[:, 2].tolist() == [0.0, 0.0, 0.0], "nobody reaches its threshold"
    assert float(joint.sum()) == pytest.approx(labels.numel())


def test_thresholds_hold_for_as_many_voxels_as_a_batch_has() -> None:
    given = torch.zeros(3_300_000, dtype=torch.long)
    p = torch.tensor([0.951, 0.049]).expand(len(given), 2)  # their sum in single precision is 3% off
    assert estimated_joint(given, p)[0].tolist() == [len(given), 0.0]
