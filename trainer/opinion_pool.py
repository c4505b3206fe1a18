"""Linear opinion pool: probabilities from several sources are calibrated and mixed with learned weights.

An opinion is an array of probabilities whose last axis sums to 1: the classes of a voxel, or, for a region, inside and
outside. Calibration divides the logits by a temperature (Guo et al., "On calibration of modern neural networks", ICML
2017). The weights of the mixture maximise the likelihood of the reference labels; they are found by expectation
maximisation, as for a mixture model with fixed components.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.25, 4.0  # limits of a temperature
EM_ITERATIONS = 200  # iterations of expectation maximisation
EPSILON = 1e-6

Probabilities = NDArray[np.float32]


def scale_temperature(shares: Probabilities, temperature: float) -> Probabilities:
    """Divide the logits of probabilities (..., K) by ``temperature``; values above 1 make them less certain."""
    powered = np.power(np.clip(shares, EPSILON, 1.0), 1.0 / temperature)
    return np.asarray(powered / powered.sum(axis=-1, keepdims=True), dtype=np.float32)


def fit_temperature(shares: Probabilities, truth: NDArray[np.integer]) -> float:
    """Return the temperature that maximises the likelihood of the reference labels.

    Args:
        shares: Probabilities (V, K) of V voxels that the opinion was not trained on.
        truth: Correct outcome (V,) of each voxel.
    """
    rows = np.arange(len(truth))

    def surprise(log_temperature: float) -> float:
        return -float(np.log(scale_temperature(shares, float(np.exp(log_temperature)))[rows, truth] + EPSILON).mean())

    found = minimize_scalar(surprise, bounds=(np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)), method="bounded")
    return float(np.exp(found.x))


def fit_pool_weights(given: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the weights (M,) of M opinions that maximise the likelihood of the reference labels; they sum to 1.

    Args:
        given: Probability (M, V) that each opinion assigns to the correct outcome of each voxel.
    """
    likely = np.clip(np.asarray(given, dtype=np.float64), EPSILON, 1.0)
    weights = np.full(len(likely), 1.0 / len(likely))
    for _ in range(EM_ITERATIONS):
        joint = weights[:, None] * likely
        weights = (joint / joint.sum(axis=0)).mean(axis=1)
    return weights


def pool_opinions(
    opinions: Sequence[Probabilities], weights: Sequence[float], known: Sequence[Probabilities | None]
) -> Probabilities:
    """Mix opinions (..., K); the result is uniform where no opinion is known.

    Args:
        opinions: Opinions of the same shape.
        weights: Weights of the opinions.
        known: For each opinion, an array (...) that is 0 where the opinion is unknown, or None if it is known
            everywhere.
    """
    total = np.zeros(opinions[0].shape, np.float32)
    norm = np.zeros(opinions[0].shape[:-1], np.float32)
    for opinion, weight, where in zip(opinions, weights, known, strict=True):
        share = np.full(norm.shape, weight, np.float32)
        if where is not None:
            share *= where > 0
        total += opinion * share[..., None]
        norm += share
    uniform = np.float32(1.0 / opinions[0].shape[-1])
    return np.where(norm[..., None] > 0, total / np.maximum(norm, EPSILON)[..., None], uniform)


def outcomes_from_channels(channels: NDArray[np.floating], *, exclusive: bool) -> Probabilities:
    """Convert probabilities (C, X, Y, Z) to an opinion: (X, Y, Z, C) for classes, (C, X, Y, Z, 2) for regions."""
    values = np.asarray(channels, dtype=np.float32)
    if exclusive:
        return np.moveaxis(values, 0, -1)
    return np.stack([values, 1.0 - values], axis=-1)


def channels_from_outcomes(opinion: Probabilities, *, exclusive: bool) -> Probabilities:
    """Convert an opinion to probabilities of channels; the inverse of :func:`outcomes_from_channels`."""
    return np.moveaxis(opinion, -1, 0) if exclusive else opinion[..., 0]
