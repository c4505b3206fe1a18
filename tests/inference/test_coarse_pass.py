"""A coarse pass skips windows, and where a segment is the result stays that of the full pass, bit for bit."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from semiseg.bundle.coarse import Coarse, CoarseProof
from semiseg.bundle.manifest import Manifest
from semiseg.errors import Cancelled, EngineError
from semiseg.inference.coarse_pass import CoarsePass, decide
from semiseg.inference.probabilities import Probabilities
from semiseg.inference.segmenter import Segmenter, Settings
from semiseg.inference.window_runs import Timing
from semiseg.volumes.volume import Volume
from tests.networks import Network, NumpyEngine, manifest_of, whole_volume

WINDOW = (8, 8, 8)
LARGE = (36, 32, 28)
PROOF = CoarseProof(
    precision="fp32", engine="numpy", scans=1, skipping=1, mean_dice=1, least_dice=1, lost=0, factor=2.0
)
SPARSE = Coarse(kind="sparse_windows", threshold=0.1, margin=2.0, proofs=(PROOF,))
HALF = Coarse(kind="coarse_grid", downsampling=(2, 2, 2), threshold=0.1, margin=2.0, proofs=(PROOF,))
KINDS = [(a, m) for a in ("softmax", "sigmoid") for m in ("logits", "probs")]


def bright(outputs: int, *, regions: bool = False) -> Network:
    """Segments are what is brighter than 1, 2, ...; the place in the window moves each logit by up to 0.4."""

    def network(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        place = 0.4 * np.sin(np.arange(np.prod(windows.shape[2:]), dtype=np.float32)).reshape(windows.shape[2:])
        v = windows[:, 0]
        if regions:
            rows = [8 * (v - k - 0.75) + np.roll(place, k) for k in range(outputs)]
        else:
            rows = [8 * (k * v - k * (k + 1) / 2 + k / 4) + np.roll(place, k) for k in range(outputs)]
        return np.stack(rows, axis=1).astype(np.float32)

    return network


def network_of(manifest: Manifest) -> Network:
    return bright(manifest.outputs, regions=manifest.activation == "sigmoid")


def scan(shape: tuple[int, int, int] = LARGE, seed: int = 0) -> NDArray[np.float32]:
    """Noise without a segment."""
    return np.random.default_rng(seed).normal(0, 0.05, (1, *shape)).astype(np.float32)


def with_box(array: NDArray[np.float32], at: tuple[int, int, int], side: int, value: float = 1.0) -> None:
    x, y, z = (slice(a, a + side) for a in at)
    array[0, x, y, z] += value


def both(
    manifest: Manifest, array: NDArray[np.float32], network: Network | None = None, **options: Any
) -> tuple[NDArray[Any], NDArray[Any], Timing]:
    """The result with the coarse pass and without it, and what the first one took."""
    network = network or network_of(manifest)
    timing = Timing()
    spacing = options.pop("spacing", (1.0, 1.0, 1.0))
    segmenter = Segmenter(manifest, NumpyEngine(network), Settings(**options))
    found = segmenter.segment_prepared(array, spacing=spacing, timing=timing)
    full = segmenter.segment_prepared(array, spacing=spacing, full=True)
    return found, full, timing


def decided(segmenter: Segmenter, array: NDArray[np.float32], needed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The voxels all of whose windows are needed, counted window by window."""
    grid = segmenter.grid(array)
    planned, run = np.zeros(grid.shape, int), np.zeros(grid.shape, int)
    for index in itertools.product(*(range(len(along)) for along in grid.starts)):
        starts = [grid.starts[axis][k] for axis, k in enumerate(index)]
        box = tuple(slice(s, s + w) for s, w in zip(starts, grid.window, strict=True))
        planned[box] += 1
        run[box] += int(needed[index])
    return np.asarray(planned == run)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Manifest]:
    folder = tmp_path_factory.mktemp("manifests")
    return {
        (activation, average): manifest_of(
            folder / activation, activation=activation, average=average, window=WINDOW, patch=WINDOW, windows=(WINDOW,)
        )
        for activation, average in KINDS
    }


@pytest.fixture(scope="module")
def plain(manifests: dict[tuple[str, str], Manifest]) -> Manifest:
    return manifests["softmax", "logits"]


def having(manifest: Manifest, coarse: Coarse, **changes: Any) -> Manifest:
    return manifest.model_copy(update={"coarse": coarse.model_copy(update=changes)})


