"""The probabilities that a fractional SEG shows, against the whole volume in float64, on the scan's own voxels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from semiseg.bundle.preprocessing import Preprocessing
from semiseg.inference.segmenter import Segmenter
from semiseg.volumes.volume import Volume
from tests.grids import make_affine
from tests.networks import NumpyEngine, position_dependent_network, reference_mean, threshold_manifest


@pytest.mark.parametrize("blending", ["constant", "gaussian"])
@pytest.mark.parametrize("average", ["logits", "probs"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_they_are_those_of_the_whole_volume(tmp_path: Path, activation: str, average: str, blending: str) -> None:
    manifest = threshold_manifest(tmp_path, activation=activation, average=average, blending=blending)
    network = position_dependent_network(manifest.outputs)
    values = np.random.default_rng(0).random((11, 3, 8)).astype(np.float32)  # smaller than a window along the second
    segmenter = Segmenter(manifest, NumpyEngine(network))
    found = segmenter.segment({"image": Volume(values, np.eye(4))}, probabilities=True).probabilities
    mean = reference_mean(manifest, network, values[None], manifest.overlap)
    if average == "logits":
        odds = np.exp(mean)
        mean = odds / odds.sum(axis=0) if activation == "softmax" else odds / (1 + odds)
    expected = mean[1:] if activation == "softmax" else mean
    assert found is not None and found.dtype == np.uint8 and found.shape == expected.shape
    assert np.abs(found / 255 - expected).max() <= 0.5 / 255 + 1e-5
    assert np.ptp(found) > 50, "probabilities that are all alike would prove nothing"


def test_they_come_back_on_the_scans_own_grid(tmp_path: Path) -> None:
    """A ball that is far to one side of each axis, in a scan that is turned, cropped and resampled for the network."""
    manifest = threshold_manifest(tmp_path, activation="sigmoid", window=(8, 8, 8))
    own = Preprocessing(
        orientation="RAS", spacing=(1.5, 1.5, 1.5), crop="nonzero", intensity=manifest.preprocessing.intensity
    )
    manifest = manifest.model_copy(update={"preprocessing": own})
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in (20, 24, 16)], indexing="ij"), axis=-1)
    distance = np.linalg.norm((grid - (6.0, 16.0, 9.0)) * (1.2, 0.8, 2.0), axis=-1)
    values = np.clip(2.0 - distance / 8, 0, 1).astype(np.float32)  # 0 in the corners: these are cropped away

    engine = NumpyEngine(lambda windows: np.repeat(8 * windows - 4, 2, axis=1))
    scan = {"image": Volume(values, make_affine("ILP", (1.2, 0.8, 2.0), (4.0, -3.0, 8.0)))}
    answer = Segmenter(manifest, engine).segment(scan, probabilities=True)
    assert answer.probabilities is not None
    body = np.argwhere(values > 0)
    box = tuple(slice(low, high + 1) for low, high in zip(body.min(axis=0), body.max(axis=0), strict=True))
    assert values[box].size < values.size
    expected = np.zeros(values.shape)
    expected[box] = 1 / (1 + np.exp(4 - 8 * values[box]))
    differences = np.abs(answer.probabilities[0] / 255 - expected)
    assert differences.max() < 0.15 and differences.mean() < 0.02  # interpolated twice
    inside = answer.probabilities[0] > 127
    assert np.mean(inside == answer.mask(0)) > 0.97
    assert Segmenter(manifest, engine).segment(scan).probabilities is None
