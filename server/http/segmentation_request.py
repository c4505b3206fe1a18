"""The request of an upload: the model, the options, and the files, of which at least one can be a scan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from semiseg.errors import InputError
from semiseg.predicting.segmentation_options import SegmentationOptions
from semiseg.volumes.archives import is_zip
from semiseg.volumes.dicom_file import is_dicom
from semiseg.volumes.file_types import describe_file, supported_inputs_text
from semiseg.volumes.formats.nifti import is_pair_header
from semiseg.volumes.formats.registry import is_image_file
from semiseg.volumes.formats.stream import read_start
from semiseg.volumes.scan import Scan
from server.http.limits import ApiError
from server.http.model import ServedModel
from server.http.models import ServedModels
from server.http.output_formats import formats_from_accept
from server.http.uploads import Upload


@dataclass(frozen=True)
class SegmentationRequest:
    """An upload with valid fields, of which at least one file can be a scan.

    Attributes:
        upload: Files and text fields of the form.
        model: Selected model.
        options: Output formats, and options for reading and segmenting the scan.
        with_report: True if the result is a zip that also has the report.
    """

    upload: Upload
    model: ServedModel
    options: SegmentationOptions
    with_report: bool = False

    @classmethod
    def from_upload(
        cls, upload: Upload, accept: str, models: ServedModels, *, with_report: bool = False
    ) -> SegmentationRequest:
        """Parse the form; the Accept header is used if the form has no field `output_format`.

        Raises:
            ApiError: 400, a field is invalid; 415, no file can be a scan.
        """
        model = models.select(upload.fields.get("model"))
        scan_request = cls(upload, model, parse_options(upload.fields, accept), with_report)
        if upload.dicom:  # detected during the upload, so that the files are opened only once, for reading
            return scan_request
        count = len(upload.files)
        if count == 1 and is_pair_header(read_start(upload.files[0])):
            raise ApiError(415, "The upload is one half of a .hdr/.img pair; send both, or a zip of them.")
        if not any(is_image_file(file) or is_dicom(file) or is_zip(file) for file in upload.files):
            what = (
                f"The upload is {describe_file(upload.files[0])},"
                if count == 1
                else f"None of the {count} files is a scan,"
            )
            raise ApiError(415, f"{what} {supported_inputs_text()}.")
        return scan_request

    def open_scan(self, folder: Path) -> Scan:
        """Open the scan; a zip is unpacked in ``folder``.

        Raises:
            VolumeError: See :func:`semiseg.volumes.scan.open_scan`.
        """
        files = self.upload.channels or self.upload.files
        return self.model.predictor.open(files, self.options.read_options, scratch=folder)


def parse_options(fields: Mapping[str, str], accept: str) -> SegmentationOptions:
    """Parse the text fields of a form; without a field `output_format`, the Accept header names the output format.

    Raises:
        ApiError: 400, a field has an invalid value.
    """
    try:
        options = SegmentationOptions.from_fields(fields)
    except InputError as error:
        raise ApiError(400, str(error)) from error
    if options.output_formats:
        return options
    return options.model_copy(update={"output_formats": formats_from_accept(accept)})
