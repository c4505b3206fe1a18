"""What an upload asks for, read once: which model, in which forms, and what is said of the scan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from semiseg.outputs.kind import Kind
from semiseg.volumes.dicom_file import is_dicom
from semiseg.volumes.formats.nifti import is_pair_header
from semiseg.volumes.formats.registry import is_image
from semiseg.volumes.formats.stream import start_of
from semiseg.volumes.kinds import neither, what_is
from semiseg.volumes.scan import Scan
from semiseg.volumes.unpack import is_zip
from semiseg.volumes.wishes import Wishes
from server.http.forms import forms_asked
from server.http.limits import Refusal
from server.http.model import ServedModel
from server.http.models import Models
from server.http.uploads import Upload


@dataclass(frozen=True)
class Order:
    """An upload whose form makes sense, and one of whose files could be a scan.

    Attributes:
        upload: the files and the form's text fields.
        model: the one that is meant.
        forms: of the answer; none where the scan's own is wanted.
        wishes: what is said of the scan besides.
        with_report: True for an answer that is a zip with the report beside the forms.
    """

    upload: Upload
    model: ServedModel
    forms: tuple[Kind, ...]
    wishes: Wishes
    with_report: bool = False

    @classmethod
    def of(cls, upload: Upload, accept: str, models: Models, *, with_report: bool = False) -> Order:
        """Read the form; the request's Accept header counts where the form does not name the answer.

        Raises:
            Refusal: 400, a field makes no sense; 415, no file could be a scan.
        """
        model = models.chosen(upload.fields.get("model"))
        forms = forms_asked(upload.fields.get("answer", ""), accept)
        order = cls(upload, model, forms, _wishes(upload), with_report)
        if upload.dicom:  # seen as it came in: its files are opened where they are read, and once
            return order
        count = len(upload.files)
        if count == 1 and is_pair_header(start_of(upload.files[0])):
            raise Refusal(415, "The upload is one half of a .hdr/.img pair; send both, or a zip of them.")
        if not any(is_image(file) or is_dicom(file) or is_zip(file) for file in upload.files):
            what = (
                f"The upload is {what_is(upload.files[0])}," if count == 1 else f"Of the {count} files none is a scan,"
            )
            raise Refusal(415, f"{what} {neither()}.")
        return order

    def open_scan(self, folder: Path) -> Scan:
        """Open the scan; a zip is unpacked in ``folder``.

        Raises:
            VolumeError: see :func:`semiseg.volumes.scan.open_scan`.
        """
        files = self.upload.channels or self.upload.files
        return self.model.predictor.open(files, self.wishes, scratch=folder)


def _wishes(upload: Upload) -> Wishes:
    said = {name: upload.fields.get(name, "false") for name in ("strict", "aligned")}
    for name, word in said.items():
        if word not in ("true", "false"):
            raise Refusal(400, f"The field `{name}` is true or false.")
    series = upload.fields.get("series") or None
    return Wishes(series, strict=said["strict"] == "true", aligned=said["aligned"] == "true")
