"""Random changes to a training patch: where it is cut, how it is turned, and how its values are bent.

Every random number comes from one generator that belongs to the patch, so that a patch is a function of its request.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from monai.networks.layers.spatial_transforms import AffineTransform
from monai.transforms.utils import create_rotate, create_scale, create_translate
from numpy.typing import NDArray
from torch import Tensor

from trainer.recipe import Augmentation


@dataclass(frozen=True)
class Cut:
    """Where a patch lies in a scan: output voxel o reads the scan at ``matrix @ o`` (homogeneous voxel indices)."""

    matrix: NDArray[np.float64]
    plain: bool  # only a shift by whole voxels: the patch is a slice of the array


def draw_cut(
    centre: NDArray[np.float64],
    patch: tuple[int, int, int],
    augmentation: Augmentation | None,
    slice_axis: int,
    random: np.random.Generator,
) -> Cut:
    """A cut of ``patch`` voxels around ``centre`` (voxel indices), turned and scaled as the recipe allows."""
    middle = (np.asarray(patch, dtype=np.float64) - 1.0) / 2.0
    if augmentation is None or random.random() >= augmentation.affine:
        start = np.round(centre - middle)
        return Cut(np.asarray(create_translate(3, start), dtype=np.float64), plain=True)
    zoom = random.uniform(*augmentation.scale)
    angles = [
        math.radians(random.uniform(-limit, limit))
        for limit in (
            augmentation.rotate if axis == slice_axis else augmentation.rotate_out_of_plane for axis in range(3)
        )
    ]
    turn = np.asarray(create_rotate(3, angles), dtype=np.float64)
    scale = np.asarray(create_scale(3, [1.0 / zoom] * 3), dtype=np.float64)
    to = np.asarray(create_translate(3, centre), dtype=np.float64)
    back = np.asarray(create_translate(3, -middle), dtype=np.float64)
    return Cut(to @ turn @ scale @ back, plain=False)


def cut_out(
    array: NDArray[np.generic], cut: Cut, patch: tuple[int, int, int], *, nearest: bool, padding: str
) -> Tensor:
    """The patch (C, *patch) of ``array`` (C, X, Y, Z); beyond the scan lies its border value (``edge``) or zero."""
    box = _box(cut.matrix, patch, array.shape[1:], margin=0 if cut.plain else 1)
    local = np.array(array[(slice(None), *(slice(a, b) for a, b in box))], dtype=np.float32)
    matrix = cut.matrix.copy()
    matrix[:3, 3] -= [a for a, _ in box]
    if cut.plain:
        return _shifted(local, matrix[:3, 3].astype(int), patch, padding)
    transform = AffineTransform(
        spatial_size=patch,
        normalized=False,
        mode="nearest" if nearest else "bilinear",
        padding_mode="border" if padding == "edge" else "zeros",
        align_corners=True,
    )
    return transform(torch.from_numpy(local)[None], torch.from_numpy(matrix).float())[0]


def change_values(image: Tensor, augmentation: Augmentation, random: np.random.Generator) -> Tensor:
    """Gamma, contrast, brightness and noise on a normalised patch (C, X, Y, Z), one draw for all channels."""
    if augmentation.gamma_probability and random.random() < augmentation.gamma_probability:
        image = _gamma(image, random.uniform(*augmentation.gamma))
    if augmentation.contrast and random.random() < augmentation.intensity_probability:
        image = image * (1.0 + random.uniform(-augmentation.contrast, augmentation.contrast))
    if augmentation.brightness and random.random() < augmentation.intensity_probability:
        image = image + random.uniform(-augmentation.brightness, augmentation.brightness)
    if augmentation.noise and random.random() < augmentation.intensity_probability:
        spread = random.uniform(0.0, augmentation.noise)
        image = image + torch.from_numpy(random.standard_normal(tuple(image.shape), dtype=np.float32)) * spread
    return image


def flips(augmentation: Augmentation, random: np.random.Generator) -> list[int]:
    """Axes of (C, X, Y, Z) to mirror."""
    return [axis + 1 for axis in augmentation.flip if random.random() < 0.5]


def _gamma(image: Tensor, exponent: float) -> Tensor:
    """A power on the values scaled to 0..1, and back: a standardised image is partly negative, so no power of it."""
    low, high = image.min(), image.max()
    span = high - low
    if float(span) <= 0:
        return image
    return ((image - low) / span).pow(exponent) * span + low


def _box(
    matrix: NDArray[np.float64], patch: tuple[int, int, int], shape: tuple[int, ...], margin: int
) -> list[tuple[int, int]]:
    """The part of the scan that a cut reads, at least one voxel per axis: only this is read from disk."""
    corners = np.asarray(
        [[x, y, z, 1] for x in (0, patch[0] - 1) for y in (0, patch[1] - 1) for z in (0, patch[2] - 1)]
    )
    points = (matrix @ corners.T)[:3]
    low = np.floor(points.min(axis=1)).astype(int) - margin
    high = np.ceil(points.max(axis=1)).astype(int) + margin + 1
    box = []
    for a, b, n in zip(low, high, shape, strict=True):
        start = int(np.clip(a, 0, n - 1))
        box.append((start, int(np.clip(b, start + 1, n))))
    return box


def _shifted(local: NDArray[np.float32], start: NDArray[np.int_], patch: tuple[int, int, int], padding: str) -> Tensor:
    rows = [np.clip(np.arange(s, s + p), 0, n - 1) for s, p, n in zip(start, patch, local.shape[1:], strict=True)]
    out = local[:, rows[0][:, None, None], rows[1][None, :, None], rows[2][None, None, :]]
    if padding == "zero":
        for axis, (s, p, n) in enumerate(zip(start, patch, local.shape[1:], strict=True)):
            outside = (np.arange(s, s + p) < 0) | (np.arange(s, s + p) >= n)
            out[(slice(None), *(outside if a == axis else slice(None) for a in range(3)))] = 0
    return torch.from_numpy(np.ascontiguousarray(out))
