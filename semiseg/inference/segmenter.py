"""Segmentation of a scan: preprocessing, sliding window, postprocessing, and resampling to the scan's own grid.

The trainer's validation, `semiseg evaluate` and the server use the same code with different engines.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semiseg.bundle.manifest import Manifest
from semiseg.bundle.mask_fingerprint import measure_mask
from semiseg.bundle.out_of_distribution import out_of_distribution_warnings
from semiseg.bundle.preprocessing import PreprocessedScan
from semiseg.deprecation import RenamedMember, renamed_arguments, renamed_attributes
from semiseg.engines.engine import Engine
from semiseg.errors import EngineError, InputError
from semiseg.inference.probabilities import BlendObserver, ProbabilityCollector
from semiseg.inference.segment_entropy import SegmentEntropy
from semiseg.inference.sliding_window import CompletedRegion, Progress, SlidingWindow, Timing
from semiseg.inference.windows import padding_for
from semiseg.volumes.scan_warning import ScanWarning
from semiseg.volumes.segmentation import Segmentation
from semiseg.volumes.volume import Volume, format_shape, voxel_ml

if not TYPE_CHECKING:
    __getattr__ = renamed_attributes(__name__, Settings="SlidingWindowOptions")


@dataclass(frozen=True)
class SlidingWindowOptions:
    """Options of the sliding window; None selects the default of the manifest.

    Attributes:
        window: Size of the window in voxels, one of the manifest's allowed windows.
        overlap: Share of a window covered again by the next, 0 <= overlap < 1, or one for each axis.
        batch: Number of windows per call of the network.
    """

    window: tuple[int, int, int] | None = None
    overlap: float | tuple[float, float, float] | None = None
    batch: int = 1


class Segmenter:
    """A model that is ready to segment scans: a manifest and an engine that runs its network.

    Examples:
        >>> import semiseg
        >>> bundle = semiseg.open_bundle("BUNDLE")
        >>> segmenter = semiseg.Segmenter(bundle.manifest, semiseg.choose_engine(bundle, threads=1).engine)
        >>> scan = semiseg.open_scan("SCAN.nii.gz", bundle.manifest.rules)
        >>> segmenter.segment(scan.channels).array.shape
        (22, 20, 13)
    """

    probabilities_of_prepared = RenamedMember("probabilities_of_preprocessed")
    segment_prepared = RenamedMember("segment_preprocessed")
    segment_with_remarks = RenamedMember("segment_with_warnings")
    unfamiliar = RenamedMember("out_of_distribution_warnings")

    def __init__(self, manifest: Manifest, engine: Engine, settings: SlidingWindowOptions | None = None) -> None:
        """Check ``settings`` against the manifest.

        Raises:
            InputError: The window is not an allowed one, the overlap is not in [0, 1), or the batch is below 1.
        """
        settings = settings or SlidingWindowOptions()
        window = settings.window or manifest.window
        if window not in manifest.windows:
            allowed = ", ".join(map(format_shape, manifest.windows))
            raise InputError(f"Window {format_shape(window)} is not one this model allows ({allowed}).")
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

    @renamed_arguments(watchers="observers")
    def segment(
        self,
        channels: Mapping[str, Volume],
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        timing: Timing | None = None,
        observers: Sequence[BlendObserver] = (),
        probabilities: bool = False,
    ) -> Segmentation:
        """Segment one scan, given as its channels by name; the result is on the grid of the first channel.

        Args:
            channels: Volume of each of the manifest's channels, all on one grid.
            progress: Called with (windows done, windows in total) after each batch.
            cancelled: Called between batches; the segmentation stops if it returns True.
            timing: Object that receives the seconds of each stage.
            observers: Objects that receive the network's output at each voxel.
            probabilities: If True, include the probabilities in the result.

        Raises:
            InputError: A channel is missing or unknown.
            VolumeError: The channels are on different grids, or contain values that are not finite.
            EngineError: The network failed, or there is not enough memory.
            Cancelled: ``cancelled`` returned True.
        """
        ordered = self._ordered(channels)
        timing = timing if timing is not None else Timing()
        with self._enough_memory(ordered):
            clock = time.perf_counter()
            prepared = self.manifest.preprocessing.apply(ordered)
            timing.add("preprocessing", clock)
            kept = [ProbabilityCollector(self.manifest.activation)] if probabilities else []
            labels = self.segment_preprocessed(
                prepared.array, progress=progress, cancelled=cancelled, timing=timing, observers=(*observers, *kept)
            )
            clock = time.perf_counter()
            cleaned = self._clean(labels, prepared)
            array = self.manifest.preprocessing.restore(cleaned, prepared.geometry)
            shares = None
            for each in kept:
                inside = self._unpadded(each.array(), prepared.array.shape[1:])
                shares = self.manifest.preprocessing.restore_image(inside, prepared.geometry)
            timing.add("restoring", clock)
            return Segmentation(self.manifest.segments, array, prepared.geometry.affine, shares)

    def segment_with_warnings(
        self,
        channels: Mapping[str, Volume],
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        timing: Timing | None = None,
        probabilities: bool = False,
    ) -> tuple[Segmentation, tuple[ScanWarning, ...]]:
        """Segment one scan as :meth:`segment` does, and return warnings if scan or mask are out of distribution."""
        timing = timing if timing is not None else Timing()
        doubt = SegmentEntropy(len(self.manifest.segments), self.manifest.activation)
        segmentation = self.segment(
            channels,
            progress=progress,
            cancelled=cancelled,
            timing=timing,
            observers=[doubt],
            probabilities=probabilities,
        )
        clock = time.perf_counter()
        remarks = self.out_of_distribution_warnings(channels)
        if self.manifest.masks is not None:
            remarks += self.manifest.masks.out_of_distribution_warnings(measure_mask(segmentation, doubt.mean()))
        timing.add("comparing", clock)
        return segmentation, remarks

    def out_of_distribution_warnings(self, channels: Mapping[str, Volume]) -> tuple[ScanWarning, ...]:
        """Return warnings about differences between a scan and the scans that the model was trained on."""
        return out_of_distribution_warnings(
            self.manifest.fingerprint, channels, self.manifest.preprocessing.orientation
        )

    @renamed_arguments(watchers="observers")
    def segment_preprocessed(
        self,
        array: NDArray[np.float32],
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        timing: Timing | None = None,
        observers: Sequence[BlendObserver] = (),
    ) -> NDArray[np.uint8] | NDArray[np.bool_]:
        """Segment a preprocessed scan (C, X, Y, Z) into a label map uint8 (X, Y, Z) or masks bool (K, X, Y, Z)."""
        timing = timing if timing is not None else Timing()
        shape = array.shape[1:]
        padded = _pad(array, padding_for(shape, self.window), self.manifest.preprocessing.padding)
        segments = self.manifest.segments
        values = np.asarray([0, *(s.label for s in segments)], dtype=np.uint8)
        exclusive = self.manifest.activation == "softmax"
        full = padded.shape[1:]
        out = np.zeros(full if exclusive else (len(segments), *full), dtype=np.uint8 if exclusive else bool)
        parts = self._sliding_window().blend(self.engine, padded, progress=progress, cancelled=cancelled, timing=timing)
        for part in parts:
            clock = time.perf_counter()
            found = self._decided(part)
            for observer in observers:
                observer.add(part, found, logits=self.manifest.average == "logits")
            out[(..., *part.place)] = values[found] if exclusive else found
            timing.add("deciding", clock)
        return self._unpadded(out, shape)

    def probabilities_of_preprocessed(self, array: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the probabilities (K, X, Y, Z) of the segments of a preprocessed scan (C, X, Y, Z), in 255ths."""
        kept = ProbabilityCollector(self.manifest.activation)
        self.segment_preprocessed(array, observers=[kept])
        return np.asarray(self._unpadded(kept.array(), array.shape[1:]))

    def warm_up(self) -> None:
        """Run one batch of zeros, so that the engine's lazy initialisation does not delay the first scan."""
        windows = np.zeros((self.batch, len(self.manifest.channels), *self.window), dtype=np.float32)
        logits = self.engine.logits(self.engine.run(windows))
        expected = (self.batch, self.manifest.outputs, *self.window)
        if logits.shape != expected:
            raise InputError(f"The network returned shape {logits.shape}; the manifest specifies {expected}.")

    @contextlib.contextmanager
    def _enough_memory(self, ordered: Mapping[str, Volume]) -> Iterator[None]:
        try:
            yield
        except MemoryError:
            shape = next(iter(ordered.values())).shape
            raise EngineError(
                f"There is not enough memory here for a scan of {format_shape(shape)} voxels, {self.manifest.outputs} "
                f"classes and windows of {format_shape(self.window)}; free memory, or use a smaller window or another "
                "machine."
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

    def _decided(self, part: CompletedRegion) -> NDArray[np.uint8] | NDArray[np.bool_]:
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

    def _unpadded(self, array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Remove from (..., X, Y, Z) the padding that fills a scan of ``shape`` up to a window."""
        padding = padding_for(shape, self.window)
        x, y, z = (slice(before, before + n) for (before, _), n in zip(padding, shape, strict=True))
        return array[..., x, y, z]

    def _clean(self, labels: NDArray[np.uint8] | NDArray[np.bool_], prepared: PreprocessedScan) -> NDArray[np.generic]:
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
