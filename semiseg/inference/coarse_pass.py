"""The coarse pass: where could a segment be, so that windows that are surely background need not be run?

The same network runs on windows without overlap, of the scan itself or of a coarser copy of it. What it says is kept as
the largest logit of a segment against the background in each block of voxels; :func:`decide` makes of that the windows
that are needed, or the reason why all are. Coarse-to-fine inference with the same network follows the idea of NMSW
(Jeon et al., "No More Sliding Window", MICCAI 2025), with a proved margin in the place of a learned sampler.
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

from semiseg.bundle.coarse import Coarse, Factor
from semiseg.engines.engine import Engine
from semiseg.engines.slab import Triple
from semiseg.inference.window_grid import WindowGrid
from semiseg.inference.window_runs import Progress, Timing, WindowRunner
from semiseg.inference.windows import padding_for, starts_along

BLOCKS = 16  # along a window: as finely as the place of a segment is remembered
AT_MOST = 1 / 3  # of the windows of the full pass: a coarse pass that takes more could gain little
WORTH = 3 / 4  # of the windows of the full pass: where more would have to be run, all are


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the coarse pass found.

    Attributes:
        logits: Largest logit of a segment against the background in each block, (BX, BY, BZ).
        block: Voxels of a block along each axis; the last blocks may reach beyond the volume.
        found: Whether each segment was drawn anywhere, (K,).
        windows: Number of windows of the coarse pass.
    """

    logits: NDArray[np.float32]
    block: Triple
    found: NDArray[np.bool_]
    windows: int


@dataclass(frozen=True, eq=False)
class Decision:
    """The windows of the full pass that are run.

    Attributes:
        needed: Whether each window is, (X, Y, Z) in the order of the grid's starts; None for all.
        reason: Why, as a sentence.
    """

    needed: NDArray[np.bool_] | None
    reason: str


