"""The coarse pass of a bundle: its settings are determined on some scans, and proved on others or not written.

Trying settings is cheap: the result at voxels whose windows are run equals that of the full pass, so one full pass and
one coarse pass of each kind over a scan determine the result of every threshold and margin. The proof runs the passes
as inference does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from exporter.parity_scans import ParityScan
from semiseg.bundle.coarse_settings import CoarsePassProof, CoarsePassSettings, Downsampling
from semiseg.bundle.manifest import Manifest
from semiseg.bundle.postprocessing import CONNECTIVITY
from semiseg.bundle.variant import Gate, Precision
from semiseg.engines.engine import Engine
from semiseg.inference.coarse_pass import CoarseResult, saves_too_little, select_windows
from semiseg.inference.pass_progress import PassProgress
from semiseg.inference.timing import Timing, WindowCounts
from semiseg.inference.window_grid import Indices, WindowGrid, plane_reader
from semiseg.inference.window_passes import Labels, ScanRun, Spacing, WindowPasses
from semiseg.inference.windows import padding_for

MAX_LEARNING_SCANS = 8
THRESHOLDS = (0.3, 0.1, 0.03)
MARGINS = (5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0)  # mm
GATE_SHARE = 0.5  # share of the loss that the gate allows, at most, on the scans that the settings are learned on
LEAST_WINDOW_RATIO = 1.2  # below this ratio a coarse pass is not worth its risk
LEAST_SCANS_WITH_SKIPS = 3  # with fewer scans the proof would say nothing
ISOTROPIC_FACTOR = 2.0  # an axis with voxels this much longer than the shortest is not downsampled

Report = Callable[[str], None]


def learn_settings(
    manifest: Manifest, engine: Engine, scans: Iterable[ParityScan], report: Report
) -> CoarsePassSettings | str:
    """Find the settings that skip most windows and lose at most half of what the gate allows.

    Returns:
        The settings, without a proof; or a clause that says why there are none.
    """
    suitable = [scan for scan in scans if scan.spacing is not None and _downsamplings(manifest, scan)]
    if not suitable:
        return "none of the scans has enough windows for a coarse pass to save time"
    suitable = suitable[:MAX_LEARNING_SCANS]
    learning = []
    for number, scan in enumerate(suitable, start=1):
        report(f"coarse pass: learning on scan {number} of {len(suitable)}")
        learning.append(LearningScan.run(manifest, engine, scan))
    names = [segment.name for segment in manifest.segments]
    expected = tuple(name for k, name in enumerate(names) if all(scan.segments[k].count for scan in learning))
    best: tuple[float, CoarsePassSettings] | None = None
    kinds = dict.fromkeys(kind for scan in learning for kind in scan.coarse)
    for kind, threshold in product(kinds, THRESHOLDS):
        # The margin is one step larger than the smallest one that passes, as a reserve for other scans.
        smaller_passes = False
        for margin in MARGINS:
            settings = settings_with(kind, threshold, margin, expected)
            outcome = Outcome.from_scans([scan.outcome(settings, names) for scan in learning])
            passes = outcome.passes(manifest.gate, share=GATE_SHARE)
            # A larger margin runs more windows, but fewer segments reach the border, after which all windows are run.
            if passes and smaller_passes and (best is None or outcome.window_ratio > best[0]):
                best = outcome.window_ratio, settings
            smaller_passes = passes
    if best is None:
        return f"the masks do not agree with those of the full pass at any margin up to {MARGINS[-1]:g} mm"
    if best[0] < LEAST_WINDOW_RATIO:
        return f"a full pass would run only {best[0]:.2f} times as many windows"
    return best[1]


def prove_settings(
    manifest: Manifest,
    settings: CoarsePassSettings,
    engine: Engine,
    precision: Precision,
    scans: Iterable[ParityScan],
    report: Report,
) -> tuple[CoarsePassProof | None, str]:
    """Run whole scans with and without the coarse pass, and compare the masks.

    Returns:
        The proof and an empty string; or, if the coarse pass fails the gate, None and a clause that says by how much.
    """
    passes = window_passes(manifest, engine, settings)
    usable = [scan for scan in scans if scan.spacing is not None]
    outcomes = []
    for number, scan in enumerate(usable, start=1):
        report(f"coarse pass: proving in {precision} on scan {number} of {len(usable)}")
        found, counts = run_passes(passes, scan)
        skipped = counts.run < counts.planned
        pairs: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]] = []
        if skipped:  # otherwise the result is that of a full pass
            full, _ = run_passes(passes, scan, full=True)
            both = [_masks(manifest, _cleaned(manifest, labels, scan)) for labels in (full, found)]
            pairs = list(zip(*both, strict=True))
        outcomes.append(
            ScanOutcome(
                planned=counts.planned,
                run=counts.run + counts.preliminary,
                skipped=skipped,
                dice=[_dice(a, b) for a, b in pairs if a.any() or b.any()],
                lost=sum(_lost_components(a, b) for a, b in pairs),
            )
        )
    proof = Outcome.from_scans(outcomes).proof(precision, engine.name)
    failure = proof.gate_failure(manifest.gate)
    if failure is None and proof.scans_with_skips < LEAST_SCANS_WITH_SKIPS:
        failure = (
            f"windows were skipped on only {proof.scans_with_skips} of {proof.scans} scans (at least "
            f"{LEAST_SCANS_WITH_SKIPS} are needed)"
        )
    if failure is None and proof.window_ratio < LEAST_WINDOW_RATIO:
        failure = f"a full pass runs only {proof.window_ratio:.2f} times as many windows"
    return (None, failure) if failure else (proof, "")


def window_passes(manifest: Manifest, engine: Engine, settings: CoarsePassSettings | None) -> WindowPasses:
    """Return the passes of inference with these settings, which need no proof here."""
    return WindowPasses(manifest, engine, manifest.window, manifest.overlaps, 1, settings)


def run_passes(passes: WindowPasses, scan: ParityScan, *, full: bool = False) -> tuple[Labels, WindowCounts]:
    """Segment a scan; return its labels before postprocessing, and the numbers of windows."""
    timing = Timing()
    reason = "The proof compares with a full pass." if full else ""
    labels = passes.run(scan.array, ScanRun(timing, PassProgress(None)), spacing=scan.spacing, full_pass_reason=reason)
    assert timing.counts is not None
    return labels, timing.counts


@dataclass(frozen=True)
class ScanOutcome:
    """Comparison of the two masks of one scan.

    Attributes:
        planned: Number of windows of the full pass.
        run: Number of windows that were run, including those of the coarse pass.
        skipped: True if windows were skipped.
        dice: Dice of each segment that at least one of the masks contains; empty if no windows were skipped.
        lost: Number of connected components that were lost.
    """

    planned: int
    run: int
    skipped: bool
    dice: list[float]
    lost: int


@dataclass(frozen=True)
class Outcome:
    """Comparison of the masks of several scans; scans without skipped windows count only in the window ratio.

    Attributes:
        scans: Number of scans.
        scans_with_skips: Number of scans on which windows were skipped.
        dice: Dice of each segment and scan.
        lost: Number of connected components that were lost.
        window_ratio: Number of windows of the full passes, divided by the number of windows that were run.
    """

    scans: int
    scans_with_skips: int
    dice: list[float]
    lost: int
    window_ratio: float

    @classmethod
    def from_scans(cls, scans: Sequence[ScanOutcome]) -> Outcome:
        """Combine the comparisons of ``scans``."""
        return cls(
            scans=len(scans),
            scans_with_skips=sum(scan.skipped for scan in scans),
            dice=[value for scan in scans for value in scan.dice],
            lost=sum(scan.lost for scan in scans),
            window_ratio=sum(scan.planned for scan in scans) / max(1, sum(scan.run for scan in scans)),
        )

    @property
    def mean_dice(self) -> float:
        """Mean Dice over scans with skipped windows and segments; 1 if there are none."""
        return float(np.mean(self.dice)) if self.dice else 1.0

    def passes(self, gate: Gate, *, share: float) -> bool:
        """Return True if no component and at most ``share`` of the loss that the gate allows was lost."""
        mean, least = (1.0 - share * (1.0 - value) for value in (gate.coarse_mean_dice, gate.coarse_least_dice))
        return not self.lost and self.mean_dice >= mean and min(self.dice, default=1.0) >= least

    def proof(self, precision: Precision, engine: str) -> CoarsePassProof:
        """Return the proof for a graph of this precision on this engine."""
        return CoarsePassProof(
            precision=precision,
            engine=engine,
            scans=self.scans,
            scans_with_skips=self.scans_with_skips,
            mean_dice=self.mean_dice,
            least_dice=min(self.dice, default=1.0),
            lost_components=self.lost,
            window_ratio=self.window_ratio,
        )


@dataclass(frozen=True, eq=False)
class SegmentVoxels:
    """A segment of the full pass.

    Attributes:
        voxels: Three arrays (N,) of indices of its voxels in the padded scan.
        components: Number of the connected component (N,), from 1, that each voxel belongs to.
    """

    voxels: Indices
    components: NDArray[np.int32]

    @property
    def count(self) -> int:
        """Number of voxels."""
        return int(self.voxels[0].size)


@dataclass(frozen=True, eq=False)
class LearningScan:
    """A scan after a full pass and the coarse passes.

    Attributes:
        grid: Windows of the full pass.
        spacing: Voxel spacing in mm.
        labels: Padded label map, or masks of regions, of the full pass before postprocessing.
        segments: Each segment after postprocessing.
        coarse: Result of the coarse pass with each downsampling.
    """

    grid: WindowGrid
    spacing: Spacing
    labels: NDArray[Any]
    segments: list[SegmentVoxels]
    coarse: dict[Downsampling, CoarseResult]

    @classmethod
    def run(cls, manifest: Manifest, engine: Engine, scan: ParityScan) -> LearningScan:
        """Run the full pass and the coarse passes over a scan whose spacing is known."""
        assert scan.spacing is not None
        passes = window_passes(manifest, engine, None)
        padded = passes.padded(scan.array)
        labels, _ = run_passes(passes, scan)
        padding = padding_for(scan.array.shape[1:], passes.window)
        before = [first for first, _ in padding]
        coarse = {
            kind: passes.coarse_pass(settings_with(kind, THRESHOLDS[0], 0.0, ())).run(engine, padded, timing=Timing())
            for kind in _downsamplings(manifest, scan)
        }
        return cls(
            grid=passes.grid(padded),
            spacing=scan.spacing,
            labels=np.pad(labels, [(0, 0)] * (labels.ndim - 3) + padding),
            segments=[_segment_voxels(mask, before) for mask in _masks(manifest, _cleaned(manifest, labels, scan))],
            coarse=coarse,
        )

    def outcome(self, settings: CoarsePassSettings, names: Sequence[str]) -> ScanOutcome:
        """Return the outcome of inference with these settings; ``names`` are those of the segments."""
        planned = self.grid.count
        result = self.coarse.get(settings.downsampling)
        if result is None:  # the scan has too few windows for this downsampling
            return ScanOutcome(planned, planned, skipped=False, dice=[], lost=0)
        needed = select_windows(settings, result, self.grid, self.spacing, names).needed
        if needed is None:
            return ScanOutcome(planned, planned + result.windows, skipped=False, dice=[], lost=0)
        region = self.grid.region(needed)
        run = result.windows + region.count
        if region.reached_at_border(plane_reader(self.labels)):
            return ScanOutcome(planned, planned + run, skipped=False, dice=[], lost=0)
        dice, lost = [], 0
        for segment in self.segments:
            if segment.count:
                kept = region.contains(segment.voxels)
                count = int(np.count_nonzero(kept))
                dice.append(2.0 * count / (count + kept.size))
                lost += int(np.count_nonzero(np.bincount(segment.components, kept)[1:] == 0))
        return ScanOutcome(planned, run, skipped=True, dice=dice, lost=lost)


def settings_with(
    downsampling: Downsampling, threshold: float, margin: float, expected: tuple[str, ...]
) -> CoarsePassSettings:
    """Return settings of the kind that goes with ``downsampling``."""
    return CoarsePassSettings(
        kind="sparse_windows" if downsampling == (1, 1, 1) else "coarse_grid",
        downsampling=downsampling,
        threshold=threshold,
        margin=margin,
        expected=expected,
    )


def _downsamplings(manifest: Manifest, scan: ParityScan) -> list[Downsampling]:
    """Return the downsamplings with which a coarse pass over a scan could save time."""
    assert scan.spacing is not None
    x, y, z = (max(n, side) for n, side in zip(scan.array.shape[1:], manifest.window, strict=True))
    grid = WindowGrid.covering((x, y, z), manifest.window, manifest.overlaps)
    spacing = manifest.preprocessing.spacing or scan.spacing
    a, b, c = (2 if along < ISOTROPIC_FACTOR * min(spacing) else 1 for along in spacing)
    found: list[Downsampling] = [(a, b, c), (1, 1, 1)]
    return [kind for kind in found if not saves_too_little(grid, kind)]


def _cleaned(manifest: Manifest, labels: NDArray[Any], scan: ParityScan) -> NDArray[Any]:
    assert scan.spacing is not None
    by_name = {segment.name: segment.label for segment in manifest.segments}
    return manifest.postprocessing.apply(labels, by_name, float(np.prod(scan.spacing)) / 1000.0)


def _masks(manifest: Manifest, labels: NDArray[Any]) -> Iterator[NDArray[np.bool_]]:
    """Yield the mask of each segment, in order."""
    for k, segment in enumerate(manifest.segments):
        yield np.asarray(labels[k].astype(bool) if labels.ndim == 4 else labels == segment.label)


def _segment_voxels(mask: NDArray[np.bool_], before: Sequence[int]) -> SegmentVoxels:
    components, _ = ndimage.label(mask, structure=CONNECTIVITY)
    x, y, z = np.nonzero(mask)
    a, b, c = (np.int32(first) for first in before)
    voxels = (x.astype(np.int32) + a, y.astype(np.int32) + b, z.astype(np.int32) + c)
    return SegmentVoxels(voxels, np.asarray(components[x, y, z], dtype=np.int32))


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return 2.0 * int(np.count_nonzero(a & b)) / (int(np.count_nonzero(a)) + int(np.count_nonzero(b)))


def _lost_components(full: NDArray[np.bool_], found: NDArray[np.bool_]) -> int:
    """Return the number of connected components of ``full`` of which ``found`` has no voxel."""
    components, count = ndimage.label(full, structure=CONNECTIVITY)
    return int(count - np.count_nonzero(np.unique(components[found])))
