"""Meaning of the channels of the logits: exclusive classes (softmax) or overlapping regions (sigmoid).

Methods use :class:`Targets`, so that each of them works for both. Labels are encoded as one small integer per voxel: a
class, or for regions a sum of bits, 2^r for each region r that the voxel belongs to.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-8  # smallest probability in entropies, since the slope of -p log p is infinite at 0
MAX_REGIONS = 8  # a code of regions is stored as one byte


class Targets(ABC):
    """Conversion of logits (N, C, ...) to probabilities, and of labels (N, ...) to target values."""

    def __init__(self, segments: int) -> None:
        self.segments = segments

    @property
    @abstractmethod
    def channels(self) -> int:
        """The number C of channels of the logits."""

    @property
    @abstractmethod
    def codes(self) -> int:
        """The number of different labels."""

    @abstractmethod
    def encode(self, labels: Tensor) -> Tensor:
        """Convert labels (N, ...) int64 to the target of each channel, 0 or 1: (N, C, ...) float32."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Convert logits to probabilities (N, C, ...), which are float32 also under mixed precision."""

    @abstractmethod
    def decide(self, probabilities: Tensor) -> Tensor:
        """Return the most probable labels (N, ...) int64; for values 0 and 1, the inverse of :meth:`encode`."""

    @abstractmethod
    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy per voxel (N, ...) to probabilities ``target`` (N, C, ...)."""

    @abstractmethod
    def divergence(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return KL(target || prediction) per voxel and channel (N, C, ...)."""

    @abstractmethod
    def log_distributions(self, logits: Tensor) -> Tensor:
        """Return the log-probabilities of the outcomes of each decision: (N, outcomes, decisions, ...) float32."""

    @abstractmethod
    def over_channels(self, values: Tensor) -> Tensor:
        """Reduce values per channel (N, C, ...) to one value per voxel (N, ...), as in :meth:`cross_entropy`."""

    @abstractmethod
    def foreground(self, values: Tensor) -> Tensor:
        """Return the channels of ``values`` (N, C, ...) that represent segments: (N, segments, ...)."""

    @abstractmethod
    def entropy(self, probabilities: Tensor) -> Tensor:
        """Return the entropy per voxel (N, ...) as a share of the largest possible entropy: 0 is certain."""

    @abstractmethod
    def ambiguity(self, probabilities: Tensor) -> Tensor:
        """Return the entropy per voxel (N, ...) in bits: 0 is certain, 1 means two equally likely outcomes.

        Thresholds that separate certain from ambiguous voxels use this scale, because the meaning of a share of the
        largest entropy depends on the number of classes.
        """

    @abstractmethod
    def confidence(self, probabilities: Tensor) -> Tensor:
        """Return the probability of the decision per voxel (N, ...); for regions, that of the least certain one."""


