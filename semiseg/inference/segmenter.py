"""From a scan to its segments: preprocessing, windows, blending, postprocessing, and back to the scan's own grid.

The same lines run in the trainer's validation, in `semiseg evaluate` and in the hospital's server; only the engine
differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.bundle.familiarity import unfamiliar
from semiseg.bundle.manifest import Manifest
from semiseg.bundle.mask_fingerprint import measures_of
from semiseg.bundle.preprocessing import Prepared
from semiseg.engines.engine import Activation, Engine
from semiseg.errors import Cancelled, EngineError, InputError
from semiseg.inference.doubt import Doubt
from semiseg.inference.probabilities import Probabilities, Watcher, averaged
from semiseg.inference.windows import coverage_along, padding_for, starts_along, window_weights
from semiseg.volumes.remark import Remark
from semiseg.volumes.segmentation import Segmentation
from semiseg.volumes.volume import Volume, voxel_ml

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """How a pass is tiled; None takes the manifest's own choice.

    Attributes:
        window: one of the manifest's allowed windows.
        overlap: share of a window covered again by the next, 0 <= overlap < 1.
        batch: windows per call of the network.
    """

    window: tuple[int, int, int] | None = None
    overlap: float | None = None
    batch: int = 1


@dataclass
class Timing:
    """Seconds spent per stage of one scan, and how many windows it took."""

    seconds: dict[str, float] = field(default_factory=dict)
    windows: int = 0

    def add(self, stage: str, since: float) -> float:
        """Count the time since ``since`` towards ``stage``; returns the present moment."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - since
        return now


