"""Similarity of slices of several patches, and two losses that make slices of the same position more similar.

Comparative pre-training (2025), Eq. 2 and 3. Both losses are sums over one matrix of the cosines of all pairs. The
released code computes each cosine separately, 1,152 times a step for Eq. 2 and 332,352 times for Eq. 3.
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
    """Features of M slices from several patches.

    Attributes:
        values: Values (M, C, L) of each slice: L values in each of C channels.
        patch: Index (M,) of the patch of each slice.
        scan: Index (M,) of the scan of each slice.
        part: Index (M,) of the part of the body (or of the patch) that contains the slice.
    """

    values: Tensor
    patch: Tensor
    scan: Tensor
    part: Tensor

    def similarity(self, temperature: float) -> Tensor:
        """Return the cosines of all pairs divided by the temperature (C, M, M)."""
        unit = functional.normalize(self.values.float(), dim=-1).movedim(1, 0)
        return unit @ unit.mT / temperature

    def triplets(self, kind: Triplets) -> Tensor:
        """Return a mask (M, M, M) bool of the triplets (reference, similar, dissimilar).

        The reference and the similar slice are in the same part, the dissimilar one is in another part.

        Args:
            kind: With ``all``, as in the released code, the reference and the similar slice are from two patches, and
                the dissimilar one is from any patch. With ``same_scan``, as in Eq. 2, the reference and the similar
                slice are from two scans, and the dissimilar one is from the scan of the reference.
        """
        same_part = self.part[:, None] == self.part[None]
        same_patch = self.patch[:, None] == self.patch[None]
        if kind == "all":
            similar, dissimilar = same_part & ~same_patch, ~same_part
        else:
            similar, dissimilar = same_part & ~self.same_scan(), ~same_part & self.same_scan()
        return similar[:, :, None] & dissimilar[:, None, :]

    def same_scan(self) -> Tensor:
        """Return a mask (M, M) bool of the pairs from the same scan."""
        return self.scan[:, None] == self.scan[None]


def take_slices(features: Tensor, axis: int, at: Tensor, scans: Tensor) -> SliceFeatures:
    """Select slices of features across a spatial axis.

    Args:
        features: Features (N, C, X, Y, Z) of N patches.
        axis: Spatial axis across which slices are taken.
        at: Index (N, P) of the slice of each patch in each part; negative for none.
        scans: Index (N,) of the scan of each patch.
    """
    patch, part = (at >= 0).nonzero(as_tuple=True)
    values = features.movedim(2 + axis, 1)[patch, at[patch, part]]
    return SliceFeatures(values.flatten(2), patch, scans[patch], part)


def slice_positions_in_patch(count: int, parts: int, patches: int, offset: float) -> Tensor:
    """Choose slices (patches, parts) at the same positions in every patch, as in the released code.

    Args:
        count: Number of slices of a patch.
        parts: Number of equal parts of a patch.
        patches: Number of patches.
        offset: Position of the slice within each part, in [0, 1).
    """
    length = count // parts
    first = int(offset * length)
    return (first + length * torch.arange(parts)).expand(patches, parts)


def slice_positions_in_body(where: Tensor, count: int, parts: int, offset: float) -> Tensor:
    """Choose slices (patches, parts) at the same positions in the body; -1 if a position is outside a patch.

    Args:
        where: Positions (patches, 2) of the two faces of each patch along the axis, as shares of the scan's extent; NaN
            if unknown.
        count: Number of slices of the features along the axis, which divide the patch evenly.
        parts: Number of equal parts of the body.
        offset: Position of the slice within each part, in [0, 1).
    """
    wanted = (torch.arange(parts, device=where.device) + offset) / parts
    first, last = where[:, :1], where[:, 1:]
    holding = ((wanted - first) / (last - first) * count).nan_to_num(-1.0).floor().long()
    return holding.where((holding >= 0) & (holding < count), torch.full_like(holding, -1))


def comparative_loss(similarity: Tensor, triplets: Tensor) -> Tensor:
    """Compute Eq. 2: log(1 + e^(S(ref, dissimilar) - S(ref, similar))), sum over triplets and mean over channels."""
    apart = similarity[:, :, None, :] - similarity[:, :, :, None]
    return (functional.softplus(apart) * triplets).sum(dim=(1, 2, 3)).mean()


def contrastive_loss(similarity: Tensor, triplets: Tensor, *, released: bool) -> Tensor:
    """Compute Eq. 3: -log e^S(ref, similar) / (e^S(ref, similar) + sum e^S(ref, dissimilar)), summed over pairs.

    Args:
        similarity: Similarities (C, M, M) of all pairs of slices.
        triplets: Mask (M, M, M) bool of the triplets.
        released: If True, compute the loss as in the released code: the sum in the denominator runs over the dissimilar
            slices of all triplets, whatever their reference, and each pair counts as often as it has triplets.
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
