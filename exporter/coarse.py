"""A coarse pass for a bundle: its settings are learned on some scans, and proved on others or not written.

Learning is cheap: where windows are run, the result equals that of the full pass, so one full pass and one coarse pass
of each kind over a scan say what any threshold and margin would give. The proof runs the passes as inference does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from exporter.proof_scans import ProofScan
from semiseg.bundle.coarse import Coarse, CoarseProof, Factor
from semiseg.bundle.manifest import Manifest
from semiseg.bundle.postprocessing import CONNECTIVITY
from semiseg.bundle.variant import Gate, Precision
from semiseg.engines.engine import Engine
from semiseg.inference.coarse_pass import Evidence, decide, gains_nothing
from semiseg.inference.segmenter import Segmenter
from semiseg.inference.window_grid import WindowGrid, planes_of
from semiseg.inference.window_runs import Timing
from semiseg.inference.windows import padding_for

LEARN = 8  # scans at most
THRESHOLDS = (0.3, 0.1, 0.03)
MARGINS = (5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0)  # mm
ROOM = 0.5  # of what the gate allows to lose, at most, on the scans that the settings are learned on
LEAST_GAIN = 1.2  # times fewer windows, or a coarse pass is not worth a thing that may go wrong
LEAST_SCANS = 3  # on which windows were skipped, or nothing is proved
ISOTROPIC = 2.0  # an axis whose voxels are so many times as long as the shortest is not made coarser

Voxels = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]
Told = Callable[[str], None]


def learn(manifest: Manifest, engine: Engine, scans: Iterable[ProofScan], told: Told) -> Coarse | str:
    """The settings that skip most windows and stay well within the gate, without a proof.

    Returns:
        The settings; or why there are none, as a clause.
    """
    large = [scan for scan in scans if scan.spacing is not None and _kinds(manifest, scan)]
    if not large:
        return "none of the scans has so many windows that a coarse pass could gain anything"
    looked = []
    for number, scan in enumerate(large[:LEARN], start=1):
        told(f"coarse pass: learning on scan {number} of {len(large[:LEARN])}")
        looked.append(_Looked.at(manifest, engine, scan))
    names = [segment.name for segment in manifest.segments]
    expected = tuple(name for k, name in enumerate(names) if all(each.segments[k].voxels[0].size for each in looked))
    best: tuple[float, Coarse] | None = None
    for kind, threshold in product(dict.fromkeys(kind for each in looked for kind in each.evidence), THRESHOLDS):
        enough = False  # from the smallest margin with which the gate is passed, one more is for other scans than these
        for margin in MARGINS:
            coarse = _settings(kind, threshold, margin, expected)
            outcome = _Outcome.of([each.outcome(coarse, names) for each in looked])
            passes = outcome.passes(manifest.gate, room=ROOM)
            # A larger margin runs more windows, but lets fewer segments reach the border, where all windows are run.
            if passes and enough and (best is None or outcome.factor > best[0]):
                best = outcome.factor, coarse
            enough = passes
    if best is None:
        return f"with no margin up to {MARGINS[-1]:g} mm do the masks agree with those of the full pass"
    if best[0] < LEAST_GAIN:
        return f"a full pass would take only {best[0]:.2f} times as many windows"
    return best[1]


def prove(
    manifest: Manifest, coarse: Coarse, engine: Engine, precision: Precision, scans: Iterable[ProofScan], told: Told
) -> tuple[CoarseProof | None, str]:
    """Run whole scans with the coarse pass and without it, and compare the masks.

    Returns:
        The proof; None where it misses the gate, and then a clause that says by how much.
    """
    segmenter = Segmenter(manifest, engine)
    segmenter.coarse, segmenter.why_full = coarse, ""  # which a manifest only has when this has proved it
    usable = [scan for scan in scans if scan.spacing is not None]
    outcomes = []
    for number, scan in enumerate(usable, start=1):
        told(f"coarse pass: proving in {precision} on scan {number} of {len(usable)}")
        timing = Timing()
        found = segmenter.segment_prepared(scan.array, spacing=scan.spacing, timing=timing)
        counts = timing.counts
        assert counts is not None
        skipped = counts.run < counts.planned
        pairs: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]] = []
        if skipped:  # otherwise it was the full pass
            full = segmenter.segment_prepared(scan.array, spacing=scan.spacing, full=True)
            both = [_masks(manifest, _cleaned(manifest, labels, scan)) for labels in (full, found)]
            pairs = list(zip(*both, strict=True))
        outcomes.append(
            _ScanOutcome(
                planned=counts.planned,
                run=timing.windows,
                skipped=skipped,
                dice=[_dice(a, b) for a, b in pairs if a.any() or b.any()],
                lost=sum(_lost(a, b) for a, b in pairs),
            )
        )
    outcome = _Outcome.of(outcomes)
    proof = outcome.proof(precision, engine.name)
    failure = proof.failure(manifest.gate)
    if failure is None and proof.skipping < LEAST_SCANS:
        failure = f"windows were skipped on {proof.skipping} of {proof.scans} scans only (at least {LEAST_SCANS})"
    if failure is None and proof.factor < LEAST_GAIN:
        failure = f"a full pass takes only {proof.factor:.2f} times as many windows"
    return (None, failure) if failure else (proof, "")


@dataclass(frozen=True)
class _ScanOutcome:
    """A scan with the coarse pass, against the same without it: windows, Dice of each segment, components lost."""

    planned: int
    run: int
    skipped: bool
    dice: list[float]
    lost: int


@dataclass(frozen=True)
class _Outcome:
    """Scans together. Those on which every window was run count with the windows, and agree by construction."""

    scans: int
    skipping: int
    dice: list[float]
    lost: int
    factor: float

    @classmethod
    def of(cls, scans: Sequence[_ScanOutcome]) -> _Outcome:
        return cls(
            scans=len(scans),
            skipping=sum(scan.skipped for scan in scans),
            dice=[value for scan in scans for value in scan.dice],
            lost=sum(scan.lost for scan in scans),
            factor=sum(scan.planned for scan in scans) / max(1, sum(scan.run for scan in scans)),
        )

    def passes(self, gate: Gate, *, room: float) -> bool:
        """Whether at most ``room`` of what the gate allows is lost."""
        mean, least = (1.0 - room * (1.0 - value) for value in (gate.coarse, gate.coarse_least))
        return not self.lost and self._mean >= mean and min(self.dice, default=1.0) >= least

    def proof(self, precision: Precision, engine: str) -> CoarseProof:
        return CoarseProof(
            precision=precision,
            engine=engine,
            scans=self.scans,
            skipping=self.skipping,
            mean_dice=self._mean,
            least_dice=min(self.dice, default=1.0),
            lost=self.lost,
            factor=self.factor,
        )

    @property
    def _mean(self) -> float:
        """Over the scans on which windows were skipped; the others would only make it look better."""
        return float(np.mean(self.dice)) if self.dice else 1.0


@dataclass(frozen=True, eq=False)
class _Drawn:
    """A segment of the full pass: its voxels in the padded scan, and the connected component of each."""

    voxels: Voxels
    components: NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class _Looked:
    """A scan after the full pass and the coarse passes.

    Attributes:
        grid: The windows of the full pass.
        spacing: Voxel spacing in mm.
        drawn: The padded mask of the full pass before cleaning: a label map, or masks of regions.
        segments: Each segment after cleaning.
        evidence: What the coarse pass found, by its downsampling.
    """

    grid: WindowGrid
    spacing: tuple[float, float, float]
    drawn: NDArray[Any]
    segments: list[_Drawn]
    evidence: dict[Factor, Evidence]

    @classmethod
    def at(cls, manifest: Manifest, engine: Engine, scan: ProofScan) -> _Looked:
        assert scan.spacing is not None
        segmenter = Segmenter(manifest, engine)
        padded = segmenter.padded(scan.array)
        labels = segmenter.segment_prepared(scan.array, spacing=scan.spacing, full=True)
        padding = padding_for(scan.array.shape[1:], segmenter.window)
        evidence = {
            kind: segmenter.coarse_pass(_settings(kind, THRESHOLDS[0], 0.0, ())).evidence(
                engine, padded, timing=Timing()
            )
            for kind in _kinds(manifest, scan)
        }
        return cls(
            grid=segmenter.grid(padded),
            spacing=scan.spacing,
            drawn=np.pad(labels, [(0, 0)] * (labels.ndim - 3) + padding),
            segments=[
                _drawn(mask, [before for before, _ in padding])
                for mask in _masks(manifest, _cleaned(manifest, labels, scan))
            ],
            evidence=evidence,
        )

    def outcome(self, coarse: Coarse, names: Sequence[str]) -> _ScanOutcome:
        """What inference would do with these settings."""
        everything = self.grid.count
        evidence = self.evidence.get(coarse.downsampling)
        if evidence is None:  # too few windows for this kind
            return _ScanOutcome(everything, everything, skipped=False, dice=[], lost=0)
        needed = decide(coarse, evidence, self.grid, self.spacing, names).needed
        if needed is None:
            return _ScanOutcome(everything, everything + evidence.windows, skipped=False, dice=[], lost=0)
        region = self.grid.region(needed)
        run = evidence.windows + region.count
        if region.meets_border(planes_of(self.drawn)):
            return _ScanOutcome(everything, everything + run, skipped=False, dice=[], lost=0)
        dice, lost = [], 0
        for segment in self.segments:
            if segment.voxels[0].size:
                kept = region.contains(segment.voxels)
                count = int(np.count_nonzero(kept))
                dice.append(2.0 * count / (count + kept.size))
                lost += int(np.count_nonzero(np.bincount(segment.components, kept)[1:] == 0))
        return _ScanOutcome(everything, run, skipped=True, dice=dice, lost=lost)


def _kinds(manifest: Manifest, scan: ProofScan) -> list[Factor]:
    """The downsamplings of the coarse passes that could gain anything on a scan."""
    assert scan.spacing is not None
    x, y, z = (max(n, side) for n, side in zip(scan.array.shape[1:], manifest.window, strict=True))
    grid = WindowGrid.of((x, y, z), manifest.window, manifest.overlaps)
    spacing = manifest.preprocessing.spacing or scan.spacing
    a, b, c = (2 if along < ISOTROPIC * min(spacing) else 1 for along in spacing)
    found: list[Factor] = [(a, b, c), (1, 1, 1)]
    return [kind for kind in found if not gains_nothing(grid, kind)]


def _settings(kind: Factor, threshold: float, margin: float, expected: tuple[str, ...]) -> Coarse:
    return Coarse(
        kind="sparse_windows" if kind == (1, 1, 1) else "coarse_grid",
        downsampling=kind,
        threshold=threshold,
        margin=margin,
        expected=expected,
    )


def _cleaned(manifest: Manifest, labels: NDArray[Any], scan: ProofScan) -> NDArray[Any]:
    assert scan.spacing is not None
    by_name = {segment.name: segment.label for segment in manifest.segments}
    return manifest.postprocessing.apply(labels, by_name, float(np.prod(scan.spacing)) / 1000.0)


def _masks(manifest: Manifest, labels: NDArray[Any]) -> Iterator[NDArray[np.bool_]]:
    """Of each segment, in order."""
    for k, segment in enumerate(manifest.segments):
        yield np.asarray(labels[k].astype(bool) if labels.ndim == 4 else labels == segment.label)


def _drawn(mask: NDArray[np.bool_], before: Sequence[int]) -> _Drawn:
    components, _ = ndimage.label(mask, structure=CONNECTIVITY)
    x, y, z = np.nonzero(mask)
    a, b, c = before
    return _Drawn((x + a, y + b, z + c), np.asarray(components[x, y, z], dtype=np.intp))


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return 2.0 * int(np.count_nonzero(a & b)) / (int(np.count_nonzero(a)) + int(np.count_nonzero(b)))


def _lost(full: NDArray[np.bool_], found: NDArray[np.bool_]) -> int:
    """Connected components of ``full`` of which ``found`` has no voxel."""
    components, count = ndimage.label(full, structure=CONNECTIVITY)
    return int(count - np.count_nonzero(np.unique(components[found])))
