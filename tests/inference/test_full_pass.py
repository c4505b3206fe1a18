"""All windows are run in the cases in which a coarse pass could lose an organ, and the result gives the reason."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from semiseg.bundle.coarse_settings import CoarsePassSettings
from semiseg.bundle.fingerprint import Fingerprint
from semiseg.bundle.manifest import Manifest
from semiseg.bundle.mask_fingerprint import MaskFingerprint
from semiseg.errors import EngineError
from semiseg.inference.probabilities import ProbabilityCollector
from semiseg.inference.segmenter import Segmenter
from semiseg.inference.sliding_window import CompletedRegion
from semiseg.inference.timing import Timing
from semiseg.inference.window_passes import BORDER_REACHED
from semiseg.volumes.volume import Volume, reorient
from tests.inference.coarse_scans import (
    HALF,
    LARGE,
    SPARSE,
    WINDOW,
    RecordedProgress,
    both,
    having,
    network_of,
    scan,
    with_box,
)
from tests.networks import Network, NumpyEngine, reference_segmentation, threshold_manifest


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("manifests")
    manifest = threshold_manifest(folder / "softmax", window=WINDOW, patch=WINDOW, windows=(WINDOW,))
    usual = {"image": Volume(usual_scan()[0], np.eye(4))}
    intensity = Fingerprint.collect([usual], "RAS").intensity
    return manifest.model_copy(update={"fingerprint": manifest.fingerprint.model_copy(update={"intensity": intensity})})


def reason_of(manifest: Manifest, array: NDArray[np.float32], network: Network | None = None, **options: Any) -> str:
    """Return the reason why all windows were run."""
    found, full, timing = both(manifest, array, network, **options)
    np.testing.assert_array_equal(found, full)
    assert timing.counts is not None and timing.counts.run == timing.counts.planned
    return timing.counts.reason


def test_a_model_without_a_coarse_pass_says_so(plain: Manifest) -> None:
    assert reason_of(plain, scan()) == "The model has no coarse pass."


def test_a_scan_of_few_windows_gets_no_coarse_pass(plain: Manifest) -> None:
    for shape in ((8, 8, 8), (3, 20, 9), (12, 12, 12)):
        assert "so few that a coarse pass would save little" in reason_of(having(plain, SPARSE), scan(shape))


@pytest.mark.parametrize("shape", [(5, 60, 60), (60, 3, 40)], ids=str)
@pytest.mark.parametrize("coarse", [SPARSE, HALF], ids=lambda one: one.kind)
def test_a_scan_smaller_than_a_window_along_an_axis_is_padded_in_both_passes(
    plain: Manifest, coarse: CoarsePassSettings, shape: tuple[int, int, int]
) -> None:
    array = scan(shape)
    array[0, 1:4, 1:4, 20:26] += 1.0
    found, full, timing = both(having(plain, coarse), array)
    assert found.shape == shape and full.any()
    np.testing.assert_array_equal(found, full)
    assert timing.counts is not None and timing.counts.run < timing.counts.planned / 2


def test_an_empty_scan_is_searched_completely(plain: Manifest) -> None:
    """INF-08."""
    reason = reason_of(having(plain, SPARSE), scan())
    assert reason == "All windows were run because the coarse pass found no segment."


def test_all_windows_are_run_if_the_coarse_pass_is_not_certain_of_any_segment(plain: Manifest) -> None:
    array = scan()
    with_box(array, (20, 20, 16), 7, 0.45)  # a probability of a quarter at most
    assert reason_of(having(plain, SPARSE), array) == (
        "All windows were run because the coarse pass was not certain of any segment."
    )


def test_all_windows_are_run_if_the_coarse_pass_does_not_find_an_expected_segment(
    plain: Manifest,
) -> None:
    """INF-08."""
    array = scan()
    with_box(array, (20, 20, 16), 7)
    assert "did not find high, which is expected in every scan" in reason_of(
        having(plain, SPARSE, expected=("low", "high")), array
    )


def test_an_organ_that_fills_the_scan_gets_the_full_pass(plain: Manifest) -> None:
    assert "few would be skipped" in reason_of(having(plain, SPARSE), scan() + 1)


def test_an_organ_that_reaches_the_border_of_its_region_gets_the_full_pass(plain: Manifest) -> None:
    """INF-08. The coarse pass finds only one end of a rod."""
    array = scan()
    array[0, 4:32, 19:22, 15:18] += 1.0
    network, calls = network_of(plain), itertools.count()
    coarse_windows = 5 * 4 * 4

    def short_sighted(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        out = network(windows)
        if (call := next(calls)) < coarse_windows and call >= 4 * 4:  # behind the first layer of the coarse pass
            out[:, 1:] -= 100
        return out

    manifest, timing, kept = having(plain, SPARSE), Timing(), ProbabilityCollector(2, "softmax")
    told: list[tuple[int, int]] = []
    found = Segmenter(manifest, NumpyEngine(short_sighted)).segment_preprocessed(
        array, spacing=(1, 1, 1), timing=timing, observers=[kept], progress=lambda *done: told.append(done)
    )
    np.testing.assert_array_equal(found, reference_segmentation(plain, network, array, 0.5))
    counts = timing.counts
    assert counts is not None and counts.run == counts.planned and counts.preliminary > coarse_windows
    assert counts.reason == BORDER_REACHED
    again = ProbabilityCollector(2, "softmax")
    Segmenter(plain, NumpyEngine(network)).segment_preprocessed(array, observers=[again])
    np.testing.assert_array_equal(kept.array(), again.array())
    assert [done for done, _ in told] == sorted({done for done, _ in told}) and told[-1][0] == told[-1][1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"full": True}, "A full pass was requested."),
        ({"overlap": 0.25}, "was proved for the model's own window and overlap only, and others were requested"),
        ({"spacing": None}, "needs the voxel spacing, which is not known"),
    ],
    ids=str,
)
def test_options_and_an_unknown_spacing_turn_the_coarse_pass_off(
    plain: Manifest, options: dict[str, Any], sentence: str
) -> None:
    array = scan()
    with_box(array, (20, 20, 16), 7)
    assert sentence in reason_of(having(plain, SPARSE), array, **options)


def test_a_precision_without_a_proof_turns_the_coarse_pass_off(plain: Manifest) -> None:
    timing = Timing()
    segmenter = Segmenter(having(plain, SPARSE), NumpyEngine(network_of(plain)), precision="int8")
    segmenter.segment_preprocessed(scan(), spacing=(1, 1, 1), timing=timing)
    assert timing.counts is not None and timing.counts.reason == "The coarse pass was not proved in int8."


def test_values_that_are_not_finite_are_an_error_also_where_the_coarse_pass_meets_them(plain: Manifest) -> None:
    """INF-04."""

    def broken(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        out = network_of(plain)(windows)
        out[windows.max(axis=(1, 2, 3, 4)) > 3] = np.nan
        return out

    array = scan()
    with_box(array, (20, 20, 16), 7)
    array[0, 3, 3, 3] = 5
    with pytest.raises(EngineError, match="not finite"):
        Segmenter(having(plain, SPARSE), NumpyEngine(broken)).segment_preprocessed(array, spacing=(1, 1, 1))


# --- scans and masks unlike those of training ------------------------------------------------------------------------


def usual_scan() -> NDArray[np.float32]:
    array = scan()
    with_box(array, (20, 20, 16), 7)
    return array


def with_training_masks(manifest: Manifest, low_ml: float) -> Manifest:
    """A manifest whose training masks have ``low_ml`` millilitres of the first segment."""
    return manifest.model_copy(update={"masks": MaskFingerprint.from_measures([{"low": (low_ml, 1.0, 1.0)}])})


def short_sighted(manifest: Manifest) -> Network:
    """A network that misses what is in the first two layers of windows of the coarse pass, which it sees first."""
    network, calls = network_of(manifest), itertools.count()

    def seen(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        out = network(windows)
        if next(calls) < 2 * 4 * 4:
            out[:, 1:] -= 100
        return out

    return seen


def test_an_organ_that_the_coarse_pass_misses_is_found_if_its_volume_is_known(plain: Manifest) -> None:
    """INF-08. Two organs of one segment, of which the coarse pass finds one."""
    array = usual_scan()
    with_box(array, (2, 2, 2), 7)
    channels = {"image": Volume(array[0], np.eye(4))}
    complete = Segmenter(plain, NumpyEngine(network_of(plain))).segment(channels)
    volume = complete.volumes_ml()["low"]
    manifest = having(plain, SPARSE)
    lost = Segmenter(manifest, NumpyEngine(short_sighted(manifest))).segment(channels)
    assert lost.volumes_ml()["low"] < 0.7 * volume, "without the check the organ would be lost"
    for probabilities in (False, True):
        timing, told = Timing(), RecordedProgress()
        segmenter = Segmenter(with_training_masks(manifest, volume), NumpyEngine(short_sighted(manifest)))
        found, _ = segmenter.segment_with_warnings(channels, timing=timing, probabilities=probabilities, progress=told)
        np.testing.assert_array_equal(found.array, complete.array)
        counts = timing.counts
        assert counts is not None and counts.run == counts.planned and counts.preliminary > 5 * 4 * 4
        assert counts.reason == (
            "All windows were run because, with skipped windows, the volume of low was outside the range of the "
            "training scans."
        )
        assert timing.windows == counts.run + counts.preliminary == told.calls[-1][0] == told.calls[-1][1]
        assert [done for done, _ in told.calls] == sorted({done for done, _ in told.calls})


def test_a_mask_of_a_usual_volume_is_not_computed_again(plain: Manifest) -> None:
    channels = {"image": Volume(usual_scan()[0], np.eye(4))}
    volume = Segmenter(plain, NumpyEngine(network_of(plain))).segment(channels).volumes_ml()["low"]
    timing = Timing()
    manifest = with_training_masks(having(plain, SPARSE), volume)
    Segmenter(manifest, NumpyEngine(network_of(plain))).segment(channels, timing=timing)
    assert timing.counts is not None and timing.counts.run < timing.counts.planned


@pytest.mark.parametrize(
    ("affine", "gain", "words"),
    [
        (np.diag([40.0, 40.0, 40.0, 1.0]), 1.0, "voxel spacing"),
        (np.eye(4), 1e6, "grey values"),
    ],
    ids=["spacing", "intensity"],
)
def test_a_scan_unlike_the_training_scans_gets_the_full_pass(
    plain: Manifest, affine: NDArray[np.float64], gain: float, words: str
) -> None:
    """INF-08."""
    timing = Timing()
    segmenter = Segmenter(having(plain, SPARSE), NumpyEngine(network_of(plain)))
    segmenter.segment({"image": Volume(usual_scan()[0] * np.float32(gain), affine)}, timing=timing)
    assert timing.counts is not None and timing.counts.run == timing.counts.planned
    assert timing.counts.reason == (f"All windows were run because the scan differs from the training scans ({words}).")


@pytest.mark.parametrize("codes", ["RAS", "PIR", "LSA", "ILP"])
def test_a_turned_or_mirrored_scan_gives_the_same_mask_as_the_full_pass(plain: Manifest, codes: str) -> None:
    turned, affine = reorient(usual_scan()[0], np.diag([1.0, 1.0, 1.5, 1.0]), codes)
    timing = Timing()
    segmenter = Segmenter(having(plain, SPARSE), NumpyEngine(network_of(plain)))
    channels = {"image": Volume(turned, affine)}
    found = segmenter.segment(channels, timing=timing)
    np.testing.assert_array_equal(found.array, segmenter.segment(channels, full=True).array)
    assert found.array.any() and timing.counts is not None and timing.counts.run < timing.counts.planned


def test_an_observer_that_cannot_start_again_gets_the_full_pass(plain: Manifest) -> None:
    """Observers of earlier versions have no method `begin`."""
    shown = []

    class Observer:
        def add(self, part: CompletedRegion, labels: NDArray[Any], *, logits: bool) -> None:
            shown.append(labels.size)

    timing, old = Timing(), Observer()
    segmenter = Segmenter(having(plain, SPARSE), NumpyEngine(network_of(plain)))
    segmenter.segment_preprocessed(
        usual_scan(),
        spacing=(1, 1, 1),
        timing=timing,
        observers=[old],  # type: ignore[list-item]
    )
    assert timing.counts is not None and "has no method `begin`" in timing.counts.reason
    assert sum(shown) == np.prod(LARGE)