class ExclusiveClasses(Targets):
    """Each voxel has one class; class 0 is the background."""

    @property
    def channels(self) -> int:
        """The number of segments, plus one for the background."""
        return self.segments + 1

    @property
    def codes(self) -> int:
        """The number of classes."""
        return self.channels

    def encode(self, labels: Tensor) -> Tensor:
        """See :meth:`Targets.encode`."""
        out = torch.zeros((labels.shape[0], self.channels, *labels.shape[1:]), device=labels.device)
        return out.scatter_(1, labels.unsqueeze(1), 1.0)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the softmax over the channels."""
        return torch.softmax(logits.float(), dim=1)

    def decide(self, probabilities: Tensor) -> Tensor:
        """Return the channel with the largest probability."""
        return probabilities.argmax(dim=1)

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return -sum_c y_c log p_c."""
        return -(target * functional.log_softmax(logits.float(), dim=1)).sum(dim=1)

    def divergence(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return y_c (log y_c - log p_c)."""
        return functional.kl_div(functional.log_softmax(logits.float(), dim=1), target, reduction="none")

    def log_distributions(self, logits: Tensor) -> Tensor:
        """Return the log-probabilities (N, C, 1, ...) of one decision between the classes."""
        return functional.log_softmax(logits.float(), dim=1).unsqueeze(2)

    def over_channels(self, values: Tensor) -> Tensor:
        """Return the sum over channels, which are the outcomes of one decision."""
        return values.sum(dim=1)

    def foreground(self, values: Tensor) -> Tensor:
        """Return all channels except the background."""
        return values[:, 1:]

    def entropy(self, probabilities: Tensor) -> Tensor:
        """Return -sum_c p_c log p_c / log C."""
        return torch.special.entr(probabilities.clamp_min(EPSILON)).sum(dim=1) / math.log(self.channels)

    def ambiguity(self, probabilities: Tensor) -> Tensor:
        """Return -sum_c p_c log2 p_c, which exceeds 1 if more than two classes are likely."""
        return torch.special.entr(probabilities.clamp_min(EPSILON)).sum(dim=1) / math.log(2.0)

    def confidence(self, probabilities: Tensor) -> Tensor:
        """Return max_c p_c."""
        return probabilities.amax(dim=1)


class OverlappingRegions(Targets):
    """Each voxel belongs to any number of regions, with one channel per region and no background channel."""

    @property
    def channels(self) -> int:
        """The number of regions."""
        return self.segments

    @property
    def codes(self) -> int:
        """The number of combinations of regions."""
        return int(2**self.segments)

    def encode(self, labels: Tensor) -> Tensor:
        """Return the bits of each label."""
        bits = torch.arange(self.channels, device=labels.device)
        return torch.movedim((labels.unsqueeze(-1) >> bits) & 1, -1, 1).float()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the sigmoid of each channel."""
        return torch.sigmoid(logits.float())

    def decide(self, probabilities: Tensor) -> Tensor:
        """Return the code of the regions with a probability of at least 0.5."""
        bits = 2 ** torch.arange(self.channels, device=probabilities.device)
        chosen = (probabilities >= 0.5).long()
        return (torch.movedim(chosen, 1, -1) * bits).sum(dim=-1)

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the binary cross-entropy, averaged over the regions."""
        return functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none").mean(dim=1)

    def divergence(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return y (log y - log p) + (1 - y) (log(1 - y) - log(1 - p))."""
        crossed = functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
        return crossed - (torch.special.entr(target) + torch.special.entr(1.0 - target))

    def log_distributions(self, logits: Tensor) -> Tensor:
        """Return the log-probabilities (N, 2, R, ...) of inside and outside for each region."""
        return torch.stack([functional.logsigmoid(logits.float()), functional.logsigmoid(-logits.float())], dim=1)

    def over_channels(self, values: Tensor) -> Tensor:
        """Return the mean over channels, each of which is a separate decision."""
        return values.mean(dim=1)

    def foreground(self, values: Tensor) -> Tensor:
        """Return all channels."""
        return values

    def entropy(self, probabilities: Tensor) -> Tensor:
        """Return the binary entropy / log 2, averaged over the regions."""
        return _binary_entropy(probabilities).mean(dim=1) / math.log(2.0)

    def ambiguity(self, probabilities: Tensor) -> Tensor:
        """Return the binary entropy in bits of the least certain region, whatever the certainty of the others."""
        return _binary_entropy(probabilities).amax(dim=1) / math.log(2.0)

    def confidence(self, probabilities: Tensor) -> Tensor:
        """Return min_r max(p_r, 1 - p_r)."""
        return torch.maximum(probabilities, 1.0 - probabilities).amin(dim=1)


def _binary_entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p.clamp_min(EPSILON)) + torch.special.entr((1.0 - p).clamp_min(EPSILON))


def make_targets(segments: int, *, overlapping: bool) -> Targets:
    """Create the targets for a number of exclusive or overlapping segments."""
    return OverlappingRegions(segments) if overlapping else ExclusiveClasses(segments)
