"""Windows streamed through a slab give what a whole volume gives, and the mask lies on the scan's own voxels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from semiseg.bundle.manifest import Channel, Manifest
from semiseg.bundle.mask_fingerprint import MaskFingerprint, measure_mask
from semiseg.bundle.postprocessing import Postprocessing, SegmentCleaning
from semiseg.engines.onnx import OnnxEngine
from semiseg.errors import Cancelled, EngineError, InputError
from semiseg.inference.segment_entropy import SegmentEntropy
from semiseg.inference.segmenter import Segmenter, SlidingWindowOptions
from semiseg.inference.timing import Timing
from semiseg.volumes.segmentation import Segment
from semiseg.volumes.volume import Volume
from tests.bundles import LOW, expected_mask, make_threshold_bundle, scan_array
from tests.grids import AXIS_ORIENTATIONS, make_affine
from tests.networks import NumpyEngine, position_dependent_network, reference_segmentation, threshold_manifest

KINDS = [(a, m, b) for a in ("softmax", "sigmoid") for m in ("logits", "probs") for b in ("constant", "gaussian")]


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], Manifest]:
    """One per way of deciding and blending."""
    folder = tmp_path_factory.mktemp("manifests")
    return {
        (activation, average, blending): threshold_manifest(
            folder / activation, activation=activation, average=average, blending=blending
        )
        for activation, average, blending in KINDS
    }


@pytest.fixture(scope="module")
def softmax(manifests: dict[tuple[str, str, str], Manifest]) -> Manifest:
    return manifests["softmax", "logits", "gaussian"]


def image(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32)


def agreement(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    return float(np.mean(a == b))


# --- the streamed result ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75, (0.8, 0.0, 0.5), (0.25, 0.75, 0.83)], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("shape", [(11, 9, 7), (5, 4, 6), (3, 7, 13), (2, 3, 2), (16, 1, 9)], ids=str)
def test_the_streamed_result_is_that_of_the_whole_volume(
    manifests: dict[tuple[str, str, str], Manifest],
    kind: tuple[str, str, str],
    overlap: float | tuple[float, float, float],
    shape: tuple[int, int, int],
) -> None:
    manifest = manifests[kind]
    network = position_dependent_network(manifest.outputs)
    array = image(shape)
    reference = reference_segmentation(manifest, network, array, overlap)
    for batch in (1, 3, 4):
        engine = NumpyEngine(network)
        found = Segmenter(manifest, engine, SlidingWindowOptions(overlap=overlap, batch=batch)).segment_preprocessed(
            array
        )
        assert found.shape == reference.shape and found.dtype == reference.dtype
        # The reference adds in float64: a voxel may differ only where two classes tie to float32's last digits.
        np.testing.assert_array_equal(found, reference)
        assert set(engine.batches) == {(batch, 1, 5, 4, 6)}, "every call has the one shape, the last batch padded"
    assert len(np.unique(reference)) > 1, "a reference of one class would prove nothing"


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(KINDS), st.tuples(*[st.integers(1, 14)] * 3), st.floats(0, 0.9), st.integers(1, 5), st.integers()
)
def test_the_streamed_result_is_that_of_the_whole_volume_for_any_shape(
    manifests: dict[tuple[str, str, str], Manifest],
    kind: tuple[str, str, str],
    shape: tuple[int, int, int],
    overlap: float,
    batch: int,
    seed: int,
) -> None:
    """INF-02."""
    manifest, array = manifests[kind], image(shape, abs(seed))
    network = position_dependent_network(manifest.outputs)
    found = Segmenter(
        manifest, NumpyEngine(network), SlidingWindowOptions(overlap=overlap, batch=batch)
    ).segment_preprocessed(array)
    assert agreement(found, reference_segmentation(manifest, network, array, overlap)) > 0.999


def test_the_result_does_not_depend_on_the_batch(softmax: Manifest) -> None:
    """INF-02."""
    array = image((13, 11, 9))
    results = [
        Segmenter(
            softmax, NumpyEngine(position_dependent_network(3)), SlidingWindowOptions(batch=b)
        ).segment_preprocessed(array)
        for b in range(1, 9)
    ]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_the_slab_does_not_grow_with_the_scan(softmax: Manifest) -> None:
    """INF-03. However long the longest axis is, and whichever it is."""
    held = set()
    for shape in ((60, 9, 11), (120, 9, 11), (9, 120, 11), (9, 60, 11)):
        engine = NumpyEngine(position_dependent_network(3))
        Segmenter(softmax, engine, SlidingWindowOptions(overlap=0.5)).segment_preprocessed(image(shape))
        held.add((shape.index(max(shape)), engine.slabs[0]))
    # Windows of 5x4x6 that share 2 or 3 planes along x (its last two share 3 or 4), and so on.
    along_x = 3 * (4 * 9 * 11 + (5 - 4) * 4 * 11)
    assert max(numbers for _, numbers in held) <= along_x
    assert len({numbers for axis, numbers in held if axis == 1}) == 1


def test_a_window_of_one_value_is_run_once(softmax: Manifest) -> None:
    """Air: the network sees it once, however much there is, and the mask is the same."""
    array = image((31, 25, 22))
    array[:, 12:] = array[:, :, :9] = -3.0
    array[:, 20:, 15:] = 2.0  # another value
    network = position_dependent_network(3)
    engine, timing = NumpyEngine(network), Timing()
    found = Segmenter(softmax, engine, SlidingWindowOptions(batch=2)).segment_preprocessed(array, timing=timing)
    np.testing.assert_array_equal(found, reference_segmentation(softmax, network, array, softmax.overlap))
    assert timing.network_windows <= 2 * len(engine.batches) < timing.windows / 2
    # What differs in one voxel only is not of one value.
    array[0, 30, 3, 3] += 1
    again = Timing()
    found = Segmenter(softmax, NumpyEngine(network), SlidingWindowOptions(batch=2)).segment_preprocessed(
        array, timing=again
    )
    assert again.network_windows > timing.network_windows
    np.testing.assert_array_equal(found, reference_segmentation(softmax, network, array, softmax.overlap))


def test_the_channels_of_a_window_of_one_value_may_differ(tmp_path: Path) -> None:
    manifest = threshold_manifest(tmp_path).model_copy(update={"channels": (Channel(name="a"), Channel(name="b"))})
    array = np.stack([np.zeros((25, 4, 6), np.float32), np.ones((25, 4, 6), np.float32)])
    array[1, 12:] = 7

    def network(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([np.zeros_like(windows[:, :1]), windows[:, :1] - 1, windows[:, 1:] - 3], axis=1)

    engine = NumpyEngine(network)
    found = Segmenter(manifest, engine).segment_preprocessed(array)
    assert np.unique(found[:8]).tolist() == [0] and np.unique(found[14:]).tolist() == [2]
    assert len(engine.batches) == 4  # one of each value, and two on the border


def test_padding_with_zeros_is_not_padding_with_the_border(tmp_path: Path) -> None:
    array = image((3, 3, 4)) + 2
    found = {}
    for padding in ("edge", "zero"):
        manifest = threshold_manifest(tmp_path / padding, padding=padding)
        network = position_dependent_network(3)
        found[padding] = Segmenter(manifest, NumpyEngine(network)).segment_preprocessed(array)
        np.testing.assert_array_equal(found[padding], reference_segmentation(manifest, network, array, 0.5))
    assert agreement(found["edge"], found["zero"]) < 1


def test_the_labels_are_the_segments_own(tmp_path: Path) -> None:
    segments = (Segment(name="a", label=7), Segment(name="b", label=200))
    manifest = threshold_manifest(tmp_path / "b", segments=segments)
    found = Segmenter(manifest, NumpyEngine(position_dependent_network(3))).segment_preprocessed(image((8, 8, 8)))
    assert set(np.unique(found)) == {0, 7, 200}


def test_logits_that_are_not_finite_are_an_error_and_not_a_background(softmax: Manifest) -> None:
    """INF-04."""

    def broken(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        out = position_dependent_network(3)(windows)
        out[:, 1, 2, 2, 2] = np.nan
        return out

    with pytest.raises(EngineError, match="not finite"):
        Segmenter(softmax, NumpyEngine(broken)).segment_preprocessed(image((8, 8, 8)))


# --- progress, cancelling, timing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 4, 100])
def test_progress_rises_to_the_number_of_windows(softmax: Manifest, batch: int) -> None:
    told: list[tuple[int, int]] = []
    timing = Timing()
    segmenter = Segmenter(softmax, NumpyEngine(position_dependent_network(3)), SlidingWindowOptions(batch=batch))
    segmenter.segment_preprocessed(image((11, 9, 7)), progress=lambda *done: told.append(done), timing=timing)
    counts = [done for done, _ in told]
    # starts along x 0 2 4 6, along y 0 2 4 5, along z 0 1
    assert {total for _, total in told} == {32} and timing.windows == 32
    assert counts == sorted(set(counts)) and counts[-1] == 32 and counts[0] == min(batch, 32)
    assert set(timing.seconds) == {"windows", "network", "blending", "deciding"}
    assert all(value >= 0 for value in timing.seconds.values())


def test_a_cancelled_pass_stops_before_the_next_batch(softmax: Manifest) -> None:
    """INF-07."""
    engine = NumpyEngine(position_dependent_network(3))
    with pytest.raises(Cancelled, match=r"Stopped after 3 of 32 windows\."):
        Segmenter(softmax, engine).segment_preprocessed(image((11, 9, 7)), cancelled=lambda: len(engine.batches) == 3)
    assert len(engine.batches) == 3


def test_a_pass_that_nobody_cancels_runs_to_the_end(softmax: Manifest) -> None:
    array = image((7, 7, 7))
    segmenter = Segmenter(softmax, NumpyEngine(position_dependent_network(3)))
    np.testing.assert_array_equal(
        segmenter.segment_preprocessed(array, cancelled=lambda: False), segmenter.segment_preprocessed(array)
    )


def test_a_pass_after_a_cancelled_one_starts_from_nothing(softmax: Manifest) -> None:
    """INF-07."""
    array, engine = image((11, 9, 7)), NumpyEngine(position_dependent_network(3))
    segmenter = Segmenter(softmax, engine)
    with pytest.raises(Cancelled):
        segmenter.segment_preprocessed(array, cancelled=lambda: len(engine.batches) == 5)
    fresh = Segmenter(softmax, NumpyEngine(position_dependent_network(3))).segment_preprocessed(array)
    np.testing.assert_array_equal(segmenter.segment_preprocessed(array), fresh)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (SlidingWindowOptions(window=(8, 8, 8)), r"Window 8x8x8 is not one this model allows \(5x4x6\)\."),
        (SlidingWindowOptions(overlap=1.0), "An overlap is at least 0 and below 1, got 1.0"),
        (SlidingWindowOptions(overlap=(0.5, 1.0, 0.5)), "An overlap is at least 0 and below 1, got 1.0"),
        (SlidingWindowOptions(overlap=-0.1), "An overlap is at least 0 and below 1, got -0.1"),
        (SlidingWindowOptions(overlap=float("nan")), "An overlap is at least 0 and below 1, got nan"),
        (SlidingWindowOptions(batch=0), "A batch holds at least one window, got 0"),
    ],
)
def test_settings_that_the_model_does_not_allow_are_refused(
    softmax: Manifest, wanted: SlidingWindowOptions, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        Segmenter(softmax, NumpyEngine(position_dependent_network(3)), wanted)


def test_missing_and_unknown_channels_are_named(softmax: Manifest) -> None:
    scan = Volume(image((6, 6, 6))[0], np.eye(4))
    segmenter = Segmenter(softmax, NumpyEngine(position_dependent_network(3)))
    with pytest.raises(InputError) as caught:
        segmenter.segment({"t1": scan, "t2": scan})
    assert str(caught.value) == "This model takes the channel(s) image; missing: image; unknown: t1, t2."
    with pytest.raises(InputError, match=r"; unknown: t2\.$"):
        segmenter.segment({"image": scan, "t2": scan})


def test_channels_are_put_in_the_networks_order(tmp_path: Path) -> None:
    bundle = make_threshold_bundle(tmp_path / "bundle", channels=("t1", "t2"))
    scans = {name: Volume(scan_array((9, 8, 7), seed), np.eye(4)) for seed, name in enumerate(("t1", "t2"))}
    segmenter = Segmenter(bundle.manifest, OnnxEngine(bundle.model, threads=1))
    found = segmenter.segment(dict(reversed(scans.items())))
    np.testing.assert_array_equal(found.array, expected_mask(scans["t1"].array))


def test_warming_up_refuses_a_network_of_another_shape(softmax: Manifest) -> None:
    Segmenter(softmax, NumpyEngine(position_dependent_network(3)), SlidingWindowOptions(batch=2)).warm_up()
    with pytest.raises(InputError, match=r"returned shape \(2, 4, 5, 4, 6\); the manifest specifies \(2, 3, 5, 4, 6\)"):
        Segmenter(softmax, NumpyEngine(position_dependent_network(4)), SlidingWindowOptions(batch=2)).warm_up()


# --- from a scan to its mask -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thresholds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Segmenter]:
    """Real graphs whose mask of any scan is known."""
    folder = tmp_path_factory.mktemp("thresholds")
    bundles = {
        "softmax": make_threshold_bundle(folder / "softmax", window=(8, 8, 8)),
        "sigmoid": make_threshold_bundle(folder / "sigmoid", window=(8, 8, 8), activation="sigmoid"),
        "resampling": make_threshold_bundle(folder / "resampling", window=(8, 8, 8), spacing=(1.0, 1.0, 1.0)),
    }
    return {
        name: Segmenter(b.manifest, OnnxEngine(b.model, threads=1), SlidingWindowOptions(batch=4))
        for name, b in bundles.items()
    }


@pytest.mark.parametrize("axcodes", AXIS_ORIENTATIONS)
def test_a_scan_in_any_axis_orientation_gets_the_mask_of_its_own_voxels(
    thresholds: dict[str, Segmenter], axcodes: str
) -> None:
    """INF-01."""
    # Smaller than the window along one axis, larger along the others, tilted, anisotropic.
    array = scan_array((5, 11, 13), seed=AXIS_ORIENTATIONS.index(axcodes))
    affine = make_affine(axcodes, tilt=(12.0, -7.0, 20.0))
    found = thresholds["softmax"].segment({"image": Volume(array, affine)})
    np.testing.assert_array_equal(found.array, expected_mask(array))
    np.testing.assert_array_equal(found.affine, affine)
    assert found.exclusive and found.array.dtype == np.uint8


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 20, 3), (8, 8, 8), (9, 17, 8)], ids=str)
def test_a_scan_of_any_size_keeps_its_shape(thresholds: dict[str, Segmenter], shape: tuple[int, int, int]) -> None:
    """INF-01."""
    array = scan_array(shape, seed=3)
    found = thresholds["softmax"].segment({"image": Volume(array, make_affine("PIR"))})
    np.testing.assert_array_equal(found.array, expected_mask(array))


def test_overlapping_regions_are_one_mask_each(thresholds: dict[str, Segmenter]) -> None:
    array = scan_array((9, 10, 11))
    found = thresholds["sigmoid"].segment({"image": Volume(array, make_affine("SLP"))})
    assert not found.exclusive
    np.testing.assert_array_equal(found.array, np.stack([array > LOW, expected_mask(array) == 2]))


def test_a_resampled_scan_gets_its_mask_on_its_own_grid(thresholds: dict[str, Segmenter]) -> None:
    smooth = np.zeros((14, 9, 20), np.int16)
    smooth[3:11, 2:7, 5:15] = 450
    affine = make_affine("LIP", (0.7, 2.0, 0.8), (5.0, 3.0, -9.0))
    found = thresholds["resampling"].segment({"image": Volume(smooth, affine)})
    assert found.array.shape == smooth.shape
    np.testing.assert_array_equal(found.affine, affine)
    inside = np.zeros(smooth.shape, bool)
    inside[4:10, 3:6, 6:14] = True
    assert (found.array[inside] == 1).all() and not found.array[:2].any() and not found.array[..., 17:].any()


def test_the_mask_is_cleaned_in_millilitres_of_the_networks_grid(thresholds: dict[str, Segmenter]) -> None:
    array = np.zeros((12, 12, 12), np.int16)
    array[1:5, 1:5, 1:5] = 400  # 64 voxels of 3.375 mm^3 = 0.216 ml
    array[8:10, 8:10, 8:10] = 400  # 8 voxels = 0.027 ml
    plain = thresholds["softmax"]
    scan = {"image": Volume(array, make_affine("RAS", (1.5, 0.75, 3.0)))}
    assert np.count_nonzero(plain.segment(scan).array) == 72
    for minimum, left in ((0.026, 72), (0.028, 64), (0.215, 64), (0.217, 0)):
        cleaning = Postprocessing(segments={"low": SegmentCleaning(minimum_ml=minimum)})
        manifest = plain.manifest.model_copy(update={"postprocessing": cleaning})
        found = Segmenter(manifest, plain.engine).segment(scan)
        assert np.count_nonzero(found.array) == left


def test_the_seconds_of_every_stage_are_told(thresholds: dict[str, Segmenter]) -> None:
    timing = Timing()
    thresholds["softmax"].segment({"image": Volume(scan_array((9, 9, 9)), np.eye(4))}, timing=timing)
    assert list(timing.seconds) == ["preprocessing", "windows", "network", "blending", "deciding", "restoring"]
    assert timing.windows == 8


# --- what is told of the scan and of its mask ------------------------------------------------------------------------


def test_a_scan_and_a_mask_unlike_those_of_training_are_told(tmp_path: Path) -> None:
    """INF-06."""
    bundle = make_threshold_bundle(tmp_path / "bundle")
    engine = OnnxEngine(bundle.model, threads=1)
    usual = {"image": Volume(scan_array((20, 18, 16)), np.eye(4))}
    segmenter = Segmenter(bundle.manifest, engine)
    doubt = SegmentEntropy(2, "softmax")
    masks = MaskFingerprint.from_measures([measure_mask(segmenter.segment(usual, observers=[doubt]), doubt.mean())])
    segmenter = Segmenter(bundle.manifest.model_copy(update={"masks": masks}), engine)
    segmentation, remarks = segmenter.segment_with_warnings(usual)
    np.testing.assert_array_equal(segmentation.array, segmenter.segment(usual).array)
    assert remarks == ()
    dark = {"image": Volume((scan_array((20, 18, 16)) // 20 + 1).astype(np.int16), np.diag([1.0, 1.0, 40.0, 1.0]))}
    timing = Timing()
    _, remarks = segmenter.segment_with_warnings(dark, timing=timing)
    codes = [remark.code for remark in remarks]
    assert codes == ["unfamiliar_spacing", "unfamiliar_intensity", "unlike_volume", "unlike_volume"]
    assert "No low was found" in remarks[2].text and "No high was found" in remarks[3].text
    assert "comparing" in timing.seconds
