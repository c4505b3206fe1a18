"""A coarse pass skips windows, and voxels whose windows are all run get the result of the full pass, bit for bit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semiseg.bundle.coarse_settings import CoarsePassSettings
from semiseg.bundle.manifest import Manifest
from semiseg.errors import Cancelled
from semiseg.inference.coarse_pass import CoarsePass, select_windows
from semiseg.inference.probabilities import ProbabilityCollector
from semiseg.inference.segmenter import Segmenter, SlidingWindowOptions
from semiseg.inference.timing import Timing
from semiseg.volumes.volume import Volume
from tests.inference.coarse_scans import (
    HALF,
    KINDS,
    SPARSE,
    WINDOW,
    both,
    bright,
    decided,
    having,
    network_of,
    scan,
    with_box,
)
from tests.networks import NumpyEngine, reference_segmentation, threshold_manifest


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Manifest]:
    folder = tmp_path_factory.mktemp("manifests")
    return {
        (activation, average): threshold_manifest(
            folder / activation, activation=activation, average=average, window=WINDOW, patch=WINDOW, windows=(WINDOW,)
        )
        for activation, average in KINDS
    }


@pytest.fixture(scope="module")
def plain(manifests: dict[tuple[str, str], Manifest]) -> Manifest:
    return manifests["softmax", "logits"]


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
def test_voxels_whose_windows_are_run_get_the_full_result_and_all_others_are_background(
    manifests: dict[tuple[str, str], Manifest],
    kind: tuple[str, str],
    coarse: CoarsePassSettings,
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
    segmenter = Segmenter(manifest, NumpyEngine(network_of(manifest)), SlidingWindowOptions(batch=batch))
    assert manifest.coarse_pass is not None
    result = segmenter._passes.coarse_pass(manifest.coarse_pass).run(segmenter.engine, array, timing=Timing())
    names = [segment.name for segment in manifest.segments]
    grid = segmenter._passes.grid(array)
    needed = select_windows(manifest.coarse_pass, result, grid, spacing, names).needed
    assert needed is not None and counts.run == np.count_nonzero(needed) and counts.preliminary == result.windows
    inside = decided(segmenter, array, needed)
    np.testing.assert_array_equal(found, full * inside)
    if coarse is SPARSE:  # what the network of this test draws is result in every window
        np.testing.assert_array_equal(found, full)


@pytest.mark.parametrize("coarse", [SPARSE, HALF], ids=lambda one: one.kind)
def test_an_organ_in_a_large_scan_takes_few_windows(plain: Manifest, coarse: CoarsePassSettings) -> None:
    array = scan()
    with_box(array, (20, 20, 16), 7)
    found, full, timing = both(having(plain, coarse), array)
    assert full.any()
    np.testing.assert_array_equal(found, full)
    counts = timing.counts
    assert counts is not None and counts.planned == 8 * 7 * 6
    assert counts.run + counts.preliminary < counts.planned / 2
    assert timing.network_windows == timing.windows == counts.run + counts.preliminary
    assert counts.reason == "The coarse pass found only background in the other windows."


def test_the_full_pass_is_that_of_a_model_without_a_coarse_pass(plain: Manifest) -> None:
    array = scan()
    with_box(array, (20, 20, 16), 7)
    _, full, _ = both(having(plain, SPARSE), array)
    np.testing.assert_array_equal(full, reference_segmentation(plain, network_of(plain), array, 0.5))


@pytest.mark.parametrize("at", [(0, 0, 0), (29, 25, 21), (0, 25, 12), (20, 20, 21)], ids=str)
@pytest.mark.parametrize("coarse", [SPARSE, HALF], ids=lambda one: one.kind)
def test_an_organ_at_the_border_of_the_scan_is_whole(
    plain: Manifest, coarse: CoarsePassSettings, at: tuple[int, int, int]
) -> None:
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


def test_overlapping_regions_are_those_of_the_full_pass(manifests: dict[tuple[str, str], Manifest]) -> None:
    manifest, array = having(manifests["sigmoid", "logits"], SPARSE), scan()
    with_box(array, (20, 20, 16), 9)
    with_box(array, (22, 22, 18), 4)
    found, full, timing = both(manifest, array)
    assert found.dtype == bool and full[0].sum() > full[1].sum() > 0
    np.testing.assert_array_equal(found, full)
    assert not found[:, :8].any(), "a sum of no window must not be a mask"
    assert timing.counts is not None and timing.counts.run < timing.counts.planned / 2


def test_probabilities_are_zero_where_windows_were_skipped(plain: Manifest) -> None:
    array = scan()
    with_box(array, (20, 20, 16), 7)
    kept, whole = ProbabilityCollector(2, "softmax"), ProbabilityCollector(2, "softmax")
    segmenter = Segmenter(having(plain, SPARSE), NumpyEngine(network_of(plain)))
    segmenter.segment_preprocessed(array, spacing=(1, 1, 1), observers=[kept])
    segmenter.segment_preprocessed(array, spacing=(1, 1, 1), observers=[whole], full=True)
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


# --- progress, cancelling, log ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 4])
def test_progress_counts_the_windows_of_both_passes(plain: Manifest, batch: int) -> None:
    array = scan()
    with_box(array, (20, 20, 16), 7)
    told: list[tuple[int, int]] = []
    timing = Timing()
    segmenter = Segmenter(having(plain, SPARSE), NumpyEngine(network_of(plain)), SlidingWindowOptions(batch=batch))
    segmenter.segment_preprocessed(array, spacing=(1, 1, 1), timing=timing, progress=lambda *done: told.append(done))
    counts = timing.counts
    assert counts is not None
    done = [one for one, _ in told]
    assert done == sorted(set(done)) and told[-1] == (counts.preliminary + counts.run, counts.preliminary + counts.run)
    assert {total for _, total in told} == {counts.preliminary + counts.planned, counts.preliminary + counts.run}
    assert set(timing.seconds) == {"coarse", "windows", "network", "blending", "deciding"}


def test_a_scan_cancelled_in_the_coarse_pass_stops_there(plain: Manifest) -> None:
    """INF-07."""
    engine = NumpyEngine(network_of(plain))
    with pytest.raises(Cancelled, match=r"Stopped after 3 of 80 windows of the coarse pass\."):
        Segmenter(having(plain, SPARSE), engine).segment_preprocessed(
            scan(), spacing=(1, 1, 1), cancelled=lambda: len(engine.batches) == 3
        )
    assert len(engine.batches) == 3


def test_the_log_states_the_number_of_windows_and_the_reason(plain: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    array = scan()
    with_box(array, (20, 20, 16), 7)
    segmenter = Segmenter(having(plain, SPARSE), NumpyEngine(network_of(plain)))
    with caplog.at_level(logging.INFO, "semiseg"):
        segmenter.segment({"image": Volume(array[0] * 0 + 0.2, np.eye(4))}, full=True)
    assert caplog.messages == ["336 of the 336 windows of a full pass were run. A full pass was requested."]


def test_the_slab_holds_no_more_than_in_a_full_pass(plain: Manifest) -> None:
    """INF-03."""
    array = scan()
    with_box(array, (20, 20, 16), 7)
    held = []
    for manifest in (plain, having(plain, SPARSE)):
        engine = NumpyEngine(network_of(plain))
        Segmenter(manifest, engine).segment_preprocessed(array, spacing=(1, 1, 1))
        held.append(engine.slabs)
    assert held[0] == held[1]


# --- the result ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(*[st.integers(8, 30)] * 3),
    st.sampled_from([(1, 1, 1), (2, 2, 2), (2, 2, 1), (3, 1, 2)]),
    st.booleans(),
    st.integers(0, 99),
)
def test_every_voxel_that_the_coarse_pass_finds_is_in_a_marked_block(
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
    found = CoarsePass(WINDOW, 2, exclusive, downsampling).run(NumpyEngine(network), array, timing=Timing())
    hot = found.logits > 0
    place = tuple(a // step for a, step in zip(at, found.block, strict=True))
    assert hot[place] and np.count_nonzero(hot) == 1
    assert found.found.tolist() == [True, False]
    assert all(n <= blocks * step < n + step for n, blocks, step in zip(shape, hot.shape, found.block, strict=True))


def test_the_batch_size_does_not_change_the_coarse_result(plain: Manifest) -> None:
    array = scan()
    with_box(array, (20, 20, 16), 7)
    make: Callable[[int], CoarsePass] = lambda batch: CoarsePass(WINDOW, batch, True, (2, 2, 2))  # noqa: E731
    one, four = (make(batch).run(NumpyEngine(network_of(plain)), array, timing=Timing()) for batch in (1, 4))
    np.testing.assert_array_equal(one.logits, four.logits)


# --- the manifest ----------------------------------------------------------------------------------------------------


def test_the_settings_survive_the_manifest_and_old_manifests_have_none(plain: Manifest, tmp_path: Path) -> None:
    manifest = having(plain, HALF, expected=("low",))
    again = Manifest.model_validate_json(manifest.model_dump_json())
    assert again == manifest and again.coarse_pass is not None and again.coarse_pass.proved_in("fp32")
    old = plain.model_dump(mode="json")
    del old["coarse_pass"]
    assert Manifest.model_validate(old).coarse_pass is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"expected": ["nobody"]}, "expects segments that do not exist: nobody"),
        ({"downsampling": [2, 2, 2]}, "sparse_windows is not possible with"),
        ({"threshold": 0}, "greater than 0"),
    ],
    ids=str,
)
def test_settings_that_contradict_themselves_are_refused(
    plain: Manifest, changes: dict[str, Any], sentence: str
) -> None:
    document = having(plain, SPARSE).model_dump(mode="json")
    document["coarse_pass"] |= changes
    with pytest.raises(ValueError, match=sentence):
        Manifest.model_validate(document)