# --- exactness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coarse", [SPARSE, HALF], ids=lambda one: one.kind)
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@settings(deadline=None, max_examples=8)
@given(
    blobs=st.lists(
        st.tuples(st.tuples(*[st.integers(0, 25)] * 3), st.integers(1, 9), st.sampled_from([0.8, 1.0, 2.0])),
        max_size=3,
    ),
    margin=st.floats(0, 9),
    spacing=st.tuples(*[st.floats(0.5, 4)] * 3),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_inside_of_what_is_run_the_result_is_the_full_one_and_outside_it_is_background(
    manifests: dict[tuple[str, str], Manifest],
    kind: tuple[str, str],
    coarse: Coarse,
    blobs: list[tuple[tuple[int, int, int], int, float]],
    margin: float,
    spacing: tuple[float, float, float],
    batch: int,
    seed: int,
) -> None:
    """INF-08."""
    manifest = having(manifests[kind], coarse, margin=margin)
    array = scan(seed=seed)
    for at, side, value in blobs:
        with_box(array, at, side, value)
    found, full, timing = both(manifest, array, batch=batch, spacing=spacing)
    counts = timing.counts
    assert counts is not None
    if counts.run == counts.planned:
        np.testing.assert_array_equal(found, full)
        return
    segmenter = Segmenter(manifest, NumpyEngine(network_of(manifest)), Settings(batch=batch))
    assert manifest.coarse is not None
    evidence = segmenter.coarse_pass(manifest.coarse).evidence(segmenter.engine, array, timing=Timing())
    names = [segment.name for segment in manifest.segments]
    grid = segmenter.grid(array)
    needed = decide(manifest.coarse, evidence, grid, spacing, names).needed
    assert needed is not None and counts.run == np.count_nonzero(needed) and counts.coarse == evidence.windows
    inside = decided(segmenter, array, needed)
    np.testing.assert_array_equal(found, full * inside)
    if coarse is SPARSE:  # what the network of this test draws is evidence in every window
        np.testing.assert_array_equal(found, full)


@pytest.mark.parametrize("coarse", [SPARSE, HALF], ids=lambda one: one.kind)
def test_an_organ_in_a_large_scan_takes_few_windows(plain: Manifest, coarse: Coarse) -> None:
    array = scan()
    with_box(array, (20, 20, 16), 7)
    found, full, timing = both(having(plain, coarse), array)
    assert full.any()
    np.testing.assert_array_equal(found, full)
    counts = timing.counts
    assert counts is not None and counts.planned == 8 * 7 * 6
    assert counts.run + counts.coarse < counts.planned / 2
    assert timing.run == timing.windows == counts.run + counts.coarse
    assert counts.reason == "The coarse pass found background in all other windows."


def test_the_full_pass_is_that_of_a_model_without_a_coarse_pass(plain: Manifest) -> None:
    array = scan()
    with_box(array, (20, 20, 16), 7)
    _, full, _ = both(having(plain, SPARSE), array)
    np.testing.assert_array_equal(full, whole_volume(plain, network_of(plain), array, 0.5))


@pytest.mark.parametrize("at", [(0, 0, 0), (29, 25, 21), (0, 25, 12), (20, 20, 21)], ids=str)
@pytest.mark.parametrize("coarse", [SPARSE, HALF], ids=lambda one: one.kind)
def test_an_organ_at_the_border_of_the_scan_is_whole(plain: Manifest, coarse: Coarse, at: tuple[int, int, int]) -> None:
    array = scan()
    with_box(array, at, 7)
    found, full, timing = both(having(plain, coarse), array)
    np.testing.assert_array_equal(found, full)
    assert timing.counts is not None and timing.counts.run < timing.counts.planned


def test_two_organs_far_apart_are_both_whole(plain: Manifest) -> None:
    array = scan()
    with_box(array, (1, 2, 3), 6)
    with_box(array, (29, 25, 22), 5, 2.0)
    found, full, timing = both(having(plain, SPARSE, expected=("low", "high")), array)
    assert set(np.unique(full)) == {0, 1, 2}
    np.testing.assert_array_equal(found, full)
    assert timing.counts is not None and timing.counts.run < timing.counts.planned / 2


def test_a_tiny_organ_is_found_on_the_scans_own_grid(plain: Manifest) -> None:
    array = scan()
    with_box(array, (20, 20, 16), 7)
    with_box(array, (33, 29, 3), 1)
    found, full, timing = both(having(plain, SPARSE), array)
    assert full[33, 29, 3] == 1
    np.testing.assert_array_equal(found, full)
    assert timing.counts is not None and timing.counts.run < timing.counts.planned / 2


def test_overlapping_regions_are_the_full_ones(manifests: dict[tuple[str, str], Manifest]) -> None:
    manifest, array = having(manifests["sigmoid", "logits"], SPARSE), scan()
    with_box(array, (20, 20, 16), 9)
    with_box(array, (22, 22, 18), 4)
    found, full, timing = both(manifest, array)
    assert found.dtype == bool and full[0].sum() > full[1].sum() > 0
    np.testing.assert_array_equal(found, full)
    assert not found[:, :8].any(), "a sum of no window must not be a mask"
    assert timing.counts is not None and timing.counts.run < timing.counts.planned / 2


def test_probabilities_are_nought_where_no_window_was_run(plain: Manifest) -> None:
    array = scan()
    with_box(array, (20, 20, 16), 7)
    kept, whole = Probabilities("softmax", 2), Probabilities("softmax", 2)
    segmenter = Segmenter(having(plain, SPARSE), NumpyEngine(network_of(plain)))
    segmenter.segment_prepared(array, spacing=(1, 1, 1), watchers=[kept])
    segmenter.segment_prepared(array, spacing=(1, 1, 1), watchers=[whole], full=True)
    assert kept.array().shape == whole.array().shape
    same = kept.array() == whole.array()
    assert same[:, 18:29, 18:29, 14:25].all() and not kept.array()[:, :8].any()


def test_the_margin_is_in_mm(plain: Manifest) -> None:
    """Slices of 4 mm: a margin of 5 mm is two slices, but five voxels in the plane."""
    array = scan()
    with_box(array, (20, 20, 16), 4)
    needed = {}
    for spacing in ((1.0, 1.0, 4.0), (1.0, 1.0, 1.0)):
        _, _, timing = both(having(plain, SPARSE, margin=5.0), array, spacing=spacing)
        assert timing.counts is not None
        needed[spacing] = timing.counts.run
    assert needed[1.0, 1.0, 4.0] < needed[1.0, 1.0, 1.0]


# --- when every window is run ----------------------------------------------------------------------------------------


def reason_of(manifest: Manifest, array: NDArray[np.float32], network: Network | None = None, **options: Any) -> str:
    """Why every window was run."""
    found, full, timing = both(manifest, array, network, **options)
    np.testing.assert_array_equal(found, full)
    assert timing.counts is not None and timing.counts.run == timing.counts.planned
    return timing.counts.reason


def test_a_model_without_a_coarse_pass_says_so(plain: Manifest) -> None:
    assert reason_of(plain, scan()) == "The model has no coarse pass."


def test_a_scan_of_few_windows_gets_no_coarse_pass(plain: Manifest) -> None:
    for shape in ((8, 8, 8), (3, 20, 9), (12, 12, 12)):
        assert "so few windows" in reason_of(having(plain, SPARSE), scan(shape))


@pytest.mark.parametrize("shape", [(5, 60, 60), (60, 3, 40)], ids=str)
@pytest.mark.parametrize("coarse", [SPARSE, HALF], ids=lambda one: one.kind)
def test_a_scan_smaller_than_a_window_along_an_axis_is_padded_in_both_passes(
    plain: Manifest, coarse: Coarse, shape: tuple[int, int, int]
) -> None:
    array = scan(shape)
    array[0, 1:4, 1:4, 20:26] += 1.0
    found, full, timing = both(having(plain, coarse), array)
    assert found.shape == shape and full.any()
    np.testing.assert_array_equal(found, full)
    assert timing.counts is not None and timing.counts.run < timing.counts.planned / 2


def test_an_empty_scan_is_looked_at_everywhere_unless_the_manifest_says_otherwise(plain: Manifest) -> None:
    """INF-08."""
    assert reason_of(having(plain, SPARSE), scan()).startswith("The coarse pass found nothing")
    manifest = having(plain, SPARSE, empty="background")
    kept = Probabilities("softmax", 2)
    engine, timing = NumpyEngine(network_of(plain)), Timing()
    found = Segmenter(manifest, engine).segment_prepared(scan(), spacing=(1, 1, 1), watchers=[kept], timing=timing)
    assert not found.any() and kept.array().shape == (2, *LARGE) and not kept.array().any()
    assert timing.counts is not None and (timing.counts.run, timing.windows) == (0, timing.counts.coarse)


def test_evidence_that_is_nowhere_sure_is_not_enough(plain: Manifest) -> None:
    array = scan()
    with_box(array, (20, 20, 16), 7, 0.45)  # a probability of a quarter at most
    assert reason_of(having(plain, SPARSE), array) == "The coarse pass was not sure of any segment."


def test_a_segment_that_every_training_scan_had_and_the_coarse_pass_did_not_find_is_looked_for_everywhere(
    plain: Manifest,
) -> None:
    """INF-08."""
    array = scan()
    with_box(array, (20, 20, 16), 7)
    assert "did not find high, which every training scan has" in reason_of(
        having(plain, SPARSE, expected=("low", "high")), array
    )


def test_an_organ_that_fills_the_scan_gets_the_full_pass(plain: Manifest) -> None:
    assert "skipping the rest gains little" in reason_of(having(plain, SPARSE), scan() + 1)


def test_an_organ_that_reaches_the_border_of_its_region_gets_the_full_pass(plain: Manifest) -> None:
    """INF-08. A coarse pass that sees one end of a rod only."""
    array = scan()
    array[0, 4:32, 19:22, 15:18] += 1.0
    network, calls = network_of(plain), itertools.count()
    coarse_windows = 5 * 4 * 4

    def short_sighted(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        out = network(windows)
        if (call := next(calls)) < coarse_windows and call >= 4 * 4:  # behind the first layer of the coarse pass
            out[:, 1:] -= 100
        return out

    manifest, timing, kept = having(plain, SPARSE), Timing(), Probabilities("softmax", 2)
    told: list[tuple[int, int]] = []
    found = Segmenter(manifest, NumpyEngine(short_sighted)).segment_prepared(
        array, spacing=(1, 1, 1), timing=timing, watchers=[kept], progress=lambda *done: told.append(done)
    )
    np.testing.assert_array_equal(found, whole_volume(plain, network, array, 0.5))
    counts = timing.counts
    assert counts is not None and counts.run == counts.planned and counts.coarse > coarse_windows
    assert counts.reason == "A segment reached the border of the region that the coarse pass had found."
    again = Probabilities("softmax", 2)
    Segmenter(plain, NumpyEngine(network)).segment_prepared(array, watchers=[again])
    np.testing.assert_array_equal(kept.array(), again.array())
    assert [done for done, _ in told] == sorted({done for done, _ in told}) and told[-1][0] == told[-1][1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"full": True}, "A full pass was asked for."),
        ({"overlap": 0.25}, "was proved for the model's own window and overlap, and others were asked for"),
        ({"spacing": None}, "The voxel spacing is not known"),
    ],
    ids=str,
)
def test_what_was_asked_for_or_is_not_known_turns_it_off(
    plain: Manifest, options: dict[str, Any], sentence: str
) -> None:
    array = scan()
    with_box(array, (20, 20, 16), 7)
    assert sentence in reason_of(having(plain, SPARSE), array, **options)


