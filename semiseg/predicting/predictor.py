"""The predictor, which the command line, the server, its jobs, Ray workers and Python use to segment scans."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from semiseg.bundle.bundle import open_bundle
from semiseg.bundle.manifest import Manifest
from semiseg.bundle.variant import Precision, parse_precision
from semiseg.deprecation import RenamedMember, renamed_arguments
from semiseg.inference.engine_selection import EngineSelection, choose_engine
from semiseg.inference.segmenter import Segmenter, SlidingWindowOptions
from semiseg.inference.timing import Progress, Timing
from semiseg.outputs.format_selection import resolve_format
from semiseg.outputs.formats import OutputFormat
from semiseg.outputs.report import ModelIdentity, Report, WindowCountsReport
from semiseg.predicting.prediction import Prediction
from semiseg.volumes.read_options import Paths, ReadOptions
from semiseg.volumes.scan import Scan, open_scan


@dataclass(frozen=True, eq=False)
class Predictor:
    """A model that is ready to segment scans.

    Attributes:
        segmenter: The sliding window over the model's network.
        identity: Name, version and SHA-256 of the model, for reports and DICOM objects.

    Examples:
        >>> import semiseg
        >>> model = semiseg.load_model("BUNDLE", threads=1)
        >>> prediction = model.predict("SCAN.nii.gz")
        >>> round(prediction.volumes["liver"])  # ml
        62
    """

    segmenter: Segmenter
    identity: ModelIdentity

    of_choice = RenamedMember("from_selection")

    @classmethod
    def from_selection(
        cls, manifest: Manifest, choice: EngineSelection, settings: SlidingWindowOptions | None = None
    ) -> Predictor:
        """Create the predictor of a manifest and a selected engine.

        Raises:
            InputError: The model does not allow the window or overlap of ``settings``.
        """
        taken = choice.selected
        identity = ModelIdentity.from_manifest(
            manifest, taken.sha256, precision=taken.precision, engine=taken.engine_and_device
        )
        return cls(Segmenter(manifest, choice.engine, settings, precision=taken.precision), identity)

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        settings: SlidingWindowOptions | None = None,
        *,
        threads: int | None = None,
        precision: Precision | None = None,
    ) -> Predictor:
        """Open and verify a bundle, select the engine for it, and run a first window; see :func:`load_model`.

        Raises:
            BundleError, InputError, EngineError: See :func:`load_model`.
        """
        opened = open_bundle(bundle)
        choice = choose_engine(opened, threads=threads, precision=precision)
        predictor = cls.from_selection(opened.manifest, choice, settings)
        predictor.segmenter.warm_up()
        return predictor

    @property
    def manifest(self) -> Manifest:
        """The manifest of the model: segments, channels, preprocessing, provenance."""
        return self.segmenter.manifest

    @property
    def segments(self) -> list[str]:
        """Names of the segments that the model finds."""
        return [segment.name for segment in self.manifest.segments]

    @property
    def channels(self) -> list[str]:
        """Names of the model's input channels."""
        return list(self.manifest.channel_names)

    def predict(
        self,
        scan: Scan | Paths | Mapping[str, Paths],
        *,
        series: str | None = None,
        strict: bool = False,
        aligned: bool = False,
        probabilities: bool = False,
        full: bool = False,
        progress: Progress | None = None,
    ) -> Prediction:
        """Segment one scan.

        Args:
            scan: Path of a NIfTI file or another volume, or of a folder or zip of a DICOM study; a list of DICOM
                files; a mapping from channel names to these for a model with several channels; or a scan that
                :meth:`open` returned.
            series: Series Instance UID of the DICOM series to segment, if the study contains several suitable ones;
                ``NAME=UID,NAME=UID`` for several channels.
            strict: If True, refuse a DICOM series whose slices would have to be corrected, files that would be skipped,
                and a volume whose header contradicts itself or does not distinguish left from right.
            aligned: If True, treat the channels as registered, although their files do not say so.
            probabilities: If True, keep the network's probabilities, which the format ``seg-fractional`` needs.
            full: If True, run all windows, also if the model has a coarse pass, with which windows can be skipped.
            progress: Called with (windows done, windows in total) after each batch of windows.

        Returns:
            The prediction, on the grid of the scan (of its first channel).

        Raises:
            VolumeError: The scan cannot be read or is not suitable for the model.
            EngineError: The network failed, or there is not enough memory.
        """
        timing = Timing()
        if not isinstance(scan, Scan):
            scan = self.open(scan, ReadOptions(series, strict=strict, aligned=aligned), timing=timing)
        return self.predict_scan(scan, probabilities=probabilities, full=full, progress=progress, timing=timing)

    @renamed_arguments(wishes="options")
    def predict_files(
        self,
        files: Paths | Mapping[str, Paths],
        format: OutputFormat | str,  # noqa: A002 - the usual word
        options: ReadOptions | None = None,
        progress: Progress | None = None,
    ) -> Prediction:
        """Segment one scan for one output format, which is checked against the scan before the network runs.

        Raises:
            InputError: The scan cannot be read, or is not suitable for the model or the format.
            SemisegError: The network failed.
        """
        timing = Timing()
        scan = self.open(files, options, timing=timing)
        output_format = resolve_format(format, scan.series, self.manifest)
        return self.predict_scan(
            scan, probabilities=output_format.needs_probabilities, progress=progress, timing=timing
        )

    @renamed_arguments(wishes="options")
    def open(
        self,
        files: Paths | Mapping[str, Paths],
        options: ReadOptions | None = None,
        *,
        scratch: Path | None = None,
        timing: Timing | None = None,
    ) -> Scan:
        """Read a scan with the channels of this model.

        Args:
            files: Path of the scan, several files, or those of each channel.
            options: Selection of the series, and strictness.
            scratch: Folder for unpacking zips; the system's temporary folder by default.
            timing: Object that receives the seconds of the stage ``reading``.

        Raises:
            VolumeError: See :func:`semiseg.volumes.scan.open_scan`.
        """
        clock = time.perf_counter()
        scan = open_scan(files, self.manifest.rules, options, scratch=scratch)
        if timing is not None:
            timing.add("reading", clock)
        return scan

    def predict_scan(
        self,
        scan: Scan,
        *,
        probabilities: bool = False,
        full: bool = False,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        timing: Timing | None = None,
    ) -> Prediction:
        """Segment a scan that :meth:`open` returned.

        Args:
            scan: The scan.
            probabilities: If True, keep the network's probabilities.
            full: If True, run all windows, also if the model has a coarse pass.
            progress: Called with (windows done, windows in total) after each batch of windows.
            cancelled: Called between batches of windows; the segmentation stops if it returns True.
            timing: Object that the seconds of each stage are added to.

        Raises:
            InputError, VolumeError, EngineError, Cancelled: See :meth:`Segmenter.segment`.
        """
        timing = timing if timing is not None else Timing()
        segmentation, remarks = self.segmenter.segment_with_warnings(
            scan.channels,
            progress=progress,
            cancelled=cancelled,
            timing=timing,
            probabilities=probabilities,
            full=full,
        )
        report = Report.from_segmentation(
            segmentation,
            self.identity,
            scan,
            remarks,
            windows=timing.windows,
            window_counts=None if timing.counts is None else WindowCountsReport(**asdict(timing.counts)),
            seconds=timing.seconds,
        )
        return Prediction(scan, segmentation, report, timing)


def load_model(
    path: str | Path,
    *,
    threads: int | None = None,
    precision: str | None = None,
    window: tuple[int, int, int] | None = None,
    overlap: float | None = None,
    batch: int = 1,
) -> Predictor:
    """Open the bundle that ``semiseg export`` made, verify it, and run a first window.

    Args:
        path: Folder of the bundle.
        threads: Number of CPU threads of the network; all by default.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``; by default the fastest that the export verified and this
            machine supports.
        window: Size of the sliding window in voxels (x, y, z); the model's own by default.
        overlap: Share of a window that the next one covers; the model's own by default.
        batch: Number of windows per call of the network.

    Returns:
        The model, ready to segment scans.

    Raises:
        BundleError: The folder is not a bundle, or the bundle is incomplete or altered.
        InputError: The model does not allow one of the options.
        EngineError: No inference engine on this machine can run the network.

    Examples:
        >>> import semiseg
        >>> model = semiseg.load_model("BUNDLE", threads=1)
        >>> model.segments, model.channels
        (['liver', 'spleen', 'kidneys'], ['MR'])
    """
    settings = SlidingWindowOptions(window, overlap, batch)
    return Predictor.load(path, settings, threads=threads, precision=parse_precision(precision))