class Segmenter:
    """A model ready for scans: a manifest and an engine that runs its network."""

    def __init__(self, manifest: Manifest, engine: Engine, settings: Settings | None = None) -> None:
        """Check that ``settings`` are within what the manifest allows.

        Raises:
            InputError: the window is not an allowed one, or the overlap is not in [0, 1).
        """
        settings = settings or Settings()
        window = settings.window or manifest.window
        if window not in manifest.windows:
            allowed = ", ".join("x".join(map(str, w)) for w in manifest.windows)
            raise InputError(f"Window {'x'.join(map(str, window))} is not one this model allows ({allowed}).")
        overlap = manifest.overlap if settings.overlap is None else settings.overlap
        if not 0 <= overlap < 1:
            raise InputError(f"An overlap is at least 0 and below 1, got {overlap}.")
        if settings.batch < 1:
            raise InputError(f"A batch holds at least one window, got {settings.batch}.")
        self.manifest = manifest
        self.engine = engine
        self.window = window
        self.overlap = overlap
        self.batch = settings.batch

    def segment(
        self,
        channels: Mapping[str, Volume],
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        timing: Timing | None = None,
        watchers: Sequence[Watcher] = (),
        probabilities: bool = False,
    ) -> Segmentation:
        """Segment one scan, given as its channels by name; the answer lies on the grid of the first channel.

        Args:
            channels: a volume for each of the manifest's channels, all on one grid.
            progress: called with (windows done, windows in all) after each batch.
            cancelled: asked between batches; when it answers True the pass stops.
            timing: filled with the seconds of each stage.
            watchers: shown the network's word on each voxel.
            probabilities: keep them in the answer.

        Raises:
            InputError: a channel is missing or unknown.
            VolumeError: the channels do not fit together or hold values that are not finite.
            EngineError: the network failed.
            Cancelled: ``cancelled`` said so.
        """
        timing = timing if timing is not None else Timing()
        ordered = self._ordered(channels)
        clock = time.perf_counter()
        prepared = self.manifest.preprocessing.apply(ordered)
        clock = timing.add("preprocessing", clock)
        kept = [Probabilities(self.manifest.activation)] if probabilities else []
        labels = self.segment_prepared(
            prepared.array, progress=progress, cancelled=cancelled, timing=timing, watchers=(*watchers, *kept)
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
        cancelled: Callable[[], bool] | None = None,
        timing: Timing | None = None,
        probabilities: bool = False,
    ) -> tuple[Segmentation, tuple[Remark, ...]]:
        """See :meth:`segment`; and what sets the scan, and the mask, apart from those of training."""
        timing = timing if timing is not None else Timing()
        doubt = Doubt(len(self.manifest.segments), self.manifest.activation)
        segmentation = self.segment(
            channels, cancelled=cancelled, timing=timing, watchers=[doubt], probabilities=probabilities
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
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        timing: Timing | None = None,
        watchers: Sequence[Watcher] = (),
    ) -> NDArray[np.uint8] | NDArray[np.bool_]:
        """Label map uint8 (X, Y, Z), or masks bool (K, X, Y, Z), of a preprocessed scan (C, X, Y, Z)."""
        timing = timing if timing is not None else Timing()
        shape = array.shape[1:]
        padding = padding_for(shape, self.window)
        padded = _pad(array, padding, self.manifest.preprocessing.padding)
        full = padded.shape[1:]
        starts = [starts_along(n, w, self.overlap) for n, w in zip(full, self.window, strict=True)]
        coverage = [
            coverage_along(n, w, s, self.manifest.blending) for n, w, s in zip(full, self.window, starts, strict=True)
        ]
        segments = self.manifest.segments
        values = np.asarray([0, *(s.label for s in segments)], dtype=np.uint8)
        exclusive = self.manifest.activation == "softmax"
        out = np.zeros(full if exclusive else (len(segments), *full), dtype=np.uint8 if exclusive else bool)
        slab = self.engine.open_slab((self.manifest.outputs, self.window[0], full[1], full[2]), self._per_window())
        columns = [(y, z) for y in starts[1] for z in starts[2]]
        total = len(starts[0]) * len(columns)
        done = 0
        for index, start in enumerate(starts[0]):
            for first in range(0, len(columns), self.batch):
                if cancelled is not None and cancelled():
                    raise Cancelled(f"Stopped after {done} of {total} windows.")
                chunk = columns[first : first + self.batch]
                self._add_windows(slab, padded, start, chunk, timing)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
            # No later window reaches below the next start, so these planes are finished and their memory is reused.
            stop = starts[0][index + 1] if index + 1 < len(starts[0]) else full[0]
            clock = time.perf_counter()
            sums = self.engine.finish(slab, stop - start)
            if not np.isfinite(sums).all():  # the largest of NaNs would be an innocent-looking background
                raise EngineError(
                    f"The network of {self.manifest.name} returned values that are not finite on this scan, so there "
                    "is no mask; try another device or precision, or train it anew."
                )
            over = [coverage[0][start:stop], coverage[1], coverage[2]]
            for watcher in watchers:
                watcher.add(sums, over, logits=self.manifest.average == "logits")
            if exclusive:
                out[start:stop] = values[sums.argmax(axis=0)]  # dividing by the coverage does not move the largest
            else:
                out[:, start:stop] = self._regions(sums, over)
            timing.add("blending", clock)
        timing.windows += total
        return self._unpadded(out, shape)

    def warm_up(self) -> None:
        """Run one window of zeros, so that the first scan does not pay for what the engine sets up lazily."""
        windows = np.zeros((self.batch, len(self.manifest.channels), *self.window), dtype=np.float32)
        logits = self.engine.logits(self.engine.run(windows))
        expected = (self.batch, self.manifest.outputs, *self.window)
        if logits.shape != expected:
            raise InputError(f"The network returned shape {logits.shape}; the manifest promises {expected}.")

    def _add_windows(
        self, slab: object, padded: NDArray[np.float32], x: int, columns: list[tuple[int, int]], timing: Timing
    ) -> None:
        wx, wy, wz = self.window
        clock = time.perf_counter()
        # A fixed batch, the last one padded: engines that plan per shape then plan once.
        windows = np.zeros((self.batch, padded.shape[0], wx, wy, wz), dtype=np.float32)
        for row, (y, z) in enumerate(columns):
            windows[row] = padded[:, x : x + wx, y : y + wy, z : z + wz]
        clock = timing.add("windows", clock)
        handle = self.engine.run(windows)
        clock = timing.add("network", clock)
        weights = window_weights(self.window, self.manifest.blending)
        self.engine.accumulate(slab, handle, [(0, y, z) for y, z in columns], weights)
        timing.add("blending", clock)

    def _unpadded(self, array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """What of (..., X, Y, Z) lies on a scan of ``shape``, and not on what filled it up to a window."""
        padding = padding_for(shape, self.window)
        x, y, z = (slice(before, before + n) for (before, _), n in zip(padding, shape, strict=True))
        return array[..., x, y, z]

    def _per_window(self) -> Activation:
        """What is applied to each window before it is averaged."""
        return self.manifest.activation if self.manifest.average == "probs" else "none"

    def _regions(self, sums: NDArray[np.float32], coverage: list[NDArray[np.float32]]) -> NDArray[np.bool_]:
        """Masks of overlapping regions: the averaged probability reaches one half."""
        probs = averaged(sums, coverage, "none" if self.manifest.average == "probs" else "sigmoid")
        return np.asarray(probs >= 0.5)

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
