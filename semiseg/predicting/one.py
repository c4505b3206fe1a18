"""One scan, from its files to the file of its answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from semiseg.inference.segmenter import Segmenter
from semiseg.inference.sliding_window import Progress, Timing
from semiseg.outputs.answer import chosen_kind, write_answer
from semiseg.outputs.kind import FORMS, Kind
from semiseg.outputs.report import ModelIdentity, Report
from semiseg.volumes.scan import open_scan
from semiseg.volumes.wishes import Wishes


class Model(Protocol):
    """What segments, and who it is."""

    @property
    def segmenter(self) -> Segmenter:
        """What segments."""

    @property
    def identity(self) -> ModelIdentity:
        """Who it is."""


def segment_file(
    model: Model,
    files: Path | Mapping[str, Path],
    out: Path,
    kind: Kind,
    wishes: Wishes | None = None,
    progress: Progress | None = None,
) -> tuple[Report, Timing]:
    """Segment a scan and write the answer.

    Args:
        model: what segments.
        files: a NIfTI file, a folder or zip of a DICOM study; or those of each channel, by its name.
        out: where the answer goes; its folder exists.
        kind: the form of the answer.
        wishes: which series to take, and what to refuse or to trust.
        progress: told (windows done, windows in all).

    Returns:
        The report, and the seconds of each stage, writing included.

    Raises:
        InputError: the scan cannot be read, or does not suit the model or the form.
        SemisegError: the network failed.
    """
    timing, clock = Timing(), time.perf_counter()
    manifest = model.segmenter.manifest
    scan = open_scan(files, manifest.rules, wishes)
    chosen = chosen_kind(kind, scan.series, manifest)
    timing.add("reading", clock)
    segmentation, remarks = model.segmenter.segment_with_remarks(
        scan.channels, progress=progress, timing=timing, probabilities=FORMS[chosen].probabilities
    )
    report = Report.of(segmentation, model.identity, scan, remarks, windows=timing.windows, seconds=timing.seconds)
    clock = time.perf_counter()
    # The first channel's grid is the answer's.
    source = files if isinstance(files, Path) else files[manifest.channel_names[0]]
    write_answer(out, chosen, segmentation, report, series=scan.series, source=source, image=scan.grid)
    timing.add("writing", clock)
    return report, timing
