"""Payload of a job, which the queue stores as JSON: the form of the request, and the model that was selected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from semiseg.outputs.formats import present_name
from semiseg.predicting.segmentation_options import SegmentationOptions
from server.http.segmentation_request import parse_options
from server.http.uploads import Upload, present_fields
from server.jobs.job import QueuedJob


@dataclass(frozen=True, kw_only=True)
class JobPayload:
    """Form of a request that became a job.

    Fields have defaults where the queue of an earlier version may lack them.

    Attributes:
        files: Names of all files of the upload.
        channels: Names of the same files by channel, if they were sent in fields of channels.
        form: Text fields of the form, under their present names.
        received: Size of the body in bytes.
        dicom: True if one of the files begins like DICOM.
        accept: Value of the Accept header.
        model: Name of the model that was selected, even if the server has other models now.
        address: Address of a client without an API key; None otherwise.
        digest: Digest of the request, if it had an idempotency key.
    """

    files: tuple[str, ...]
    channels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    form: Mapping[str, str] = field(default_factory=dict)
    received: int
    dicom: bool = False
    accept: str = ""
    model: str
    address: str | None = None
    digest: str | None = None

    @classmethod
    def from_job(cls, job: QueuedJob) -> Self:
        """Read the payload of a job; fields of later versions are ignored."""
        stored = {one.name: job.payload[one.name] for one in fields(cls) if one.name in job.payload}
        channels = {name: tuple(files) for name, files in job.payload.get("channels", {}).items()}
        form = present_fields(job.payload["fields"])
        return cls(**{**stored, "files": tuple(stored["files"]), "channels": channels, "form": form})

    @classmethod
    def from_upload(cls, upload: Upload, **details: Any) -> Self:
        """Make the payload of an upload and of further fields."""
        channels = {name: _names(files) for name, files in upload.channels.items()}
        return cls(
            files=_names(upload.files),
            channels=channels,
            form=upload.fields,
            received=upload.received,
            dicom=upload.dicom,
            **details,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the payload for the queue, without fields that are None."""
        values = asdict(self)
        values["fields"] = values.pop("form")
        return {name: value for name, value in values.items() if value is not None}

    def upload(self, folder: Path) -> Upload:
        """Return the upload whose files are in a folder; it names the model that was selected."""
        channels = {name: tuple(folder / file for file in files) for name, files in self.channels.items()}
        files = tuple(folder / name for name in self.files)
        return Upload(files, channels, {**self.form, "model": self.model}, self.received, self.dicom)

    @property
    def options(self) -> SegmentationOptions:
        """The options as they were sent.

        Raises:
            ApiError: 400, a field has a value that this version does not know.
        """
        return parse_options(self.form, self.accept)

    @property
    def output_format(self) -> str | None:
        """The text of the field `output_format`, under its present name; None for the default of the scan."""
        name = self.form.get("output_format")
        return None if name is None else present_name(name)


def _names(files: Sequence[Path]) -> tuple[str, ...]:
    return tuple(file.name for file in files)