def coarse_grid(shape: Triple, window: Triple, downsampling: Factor) -> tuple[Triple, WindowGrid]:
    """The volume after downsampling, and the coarse pass's windows over it, padded up to a window."""
    x, y, z = (-(-n // step) for n, step in zip(shape, downsampling, strict=True))
    a, b, c = (max(n, side) for n, side in zip((x, y, z), window, strict=True))
    along = [starts_along(n, side, 0.0) for n, side in zip((a, b, c), window, strict=True)]
    return (x, y, z), WindowGrid((a, b, c), window, (along[0], along[1], along[2]))


def gains_nothing(full: WindowGrid, downsampling: Factor) -> bool:
    """Whether the coarse pass would take too many windows to gain anything."""
    return coarse_grid(full.shape, full.window, downsampling)[1].count > AT_MOST * full.count


@dataclass(frozen=True)
class CoarsePass:
    """A coarse pass of a network.

    Attributes:
        window: Voxels of a window.
        batch: Windows per call of the network.
        exclusive: Whether channel 0 of the logits is the background (softmax); else channels are regions (sigmoid).
        downsampling: Voxels along each axis that are averaged to one.
    """

    window: Triple
    batch: int
    exclusive: bool
    downsampling: Factor

    def evidence(
        self,
        engine: Engine,
        array: NDArray[np.float32],
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        timing: Timing,
    ) -> Evidence:
        """Run the coarse windows of ``array`` (C, X, Y, Z), at least a window large.

        Values that are not finite count as evidence, so that the full pass sees them.

        Raises:
            EngineError: The network failed.
            Cancelled: ``cancelled``, asked before each batch, said so.
        """
        clock = time.perf_counter()
        coarse = _averaged(array, self.downsampling)
        padding = padding_for(coarse.shape[1:], self.window)
        coarse = np.pad(coarse, [(0, 0), *padding], mode="edge") if any(map(any, padding)) else coarse
        shape: Triple = (array.shape[1], array.shape[2], array.shape[3])
        inner, grid = coarse_grid(shape, self.window, self.downsampling)
        steps = [max(1, side // BLOCKS // step) for side, step in zip(self.window, self.downsampling, strict=True)]
        axes = [_Axis(n, step, before) for n, step, (before, _) in zip(inner, steps, padding, strict=True)]
        logits = np.full([axis.blocks for axis in axes], -np.inf, dtype=np.float32)
        found: NDArray[np.bool_] | None = None
        runner = WindowRunner(engine, self.window, self.batch, timing, cancelled, " of the coarse pass")
        done = 0
        timing.add("coarse", clock)
        for runs in runner.run(coarse, ((start, True) for start in product(*grid.starts)), grid.count):
            clock = time.perf_counter()
            for one in runs:
                answer = engine.logits(one.handle)[one.row]
                against, drawn = self._read(answer)
                found = drawn if found is None else found | drawn
                for axis, (along, at) in enumerate(zip(axes, one.start, strict=True)):
                    against = np.maximum.reduceat(against, along.first_of_blocks(at, self.window[axis]), axis=axis)
                x, y, z = (along.span(at, side) for along, at, side in zip(axes, one.start, self.window, strict=True))
                np.maximum(logits[x, y, z], against, out=logits[x, y, z])
            timing.add("coarse", clock)
            done += len(runs)
            if progress is not None:
                progress(done, grid.count)
        timing.windows += grid.count
        assert found is not None
        a, b, c = (step * factor for step, factor in zip(steps, self.downsampling, strict=True))
        return Evidence(logits, (a, b, c), found, grid.count)

    def _read(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The largest logit of a segment against the background at each voxel, and which segments are drawn."""
        if not self.exclusive:
            return logits.max(axis=0), np.asarray([bool((one >= 0).any()) for one in logits])
        best = logits[1:].max(axis=0)
        against = best - logits[0]
        inside = ~(against <= 0)
        drawn = np.zeros(len(logits) - 1, dtype=bool)
        if inside.any():
            drawn[np.unique(logits[1:, inside].argmax(axis=0))] = True
        return against, drawn


def decide(
    coarse: Coarse, evidence: Evidence, full: WindowGrid, spacing: Sequence[float], segments: Sequence[str]
) -> Decision:
    """The windows of the full pass that the coarse pass says are needed.

    Args:
        coarse: Settings of the coarse pass.
        evidence: What it found.
        full: The windows of the full pass.
        spacing: Voxel spacing in mm.
        segments: Names of the segments.
    """
    hot = ~(evidence.logits <= math.log(coarse.threshold / (1.0 - coarse.threshold)))
    if not hot.any():
        if coarse.empty == "background":
            return Decision(np.zeros([len(along) for along in full.starts], bool), "The coarse pass found nothing.")
        return Decision(None, "The coarse pass found nothing, and whoever looks for nothing has to look everywhere.")
    absent = [name for name, seen in zip(segments, evidence.found, strict=True) if not seen]
    if len(absent) == len(segments):
        return Decision(None, "The coarse pass was not sure of any segment.")
    if missing := [name for name in absent if name in coarse.expected]:
        return Decision(None, f"The coarse pass did not find {', '.join(missing)}, which every training scan has.")
    x, y, z = (coarse.margin / each for each in spacing)
    needed = full.near(hot, evidence.block, (x, y, z))
    count = int(np.count_nonzero(needed))
    if count + evidence.windows > WORTH * full.count:
        return Decision(None, f"The coarse pass asked for {count} of the windows, and skipping the rest gains little.")
    return Decision(needed, "The coarse pass found background in all other windows.")


@dataclass(frozen=True)
class _Axis:
    """Blocks of ``step`` voxels along an axis of ``size`` voxels, which lie behind ``before`` voxels of padding.

    Padding counts towards the nearest block.
    """

    size: int
    step: int
    before: int

    @property
    def blocks(self) -> int:
        return -(-self.size // self.step)

    def first_of_blocks(self, start: int, side: int) -> NDArray[np.intp]:
        """The places in a window at ``start`` at which blocks begin."""
        return np.flatnonzero(np.diff(self._blocks_of(start, side), prepend=-1))

    def span(self, start: int, side: int) -> slice:
        """The blocks of a window at ``start``."""
        blocks = self._blocks_of(start, side)
        return slice(int(blocks[0]), int(blocks[-1]) + 1)

    def _blocks_of(self, start: int, side: int) -> NDArray[np.int_]:
        return np.clip(np.arange(start, start + side) - self.before, 0, self.size - 1) // self.step


def _averaged(array: NDArray[np.float32], factor: Factor) -> NDArray[np.float32]:
    """The mean of boxes of voxels of (C, X, Y, Z); what is missing at the ends repeats the last voxels."""
    if prod(factor) == 1:
        return array
    out = array
    for axis, step in enumerate(factor, start=1):
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
