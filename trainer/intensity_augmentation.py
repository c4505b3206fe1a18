"""Random intensity augmentation of training patches: gamma, blur, resolution, contrast, brightness, noise."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv3d, interpolate, pad

from trainer.recipe import Augmentation


def augment_intensities(image: Tensor, augmentation: Augmentation, random: np.random.Generator) -> Tensor:
    """Change the values of a normalised patch (C, X, Y, Z), with the same random parameters for all channels.

    The changes are applied in the order gamma, blur, low resolution, contrast, brightness, noise, so that noise is not
    blurred.
    """
    if augmentation.gamma_probability and random.random() < augmentation.gamma_probability:
        exponent = random.uniform(*augmentation.gamma)
        inverted = augmentation.gamma_inverted and random.random() < augmentation.gamma_inverted
        image = -_gamma(-image, exponent) if inverted else _gamma(image, exponent)
    if augmentation.blur_probability and random.random() < augmentation.blur_probability:
        image = _blurred(image, random.uniform(*augmentation.blur))
    if augmentation.low_resolution_probability and random.random() < augmentation.low_resolution_probability:
        image = _coarse(image, random.uniform(*augmentation.low_resolution))
    if augmentation.contrast and random.random() < augmentation.intensity_probability:
        image = image * (1.0 + random.uniform(-augmentation.contrast, augmentation.contrast))
    if augmentation.brightness and random.random() < augmentation.intensity_probability:
        image = image + random.uniform(-augmentation.brightness, augmentation.brightness)
    if augmentation.noise and random.random() < augmentation.intensity_probability:
        spread = random.uniform(0.0, augmentation.noise)
        image = image + _normal(image, random) * spread
    return image


def _gamma(image: Tensor, exponent: float) -> Tensor:
    """Apply a power to the values scaled to 0..1 and scale back; standardised values may be negative."""
    low, high = image.min(), image.max()
    span = high - low
    bent = ((image - low) / span).pow(exponent) * span + low
    return torch.where(span > 0, bent, image)  # avoids reading the span back from a GPU


def _blurred(image: Tensor, spread: float) -> Tensor:
    """Apply a Gaussian blur with a standard deviation of ``spread`` voxels along each axis."""
    reach = max(1, math.ceil(3 * spread))
    at = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    weights = torch.exp(-0.5 * (at / spread) ** 2)
    weights = weights / weights.sum()
    out = image[:, None]
    for axis in range(3):
        sides = [0] * 6
        sides[2 * (2 - axis)] = sides[2 * (2 - axis) + 1] = reach
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = len(weights)
        out = conv3d(pad(out, sides, mode="replicate"), weights.reshape(shape))
    return out[:, 0]


def _coarse(image: Tensor, share: float) -> Tensor:
    """Reduce the number of voxels along each axis to ``share`` of it and interpolate back to the original grid."""
    sides = [max(1, round(n * share)) for n in image.shape[1:]]
    few = interpolate(image[None], size=sides, mode="nearest-exact")
    return interpolate(few, size=image.shape[1:], mode="trilinear", align_corners=False)[0]


def _normal(like: Tensor, random: np.random.Generator) -> Tensor:
    """Draw standard normal numbers with the shape and device of ``like``; on a GPU, with a generator of that device."""
    if like.device.type == "cpu":
        return torch.from_numpy(random.standard_normal(tuple(like.shape), dtype=np.float32))
    generator = torch.Generator(like.device).manual_seed(int(random.integers(2**62)))
    return torch.randn(like.shape, generator=generator, device=like.device)
