"""The coarse pass finds where a segment could be, so that windows that are certainly background need not be run.

The same network runs on windows without overlap, of the scan itself or of a downsampled copy of it. The result is the
largest logit of a segment against the background in each block of voxels, from which :func:`select_windows` determines
the windows to run. Coarse-to-fine inference with the same network follows the idea of NMSW (Jeon et al., "No More
Sliding Window", MICCAI 2025); a margin that the export verifies replaces the sampler that is learned there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from semiseg.bundle.coarse_settings import CoarsePassSettings, Downsampling
from semiseg.engines.engine import Engine
from semiseg.engines.slab import Triple
from semiseg.inference.timing import Progress, Timing
from semiseg.inference.window_grid import WindowGrid
from semiseg.inference.window_runner import WindowRunner
from semiseg.inference.windows import padding_for, starts_along

BLOCKS_PER_WINDOW = 16  # along each axis: the resolution at which places of segments are recorded
MAX_COARSE_SHARE = 1 / 3  # of the windows of a full pass: a coarse pass with more windows could save only little
MAX_RUN_SHARE = 3 / 4  # of the windows of a full pass: if more would be run, all are


@dataclass(frozen=True, eq=False)
class CoarseResult:
    """Result of the coarse pass over a scan.

    Attributes:
        logits: Largest logit of a segment against the background in each block (BX, BY, BZ).
        block: Size of a block in voxels; the last block along an axis may reach beyond the volume.
        found: True for each segment (K,) that is the result at any voxel.
        windows: Number of windows of the coarse pass.
    """

    logits: NDArray[np.float32]
    block: Triple
    found: NDArray[np.bool_]
    windows: int


@dataclass(frozen=True, eq=False)
class WindowSelection:
    """The windows of the full pass that are run.

    Attributes:
        needed: True for each window to run, (X, Y, Z) in the order of the grid's starts; None if all windows are run.
        reason: A sentence that gives the reason.
    """

    needed: NDArray[np.bool_] | None
    reason: str


def coarse_grid(shape: Triple, window: Triple, downsampling: Downsampling) -> tuple[Triple, WindowGrid]:
    """Return the shape of a volume after downsampling, and the windows of the coarse pass over it.

    The windows cover the downsampled volume after padding to at least one window.
    """
    x, y, z = (-(-n // step) for n, step in zip(shape, downsampling, strict=True))
    a, b, c = (max(n, side) for n, side in zip((x, y, z), window, strict=True))
    along = [starts_along(n, side, 0.0) for n, side in zip((a, b, c), window, strict=True)]
    return (x, y, z), WindowGrid((a, b, c), window, (along[0], along[1], along[2]))


def saves_too_little(full: WindowGrid, downsampling: Downsampling) -> bool:
    """Return True if the coarse pass would have too many windows, compared with the full pass, to save time."""
    return coarse_grid(full.shape, full.window, downsampling)[1].count > MAX_COARSE_SHARE * full.count


@dataclass(frozen=True)
class CoarsePass:
    """The coarse pass of a network.

    Attributes:
        window: Size of a window in voxels.
        batch: Number of windows per call of the network.
        exclusive: True if channel 0 of the logits is the background (softmax); False if channels are regions (sigmoid).
        downsampling: Number of voxels along each axis that are averaged to one.
    """

    window: Triple
    batch: int
    exclusive: bool
    downsampling: Downsampling

    def count(self, full: WindowGrid) -> int:
        """Return the number of windows of the coarse pass for a scan with these windows in a full pass."""
        return coarse_grid(full.shape, full.window, self.downsampling)[1].count

    def run(
        self,
        engine: Engine,
        array: NDArray[np.float32],
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        timing: Timing,
    ) -> CoarseResult:
        """Run the windows of the coarse pass over ``array`` (C, X, Y, Z), which is at least as large as a window.

        Blocks with logits that are not finite count as found, so that the full pass reports them.

        Raises:
            EngineError: The network failed.
            Cancelled: ``cancelled``, which is called before each batch, returned True.
        """
        clock = time.perf_counter()
        coarse = _downsampled(array, self.downsampling)
        padding = padding_for(coarse.shape[1:], self.window)
        coarse = np.pad(coarse, [(0, 0), *padding], mode="edge") if any(map(any, padding)) else coarse
        shape: Triple = (array.shape[1], array.shape[2], array.shape[3])
        inner, grid = coarse_grid(shape, self.window, self.downsampling)
        steps = [
            max(1, side // BLOCKS_PER_WINDOW // step) for side, step in zip(self.window, self.downsampling, strict=True)
        ]
        axes = [_Blocks(n, step, before) for n, step, (before, _) in zip(inner, steps, padding, strict=True)]
        logits = np.full([axis.count for axis in axes], -np.inf, dtype=np.float32)
        found = np.zeros(0, dtype=bool)
        runner = WindowRunner(engine, self.window, self.batch, timing, cancelled, "of the coarse pass")
        done = 0
        timing.add("coarse", clock)
        for outputs in runner.run(coarse, ((start, True) for start in product(*grid.starts)), grid.count):
            clock = time.perf_counter()
            for output in outputs:
                against, seen = self._read(engine.logits(output.handle)[output.row])
                found = found | seen if found.size else seen
                for axis, (blocks, at) in enumerate(zip(axes, output.start, strict=True)):
                    against = np.maximum.reduceat(against, blocks.first_voxels(at, self.window[axis]), axis=axis)
                x, y, z = (b.span(at, side) for b, at, side in zip(axes, output.start, self.window, strict=True))
                np.maximum(logits[x, y, z], against, out=logits[x, y, z])
            timing.add("coarse", clock)
            done += len(outputs)
            if progress is not None:
                progress(done, grid.count)
        timing.windows += grid.count
        a, b, c = (step * factor for step, factor in zip(steps, self.downsampling, strict=True))
        return CoarseResult(logits, (a, b, c), found, grid.count)

    def _read(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the largest logit of a segment against the background at each voxel, and the segments found."""
        if not self.exclusive:
            return logits.max(axis=0), np.asarray([bool((one >= 0).any()) for one in logits])
        best = logits[1:].max(axis=0)
        against = best - logits[0]
        inside = ~(against <= 0)
        found = np.zeros(len(logits) - 1, dtype=bool)
        if inside.any():
            found[np.unique(logits[1:, inside].argmax(axis=0))] = True
        return against, found


