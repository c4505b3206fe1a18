"""The result of a prediction: the segmentation of one scan, and the data that is needed to write it to files."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.deprecation import renamed_arguments
from semiseg.errors import InputError
from semiseg.inference.timing import Timing
from semiseg.outputs.format_selection import format_from_path, require_format
from semiseg.outputs.formats import FormatInput, OutputFormat
from semiseg.outputs.report import Report
from semiseg.volumes.scan import Scan
from semiseg.volumes.segmentation import Segmentation


@dataclass(frozen=True, eq=False)
class Prediction:
    """The segmentation of one scan, on the scan's own grid.

    Attributes:
        scan: The scan that was segmented.
        segmentation: The segments and their voxels.
        report: The JSON report: volumes, warnings, geometry, and the model's identity.
        timing: Seconds of each stage; :meth:`save` adds ``writing``.

    Examples:
        >>> import semiseg
        >>> prediction = semiseg.load_model("BUNDLE", threads=1).predict("SCAN.nii.gz")
        >>> prediction.array.shape, str(prediction.array.dtype)
        ((22, 20, 13), 'uint8')
        >>> prediction.affine.shape
        (4, 4)
    """

    scan: Scan
    segmentation: Segmentation
    report: Report
    timing: Timing = field(default_factory=Timing)

    @property
    def array(self) -> NDArray[Any]:
        """The voxels: a label map, uint8 (X, Y, Z), or masks of overlapping regions, bool (K, X, Y, Z)."""
        return self.segmentation.array

    @property
    def affine(self) -> NDArray[np.float64]:
        """The matrix (4, 4) from voxel indices to RAS+ mm."""
        return self.segmentation.affine

    @property
    def volumes(self) -> dict[str, float]:
        """The volume of each segment in ml, by the segment's name."""
        return {segment.name: segment.ml for segment in self.report.segments}

    @property
    def warnings(self) -> list[str]:
        """Warnings about the scan and the mask: corrections of the input, and differences from the training scans."""
        return [remark.text for remark in self.report.remarks]

    def mask(self, segment: str) -> NDArray[np.bool_]:
        """The binary mask (X, Y, Z) of one segment.

        Args:
            segment: Name of the segment.

        Raises:
            InputError: The model has no segment of this name.

        Examples:
            >>> import semiseg
            >>> prediction = semiseg.load_model("BUNDLE", threads=1).predict("SCAN.nii.gz")
            >>> int(prediction.mask("liver").sum()) == int((prediction.array == 1).sum())
            True
        """
        names = [one.name for one in self.segmentation.segments]
        if segment not in names:
            raise InputError(f"There is no segment {segment!r}; the model has {', '.join(names)}.")
        return self.segmentation.mask(names.index(segment))

    def save(self, path: str | Path, format: str | None = None) -> Path:  # noqa: A002 - the usual word
        """Write the prediction to a file.

        Args:
            path: Path of the file; its folder exists. The suffix selects NIfTI (``.nii.gz``, ``.nii``), a
                segmentation of 3D Slicer (``.seg.nrrd``), NRRD (``.nrrd``), DICOM SEG (``.dcm``), overlay (``.zip``)
                or the JSON report (``.json``).
            format: Name of the output format, if the suffix alone does not determine it: one of
                :data:`semiseg.outputs.formats.OUTPUT_FORMATS`, such as ``rtstruct`` or ``sr``.

        Returns:
            The path of the file.

        Raises:
            InputError: The format is unknown, does not match the suffix, needs a scan that is a DICOM series, or needs
                probabilities that the prediction does not have.

        Examples:
            >>> import semiseg
            >>> prediction = semiseg.load_model("BUNDLE", threads=1).predict("SERIES")
            >>> prediction.save("mask.nii.gz").name
            'mask.nii.gz'
            >>> prediction.save("contours.dcm", format="rtstruct").name
            'contours.dcm'
        """
        path = Path(path)
        output_format = format_from_path(path, format)
        if output_format.needs_probabilities and self.segmentation.probabilities is None:
            raise InputError(
                f"The format {output_format.name} needs probabilities; call predict with probabilities=True."
            )
        if not path.parent.is_dir():
            raise InputError(f"There is no folder {path.parent} to write {path.name} into.")
        self.write(path, output_format)
        return path

    @renamed_arguments(kind="output_format")
    def write(self, path: Path, output_format: OutputFormat | str) -> None:
        """Write the prediction in one output format, regardless of the file name.

        Args:
            path: Path of the file.
            output_format: Output format or its name.

        Raises:
            InputError: The format is unknown, needs a scan that is a DICOM series, or cannot hold the segmentation.
        """
        clock = time.perf_counter()
        scan = self.scan
        data = FormatInput(self.segmentation, self.report, scan.series, scan.source, scan.grid)
        require_format(output_format).write(path, data)
        self.timing.add("writing", clock)
