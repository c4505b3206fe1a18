"""Segmentation of a scan: preprocessing, sliding window, postprocessing, and resampling to the scan's own grid.

The trainer's validation, `semiseg evaluate` and the server use the same code with different engines.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from semiseg.bundle.coarse_settings import CoarsePassSettings
from semiseg.bundle.manifest import Manifest
from semiseg.bundle.mask_fingerprint import measure_mask
from semiseg.bundle.out_of_distribution import full_pass_reason, out_of_distribution_warnings
from semiseg.bundle.preprocessing import PreprocessedScan
from semiseg.bundle.variant import Precision
from semiseg.deprecation import RenamedMember, renamed_arguments, renamed_attributes
from semiseg.engines.engine import Engine
from semiseg.errors import EngineError, InputError
from semiseg.inference.pass_progress import PassProgress
from semiseg.inference.probabilities import BlendObserver, ProbabilityCollector
from semiseg.inference.segment_entropy import SegmentEntropy
from semiseg.inference.timing import Progress, Timing
from semiseg.inference.window_passes import Labels, ScanRun, Spacing, WindowPasses
from semiseg.volumes.scan_warning import ScanWarning
from semiseg.volumes.segmentation import Segmentation
from semiseg.volumes.volume import Volume, affine_spacing, format_shape, voxel_ml

_LOG = logging.getLogger("semiseg.inference")
FULL_PASS_REQUESTED = "A full pass was requested."

if not TYPE_CHECKING:
    __getattr__ = renamed_attributes(__name__, Settings="SlidingWindowOptions")


@dataclass(frozen=True)
class SlidingWindowOptions:
    """Options of the sliding window; None selects the default of the manifest.

    Attributes:
        window: Size of the window in voxels, one of the manifest's allowed windows.
        overlap: Share of a window covered again by the next, 0 <= overlap < 1, or one for each axis.
        batch: Number of windows per call of the network.
        full: If True, run all windows of every scan, also if the model has a coarse pass.
    """

    window: tuple[int, int, int] | None = None
    overlap: float | tuple[float, float, float] | None = None
    batch: int = 1
    full: bool = False


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

    def __init__(
        self,
        manifest: Manifest,
        engine: Engine,
        settings: SlidingWindowOptions | None = None,
        *,
        precision: Precision | None = None,
    ) -> None:
        """Check ``settings`` against the manifest.

        Args:
            manifest: Manifest of the model.
            engine: Engine that runs the model's network.
            settings: Options of the sliding window.
            precision: Precision of the graph that the engine runs. The model's coarse pass is used only if it was
                proved in this precision; by default, if it was proved in all precisions of the model.

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
        reason = self._full_pass_reason(settings, precision)
        coarse = None if reason else manifest.coarse_pass
        self._passes = WindowPasses(manifest, engine, window, overlap, self.batch, coarse, reason)

    @property
    def coarse_pass(self) -> CoarsePassSettings | None:
        """Settings of the coarse pass; None if all windows of every scan are run."""
        return self._passes.coarse

    @property
    def full_pass_reason(self) -> str:
        """A sentence that says why there is no coarse pass; empty if there is one."""
        return self._passes.full_pass_reason

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
        full: bool = False,
    ) -> Segmentation:
        """Segment one scan, given as its channels by name; the result is on the grid of the first channel.

        Args:
            channels: Volume of each of the manifest's channels, all on one grid.
            progress: Called with (windows done, windows in total) after each batch. During a coarse pass the total is
                the largest possible one.
            cancelled: Called between batches; the segmentation stops if it returns True.
            timing: Object that receives the seconds of each stage.
            observers: Objects that receive the network's output at each voxel.
            probabilities: If True, include the probabilities in the result.
            full: If True, run all windows, also if the model has a coarse pass.

        Raises:
            InputError: A channel is missing or unknown.
            VolumeError: The channels are on different grids, or contain values that are not finite.
            EngineError: The network failed, or there is not enough memory.
            Cancelled: ``cancelled`` returned True.
        """
        scan = ScanRun(timing if timing is not None else Timing(), PassProgress(progress), cancelled, observers)
        warnings = functools.partial(self.out_of_distribution_warnings, channels)
        return self._segment(self._ordered(channels), scan, warnings, probabilities=probabilities, full=full)

    def segment_with_warnings(
        self,
        channels: Mapping[str, Volume],
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        timing: Timing | None = None,
        probabilities: bool = False,
        full: bool = False,
    ) -> tuple[Segmentation, tuple[ScanWarning, ...]]:
        """Segment one scan as :meth:`segment` does, and return warnings if scan or mask are out of distribution."""
        timing = timing if timing is not None else Timing()
        doubt = SegmentEntropy(len(self.manifest.segments), self.manifest.activation)
        scan = ScanRun(timing, PassProgress(progress), cancelled, [doubt])
        warnings = functools.cache(functools.partial(self.out_of_distribution_warnings, channels))
        ordered = self._ordered(channels)
        segmentation = self._segment(ordered, scan, warnings, probabilities=probabilities, full=full)
        clock = time.perf_counter()
        remarks = warnings()
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
        spacing: Spacing | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        timing: Timing | None = None,
        observers: Sequence[BlendObserver] = (),
        full: bool = False,
    ) -> Labels:
        """Segment a preprocessed scan (C, X, Y, Z) into a label map uint8 (X, Y, Z) or masks bool (K, X, Y, Z).

        The voxel ``spacing`` in mm is by default that of the model's preprocessing; if neither is known, or if ``full``
        is True, all windows are run.
        """
        return self._passes.run(
            array,
            ScanRun(timing if timing is not None else Timing(), PassProgress(progress), cancelled, observers),
            spacing=spacing or self.manifest.preprocessing.spacing,
            full_pass_reason=FULL_PASS_REQUESTED if full else "",
        )

    def probabilities_of_preprocessed(self, array: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the probabilities (K, X, Y, Z) of the segments of a preprocessed scan (C, X, Y, Z), in 255ths."""
        kept = self._probability_collector()
        self.segment_preprocessed(array, observers=[kept])
        return np.asarray(self._passes.unpadded(kept.array(), array.shape[1:]))

    def warm_up(self) -> None:
        """Run one batch of zeros, so that the engine's lazy initialisation does not delay the first scan."""
        windows = np.zeros((self.batch, len(self.manifest.channels), *self.window), dtype=np.float32)
        logits = self.engine.logits(self.engine.run(windows))
        expected = (self.batch, self.manifest.outputs, *self.window)
        if logits.shape != expected:
            raise InputError(f"The network returned shape {logits.shape}; the manifest specifies {expected}.")

    def _segment(
        self,
        ordered: Mapping[str, Volume],
        scan: ScanRun,
        warnings: Callable[[], tuple[ScanWarning, ...]],
        *,
        probabilities: bool,
        full: bool,
    ) -> Segmentation:
        with self._enough_memory(ordered):
            clock = time.perf_counter()
            prepared = self.manifest.preprocessing.apply(ordered)
            scan.timing.add("preprocessing", clock)
            kept = self._probability_collector() if probabilities else None
            scan = replace(scan, observers=(*scan.observers, kept)) if kept else scan
            run = functools.partial(
                self._passes.run,
                prepared.array,
                scan,
                spacing=affine_spacing(prepared.affine),
                veto=lambda: full_pass_reason(warnings()),
            )
            labels = run(full_pass_reason=FULL_PASS_REQUESTED if full else "")
            segmentation = self._restored(labels, prepared, scan.timing)
            if reason := self._unusual_volumes(segmentation, scan.timing):
                segmentation = self._restored(run(full_pass_reason=reason), prepared, scan.timing)
            if kept is not None:
                clock = time.perf_counter()
                inside = self._passes.unpadded(kept.array(), prepared.array.shape[1:])
                shares = self.manifest.preprocessing.restore_image(inside, prepared.geometry)
                segmentation = replace(segmentation, probabilities=shares)
                scan.timing.add("restoring", clock)
        if self.manifest.coarse_pass is not None and scan.timing.counts is not None:
            _LOG.info("%s", scan.timing.counts.description)
        return segmentation

    def _restored(self, labels: Labels, prepared: PreprocessedScan, timing: Timing) -> Segmentation:
        """Apply the postprocessing to labels of a preprocessed scan, and resample them to the scan's own grid."""
        clock = time.perf_counter()
        cleaned = self._clean(labels, prepared)
        array = self.manifest.preprocessing.restore(cleaned, prepared.geometry)
        timing.add("restoring", clock)
        return Segmentation(self.manifest.segments, array, prepared.geometry.affine)

    def _unusual_volumes(self, segmentation: Segmentation, timing: Timing) -> str:
        """Return a sentence if windows were skipped and a segment is smaller or larger than in training; else empty."""
        counts, masks = timing.counts, self.manifest.masks
        if counts is None or counts.run == counts.planned or masks is None:
            return ""
        names = masks.unusual_volumes(segmentation.volumes_ml())
        if not names:
            return ""
        return (
            f"All windows were run because, with skipped windows, the volume of {', '.join(names)} was outside the "
            "range of the training scans."
        )

    def _full_pass_reason(self, settings: SlidingWindowOptions, precision: Precision | None) -> str:
        """Return a sentence that says why no scan gets a coarse pass; empty if scans get one."""
        manifest = self.manifest
        if manifest.coarse_pass is None:
            return "The model has no coarse pass."
        if settings.full:
            return FULL_PASS_REQUESTED
        if (self.window, self.overlap) != (manifest.window, manifest.overlaps):
            return "The coarse pass was proved for the model's own window and overlap only, and others were requested."
        precisions = [variant.precision for variant in manifest.variants] if precision is None else [precision]
        if unproved := [each for each in precisions if not manifest.coarse_pass.proved_in(each)]:
            return f"The coarse pass was not proved in {', '.join(unproved)}."
        return ""

    def _probability_collector(self) -> ProbabilityCollector:
        return ProbabilityCollector(len(self.manifest.segments), self.manifest.activation)

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
