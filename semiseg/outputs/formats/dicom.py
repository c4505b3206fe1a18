"""Output formats that are DICOM objects, which refer to the segmented images."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from semiseg.errors import InputError
from semiseg.outputs.formats.base import FormatInput, OutputFormat

if TYPE_CHECKING:
    from semiseg.bundle.manifest import Manifest
    from semiseg.volumes.dicom_series import DicomSeries

SegmentationType = Literal["binary", "fractional", "labelmap"]
"""Segmentation Type of a SEG (PS3.3 C.8.20.2)."""
OVERLAP_MESSAGE = "Overlapping regions cannot be a label map in DICOM; use the format seg, which has a mask for each."
_IMPLICIT_VR, _EXPLICIT_VR = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"


class DicomFormat(OutputFormat):
    """A format whose objects refer to the images of a DICOM series."""

    file_name = "segmentation.dcm"
    media_type = "application/dicom"
    suffixes = (".dcm",)
    needs_dicom = True
    needs_highdicom = True
    transfer_syntax = _EXPLICIT_VR

    def write(self, path: Path, data: FormatInput) -> None:
        """See :meth:`OutputFormat.write`."""
        if data.series is None:
            raise InputError(f"A DICOM {self.name.upper()} needs the DICOM series that was segmented.")
        self.check_installed()
        self._write(path, data, data.series)

    @abstractmethod
    def _write(self, path: Path, data: FormatInput, series: DicomSeries) -> None:
        """Write the objects that refer to ``series``."""


class SegFormat(DicomFormat):
    """A binary SEG (PS3.3 A.51)."""

    name = "seg"
    sop_class = "1.2.840.10008.5.1.4.1.1.66.4"
    segmentation_type: ClassVar[SegmentationType] = "binary"

    def _write(self, path: Path, data: FormatInput, series: DicomSeries) -> None:
        from semiseg.outputs.dicom_common import Algorithm, write_dicom
        from semiseg.outputs.dicom_seg import segmentation_to_seg

        dataset = segmentation_to_seg(
            data.segmentation,
            series,
            algorithm=Algorithm.from_identity(data.report.model),
            remarks=[remark.text for remark in data.report.remarks],
            segmentation_type=self.segmentation_type,
        )
        write_dicom(path, dataset)


class SegLabelMapFormat(SegFormat):
    """A label map as a SEG (PS3.3 A.51, Label Map Segmentation)."""

    name = "seg-labelmap"
    sop_class = "1.2.840.10008.5.1.4.1.1.66.7"
    segmentation_type: ClassVar[SegmentationType] = "labelmap"

    def check_model(self, manifest: Manifest) -> None:
        """See :meth:`OutputFormat.check_model`."""
        if manifest.activation == "sigmoid":
            raise InputError(OVERLAP_MESSAGE)


class SegFractionalFormat(SegFormat):
    """A SEG with the network's probabilities."""

    name = "seg-fractional"
    needs_probabilities = True
    segmentation_type: ClassVar[SegmentationType] = "fractional"


class RtStructFormat(DicomFormat):
    """Contours as an RT Structure Set (PS3.3 A.19)."""

    name = "rtstruct"
    file_name = "structures.dcm"
    sop_class = "1.2.840.10008.5.1.4.1.1.481.3"
    transfer_syntax = _IMPLICIT_VR
    needs_highdicom = False

    def _write(self, path: Path, data: FormatInput, series: DicomSeries) -> None:
        from semiseg.outputs.dicom_common import Algorithm, write_dicom
        from semiseg.outputs.dicom_rtstruct import segmentation_to_rtstruct

        algorithm = Algorithm.from_identity(data.report.model)
        write_dicom(path, segmentation_to_rtstruct(data.segmentation, series, algorithm=algorithm))


class SrFormat(DicomFormat):
    """Volumes as a Comprehensive 3D SR with TID 1500 (PS3.16)."""

    name = "sr"
    file_name = "report.dcm"
    sop_class = "1.2.840.10008.5.1.4.1.1.88.34"

    def _write(self, path: Path, data: FormatInput, series: DicomSeries) -> None:
        from semiseg.outputs.dicom_common import Algorithm, write_dicom
        from semiseg.outputs.dicom_sr import segmentation_to_sr

        algorithm = Algorithm.from_identity(data.report.model)
        remarks = [remark.text for remark in data.report.remarks]
        write_dicom(path, segmentation_to_sr(data.segmentation, series, algorithm=algorithm, remarks=remarks))


class OverlayFormat(DicomFormat):
    """Secondary captures of the slices with the outlines, in a zip (PS3.3 A.8)."""

    name = "overlay"
    file_name = "overlay.zip"
    media_type = "application/zip"
    suffixes = (".zip",)
    several_files = True
    sop_class = "1.2.840.10008.5.1.4.1.1.7"

    def _write(self, path: Path, data: FormatInput, series: DicomSeries) -> None:
        from semiseg.outputs.dicom_common import Algorithm
        from semiseg.outputs.dicom_overlay import segmentation_to_overlays, write_overlays

        algorithm = Algorithm.from_identity(data.report.model)
        write_overlays(path, segmentation_to_overlays(data.segmentation, series, algorithm=algorithm))
