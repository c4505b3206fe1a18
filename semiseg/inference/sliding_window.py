"""The sliding window: an engine runs the windows, which are blended, and completed regions are yielded one by one.

While an engine computes a batch, the previous batch is blended (:mod:`semiseg.inference.window_runner`). If only some
windows are run, the voxels all of whose windows are run get the same sums as in a full pass, bit for bit, and only
these voxels are yielded.
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
from semiseg.inference.timing import Progress, Timing
from semiseg.inference.window_grid import Place, WindowGrid, WindowRegion
from semiseg.inference.window_runner import WindowRunner
from semiseg.inference.windows import Blending, coverage_along, window_weights


@dataclass(frozen=True)
class CompletedRegion:
    """Region of the volume that no later window changes.

    Attributes:
        sums: Weighted sums of the windows (K, x, y, z); valid until the next region is requested, and read-only.
        coverage: Sums of the windows' weights along the three axes.
        place: Slices of the region in the volume.
        shape: Shape of the volume.
        decided: True for each voxel (x, y, z) all of whose windows were run; the other voxels are background. None if
            this holds for all voxels.
    """

    sums: NDArray[np.float32]
    coverage: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
    place: Place
    shape: Triple
    decided: NDArray[np.bool_] | None = None

    def mean(self) -> NDArray[np.float32]:
        """Return the weighted mean of the windows (K, x, y, z); it has no meaning at voxels that are not decided."""
        cx, cy, cz = self.coverage
        return np.asarray(self.sums / (cx[:, None, None] * cy[None, :, None] * cz))


@dataclass(frozen=True)
class SlidingWindow:
    """Tiling and blending of a volume.

    Attributes:
        window: Size of a window in voxels.
        overlap: Shares of a window, along each axis, covered again by the next, 0 <= overlap < 1.
        blending: Weighting of the voxels of a window.
        batch: Number of windows per call of the network; the last batch is padded, so that all have the same shape.
        outputs: Number of output channels K of the network.
        activation: Activation that is applied to each window before it is blended.
    """

    window: Triple
    overlap: tuple[float, float, float]
    blending: Blending
    batch: int
    outputs: int
    activation: Activation

    def grid(self, shape: tuple[int, ...]) -> WindowGrid:
        """Return the windows of a volume of this shape."""
        x, y, z = shape
        return WindowGrid.covering((x, y, z), self.window, self.overlap)

    def blend(
        self,
        engine: Engine,
        array: NDArray[np.float32],
        *,
        region: WindowRegion | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        timing: Timing,
    ) -> Iterator[CompletedRegion]:
        """Run the windows of ``array`` (C, X, Y, Z), at least as large as a window, and yield completed regions.

        Args:
            engine: Engine that runs the network.
            array: The volume.
            region: Windows of :meth:`grid` to run, and the voxels that they decide; all by default. Only the decided
                voxels are yielded, if necessary in a box with others, which ``CompletedRegion.decided`` then excludes.
            progress: Function that is called with (windows done, windows in total) after each batch.
            cancelled: Function that is called before each batch and ends the pass by returning True.
            timing: Object that receives the seconds of each stage.

        Raises:
            EngineError: The network failed.
            Cancelled: ``cancelled`` returned True.
        """
        tiles = _Tiles(self, self.grid(array.shape[1:]), region)
        slab = engine.open_slab(tiles.plan, self.outputs, self.activation)
        weights = window_weights(self.window, self.blending)
        runner = WindowRunner(engine, self.window, self.batch, timing, cancelled)
        done = reported = 0
        for outputs in runner.run(array, tiles.starts(), tiles.count):
            for output in outputs:
                if output.handle is not None:
                    clock = time.perf_counter()
                    engine.accumulate(slab, output.handle, output.row, output.start, weights)
                    timing.add("blending", clock)
                    done += 1
                yield from tiles.completed(engine, slab, output.start, timing)
            if progress is not None and done > reported:
                progress(done, tiles.count)
                reported = done
        timing.windows += tiles.count


class _Tiles:
    """The windows of a volume, in the order that the slab requires."""

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
        """Yield the first voxel of each window, and True if the window is run."""
        for found in product(*(range(len(self._starts[axis])) for axis in self._order)):
            by_axis = dict(zip(self._order, found, strict=True))
            x, y, z = by_axis[0], by_axis[1], by_axis[2]
            needed = self._region is None or bool(self._region.needed[x, y, z])
            yield (self._starts[0][x], self._starts[1][y], self._starts[2][z]), needed

    def completed(self, engine: Engine, slab: Any, start: Start, timing: Timing) -> Iterator[CompletedRegion]:
        """Yield the regions that are completed after the window at ``start``."""
        ended = self._ended(start)
        if ended is None:
            return
        planes, rows, place = ended
        if self._region is None or self._region.crop(place) is not None:
            outer = self.plan.outer
            first = place[outer].start
            for sums in engine.completed(slab, planes, rows):
                after = first + sums.shape[1 + outer]
                x, y, z = (slice(first, after) if axis == outer else cut for axis, cut in enumerate(place))
                yield from self._part(sums, (x, y, z))
                first = after
        clock = time.perf_counter()
        engine.advance(slab, planes, rows)
        timing.add("blending", clock)

    def _part(self, sums: NDArray[np.float32], place: Place) -> Iterator[CompletedRegion]:
        """Yield the part of the sums at ``place`` that belongs to the region, if there is one."""
        decided = None
        if self._region is not None:
            found = self._region.crop(place)
            if found is None:
                return
            whole, (place, decided) = place, found
            x, y, z = (slice(cut.start - of.start, cut.stop - of.start) for cut, of in zip(place, whole, strict=True))
            sums = sums[:, x, y, z]
        cx, cy, cz = (along[cut] for along, cut in zip(self._coverage, place, strict=True))
        yield CompletedRegion(sums, (cx, cy, cz), place, self._grid.shape, decided)

    def _ended(self, start: Start) -> tuple[int, int, Place] | None:
        """Return the completed planes and rows of a band and their place, after its last window; otherwise None."""
        outer, middle, inner = self._order
        if start[inner] != self._starts[inner][-1]:
            return None
        places = {inner: slice(0, self._grid.shape[inner])}
        for axis in (outer, middle):
            after = [at for at in self._starts[axis] if at > start[axis]]
            places[axis] = slice(start[axis], after[0] if after else self._grid.shape[axis])
        planes, rows = (places[axis].stop - places[axis].start for axis in (outer, middle))
        return planes, rows, (places[0], places[1], places[2])
