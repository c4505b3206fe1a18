"""The proof of an export is made of real numbers on real windows, and a graph that differs does not pass it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from exporter.errors import ExportError
from exporter.parity import central_window, gate_failure, measure_parity
from exporter.parity_scans import cached_scans
from semiseg.bundle.manifest import Manifest
from semiseg.bundle.variant import Gate, Precision
from tests.networks import NumpyEngine, threshold_manifest

Change = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return threshold_manifest(tmp_path / "bundle")


def windows(count: int = 3) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(1, 5, 4, 6)).astype(np.float32) for _ in range(count)]


def three(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of three classes, never a tie."""
    return np.concatenate([x, -x, np.full_like(x, 0.3)], axis=1)


def changed(change: Change) -> NumpyEngine:
    return NumpyEngine(lambda x: change(three(x)))


def at(index: tuple[int, ...], value: float) -> Change:
    def change(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        logits[index] += value
        return logits

    return change


def missed(manifest: Manifest, candidate: NumpyEngine, precision: Precision = "fp32", reference: Any = None) -> str:
    """The sentence with which a graph is refused; empty where it passes."""
    parity = measure_parity(manifest, reference or NumpyEngine(three), candidate, windows())
    return gate_failure(manifest, precision, parity) or ""


def test_equal_engines_have_no_difference(manifest: Manifest) -> None:
    found = measure_parity(manifest, NumpyEngine(three), NumpyEngine(three), windows())
    assert (found.windows, found.window, found.largest_difference, found.engine) == (3, (5, 4, 6), 0.0, "numpy")
    assert found.dice == {"low": 1.0, "high": 1.0}
    assert gate_failure(manifest, "fp32", found) is None


def test_the_largest_difference_of_all_windows_is_recorded(manifest: Manifest) -> None:
    found = measure_parity(manifest, NumpyEngine(three), changed(at((0, 0, 1, 1, 1), -0.005)), windows())
    assert found.largest_difference == pytest.approx(0.005, rel=1e-3)


def test_a_single_logit_too_far_off_fails_the_proof(manifest: Manifest) -> None:
    """MOD-03."""
    told = missed(manifest, changed(at((0, 0, 1, 1, 1), 0.05)))
    assert "run by numpy on 3 windows of 5x4x6: logits differ by up to 0.05 (allowed 0.01)" in told


def test_in_a_lower_precision_logits_may_differ_but_masks_may_not(manifest: Manifest) -> None:
    lifted = changed(lambda logits: logits + 0.5)
    assert "logits differ by up to 0.5" in missed(manifest, lifted)
    assert missed(manifest, lifted, "int8") == ""
    half_turned = changed(lambda logits: np.where(np.arange(6) < 5, logits, logits[:, ::-1]).astype(np.float32))
    told = missed(manifest, half_turned, "int8")
    assert told.startswith("The int8 graph does not compute") and "(at least 0.995)" in told and "(allowed" not in told


def test_the_gate_is_the_manifests(manifest: Manifest) -> None:
    strict = manifest.model_copy(update={"gate": Gate(difference=0.001, fp16=1.0)})
    small = changed(at((0, 0, 1, 1, 1), -0.005))
    assert missed(manifest, small) == "" and "(allowed 0.001)" in missed(strict, small)
    one = changed(at((0, 0, 1, 1, 1), 99.0))
    assert missed(manifest.model_copy(update={"gate": Gate(fp16=0.9)}), one, "fp16") == ""
    assert "(at least 1)" in missed(strict, one, "fp16")


def test_a_difference_in_the_first_window_is_not_forgotten_over_the_later_ones(manifest: Manifest) -> None:
    seen = 0

    def once(x: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal seen
        seen += 1
        return three(x) + (0.05 if seen == 1 else 0)

    assert "logits differ by up to 0.05" in missed(manifest, NumpyEngine(once))


def test_masks_that_differ_by_small_logits_fail_the_proof(manifest: Manifest) -> None:
    # All logits within the allowed difference of each other: the masks are what gives it away.
    def small(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return three(x) * 1e-3

    told = missed(manifest, NumpyEngine(lambda x: small(x)[:, ::-1]), reference=NumpyEngine(small))
    assert "masks agree to Dice 0." in told


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("both", [False, True])
def test_a_logit_that_is_not_a_number_fails_the_proof(manifest: Manifest, both: bool, precision: Precision) -> None:
    # A network that diverged gives NaN on both sides, and equal masks.
    broken = changed(at((0, 0, 1, 1, 1), float("nan")))
    assert "logits differ by up to nan" in missed(manifest, broken, precision, broken if both else None)


def test_a_graph_with_other_outputs_fails_the_proof(manifest: Manifest) -> None:
    with pytest.raises(ExportError, match=r"graph returns shape \(1, 2, 5, 4, 6\), the network \(1, 3, 5, 4, 6\)"):
        measure_parity(manifest, NumpyEngine(three), changed(lambda logits: logits[:, :2]), windows())


def test_a_proof_without_a_window_is_none(manifest: Manifest) -> None:
    with pytest.raises(ExportError, match="There is no scan to compare the graph with the network on"):
        measure_parity(manifest, NumpyEngine(three), NumpyEngine(three), [])


def test_regions_are_compared_one_by_one(tmp_path: Path) -> None:
    manifest = threshold_manifest(tmp_path / "regions", activation="sigmoid")

    def regions(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([x * 1e-3, np.ones_like(x)], axis=1)

    def mirrored(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([-x * 1e-3, np.ones_like(x)], axis=1)

    equal = measure_parity(manifest, NumpyEngine(regions), NumpyEngine(regions), windows())
    assert equal.dice == {"low": 1.0, "high": 1.0}
    other = measure_parity(manifest, NumpyEngine(regions), NumpyEngine(mirrored), windows())
    assert other.dice == {"low": 0.0, "high": 1.0} and other.least_dice == 0
    assert "Dice 0.00000" in (gate_failure(manifest, "fp32", other) or "")


def test_a_segment_that_neither_draws_does_not_count(manifest: Manifest) -> None:
    def never_third(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([x, -x, np.full_like(x, -99)], axis=1)

    found = measure_parity(manifest, NumpyEngine(never_third), NumpyEngine(never_third), windows())
    assert found.dice == {"low": 1.0}


def test_the_middle_window_of_a_scan_is_taken() -> None:
    scan = np.arange(9 * 8 * 7, dtype=np.float32).reshape(1, 9, 8, 7)
    np.testing.assert_array_equal(central_window(scan, (5, 4, 3)), scan[:, 2:7, 2:6, 2:5])


def test_a_scan_smaller_than_the_window_is_padded_with_its_border() -> None:
    scan = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    found = central_window(scan, (4, 2, 5))
    assert found.shape == (1, 4, 2, 5)
    np.testing.assert_array_equal(found[:, 1:3, :, 1:3], scan)
    np.testing.assert_array_equal(found[:, 0, :, 0], scan[:, 0, :, 0])


def test_scans_are_picked_evenly_from_the_cache(tmp_path: Path) -> None:
    for k in range(9):
        np.save(tmp_path / f"{k}-image.npy", np.full((1, 2, 2, 2), k, np.float32))
        np.save(tmp_path / f"{k}-labels.npy", np.zeros((2, 2, 2), np.uint8))
    np.save(tmp_path / "other-image.npy", np.full((2, 2, 2, 2), 99, np.float32))
    assert [int(s.array[0, 0, 0, 0]) for s in cached_scans(tmp_path, 3, 1)] == [0, 4, 8]
    assert len(cached_scans(tmp_path, 100, 1)) == 9
    assert [int(s.array[0, 0, 0, 0]) for s in cached_scans(tmp_path, 5, 2)] == [99]


def test_an_empty_cache_says_what_to_name_instead(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"holds no preprocessed scans.*--cache, or the dataset with --data"):
        cached_scans(tmp_path, 3, 1)
