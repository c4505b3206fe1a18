"""The coarse pass is learned on some scans and proved on others; if it fails the gate, the export says by how much."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from exporter.coarse import (
    LEAST_SCANS_WITH_SKIPS,
    LearningScan,
    learn_settings,
    prove_settings,
    run_passes,
    window_passes,
)
from exporter.export import export
from exporter.parity_scans import ParityScan
from semiseg.bundle.bundle import MANIFEST
from semiseg.bundle.card import CARD
from semiseg.bundle.coarse_settings import CoarsePassProof, CoarsePassSettings
from semiseg.bundle.manifest import Manifest
from semiseg.bundle.postprocessing import Postprocessing, SegmentCleaning
from semiseg.inference.segmenter import Segmenter
from semiseg.inference.timing import Timing
from tests.networks import Network, NumpyEngine, threshold_manifest
from tests.runs import TinyRun

WINDOW = (8, 8, 8)
SHAPE = (40, 32, 28)
SPACING = (2.0, 2.0, 2.0)


@pytest.fixture(scope="module", params=["softmax", "sigmoid"])
def manifest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("manifest")
    return threshold_manifest(folder / "b", window=WINDOW, patch=WINDOW, windows=(WINDOW,), activation=request.param)


def threshold(outputs: int) -> Network:
    """Segments are what is brighter than 0.5 and than 1.5, wherever a voxel lies in its window."""

    def network(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        v = windows[:, 0]
        low, high = 20 * (v - 0.5), 20 * (v - 1.5)
        rows = [low, high] if outputs == 2 else [np.zeros_like(v), low, low + high]
        return np.stack(rows, axis=1).astype(np.float32)

    return network


def scans(count: int, *, tails: bool = False, empty: int = 0, shape: tuple[int, int, int] = SHAPE) -> list[ParityScan]:
    """Boxes of both segments somewhere in large scans; with ``tails``, each with a line that a coarser grid blurs."""
    made = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        array = rng.normal(0, 0.02, (1, *shape)).astype(np.float32)
        if seed >= empty:
            x, y, z = rng.integers(4, 16, 3)
            array[0, x : x + 8, y : y + 8, z : z + 8] += 1
            array[0, x + 2 : x + 6, y + 2 : y + 6, z + 2 : z + 6] += 1
            if tails:
                array[0, x + 8 : x + 16, y, z] += 0.6
        made.append(ParityScan(array, SPACING))
    return made


def silent(_: str) -> None:
    """Report nothing."""


def engine_of(manifest: Manifest) -> NumpyEngine:
    return NumpyEngine(threshold(manifest.outputs))


def learned(manifest: Manifest, taken: list[ParityScan]) -> CoarsePassSettings:
    coarse = learn_settings(manifest, engine_of(manifest), taken, silent)
    assert isinstance(coarse, CoarsePassSettings), coarse
    return coarse


def test_the_settings_skip_most_windows_and_pass_the_proof(manifest: Manifest) -> None:
    """MOD-07."""
    taken, engine = scans(6), engine_of(manifest)
    told: list[str] = []
    coarse = learn_settings(manifest, engine, taken[:3], told.append)
    assert isinstance(coarse, CoarsePassSettings) and coarse.kind == "coarse_grid" and coarse.margin == 10.0
    assert coarse.expected == ("low", "high")
    proof, failure = prove_settings(manifest, coarse, engine, "fp32", taken[3:], told.append)
    assert proof is not None and not failure
    assert (proof.scans, proof.scans_with_skips, proof.mean_dice, proof.least_dice, proof.lost_components) == (
        3,
        3,
        1.0,
        1.0,
        0,
    )
    assert told == [
        *(f"coarse pass: learning on scan {k} of 3" for k in (1, 2, 3)),
        *(f"coarse pass: proving in fp32 on scan {k} of 3" for k in (1, 2, 3)),
    ]
    # The ratio is that of inference.
    complete = manifest.model_copy(update={"coarse_pass": coarse.model_copy(update={"proofs": (proof,)})})
    segmenter = Segmenter(complete, engine)
    planned = run = 0
    for scan in taken[3:]:
        timing = Timing()
        segmenter.segment_preprocessed(scan.array, spacing=SPACING, timing=timing)
        assert timing.counts is not None
        planned, run = planned + timing.counts.planned, run + timing.windows
    assert proof.window_ratio == pytest.approx(planned / run) and proof.window_ratio > 1.5


def test_the_margin_grows_with_the_parts_that_the_coarse_pass_misses(manifest: Manifest) -> None:
    """A tail of 16 mm that is too thin for the coarser grid: a small margin would have every window run."""
    large = (64, 48, 44)
    seen, unseen = (learned(manifest, scans(3, tails=tails, shape=large)) for tails in (False, True))
    assert unseen.margin > seen.margin
    proof, failure = prove_settings(
        manifest, unseen, engine_of(manifest), "fp32", scans(6, tails=True, shape=large)[3:], silent
    )
    assert proof is not None and proof.scans_with_skips == 3, failure


def test_learning_predicts_the_outcome_of_the_passes(manifest: Manifest) -> None:
    """Learning derives the outcome from one full pass; running the passes gives the same numbers."""
    taken, engine = scans(3, tails=True), engine_of(manifest)
    coarse = CoarsePassSettings(kind="coarse_grid", downsampling=(2, 2, 2), threshold=0.3, margin=0.0)
    names = [segment.name for segment in manifest.segments]
    for scan in taken:
        expected = LearningScan.run(manifest, engine, scan).outcome(coarse, names)
        passes = window_passes(manifest, engine, coarse)
        found, counts = run_passes(passes, scan)
        full, _ = run_passes(passes, scan, full=True)
        assert counts.run + counts.preliminary == expected.run
        dice = []
        for k, segment in enumerate(manifest.segments):
            a, b = ((one[k] if one.ndim == 4 else one == segment.label) for one in (full, found))
            dice.append(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))
        assert expected.dice in ([], pytest.approx(dice))


def forgetful(manifest: Manifest) -> Network:
    """A network that finds nothing in a window with fewer than four bright voxels, such as a coarse one of a speck."""
    network = threshold(manifest.outputs)

    def seen(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        out = network(windows)
        coarse = np.count_nonzero(windows > 0.4, axis=(1, 2, 3, 4)) < 4
        out[coarse] = -20 if manifest.activation == "sigmoid" else np.asarray([20, 0, 0]).reshape(1, 3, 1, 1, 1)
        return out

    return seen


def with_specks(count: int) -> list[ParityScan]:
    """Scans with a second component of 2x2x2 voxels far away, which is one voxel of the coarse grid."""
    made = scans(count)
    for scan in made:
        scan.array[0, 36:38, 28:30, 24:26] += 1
    return made


def test_a_lost_component_misses_the_gate_however_small_it_is(manifest: Manifest) -> None:
    """MOD-07."""
    engine = NumpyEngine(forgetful(manifest))
    coarse = CoarsePassSettings(kind="coarse_grid", downsampling=(2, 2, 2), threshold=0.1, margin=5.0)
    proof, failure = prove_settings(manifest, coarse, engine, "fp32", with_specks(4), silent)
    assert proof is None and "connected component(s) of the full pass were lost" in failure


def test_masks_that_agree_too_little_miss_the_gate(manifest: Manifest) -> None:
    """MOD-07."""
    coarse = CoarsePassSettings(kind="coarse_grid", downsampling=(2, 2, 2), threshold=0.3, margin=0.0)
    engine = engine_of(manifest)
    made = scans(4)
    for scan in made:  # a rod that leaves the region diagonally, one voxel thick, so that the border is not met
        x, y, z = (int(v) for v in np.argwhere(scan.array[0] > 0.5)[-1])
        for k in range(1, 8):
            scan.array[0, min(x + 2 * k, 39), min(y + 2 * k, 31), min(z + 2 * k, 27)] += 1
    proof, failure = prove_settings(manifest, coarse, engine, "fp32", made, silent)
    assert proof is None and failure


def test_a_proof_needs_scans_on_which_windows_were_skipped(manifest: Manifest) -> None:
    taken = scans(LEAST_SCANS_WITH_SKIPS - 1)
    proof, failure = prove_settings(manifest, learned(manifest, taken), engine_of(manifest), "fp32", taken, silent)
    assert proof is None and failure == "windows were skipped on only 2 of 2 scans (at least 3 are needed)"


def test_small_scans_cost_no_pass_and_get_no_coarse_pass(manifest: Manifest) -> None:
    engine = engine_of(manifest)
    small = [ParityScan(scan.array[:, :12, :8, :8], SPACING) for scan in scans(3)]
    unknown = [ParityScan(scan.array) for scan in scans(3)]
    for taken in (small, unknown):
        assert learn_settings(manifest, engine, taken, silent) == (
            "none of the scans has enough windows for a coarse pass to save time"
        )
    assert engine.batches == []


def test_an_organ_that_fills_the_scans_gains_nothing(manifest: Manifest) -> None:
    full = [ParityScan(scan.array + 1, SPACING) for scan in scans(3)]
    found = learn_settings(manifest, engine_of(manifest), full, silent)
    assert isinstance(found, str) and "a full pass would run only 0." in found


def test_a_segment_that_some_scans_lack_is_not_expected(manifest: Manifest) -> None:
    taken = scans(6, empty=1)
    taken[1].array[taken[1].array > 1.5] -= 1
    assert learned(manifest, taken).expected == ()
    assert learned(manifest, taken[1:]).expected == ("low",)


def test_an_axis_of_thick_slices_is_not_made_coarser(manifest: Manifest) -> None:
    thick = [ParityScan(scan.array, (1.0, 1.0, 4.0)) for scan in scans(3)]
    assert learned(manifest, thick).downsampling in ((2, 2, 1), (1, 1, 1))


def test_masks_are_compared_after_cleaning(manifest: Manifest) -> None:
    """A speck that the postprocessing removes does not count as lost."""
    cleaning = SegmentCleaning(largest_component=True)
    both = Postprocessing(segments={"low": cleaning, "high": cleaning})
    cleaned = manifest.model_copy(update={"postprocessing": both})
    engine = NumpyEngine(forgetful(manifest))
    coarse = CoarsePassSettings(kind="coarse_grid", downsampling=(2, 2, 2), threshold=0.1, margin=5.0)
    proof, failure = prove_settings(cleaned, coarse, engine, "fp32", with_specks(4), silent)
    assert proof is not None and proof.mean_dice == 1.0, failure


# --- in an export ----------------------------------------------------------------------------------------------------


def test_an_export_says_why_there_is_no_coarse_pass(tiny_run: TinyRun, tmp_path: Path) -> None:
    exported = export(tiny_run.folder, tmp_path / "bundle")
    assert exported.bundle.manifest.coarse_pass is None
    assert len(exported.coarse_pass) == 1 and exported.coarse_pass[0].startswith("No coarse pass")
    assert export(tiny_run.folder, tmp_path / "other", coarse=False).coarse_pass == ()


def test_an_export_writes_the_coarse_pass_with_its_proofs(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MOD-07. A network of four updates finds every segment everywhere, so settings and proof are given here."""
    given = CoarsePassSettings(kind="sparse_windows", threshold=0.5, margin=5.0)
    monkeypatch.setattr("exporter.export.learn_settings", lambda *_: given)

    def proved(
        _: Manifest, __: CoarsePassSettings, engine: Any, precision: Any, *rest: Any
    ) -> tuple[CoarsePassProof | None, str]:
        if precision != "fp32":
            return None, "2 connected component(s) of the full pass were lost"
        figures: dict[str, Any] = {
            "scans": 8,
            "scans_with_skips": 8,
            "mean_dice": 1,
            "least_dice": 1,
            "lost_components": 0,
            "window_ratio": 3,
        }
        return CoarsePassProof(precision=precision, engine=engine.name, **figures), ""

    monkeypatch.setattr("exporter.export.prove_settings", proved)
    exported = export(tiny_run.folder, tmp_path / "bundle", precisions=("fp16",))
    coarse = exported.bundle.manifest.coarse_pass
    assert coarse is not None and [p.precision for p in coarse.proofs] == ["fp32"]
    assert coarse == CoarsePassSettings.model_validate(
        json.loads((tmp_path / "bundle" / MANIFEST).read_text())["coarse_pass"]
    )
    assert "## Coarse pass, against the full pass" in (tmp_path / "bundle" / CARD).read_text()
    assert any("No coarse pass in fp16" in line and "were lost" in line for line in exported.coarse_pass)
    assert any("3.0 times fewer windows" in line for line in exported.coarse_pass)
