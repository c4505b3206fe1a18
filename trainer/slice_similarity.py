"""How alike the slices of several patches are, and the two losses that ask slices of one place to be more alike.

Comparative pre-training (2025), Eq. 2 and 3. All pairs stand in one matrix of cosines, of which both losses are sums;
the released code computes each cosine anew, 1,152 times a step for Eq. 2 and 332,352 times for Eq. 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Triplets = Literal["all", "same_scan"]


@dataclass(frozen=True)
class SliceFeatures:
    """Slices from several patches.

    Attributes:
        values: (M, C, L): L values of M slices in C channels.
        patch: (M,) which patch each is of.
        scan: (M,) which scan that patch is of.
        part: (M,) which part of the body (or of the patch) it lies in.
    """

    values: Tensor
    patch: Tensor
    scan: Tensor
    part: Tensor

    def similarity(self, temperature: float) -> Tensor:
        """Cosines over the temperature (C, M, M)."""
        unit = functional.normalize(self.values.float(), dim=-1).movedim(1, 0)
        return unit @ unit.mT / temperature

    def triplets(self, kind: Triplets) -> Tensor:
        """(M, M, M) bool: (reference, similar, dissimilar).

        Reference and similar lie in one part, the dissimilar one in another. ``all``, as released: reference and
        similar are of two patches, the dissimilar one of any. ``same_scan``, as Eq. 2 is printed: reference and similar
        are of two scans, the dissimilar one is of the reference's.
        """
        same_part = self.part[:, None] == self.part[None]
        same_patch = self.patch[:, None] == self.patch[None]
        if kind == "all":
            similar, dissimilar = same_part & ~same_patch, ~same_part
        else:
            similar, dissimilar = same_part & ~self.same_scan(), ~same_part & self.same_scan()
        return similar[:, :, None] & dissimilar[:, None, :]

    def same_scan(self) -> Tensor:
        """(M, M) bool."""
        return self.scan[:, None] == self.scan[None]


def take_slices(features: Tensor, axis: int, at: Tensor, scans: Tensor) -> SliceFeatures:
    """The slices of ``features`` (N, C, X, Y, Z) across spatial ``axis``: of patch n and part p, slice ``at[n, p]``.

    Where that is negative there is none. Patch n is of scan ``scans[n]``.
    """
    patch, part = (at >= 0).nonzero(as_tuple=True)
    values = features.movedim(2 + axis, 1)[patch, at[patch, part]]
    return SliceFeatures(values.flatten(2), patch, scans[patch], part)


def slice_positions_in_patch(count: int, parts: int, patches: int, offset: float) -> Tensor:
    """Slices (patches, parts) at the same places in every patch of ``count`` slices, as released.

    The patch is cut into equal parts; ``offset``, from 0 to below 1, says where in each of them the slice lies.
    """
    length = count // parts
    first = int(offset * length)
    return (first + length * torch.arange(parts)).expand(patches, parts)


def slice_positions_in_body(where: Tensor, count: int, parts: int, offset: float) -> Tensor:
    """Slices (patches, parts) at the same places in the body; -1 where a patch does not reach that far.

    Args:
        where: (patches, 2): the places, as shares of the scan, of the patch's two faces across the axis; NaN for none.
        count: slices of the features along it, which share the patch evenly.
        parts: equal parts of the body.
        offset: where in each of them, from 0 to below 1.
    """
    wanted = (torch.arange(parts, device=where.device) + offset) / parts
    first, last = where[:, :1], where[:, 1:]
    holding = ((wanted - first) / (last - first) * count).nan_to_num(-1.0).floor().long()
    return holding.where((holding >= 0) & (holding < count), torch.full_like(holding, -1))


def comparative_loss(similarity: Tensor, triplets: Tensor) -> Tensor:
    """Eq. 2: sum over triplets, mean over channels, of log(1 + e^(S(ref, dissimilar) - S(ref, similar)))."""
    apart = similarity[:, :, None, :] - similarity[:, :, :, None]
    return (functional.softplus(apart) * triplets).sum(dim=(1, 2, 3)).mean()


def contrastive_loss(similarity: Tensor, triplets: Tensor, *, released: bool) -> Tensor:
    """Eq. 3: sum over pairs of -log e^S(ref, similar) / (e^S(ref, similar) + sum e^S(ref, dissimilar)).

    As released the sum in the denominator runs over the dissimilar slices of all triplets, whatever their reference,
    and each pair counts as often as it has triplets.
    """
    counts = triplets.sum(dim=2)
    reference, similar = counts.nonzero(as_tuple=True)
    if not len(reference):
        return similarity.sum() * 0.0
    close, others = similarity[:, reference, similar], similarity[:, reference]
    if released:
        times = triplets.sum(dim=(0, 1))
        used = times > 0
        below = (others[..., used] + times[used].to(similarity.dtype).log()).logsumexp(dim=-1)
        weight = counts[reference, similar]
    else:
        below = others.masked_fill(~triplets[reference, similar], -torch.inf).logsumexp(dim=-1)
        weight = torch.ones_like(reference)
    return ((torch.logaddexp(close, below) - close) * weight).sum(dim=1).mean()
