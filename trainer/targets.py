"""What the channels of the logits mean: exclusive classes (softmax) or overlapping regions (sigmoid).

Methods are written against :class:`Targets`, so that each of them works for both. Labels travel as one small integer
per voxel: a class, or for regions a sum of bits, 2^r for each region r that the voxel belongs to.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-8  # the slope of -p log p has no limit at 0
MAX_REGIONS = 8  # a code of regions is stored as one byte


class Targets(ABC):
    """How logits (N, C, ...) become probabilities, and labels (N, ...) the values that these should have."""

    def __init__(self, segments: int) -> None:
        self.segments = segments

    @property
    @abstractmethod
    def channels(self) -> int:
        """C, the channels of the logits."""

    @property
    @abstractmethod
    def codes(self) -> int:
        """How many different labels there are."""

    @abstractmethod
    def encode(self, labels: Tensor) -> Tensor:
        """Labels (N, ...) int64 -> what each channel should be, 0 or 1: (N, C, ...) float32."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """(N, C, ...) float32, also under mixed precision."""

    @abstractmethod
    def decide(self, probabilities: Tensor) -> Tensor:
        """The most probable labels (N, ...) int64: the inverse of :meth:`encode` for 0 and 1."""

    @abstractmethod
    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Per voxel (N, ...), against probabilities ``target`` (N, C, ...)."""

    @abstractmethod
    def divergence(self, logits: Tensor, target: Tensor) -> Tensor:
        """KL(target || prediction), per voxel and channel (N, C, ...)."""

    @abstractmethod
    def log_distributions(self, logits: Tensor) -> Tensor:
        """Logarithms of the probabilities of a decision's outcomes: (N, outcomes, decisions per voxel, ...) float32."""

    @abstractmethod
    def over_channels(self, values: Tensor) -> Tensor:
        """One value per voxel (N, ...) of values per channel (N, C, ...), as :meth:`cross_entropy` is one of them."""

    @abstractmethod
    def foreground(self, values: Tensor) -> Tensor:
        """The channels of ``values`` (N, C, ...) that stand for segments: (N, segments, ...)."""

    @abstractmethod
    def entropy(self, probabilities: Tensor) -> Tensor:
        """Per voxel (N, ...), as a share of the largest possible: 0 certain, 1 nothing known."""

    @abstractmethod
    def ambiguity(self, probabilities: Tensor) -> Tensor:
        """Per voxel (N, ...), in bits: 0 certain, 1 where two answers are equally likely, for any number of classes.

        It is the scale of thresholds that separate certain voxels from ambiguous ones: a share of the largest entropy
        means something else for each number of classes.
        """

    @abstractmethod
    def confidence(self, probabilities: Tensor) -> Tensor:
        """Per voxel (N, ...): the probability of the decision, of regions that of the least certain one."""


