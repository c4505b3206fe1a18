"""What an upload asks for, read once: which model, in which forms, and what is said of the scan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from semiseg.outputs.kind import Kind
from semiseg.volumes.dicom_file import is_dicom
from semiseg.volumes.nifti import is_nifti
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
    """

    upload: Upload
    model: ServedModel
    forms: tuple[Kind, ...]
    wishes: Wishes

    @classmethod
    def of(cls, upload: Upload, accept: str, models: Models) -> Order:
        """Read the form; the request's Accept header counts where the form does not name the answer.

        Raises:
            Refusal: 400, a field makes no sense; 415, no file could be a scan.
        """
        model = models.chosen(upload.fields.get("model"))
        forms = forms_asked(upload.fields.get("answer", ""), accept)
        order = cls(upload, model, forms, _wishes(upload))
        if not any(is_nifti(file) or is_dicom(file) or is_zip(file) for file in upload.files):
            what = "The upload is" if len(upload.files) == 1 else f"None of the {len(upload.files)} files is"
            raise Refusal(415, f"{what} neither a NIfTI file (.nii, .nii.gz) nor DICOM nor a zip of those.")
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
