"""The interface of an output format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from semiseg.errors import InputError

if TYPE_CHECKING:
    from semiseg.bundle.manifest import Manifest
    from semiseg.outputs.report import Report
    from semiseg.volumes.dicom_series import DicomSeries
    from semiseg.volumes.segmentation import Segmentation
    from semiseg.volumes.volume import Volume


@dataclass(frozen=True)
class FormatInput:
    """The data from which an output format is written.

    Attributes:
        segmentation: Segmentation, on the grid of the scan.
        report: Report of the segmentation; DICOM objects repeat the identity of the model from it.
        series: DICOM series of the scan; None for a scan in one file.
        source: File from which the scan was read. If it is a NIfTI file, NIfTI results repeat its coordinate system and
            a fourth axis of length one, so that shape and affine are exactly those of the source.
        image: First channel of the scan; None if it is not kept.
    """

    segmentation: Segmentation
    report: Report
    series: DicomSeries | None = None
    source: Path | None = None
    image: Volume | None = None


class OutputFormat(ABC):
    """An output format of segmentations.

    Subclasses are listed in :data:`semiseg.outputs.formats.OUTPUT_FORMATS`, from which the command line, the server,
    the client, the page, the gateway and the documents take their lists. Modules of formats import libraries only when
    they write, because clients and the gateway read the properties without having those libraries.

    Attributes:
        name: Name in options and requests.
        file_name: Default name of the file.
        media_type: Media type of the file.
        suffixes: Suffixes of file names; the first is the usual one.
        needs_dicom: True if the format refers to the segmented DICOM images, and therefore needs a DICOM series.
        needs_image: True if the format contains the scan.
        needs_probabilities: True if the format contains the network's probabilities of the segments.
        needs_highdicom: True if highdicom writes the format, which is not always installed (see pyproject.toml).
        several_files: True if the file is a zip of several files of the format.
        sop_class, transfer_syntax: UIDs of the DICOM objects (PS3.4 B.5, PS3.5 A); empty for other formats.
    """

    name: ClassVar[str]
    file_name: ClassVar[str]
    media_type: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    needs_dicom: ClassVar[bool] = False
    needs_image: ClassVar[bool] = False
    needs_probabilities: ClassVar[bool] = False
    needs_highdicom: ClassVar[bool] = False
    several_files: ClassVar[bool] = False
    sop_class: ClassVar[str] = ""
    transfer_syntax: ClassVar[str] = ""

    @abstractmethod
    def write(self, path: Path, data: FormatInput) -> None:
        """Write a result.

        Args:
            path: Path of the file; its suffix may decide about compression.
            data: The result. ``data.series`` and ``data.image`` are there if the format needs them.

        Raises:
            InputError: The segmentation cannot be written in this format.
        """

    def check_model(self, manifest: Manifest) -> None:  # noqa: B027 - most formats have nothing to check
        """Check that the format can hold the segments of a model; by default every format can.

        Raises:
            InputError: It cannot.
        """

    def check_installed(self) -> None:
        """Check that the library that writes the format is installed.

        Raises:
            InputError: It is not.
        """
        if self.needs_highdicom and find_spec("highdicom") is None:
            raise InputError(
                f"DICOM {self.name.upper()} objects are written by the package highdicom, which is not installed here: "
                "`pip install --no-deps highdicom`, or use the format nifti or rtstruct."
            )
