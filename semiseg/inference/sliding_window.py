"""The sliding window: windows through an engine, blended, and handed over as soon as no later window touches a voxel.

The network runs ahead: while an engine computes a batch, the one before is blended (see
:mod:`semiseg.inference.window_runs`).
Where only some windows are run, they are blended as all would be: the voxels whose windows are all among them get the
same sums, bit for bit, and only these are handed over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.engines.engine import Engine, Start
from semiseg.engines.slab import Activation, SlabPlan, Triple, plan_slab
from semiseg.inference.window_grid import Place, WindowGrid, WindowRegion
from semiseg.inference.window_runs import Progress, Timing, WindowRunner
from semiseg.inference.windows import Blending, coverage_along, window_weights

__all__ = ["Finished", "Progress", "SlidingWindow", "Timing"]


@dataclass(frozen=True)
class Finished:
    """Voxels that no later window changes.

    Attributes:
        sums: (K, x, y, z) blended windows; they hold until the next part is asked for, and are not to be changed.
        coverage: what the windows' weights sum to along the three axes.
        place: where, in the volume.
        shape: of the volume.
        decided: Voxels (x, y, z) whose windows were all run; the others are background. None where all were.
    """

    sums: NDArray[np.float32]
    coverage: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
    place: Place
    shape: Triple
    decided: NDArray[np.bool_] | None = None

    def mean(self) -> NDArray[np.float32]:
        """The weighted mean of the windows, (K, x, y, z); meaningless where a voxel is not ``decided``."""
        cx, cy, cz = self.coverage
        return np.asarray(self.sums / (cx[:, None, None] * cy[None, :, None] * cz))


@dataclass(frozen=True)
class SlidingWindow:
    """How a volume is tiled and blended.

    Attributes:
        window: voxels of a window.
        overlap: Shares of a window, along each axis, covered again by the next, 0 <= overlap < 1.
        blending: how the voxels of a window are weighted.
        batch: windows per call of the network; the last call is filled up, so that engines see one shape.
        outputs: K, channels of the network's answer.
        activation: what is applied to each window before it is blended.
    """

    window: Triple
    overlap: tuple[float, float, float]
    blending: Blending
    batch: int
    outputs: int
    activation: Activation

    def grid(self, shape: tuple[int, ...]) -> WindowGrid:
        """The windows of a volume of this shape."""
        x, y, z = shape
        return WindowGrid.of((x, y, z), self.window, self.overlap)

    def blend(
        self,
        engine: Engine,
        array: NDArray[np.float32],
        *,
        region: WindowRegion | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        timing: Timing,
    ) -> Iterator[Finished]:
        """Run the windows of ``array`` (C, X, Y, Z), at least a window large, and yield what is finished.

        Args:
            engine: Runs the network.
            array: The volume.
            region: Windows to run, and the voxels that they decide, of :meth:`grid`; all by default. Voxels outside are
                not yielded, except beside others in a part that says so.
            progress: Called with (windows done, windows that are run) after each batch.
            cancelled: Asked before each batch.
            timing: Receives the seconds of each stage.

        Raises:
            EngineError: the network failed.
            Cancelled: ``cancelled``, asked before each batch, said so.
        """
        tiles = _Tiles(self, self.grid(array.shape[1:]), region)
        slab = engine.open_slab(tiles.plan, self.outputs, self.activation)
        weights = window_weights(self.window, self.blending)
        runner = WindowRunner(engine, self.window, self.batch, timing, cancelled)
        done = told = 0
        for runs in runner.run(array, tiles.starts(), tiles.count):
            for one in runs:
                if one.handle is not None:
                    clock = time.perf_counter()
                    engine.accumulate(slab, one.handle, one.row, one.start, weights)
                    timing.add("blending", clock)
                    done += 1
                yield from tiles.finished(engine, slab, one.start, timing)
            if progress is not None and done > told:
                progress(done, tiles.count)
                told = done
        timing.windows += tiles.count


class _Tiles:
    """The windows of a volume, in the order in which the slab wants them."""

    def __init__(self, how: SlidingWindow, grid: WindowGrid, region: WindowRegion | None) -> None:
        self._grid = grid
        self._region = region
        self._starts = grid.starts
        self._coverage = [
            coverage_along(n, w, s, how.blending) for n, w, s in zip(grid.shape, how.window, grid.starts, strict=True)
        ]
        self.plan: SlabPlan = plan_slab(grid.shape, how.window, grid.starts)
        self._order = (self.plan.outer, self.plan.middle, 3 - self.plan.outer - self.plan.middle)
        self.count = grid.count if region is None else region.count

    def starts(self) -> Iterator[tuple[Start, bool]]:
        """The first voxel of each window, and whether it is run."""
        for found in product(*(range(len(self._starts[axis])) for axis in self._order)):
            by_axis = dict(zip(self._order, found, strict=True))
            x, y, z = by_axis[0], by_axis[1], by_axis[2]
            needed = self._region is None or bool(self._region.needed[x, y, z])
            yield (self._starts[0][x], self._starts[1][y], self._starts[2][z]), needed

    def finished(self, engine: Engine, slab: Any, start: Start, timing: Timing) -> Iterator[Finished]:
        """What is finished after the window at ``start``."""
        ended = self._ended(start)
        if ended is None:
            return
        planes, rows, place = ended
        if self._region is None or self._region.within(place) is not None:
            outer = self.plan.outer
            first = place[outer].start
            for sums in engine.finished(slab, planes, rows):
                after = first + sums.shape[1 + outer]
                x, y, z = (slice(first, after) if axis == outer else cut for axis, cut in enumerate(place))
                yield from self._part(sums, (x, y, z))
                first = after
        clock = time.perf_counter()
        engine.advance(slab, planes, rows)
        timing.add("blending", clock)

    def _part(self, sums: NDArray[np.float32], place: Place) -> Iterator[Finished]:
        """What of a finished part belongs to the region."""
        decided = None
        if self._region is not None:
            found = self._region.within(place)
            if found is None:
                return
            whole, (place, decided) = place, found
            x, y, z = (slice(cut.start - of.start, cut.stop - of.start) for cut, of in zip(place, whole, strict=True))
            sums = sums[:, x, y, z]
        cx, cy, cz = (along[cut] for along, cut in zip(self._coverage, place, strict=True))
        yield Finished(sums, (cx, cy, cz), place, self._grid.shape, decided)

    def _ended(self, start: Start) -> tuple[int, int, Place] | None:
        """After a band's last window: its finished planes, its finished rows, and their place."""
        outer, middle, inner = self._order
        if start[inner] != self._starts[inner][-1]:
            return None
        places = {inner: slice(0, self._grid.shape[inner])}
        for axis in (outer, middle):
            after = [at for at in self._starts[axis] if at > start[axis]]
            places[axis] = slice(start[axis], after[0] if after else self._grid.shape[axis])
        planes, rows = (places[axis].stop - places[axis].start for axis in (outer, middle))
        return planes, rows, (places[0], places[1], places[2])
