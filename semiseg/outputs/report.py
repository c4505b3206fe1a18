"""The answer in JSON: what was found, where it lies, which model found it and how long that took."""

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
    """Which model answered.

    Attributes:
        name: the model's.
        sha256: of the exported graph that ran; None for a training run, whose weights still change.
        method: how it was trained.
        version: the semiseg release that trained it.
        precision: of the graph that ran.
        engine: what ran it.
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
        """The identity that ``manifest`` claims, for the graph with this SHA-256."""
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
        name: what it is called.
        label: the integer that stands for it in a label map.
        ml: its volume in millilitres.
    """

    name: str
    label: int
    ml: float


class Geometry(_Part):
    """The grid of the scan, which is the grid of the answer.

    Attributes:
        shape: voxels along the file's own axes.
        spacing: mm along them.
        orientation: the nearest anatomical direction of each axis, such as LPS.
        affine: maps voxel indices to RAS+ mm.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    affine: Matrix


class SeriesReport(_Part):
    """The DICOM series that was segmented.

    Attributes:
        uid: Series Instance UID.
        modality: such as MR or CT.
        description: Series Description.
        slices: how many images made the volume.
    """

    uid: str
    modality: str
    description: str
    slices: int


class SeriesDecisionReport(_Part):
    """What was decided of one series among the files.

    Attributes:
        uid: Series Instance UID.
        description: Series Description.
        channel: which channel it serves; null where it serves none.
        reason: why, as a sentence.
    """

    uid: str
    description: str
    channel: str | None
    reason: str


class ScanWarningReport(_Part):
    """Something that was noticed about the scan, or done to it.

    Attributes:
        code: for machines.
        text: a sentence for people.
    """

    code: str
    text: str


class Report(_Part):
    """The whole answer.

    Attributes:
        notice: that it is for research only.
        model: which one answered.
        segments: what it outlined.
        geometry: the grid of the answer.
        series: the one whose grid it is; null for a scan that is not DICOM.
        selection: what was decided of every image series among the files.
        remarks: what sets the scan apart, and what was done to it.
        windows: of the sliding window.
        seconds: per stage.
    """

    notice: str
    model: ModelIdentity
    segments: tuple[SegmentReport, ...]
    geometry: Geometry
    series: SeriesReport | None
    selection: tuple[SeriesDecisionReport, ...]
    remarks: tuple[ScanWarningReport, ...]
    windows: int
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
        seconds: Mapping[str, float],
    ) -> Report:
        """Report on the ``segmentation`` of ``scan``; ``remarks`` are those of the segmenter."""
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
            seconds={stage: round(value, 6) for stage, value in seconds.items()},
        )


def _uncoded(segmentation: Segmentation, scan: Scan) -> tuple[ScanWarning, ...]:
    """For DICOM: segments that only a private code can name."""
    names = [segment.name for segment in segmentation.segments if segment.type is None]
    if scan.series is None or not names:
        return ()
    text = (
        f"No code of a standard terminology is known for {', '.join(names)}; DICOM answers name them in the private "
        f"scheme {PRIVATE_SCHEME}. Codes are given in the recipe, under `segments`."
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