def test_a_precision_in_which_it_was_not_proved_turns_it_off(plain: Manifest) -> None:
    timing = Timing()
    segmenter = Segmenter(having(plain, SPARSE), NumpyEngine(network_of(plain)), precision="int8")
    segmenter.segment_prepared(scan(), spacing=(1, 1, 1), timing=timing)
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
        Segmenter(having(plain, SPARSE), NumpyEngine(broken)).segment_prepared(array, spacing=(1, 1, 1))


# --- progress, cancelling, log ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 4])
def test_progress_counts_the_windows_of_both_passes(plain: Manifest, batch: int) -> None:
    array = scan()
    with_box(array, (20, 20, 16), 7)
    told: list[tuple[int, int]] = []
    timing = Timing()
    segmenter = Segmenter(having(plain, SPARSE), NumpyEngine(network_of(plain)), Settings(batch=batch))
    segmenter.segment_prepared(array, spacing=(1, 1, 1), timing=timing, progress=lambda *done: told.append(done))
    counts = timing.counts
    assert counts is not None
    done = [one for one, _ in told]
    assert done == sorted(set(done)) and told[-1] == (counts.coarse + counts.run, counts.coarse + counts.run)
    assert {total for _, total in told} == {counts.coarse + counts.planned, counts.coarse + counts.run}
    assert set(timing.seconds) == {"coarse", "windows", "network", "blending", "deciding"}


