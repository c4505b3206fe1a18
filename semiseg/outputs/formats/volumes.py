"""Output formats that hold masks as a volume: NIfTI, NRRD, and the segmentations of 3D Slicer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from semiseg.outputs.formats.base import FormatInput, OutputFormat

if TYPE_CHECKING:
    from semiseg.bundle.manifest import Manifest


class NiftiFormat(OutputFormat):
    """A NIfTI label map; segments that may overlap become one volume each along a fourth axis."""

    name = "nifti"
    file_name = "segmentation.nii.gz"
    media_type = "application/gzip"
    suffixes = (".nii.gz", ".nii")

    def write(self, path: Path, data: FormatInput) -> None:
        """See :meth:`OutputFormat.write`."""
        from semiseg.outputs.nifti import write_nifti_result

        write_nifti_result(path, data.segmentation, data.source)


class NiftiLabelMapFormat(NiftiFormat):
    """A NIfTI label map also of segments that may overlap, where the segment with the higher value is kept."""

    name = "nifti-labelmap"

    def write(self, path: Path, data: FormatInput) -> None:
        """See :meth:`OutputFormat.write`."""
        segmentation = replace(data.segmentation, array=data.segmentation.label_map())
        super().write(path, replace(data, segmentation=segmentation))

    def check_model(self, manifest: Manifest) -> None:
        """See :meth:`OutputFormat.check_model`."""
        from semiseg.volumes.segmentation import painted_values

        if manifest.activation == "sigmoid":
            painted_values(manifest.segments)


class SegNrrdFormat(OutputFormat):
    """A segmentation of 3D Slicer."""

    name = "seg-nrrd"
    file_name = "segmentation.seg.nrrd"
    media_type = "application/x-nrrd"
    suffixes = (".seg.nrrd",)

    def write(self, path: Path, data: FormatInput) -> None:
        """See :meth:`OutputFormat.write`."""
        from semiseg.outputs.nrrd import write_seg_nrrd

        write_seg_nrrd(path, data.segmentation)


class NrrdFormat(OutputFormat):
    """An NRRD label map, or a list of masks."""

    name = "nrrd"
    file_name = "segmentation.nrrd"
    media_type = "application/x-nrrd"
    suffixes = (".nrrd",)

    def write(self, path: Path, data: FormatInput) -> None:
        """See :meth:`OutputFormat.write`."""
        from semiseg.outputs.nrrd import write_nrrd

        write_nrrd(path, data.segmentation)
