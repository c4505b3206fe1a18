"""From a scan to its segments: preprocessing, windows, blending, postprocessing, and back to the scan's own grid.

The same lines run in the trainer's validation, in `semiseg evaluate` and in the hospital's server; only the engine
differs.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.bundle.coarse import Coarse
from semiseg.bundle.familiarity import unfamiliar
from semiseg.bundle.manifest import Manifest
from semiseg.bundle.mask_fingerprint import measures_of
from semiseg.bundle.preprocessing import Prepared
from semiseg.bundle.variant import Precision
from semiseg.engines.engine import Engine
from semiseg.errors import EngineError, InputError
from semiseg.inference.coarse_pass import CoarsePass, decide, gains_nothing
from semiseg.inference.doubt import Doubt
from semiseg.inference.pass_steps import PassSteps
from semiseg.inference.probabilities import Probabilities, Watcher
from semiseg.inference.sliding_window import Finished, SlidingWindow
from semiseg.inference.window_grid import WindowGrid, WindowRegion, planes_of
from semiseg.inference.window_runs import Progress, Timing, WindowCounts
from semiseg.inference.windows import padding_for
from semiseg.volumes.remark import Remark
from semiseg.volumes.segmentation import Segmentation
from semiseg.volumes.volume import Volume, by_sides, spacing_of, voxel_ml

_LOG = logging.getLogger("semiseg.inference")
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Settings:
    """How a pass is tiled; None takes the manifest's own choice.

    Attributes:
        window: one of the manifest's allowed windows.
        overlap: Share of a window covered again by the next, 0 <= overlap < 1, or one for each axis.
        batch: windows per call of the network.
        full: Run every window, also where the model has a coarse pass.
    """

    window: tuple[int, int, int] | None = None
    overlap: float | tuple[float, float, float] | None = None
    batch: int = 1
    full: bool = False


class Segmenter:
    """A model ready for scans: a manifest and an engine that runs its network.

    Attributes:
        coarse: The coarse pass that is run before the full one; None where there is none.
        why_full: Why there is none, as a sentence.
    """

    def __init__(
        self,
        manifest: Manifest,
        engine: Engine,
        settings: Settings | None = None,
        *,
        precision: Precision | None = None,
    ) -> None:
        """Check that ``settings`` are within what the manifest allows.

        Args:
            manifest: The model's.
            engine: Runs its network.
            settings: How a pass is tiled.
            precision: Precision of the graph that the engine runs. A coarse pass is used where it was proved in it; by
                default where it was proved in all precisions of the model.

        Raises:
            InputError: the window is not an allowed one, or the overlap is not in [0, 1).
        """
        settings = settings or Settings()
        window = settings.window or manifest.window
        if window not in manifest.windows:
            allowed = ", ".join(map(by_sides, manifest.windows))
            raise InputError(f"Window {by_sides(window)} is not one this model allows ({allowed}).")
        wanted = manifest.overlaps if settings.overlap is None else settings.overlap
        overlap = wanted if isinstance(wanted, tuple) else (wanted, wanted, wanted)
        for share in overlap:
            if not 0 <= share < 1:
                raise InputError(f"An overlap is at least 0 and below 1, got {share}.")
        if settings.batch < 1:
            raise InputError(f"A batch holds at least one window, got {settings.batch}.")
        self.manifest = manifest
        self.engine = engine
        self.window = window
        self.overlap = overlap
        self.batch = settings.batch
        self.why_full = self._why_full(settings, precision)
        self.coarse: Coarse | None = None if self.why_full else manifest.coarse

    def segment(
        self,
        channels: Mapping[str, Volume],
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        timing: Timing | None = None,
        watchers: Sequence[Watcher] = (),
        probabilities: bool = False,
        full: bool = False,
    ) -> Segmentation:
        """Segment one scan, given as its channels by name; the answer lies on the grid of the first channel.

        Args:
            channels: a volume for each of the manifest's channels, all on one grid.
            progress: called with (windows done, windows in all) after each batch; with a coarse pass, windows in all
                are as many as there may be at most, until it has ended.
            cancelled: asked between batches; when it answers True the pass stops.
            timing: filled with the seconds of each stage.
            watchers: shown the network's word on each voxel.
            probabilities: keep them in the answer.
            full: Run every window, also where the model has a coarse pass.

        Raises:
            InputError: a channel is missing or unknown.
            VolumeError: the channels do not fit together or hold values that are not finite.
            EngineError: the network failed, or there is not enough memory.
            Cancelled: ``cancelled`` said so.
        """
        ordered = self._ordered(channels)
        timing = timing if timing is not None else Timing()
        with self._enough_memory(ordered):
            clock = time.perf_counter()
            prepared = self.manifest.preprocessing.apply(ordered)
            timing.add("preprocessing", clock)
            kept = [self._probabilities()] if probabilities else []
            labels = self.segment_prepared(
                prepared.array,
                spacing=spacing_of(prepared.affine),
                progress=progress,
                cancelled=cancelled,
                timing=timing,
                watchers=(*watchers, *kept),
                full=full,
            )
            clock = time.perf_counter()
            cleaned = self._clean(labels, prepared)
            array = self.manifest.preprocessing.restore(cleaned, prepared.placement)
            shares = None
            for each in kept:
                inside = self._unpadded(each.array(), prepared.array.shape[1:])
                shares = self.manifest.preprocessing.restore_image(inside, prepared.placement)
            timing.add("restoring", clock)
            return Segmentation(self.manifest.segments, array, prepared.placement.affine, shares)

    def segment_with_remarks(
        self,
        channels: Mapping[str, Volume],
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        timing: Timing | None = None,
        probabilities: bool = False,
        full: bool = False,
    ) -> tuple[Segmentation, tuple[Remark, ...]]:
        """See :meth:`segment`; and what sets the scan, and the mask, apart from those of training."""
        timing = timing if timing is not None else Timing()
        doubt = Doubt(len(self.manifest.segments), self.manifest.activation)
        segmentation = self.segment(
            channels,
            progress=progress,
            cancelled=cancelled,
            timing=timing,
            watchers=[doubt],
            probabilities=probabilities,
            full=full,
        )
        clock = time.perf_counter()
        remarks = self.unfamiliar(channels)
        if self.manifest.masks is not None:
            remarks += self.manifest.masks.unlike(measures_of(segmentation, doubt.mean()))
        timing.add("comparing", clock)
        return segmentation, remarks

    def unfamiliar(self, channels: Mapping[str, Volume]) -> tuple[Remark, ...]:
        """What sets a scan apart from those that the model was trained on."""
        return unfamiliar(self.manifest.fingerprint, channels, self.manifest.preprocessing.orientation)

    def segment_prepared(
        self,
        array: NDArray[np.float32],
        *,
        spacing: Spacing | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        timing: Timing | None = None,
        watchers: Sequence[Watcher] = (),
        full: bool = False,
    ) -> NDArray[np.uint8] | NDArray[np.bool_]:
        """Label map uint8 (X, Y, Z), or masks bool (K, X, Y, Z), of a preprocessed scan (C, X, Y, Z).

        ``spacing`` in mm is that of the model's preprocessing by default; without one every window is run.
        """
        timing = timing if timing is not None else Timing()
        shape = array.shape[1:]
        padded = self.padded(array)
        grid = self.grid(padded)
        spacing = spacing or self.manifest.preprocessing.spacing
        steps = PassSteps(progress, grid.count)
        reason = self.why_full or self._why_all(grid, spacing, full=full)
        region = None
        if self.coarse is not None and spacing is not None and not reason:
            evidence = self.coarse_pass(self.coarse).evidence(
                self.engine, padded, progress=steps.coarsely, cancelled=cancelled, timing=timing
            )
            steps.end(evidence.windows)
            names = [segment.name for segment in self.manifest.segments]
            decision = decide(self.coarse, evidence, grid, spacing, names)
            region = None if decision.needed is None else grid.region(decision.needed)
            reason = decision.reason
        run = grid.count if region is None else region.count
        out = self._pass(padded, region, steps.of(run), cancelled, timing, watchers)
        if region is not None and region.meets_border(planes_of(out)):
            reason = "A segment reached the border of the region that the coarse pass had found."
            steps.end(run)
            run = grid.count
            out = self._pass(padded, None, steps.of(run), cancelled, timing, watchers)
        timing.counts = WindowCounts(grid.count, run, steps.before, reason)
        if self.manifest.coarse is not None:
            _LOG.info("%s", timing.counts.sentence)
        return self._unpadded(out, shape)

    def padded(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """A preprocessed scan (C, X, Y, Z), filled up to a window on both sides where it is smaller."""
        return _pad(array, padding_for(array.shape[1:], self.window), self.manifest.preprocessing.padding)

    def grid(self, padded: NDArray[np.float32]) -> WindowGrid:
        """The windows of a full pass over a scan of :meth:`padded`."""
        return self._sliding_window().grid(padded.shape[1:])

    def coarse_pass(self, coarse: Coarse) -> CoarsePass:
        """The coarse pass with these settings."""
        return CoarsePass(self.window, self.batch, self.manifest.activation == "softmax", coarse.downsampling)

    def _pass(
        self,
        padded: NDArray[np.float32],
        region: WindowRegion | None,
        progress: Progress | None,
        cancelled: Callable[[], bool] | None,
        timing: Timing,
        watchers: Sequence[Watcher],
    ) -> NDArray[np.uint8] | NDArray[np.bool_]:
        """Run the windows of ``region``, all by default; what they do not decide is background."""
        segments = self.manifest.segments
        values = np.asarray([0, *(s.label for s in segments)], dtype=np.uint8)
        exclusive = self.manifest.activation == "softmax"
        full = padded.shape[1:]
        out = np.zeros(full if exclusive else (len(segments), *full), dtype=np.uint8 if exclusive else bool)
        for watcher in watchers:
            watcher.begin(full)
        parts = self._sliding_window().blend(
            self.engine, padded, region=region, progress=progress, cancelled=cancelled, timing=timing
        )
        for part in parts:
            clock = time.perf_counter()
            found = self._decided(part)
            if part.decided is not None:
                found = found * part.decided
            for watcher in watchers:
                watcher.add(part, found, logits=self.manifest.average == "logits")
            out[(..., *part.place)] = values[found] if exclusive else found
            timing.add("deciding", clock)
        return out

    def _why_full(self, settings: Settings, precision: Precision | None) -> str:
        """Why there is no coarse pass, whatever the scan; empty where there is one."""
        manifest = self.manifest
        if manifest.coarse is None:
            return "The model has no coarse pass."
        if settings.full:
            return "A full pass was asked for."
        if (self.window, self.overlap) != (manifest.window, manifest.overlaps):
            return "The coarse pass was proved for the model's own window and overlap, and others were asked for."
        precisions = [variant.precision for variant in manifest.variants] if precision is None else [precision]
        if unproved := [each for each in precisions if not manifest.coarse.proved_in(each)]:
            return f"The coarse pass was not proved in {', '.join(unproved)}."
        return ""

    def _why_all(self, grid: WindowGrid, spacing: Spacing | None, *, full: bool) -> str:
        """Why this scan gets no coarse pass; empty where it does."""
        if full:
            return "A full pass was asked for."
        if spacing is None:
            return "The voxel spacing is not known, and the coarse pass needs it."
        if self.coarse is not None and gains_nothing(grid, self.coarse.downsampling):
            return "The scan has so few windows that a coarse pass would gain little."
        return ""

    def _probabilities(self) -> Probabilities:
        return Probabilities(self.manifest.activation, len(self.manifest.segments))

    def probabilities_of_prepared(self, array: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Probabilities (K, X, Y, Z) of the segments, in 255ths, of a preprocessed scan (C, X, Y, Z)."""
        kept = self._probabilities()
        self.segment_prepared(array, watchers=[kept])
        return np.asarray(self._unpadded(kept.array(), array.shape[1:]))

    def warm_up(self) -> None:
        """Run one window of zeros, so that the first scan does not pay for what the engine sets up lazily."""
        windows = np.zeros((self.batch, len(self.manifest.channels), *self.window), dtype=np.float32)
        logits = self.engine.logits(self.engine.run(windows))
        expected = (self.batch, self.manifest.outputs, *self.window)
        if logits.shape != expected:
            raise InputError(f"The network returned shape {logits.shape}; the manifest promises {expected}.")

    @contextlib.contextmanager
    def _enough_memory(self, ordered: Mapping[str, Volume]) -> Iterator[None]:
        try:
            yield
        except MemoryError:
            shape = next(iter(ordered.values())).shape
            raise EngineError(
                f"There is not enough memory here for a scan of {by_sides(shape)} voxels, {self.manifest.outputs} "
                f"classes and windows of {by_sides(self.window)}; free some, take a smaller window, or another machine."
            ) from None

    def _sliding_window(self) -> SlidingWindow:
        return SlidingWindow(
            window=self.window,
            overlap=self.overlap,
            blending=self.manifest.blending,
            batch=self.batch,
            outputs=self.manifest.outputs,
            activation=self.manifest.activation if self.manifest.average == "probs" else "none",
        )

    def _decided(self, part: Finished) -> NDArray[np.uint8] | NDArray[np.bool_]:
        """The class of each voxel, or the masks of overlapping regions.

        Raises:
            EngineError: the network returned numbers that are not finite.
        """
        sums = part.sums
        # The largest of NaNs would be an innocent-looking background. A sum of large numbers may overflow, so it
        # only says where to look.
        if not np.isfinite(sums.sum(dtype=np.float32)) and not np.isfinite(sums).all():
            raise EngineError(
                f"The network of {self.manifest.name} returned values that are not finite on this scan, so there "
                "is no mask; try another device or precision, or train it anew."
            )
        if self.manifest.activation == "softmax":
            return largest(sums)  # dividing by the coverage does not move it
        # Averaged logits are positive where the probability is above one half.
        return np.asarray(sums >= 0.0 if self.manifest.average == "logits" else part.mean() >= 0.5)

    def _unpadded(self, array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """What of (..., X, Y, Z) lies on a scan of ``shape``, and not on what filled it up to a window."""
        padding = padding_for(shape, self.window)
        x, y, z = (slice(before, before + n) for (before, _), n in zip(padding, shape, strict=True))
        return array[..., x, y, z]

    def _clean(self, labels: NDArray[np.uint8] | NDArray[np.bool_], prepared: Prepared) -> NDArray[np.generic]:
        by_name = {s.name: s.label for s in self.manifest.segments}
        return self.manifest.postprocessing.apply(labels, by_name, voxel_ml(prepared.affine))

    def _ordered(self, channels: Mapping[str, Volume]) -> dict[str, Volume]:
        wanted = self.manifest.channel_names
        missing = [name for name in wanted if name not in channels]
        unknown = [name for name in channels if name not in wanted]
        if missing or unknown:
            parts = [
                f"missing: {', '.join(missing)}" if missing else "",
                f"unknown: {', '.join(unknown)}" if unknown else "",
            ]
            raise InputError(
                f"This model takes the channel(s) {', '.join(wanted)}; {'; '.join(p for p in parts if p)}."
            )
        return {name: channels[name] for name in wanted}


def _pad(array: NDArray[np.float32], padding: list[tuple[int, int]], how: str) -> NDArray[np.float32]:
    if not any(before or after for before, after in padding):
        return array
    if how == "edge":
        return np.pad(array, [(0, 0), *padding], mode="edge")
    return np.pad(array, [(0, 0), *padding])


def largest(sums: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The first axis' place of the largest value, (K, ...) -> (...); of equal ones the first.

    As np.argmax, which takes several times as long along the first axis.
    """
    out = np.zeros(sums.shape[1:], dtype=np.uint8)
    best = sums[0].copy()
    for k, values in enumerate(sums[1:], start=1):
        np.copyto(out, np.uint8(k), where=values > best)
        np.maximum(best, values, out=best)
    return out