def test_a_scan_cancelled_in_the_coarse_pass_stops_there(plain: Manifest) -> None:
    """INF-07."""
    engine = NumpyEngine(network_of(plain))
    with pytest.raises(Cancelled, match=r"Stopped after 3 of 80 windows of the coarse pass\."):
        Segmenter(having(plain, SPARSE), engine).segment_prepared(
            scan(), spacing=(1, 1, 1), cancelled=lambda: len(engine.batches) == 3
        )
    assert len(engine.batches) == 3


def test_the_log_says_how_many_windows_were_run_and_why(plain: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    array = scan()
    with_box(array, (20, 20, 16), 7)
    segmenter = Segmenter(having(plain, SPARSE), NumpyEngine(network_of(plain)))
    with caplog.at_level(logging.INFO, "semiseg"):
        segmenter.segment({"image": Volume(array[0] * 0 + 0.2, np.eye(4))}, full=True)
    assert caplog.messages == ["336 of 336 windows were run. A full pass was asked for."]


def test_the_slab_holds_no_more_than_in_a_full_pass(plain: Manifest) -> None:
    """INF-03."""
    array = scan()
    with_box(array, (20, 20, 16), 7)
    held = []
    for manifest in (plain, having(plain, SPARSE)):
        engine = NumpyEngine(network_of(plain))
        Segmenter(manifest, engine).segment_prepared(array, spacing=(1, 1, 1))
        held.append(engine.slabs)
    assert held[0] == held[1]


# --- the evidence ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(*[st.integers(8, 30)] * 3),
    st.sampled_from([(1, 1, 1), (2, 2, 2), (2, 2, 1), (3, 1, 2)]),
    st.booleans(),
    st.integers(0, 99),
)
def test_every_voxel_that_a_coarse_window_draws_is_in_a_block_that_counts(
    shape: tuple[int, int, int], downsampling: tuple[int, int, int], exclusive: bool, seed: int
) -> None:
    """On the scan's own grid block by block; on a coarser one where a whole box of voxels is bright."""
    array = scan(shape, seed)
    boxes = [n // step * step for n, step in zip(shape, downsampling, strict=True)]
    rng = np.random.default_rng(seed)
    at = [int(rng.integers(0, n // step)) * step for n, step in zip(boxes, downsampling, strict=True)]
    x, y, z = (slice(a, a + step) for a, step in zip(at, downsampling, strict=True))
    array[0, x, y, z] = 1.0
    network = bright(3 if exclusive else 2, regions=not exclusive)
    found = CoarsePass(WINDOW, 2, exclusive, downsampling).evidence(NumpyEngine(network), array, timing=Timing())
    hot = found.logits > 0
    place = tuple(a // step for a, step in zip(at, found.block, strict=True))
    assert hot[place] and np.count_nonzero(hot) == 1
    assert found.found.tolist() == [True, False]
    assert all(n <= blocks * step < n + step for n, blocks, step in zip(shape, hot.shape, found.block, strict=True))


def test_a_sum_of_batches_is_the_same_evidence(plain: Manifest) -> None:
    array = scan()
    with_box(array, (20, 20, 16), 7)
    make: Callable[[int], CoarsePass] = lambda batch: CoarsePass(WINDOW, batch, True, (2, 2, 2))  # noqa: E731
    one, four = (make(batch).evidence(NumpyEngine(network_of(plain)), array, timing=Timing()) for batch in (1, 4))
    np.testing.assert_array_equal(one.logits, four.logits)


# --- the manifest ----------------------------------------------------------------------------------------------------


def test_the_settings_survive_the_manifest_and_old_manifests_have_none(plain: Manifest, tmp_path: Path) -> None:
    manifest = having(plain, HALF, expected=("low",))
    again = Manifest.model_validate_json(manifest.model_dump_json())
    assert again == manifest and again.coarse is not None and again.coarse.proved_in("fp32")
    old = plain.model_dump(mode="json")
    del old["coarse"]
    assert Manifest.model_validate(old).coarse is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"expected": ["nobody"]}, "expects segments that do not exist: nobody"),
        ({"downsampling": [2, 2, 2]}, "sparse_windows does not go with"),
        ({"threshold": 0}, "greater than 0"),
    ],
    ids=str,
)
def test_settings_that_contradict_themselves_are_refused(
    plain: Manifest, changes: dict[str, Any], sentence: str
) -> None:
    document = having(plain, SPARSE).model_dump(mode="json")
    document["coarse"] |= changes
    with pytest.raises(ValueError, match=sentence):
        Manifest.model_validate(document)
