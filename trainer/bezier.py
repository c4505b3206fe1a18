"""Random monotone maps of a slice's values, by cubic Bezier curves from (0, 0) to (1, 1).

This is the non-linear transformation of Models Genesis (Zhou et al. 2019), with which CFR fine-tunes. The released code
of CFR applies a curve on 0..1 to standardised values, which maps all negative values to 0; here each slice is scaled to
0..1 before and scaled back afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor

CURVE_POINTS = 1000


def apply_random_curves(slices: Tensor, share: float) -> Tensor:
    """Apply a random curve to about ``share`` of the slices (N, C, H, W); the channels of a slice share its curve."""
    if not share:
        return slices
    chosen = torch.rand(len(slices)) < share
    curves = torch.rand(len(slices), 2, 2)  # the number of random numbers does not depend on the choice
    return torch.stack([_bent(s, c) if k else s for s, c, k in zip(slices, curves, chosen.tolist(), strict=True)])


def _bent(image: Tensor, inner: Tensor) -> Tensor:
    """Map the values of an image (C, H, W) by the curve with the ``inner`` control points (2, 2)."""
    low, high = image.amin(), image.amax()
    span = (high - low).clamp_min(torch.finfo(image.dtype).tiny)
    x, y = bezier_curve(inner.to(image.device))
    values = ((image - low) / span).contiguous()
    after = torch.searchsorted(x, values).clamp(1, CURVE_POINTS - 1)
    between = (values - x[after - 1]) / (x[after] - x[after - 1]).clamp_min(1e-12)
    return (y[after - 1] + between.clamp(0, 1) * (y[after] - y[after - 1])) * span + low


def bezier_curve(inner: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and y (CURVE_POINTS,) of the Bezier curve of (0, 0), ``inner`` (2, 2) and (1, 1), each ascending."""
    t = torch.linspace(0, 1, CURVE_POINTS, device=inner.device)
    weights = torch.stack([3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2])
    both = inner.T @ weights + t**3
    x, y = both.sort(dim=1).values
    return x.contiguous(), y
