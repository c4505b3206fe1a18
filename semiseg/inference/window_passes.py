"""The passes of the network over a preprocessed scan: a coarse pass if the model has one, then the pass that decides.

All windows are run if the model has no coarse pass, if the coarse pass is not certain, or if a segment of the result
reaches the border of the region that the coarse pass selected.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.bundle.coarse_settings import CoarsePassSettings
from semiseg.bundle.manifest import Manifest
from semiseg.engines.engine import Engine
from semiseg.engines.slab import Triple
from semiseg.errors import EngineError
from semiseg.inference.coarse_pass import CoarsePass, WindowSelection, saves_too_little, select_windows
from semiseg.inference.pass_progress import PassProgress
from semiseg.inference.probabilities import BlendObserver
from semiseg.inference.sliding_window import CompletedRegion, SlidingWindow
from semiseg.inference.timing import Progress, Timing, WindowCounts
from semiseg.inference.window_grid import WindowGrid, WindowRegion, plane_reader
from semiseg.inference.windows import padding_for

Spacing = tuple[float, float, float]
Labels = NDArray[np.uint8] | NDArray[np.bool_]
BORDER_REACHED = (
    "All windows were run because a segment reached the border of the region that the coarse pass had selected."
)


@dataclass(frozen=True)
class ScanRun:
    """Objects that belong to the segmentation of one scan.

    Attributes:
        timing: Object that receives the seconds of each stage and the numbers of windows.
        progress: Progress over all passes.
        cancelled: Function that is called before each batch and ends the pass by returning True.
        observers: Objects that receive the network's output at each voxel.
    """

    timing: Timing
    progress: PassProgress
    cancelled: Callable[[], bool] | None = None
    observers: Sequence[BlendObserver] = ()


def _never() -> str:
    return ""


@dataclass(frozen=True)
class WindowPasses:
    """The network with the windows that it is run on.

    Attributes:
        manifest: Manifest of the model.
        engine: Engine that runs the network.
        window: Size of a window in voxels.
        overlap: Share of a window covered again by the next, for each axis.
        batch: Number of windows per call of the network.
        coarse: Settings of the coarse pass; None if there is no coarse pass.
        full_pass_reason: A sentence that says why there is no coarse pass; empty if there is one.
    """

    manifest: Manifest
    engine: Engine
    window: Triple
    overlap: Spacing
    batch: int
    coarse: CoarsePassSettings | None
    full_pass_reason: str = ""

    def run(
        self,
        array: NDArray[np.float32],
        scan: ScanRun,
        *,
        spacing: Spacing | None,
        full_pass_reason: str = "",
        veto: Callable[[], str] = _never,
    ) -> Labels:
        """Segment a preprocessed scan (C, X, Y, Z) into a label map uint8 (X, Y, Z) or masks bool (K, X, Y, Z).

        Args:
            array: The preprocessed scan.
            scan: Objects that belong to the segmentation of this scan.
            spacing: Voxel spacing in mm; if it is None, all windows are run.
            full_pass_reason: A sentence that says why all windows are to be run; empty if windows may be skipped.
            veto: Function that is called before the coarse pass. It returns a sentence if the scan is not suitable for
                the coarse pass, else an empty string.

        Raises:
            EngineError: The network failed.
            Cancelled: ``scan.cancelled`` returned True.
        """
        padded = self.padded(array)
        grid = self.grid(padded)
        reason = full_pass_reason or self._without_coarse_pass(grid, spacing, scan) or veto()
        selection = WindowSelection(None, reason)
        if self.coarse is not None and spacing is not None and not reason:
            selection = self._select(self.coarse, padded, grid, spacing, scan)
        region = None if selection.needed is None else grid.region(selection.needed)
        count = grid.count if region is None else region.count
        preliminary = scan.progress.completed
        out = self._pass(padded, region, scan.progress.of_pass(count), scan)
        scan.progress.end_pass(count)
        if region is not None and region.reached_at_border(plane_reader(out)):
            selection = WindowSelection(None, BORDER_REACHED)
            preliminary, count = scan.progress.completed, grid.count
            out = self._pass(padded, None, scan.progress.of_pass(count), scan)
            scan.progress.end_pass(count)
        scan.timing.counts = WindowCounts(grid.count, count, preliminary, selection.reason)
        return self.unpadded(out, array.shape[1:])

    def padded(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pad a preprocessed scan (C, X, Y, Z) to at least the size of a window, with the scan in the middle."""
        padding = padding_for(array.shape[1:], self.window)
        if not any(before or after for before, after in padding):
            return array
        if self.manifest.preprocessing.padding == "edge":
            return np.pad(array, [(0, 0), *padding], mode="edge")
        return np.pad(array, [(0, 0), *padding])

    def unpadded(self, array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Remove from (..., X, Y, Z) the padding that fills a scan of ``shape`` up to a window."""
        padding = padding_for(shape, self.window)
        x, y, z = (slice(before, before + n) for (before, _), n in zip(padding, shape, strict=True))
        return array[..., x, y, z]

    def grid(self, padded: NDArray[np.float32]) -> WindowGrid:
        """Return the windows of a full pass over a scan that :meth:`padded` returned."""
        return self._sliding_window().grid(padded.shape[1:])

    def coarse_pass(self, settings: CoarsePassSettings) -> CoarsePass:
        """Return the coarse pass with these settings."""
        return CoarsePass(self.window, self.batch, self.manifest.activation == "softmax", settings.downsampling)

    def _without_coarse_pass(self, grid: WindowGrid, spacing: Spacing | None, scan: ScanRun) -> str:
        """Return a sentence that says why this scan gets no coarse pass; empty if it gets one."""
        if self.coarse is None:
            return self.full_pass_reason
        if spacing is None:
            return "All windows were run because the coarse pass needs the voxel spacing, which is not known."
        if saves_too_little(grid, self.coarse.downsampling):
            return "All windows were run because the scan has so few that a coarse pass would save little."
        if not all(hasattr(observer, "begin") for observer in scan.observers):
            return "All windows were run because an observer of the network's output has no method `begin`."
        return ""

    def _select(
        self,
        settings: CoarsePassSettings,
        padded: NDArray[np.float32],
        grid: WindowGrid,
        spacing: Spacing,
        scan: ScanRun,
    ) -> WindowSelection:
        """Run the coarse pass."""
        coarse_pass = self.coarse_pass(settings)
        result = coarse_pass.run(
            self.engine,
            padded,
            progress=scan.progress.of_pass(coarse_pass.count(grid), following=grid.count),
            cancelled=scan.cancelled,
            timing=scan.timing,
        )
        scan.progress.end_pass(result.windows)
        names = [segment.name for segment in self.manifest.segments]
        return select_windows(settings, result, grid, spacing, names)

    def _pass(
        self, padded: NDArray[np.float32], region: WindowRegion | None, progress: Progress | None, scan: ScanRun
    ) -> Labels:
        """Run the windows of ``region``, by default all; voxels that they do not decide are background."""
        segments = self.manifest.segments
        values = np.asarray([0, *(s.label for s in segments)], dtype=np.uint8)
        exclusive = self.manifest.activation == "softmax"
        full = padded.shape[1:]
        out = np.zeros(full if exclusive else (len(segments), *full), dtype=np.uint8 if exclusive else bool)
        for observer in scan.observers:
            if hasattr(observer, "begin"):
                observer.begin(full)
        parts = self._sliding_window().blend(
            self.engine, padded, region=region, progress=progress, cancelled=scan.cancelled, timing=scan.timing
        )
        for part in parts:
            clock = time.perf_counter()
            found = self._decided(part)
            if part.decided is not None:
                found = found * part.decided
            for observer in scan.observers:
                observer.add(part, found, logits=self.manifest.average == "logits")
            out[(..., *part.place)] = values[found] if exclusive else found
            scan.timing.add("deciding", clock)
        return out

    def _sliding_window(self) -> SlidingWindow:
        return SlidingWindow(
            window=self.window,
            overlap=self.overlap,
            blending=self.manifest.blending,
            batch=self.batch,
            outputs=self.manifest.outputs,
            activation=self.manifest.activation if self.manifest.average == "probs" else "none",
        )

    def _decided(self, part: CompletedRegion) -> Labels:
        """Return the class of each voxel, or the masks of overlapping regions.

        Raises:
            EngineError: The network returned values that are not finite.
        """
        sums = part.sums
        # The argmax of NaNs would silently be background. The sum is a quick test; because a sum of large finite
        # numbers may overflow, the values themselves are checked afterwards.
        if not np.isfinite(sums.sum(dtype=np.float32)) and not np.isfinite(sums).all():
            raise EngineError(
                f"The network of {self.manifest.name} returned values that are not finite on this scan, so there "
                "is no mask; try another device or precision, or train the network again."
            )
        if self.manifest.activation == "softmax":
            return argmax_labels(sums)  # division by the coverage does not change the argmax
        # Averaged logits are positive where the probability is above one half.
        return np.asarray(sums >= 0.0 if self.manifest.average == "logits" else part.mean() >= 0.5)


def argmax_labels(sums: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the index of the largest value along the first axis, (K, ...) -> (...); the first one of equal values.

    The result is that of np.argmax, which takes several times as long along the first axis.
    """
    out = np.zeros(sums.shape[1:], dtype=np.uint8)
    best = sums[0].copy()
    for k, values in enumerate(sums[1:], start=1):
        np.copyto(out, np.uint8(k), where=values > best)
        np.maximum(best, values, out=best)
    return out
