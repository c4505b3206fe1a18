"""The JSON report of a segmentation: volumes, geometry, warnings, model identity and times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from semiseg.bundle.manifest import Manifest
from semiseg.bundle.variant import Precision
from semiseg.outputs.viewer_compatibility import viewer_warnings
from semiseg.volumes.dicom_series import DicomSeries
from semiseg.volumes.scan import Scan
from semiseg.volumes.scan_warning import ScanWarning
from semiseg.volumes.segmentation import PRIVATE_SCHEME, Segmentation
from semiseg.volumes.volume import affine_axcodes, affine_spacing

NOTICE = "RESEARCH USE ONLY"
Row = tuple[float, float, float, float]
Matrix = tuple[Row, Row, Row, Row]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelIdentity(_Part):
    """Identity of a model.

    Attributes:
        name: Name of the model.
        sha256: SHA-256 of the exported graph that ran; null for a training run, whose weights still change.
        method: Training method of the model.
        version: Release of semiseg that trained the model.
        precision: Precision of the graph that ran.
        engine: Engine and device that ran the graph.
    """

    name: str
    sha256: str | None
    method: str
    version: str
    precision: Precision = "fp32"
    engine: str | None = None

    @classmethod
    def from_manifest(
        cls, manifest: Manifest, sha256: str | None, *, precision: Precision = "fp32", engine: str | None = None
    ) -> ModelIdentity:
        """Create the identity from a manifest, for the graph with this SHA-256."""
        origin = manifest.provenance
        return cls(
            name=manifest.name,
            sha256=sha256,
            method=origin.method,
            version=origin.semiseg,
            precision=precision,
            engine=engine,
        )


class SegmentReport(_Part):
    """One segment.

    Attributes:
        name: Name of the segment.
        label: Value of the segment in a label map.
        ml: Volume of the segment in millilitres.
    """

    name: str
    label: int
    ml: float


class Geometry(_Part):
    """Grid of the scan and of the result.

    Attributes:
        shape: Number of voxels along the file's own axes.
        spacing: Voxel spacing in mm along these axes.
        orientation: Nearest anatomical direction of each axis, such as LPS.
        affine: Matrix from voxel indices to RAS+ mm.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    affine: Matrix


class SeriesReport(_Part):
    """The DICOM series that was segmented.

    Attributes:
        uid: Series Instance UID.
        modality: Modality, such as MR or CT.
        description: Series Description.
        slices: Number of images of the volume.
    """

    uid: str
    modality: str
    description: str
    slices: int


class SeriesDecisionReport(_Part):
    """Decision on one of the DICOM series among the files.

    Attributes:
        uid: Series Instance UID.
        description: Series Description.
        channel: Name of the channel that the series serves; null if it serves none.
        reason: Reason of the decision, as a sentence.
    """

    uid: str
    description: str
    channel: str | None
    reason: str


class ScanWarningReport(_Part):
    """Warning about the scan or the mask, or correction of the scan.

    Attributes:
        code: Code for programs.
        text: Sentence for people.
    """

    code: str
    text: str


class WindowCountsReport(_Part):
    """Numbers of windows of the sliding window, and the reason for them.

    Attributes:
        planned: Number of windows of a full pass.
        run: Number of windows of the pass that gave the result.
        preliminary: Number of windows that were run before: those of the coarse pass, and those of a pass that was
            followed by a full pass.
        reason: Sentence that says why windows were skipped, or why none were.
    """

    planned: int
    run: int
    preliminary: int
    reason: str


class Report(_Part):
    """Report of a segmentation.

    Attributes:
        notice: Notice that the result is for research use only.
        model: Identity of the model.
        segments: Segments of the model and their volumes.
        geometry: Grid of the result.
        series: DICOM series on whose grid the result is; null for a scan that is not DICOM.
        selection: Decision on every DICOM image series among the files.
        remarks: Warnings about the scan and the mask, and corrections of the scan.
        windows: Total number of sliding windows that were run.
        window_counts: Number of windows of a full pass and number that were run; null in reports of versions that did
            not record them.
        seconds: Seconds per stage.
    """

    notice: str
    model: ModelIdentity
    segments: tuple[SegmentReport, ...]
    geometry: Geometry
    series: SeriesReport | None
    selection: tuple[SeriesDecisionReport, ...]
    remarks: tuple[ScanWarningReport, ...]
    windows: int
    window_counts: WindowCountsReport | None = None
    seconds: dict[str, float]

    @classmethod
    def from_segmentation(
        cls,
        segmentation: Segmentation,
        model: ModelIdentity,
        scan: Scan,
        remarks: Sequence[ScanWarning],
        *,
        windows: int,
        window_counts: WindowCountsReport | None = None,
        seconds: Mapping[str, float],
    ) -> Report:
        """Create the report of a segmentation; ``remarks`` are the segmenter's warnings."""
        affine = segmentation.affine
        ml = segmentation.volumes_ml()
        return cls(
            notice=NOTICE,
            model=model,
            segments=tuple(
                SegmentReport(name=s.name, label=s.label, ml=round(ml[s.name], 6)) for s in segmentation.segments
            ),
            geometry=Geometry(
                shape=segmentation.shape,
                spacing=affine_spacing(affine),
                orientation=affine_axcodes(affine),
                affine=_matrix(affine),
            ),
            series=_series(scan.series),
            selection=tuple(SeriesDecisionReport(**asdict(decision)) for decision in scan.decisions),
            remarks=tuple(
                ScanWarningReport(code=remark.code, text=remark.text)
                for remark in (*scan.warnings, *remarks, *_uncoded(segmentation, scan), *viewer_warnings(scan.series))
            ),
            windows=windows,
            window_counts=window_counts,
            seconds={stage: round(value, 6) for stage, value in seconds.items()},
        )


def _uncoded(segmentation: Segmentation, scan: Scan) -> tuple[ScanWarning, ...]:
    """Return a warning if segments of a DICOM scan have no standard code and need a private one."""
    names = [segment.name for segment in segmentation.segments if segment.type is None]
    if scan.series is None or not names:
        return ()
    text = (
        f"No code of a standard terminology is known for {', '.join(names)}; DICOM results name them in the private "
        f"scheme {PRIVATE_SCHEME}. Codes can be set in the recipe, under `segments`."
    )
    return (ScanWarning("uncoded_segments", text),)


def _series(series: DicomSeries | None) -> SeriesReport | None:
    if series is None:
        return None
    return SeriesReport(
        uid=series.uid, modality=series.modality, description=series.description, slices=len(series.slices)
    )


def _matrix(affine: NDArray[np.float64]) -> Matrix:
    first, second, third, fourth = ((float(a), float(b), float(c), float(d)) for a, b, c, d in affine)
    return (first, second, third, fourth)