class ExclusiveClasses(Targets):
    """Each voxel has one class; class 0 is the background."""

    @property
    def channels(self) -> int:
        """One for each segment and the background."""
        return self.segments + 1

    @property
    def codes(self) -> int:
        """The classes."""
        return self.channels

    def encode(self, labels: Tensor) -> Tensor:
        """See :meth:`Targets.encode`."""
        out = torch.zeros((labels.shape[0], self.channels, *labels.shape[1:]), device=labels.device)
        return out.scatter_(1, labels.unsqueeze(1), 1.0)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax over the channels."""
        return torch.softmax(logits.float(), dim=1)

    def decide(self, probabilities: Tensor) -> Tensor:
        """The channel with the largest probability."""
        return probabilities.argmax(dim=1)

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """-sum_c y_c log p_c."""
        return -(target * functional.log_softmax(logits.float(), dim=1)).sum(dim=1)

    def divergence(self, logits: Tensor, target: Tensor) -> Tensor:
        """y_c (log y_c - log p_c)."""
        return functional.kl_div(functional.log_softmax(logits.float(), dim=1), target, reduction="none")

    def log_distributions(self, logits: Tensor) -> Tensor:
        """One decision between the classes: (N, C, 1, ...)."""
        return functional.log_softmax(logits.float(), dim=1).unsqueeze(2)

    def over_channels(self, values: Tensor) -> Tensor:
        """Their sum: the channels are the outcomes of one decision."""
        return values.sum(dim=1)

    def foreground(self, values: Tensor) -> Tensor:
        """All but the background."""
        return values[:, 1:]

    def entropy(self, probabilities: Tensor) -> Tensor:
        """-sum_c p_c log p_c / log C."""
        return torch.special.entr(probabilities.clamp_min(EPSILON)).sum(dim=1) / math.log(self.channels)

    def ambiguity(self, probabilities: Tensor) -> Tensor:
        """-sum_c p_c log2 p_c; above 1 where more than two classes are likely."""
        return torch.special.entr(probabilities.clamp_min(EPSILON)).sum(dim=1) / math.log(2.0)

    def confidence(self, probabilities: Tensor) -> Tensor:
        """max_c p_c."""
        return probabilities.amax(dim=1)


class OverlappingRegions(Targets):
    """Each voxel belongs to any number of regions, one channel each; there is no background channel."""

    @property
    def channels(self) -> int:
        """One for each region."""
        return self.segments

    @property
    def codes(self) -> int:
        """All combinations of regions."""
        return int(2**self.segments)

    def encode(self, labels: Tensor) -> Tensor:
        """The bits of each label."""
        bits = torch.arange(self.channels, device=labels.device)
        return torch.movedim((labels.unsqueeze(-1) >> bits) & 1, -1, 1).float()

    def probabilities(self, logits: Tensor) -> Tensor:
        """A sigmoid for each channel."""
        return torch.sigmoid(logits.float())

    def decide(self, probabilities: Tensor) -> Tensor:
        """A region holds a voxel from a probability of one half on."""
        bits = 2 ** torch.arange(self.channels, device=probabilities.device)
        chosen = (probabilities >= 0.5).long()
        return (torch.movedim(chosen, 1, -1) * bits).sum(dim=-1)

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy, mean over the regions."""
        return functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none").mean(dim=1)

    def divergence(self, logits: Tensor, target: Tensor) -> Tensor:
        """y (log y - log p) + (1 - y) (log(1 - y) - log(1 - p))."""
        crossed = functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
        return crossed - (torch.special.entr(target) + torch.special.entr(1.0 - target))

    def log_distributions(self, logits: Tensor) -> Tensor:
        """Inside or not, for each region: (N, 2, R, ...)."""
        return torch.stack([functional.logsigmoid(logits.float()), functional.logsigmoid(-logits.float())], dim=1)

    def over_channels(self, values: Tensor) -> Tensor:
        """Their mean: each channel is a decision of its own."""
        return values.mean(dim=1)

    def foreground(self, values: Tensor) -> Tensor:
        """All of them."""
        return values

    def entropy(self, probabilities: Tensor) -> Tensor:
        """Binary entropy / log 2, mean over the regions."""
        return _binary_entropy(probabilities).mean(dim=1) / math.log(2.0)

    def ambiguity(self, probabilities: Tensor) -> Tensor:
        """Binary entropy in bits of the region that is least certain: the other regions do not make it any clearer."""
        return _binary_entropy(probabilities).amax(dim=1) / math.log(2.0)

    def confidence(self, probabilities: Tensor) -> Tensor:
        """min_r max(p_r, 1 - p_r)."""
        return torch.maximum(probabilities, 1.0 - probabilities).amin(dim=1)


def _binary_entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p.clamp_min(EPSILON)) + torch.special.entr((1.0 - p).clamp_min(EPSILON))


def make_targets(segments: int, *, overlapping: bool) -> Targets:
    """The kind of targets that a dataset's segments make."""
    return OverlappingRegions(segments) if overlapping else ExclusiveClasses(segments)