def select_windows(
    settings: CoarsePassSettings,
    result: CoarseResult,
    full: WindowGrid,
    spacing: Sequence[float],
    segments: Sequence[str],
) -> WindowSelection:
    """Select the windows of the full pass to run.

    Args:
        settings: Settings of the coarse pass.
        result: Result of the coarse pass.
        full: Windows of the full pass.
        spacing: Voxel spacing in mm.
        segments: Names of the segments.
    """
    marked = ~(result.logits <= math.log(settings.threshold / (1.0 - settings.threshold)))
    if not marked.any():
        return WindowSelection(None, "All windows were run because the coarse pass found no segment.")
    absent = [name for name, seen in zip(segments, result.found, strict=True) if not seen]
    if len(absent) == len(segments):
        return WindowSelection(None, "All windows were run because the coarse pass was not certain of any segment.")
    if missing := [name for name in absent if name in settings.expected]:
        return WindowSelection(
            None,
            f"All windows were run because the coarse pass did not find {', '.join(missing)}, which is expected in "
            "every scan.",
        )
    x, y, z = (settings.margin / each for each in spacing)
    needed = full.windows_near(marked, result.block, (x, y, z))
    count = int(np.count_nonzero(needed))
    if count + result.windows > MAX_RUN_SHARE * full.count:
        return WindowSelection(
            None, f"All windows were run because the coarse pass selected {count} of them, and few would be skipped."
        )
    return WindowSelection(needed, "The coarse pass found only background in the other windows.")


@dataclass(frozen=True)
class _Blocks:
    """Blocks of ``step`` voxels along an axis of ``size`` voxels, which follow ``before`` voxels of padding.

    Voxels of the padding belong to the nearest block.
    """

    size: int
    step: int
    before: int

    @property
    def count(self) -> int:
        return -(-self.size // self.step)

    def first_voxels(self, start: int, side: int) -> NDArray[np.intp]:
        """Return the indices, in a window at ``start``, of the first voxel of each block."""
        return np.flatnonzero(np.diff(self._blocks_of(start, side), prepend=-1))

    def span(self, start: int, side: int) -> slice:
        """Return the blocks of a window at ``start``."""
        blocks = self._blocks_of(start, side)
        return slice(int(blocks[0]), int(blocks[-1]) + 1)

    def _blocks_of(self, start: int, side: int) -> NDArray[np.int_]:
        return np.clip(np.arange(start, start + side) - self.before, 0, self.size - 1) // self.step


def _downsampled(array: NDArray[np.float32], factors: Downsampling) -> NDArray[np.float32]:
    """Return the means of boxes of voxels of (C, X, Y, Z); an incomplete box at the end has the mean of its voxels."""
    if prod(factors) == 1:
        return array
    out = array
    for axis, step in enumerate(factors, start=1):
        if step == 1:
            continue
        size = out.shape[axis]
        whole = size // step * step
        cuts = [(*[slice(None)] * axis, slice(k, whole, step)) for k in range(step)]
        mean = out[cuts[0]].copy()
        for cut in cuts[1:]:
            mean += out[cut]
        mean /= np.float32(step)
        if whole < size:
            rest = out[(*[slice(None)] * axis, slice(whole, None))].mean(axis=axis, keepdims=True, dtype=np.float32)
            mean = np.concatenate([mean, rest], axis=axis)
        out = mean
    return np.ascontiguousarray(out, dtype=np.float32)
