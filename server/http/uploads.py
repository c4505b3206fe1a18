"""A multipart upload, written to the disk as it arrives, within the size limits.

Data from the client never becomes part of a path: files are numbered in the order of their parts. A declared length
beyond the limit is rejected at once, but is not relied upon: the received bytes are counted as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from semiseg.volumes.dicom_file import starts_like_dicom
from server.http.body import RequestBody
from server.http.limits import ApiError, Limits
from server.http.multipart import FormWriter, check_content_length, receive_parts

FILES_FIELD = "scan"
CHANNEL_PREFIX = "channel:"  # and the channel's name
TEXT_FIELDS = ("model", "output_format", "series", "strict", "aligned", "full")
FORMER_FIELDS = {"answer": "output_format"}  # still accepted; clients send it, so that earlier servers understand them
TEXT_BYTES = 4096
DICOM_START_BYTES = 132  # a preamble and "DICM" (PS3.10 7.1)


@dataclass(frozen=True)
class Upload:
    """The files and fields of a request.

    Attributes:
        files: All files, in the order of their parts.
        channels: The same files by channel, if they were sent in fields of channels.
        fields: Values of the text fields, by name.
        received: Size of the body in bytes.
        dicom: True if one of the files begins like DICOM.
    """

    files: tuple[Path, ...]
    channels: dict[str, tuple[Path, ...]]
    fields: dict[str, str]
    received: int
    dicom: bool = False


async def receive_upload(request: Request, body: RequestBody, folder: Path, limits: Limits) -> Upload:
    """Write the files of a multipart request into ``folder``.

    Raises:
        ApiError: 400, the form is not valid; 408, the upload stalled; 413, it is too large; 415, it is not a multipart
            form.
        ClientDisconnect: The client disconnected before the end.
    """
    boundary = _boundary(request)
    check_content_length(request, limits)
    form = _Form(folder, limits)
    await receive_parts(form, body, boundary)
    if not form.files:
        raise ApiError(400, f"The form has no file in its field `{FILES_FIELD}`.")
    return Upload(tuple(form.files), form.by_channel(), form.texts(), body.received, form.dicom)


def present_fields(fields: Mapping[str, str]) -> dict[str, str]:
    """Return text fields of a form under their present names, for forms that an earlier version stored."""
    return {FORMER_FIELDS.get(name, name): value for name, value in fields.items()}


class _Form(FormWriter):
    """A form with a scan; unknown fields are rejected."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        super().__init__(folder, limits)
        self.parts: list[str] = []  # name of the field of each file
        self.dicom = False
        self._values: dict[str, bytearray] = {}
        self._part, self._is_file = "", False
        self._start = bytearray()  # first bytes of the current file, until a DICOM file was found

    def texts(self) -> dict[str, str]:
        try:
            return {name: value.decode("utf-8").strip() for name, value in self._values.items()}
        except UnicodeDecodeError as error:
            raise ApiError(400, "A text field of the form is not UTF-8.") from error

    def by_channel(self) -> dict[str, tuple[Path, ...]]:
        """The files of each channel; empty if they were sent as one scan."""
        if FILES_FIELD in self.parts:
            if set(self.parts) != {FILES_FIELD}:
                raise ApiError(
                    400, f"Send the files in `{FILES_FIELD}` or by channel in `{CHANNEL_PREFIX}NAME`, not both."
                )
            return {}
        names = dict.fromkeys(part.removeprefix(CHANNEL_PREFIX) for part in self.parts)
        return {
            name: tuple(
                file for file, part in zip(self.files, self.parts, strict=True) if part == CHANNEL_PREFIX + name
            )
            for name in names
        }

    def begin_part(self, name: str, filename: str | None) -> None:
        """See :meth:`FormWriter.begin_part`."""
        self._part, self._is_file = name, filename is not None
        takes_files = name == FILES_FIELD or name.startswith(CHANNEL_PREFIX)
        if self._is_file and takes_files:
            if len(self.files) >= self.limits.files:
                raise ApiError(413, f"The upload has more than {self.limits.files} files; send a zip of one series.")
            self.begin_file(self.folder / f"scan-{len(self.files) + 1:05d}")
            self.parts.append(name)
            self._start.clear()
        elif name in (*TEXT_FIELDS, *FORMER_FIELDS) and not self._is_file:
            self._part = name = FORMER_FIELDS.get(name, name)
            if name in self._values:
                raise ApiError(400, f"The field `{name}` is given twice.")
            self._values[name] = bytearray()
        elif takes_files:
            raise ApiError(400, f"The field `{name[:80]}` contains text; send a file (with a filename).")
        else:
            known = ", ".join(f"`{one}`" for one in (FILES_FIELD, CHANNEL_PREFIX + "NAME", *TEXT_FIELDS))
            raise ApiError(400, f"The form has an unknown field or file; this server accepts {known}.")

    def add_data(self, data: bytes) -> None:
        """See :meth:`FormWriter.add_data`."""
        if self._is_file:
            self.add_to_file(data)
            self._detect_dicom(data)
            return
        text = self._values.get(self._part)
        if text is None:
            raise ApiError(400, "A part of the form has no name.")
        text += data
        if len(text) > TEXT_BYTES:
            raise ApiError(400, f"The field `{self._part}` is longer than {TEXT_BYTES} bytes.")

    def _detect_dicom(self, data: bytes) -> None:
        """Detect a DICOM file by its first bytes, so that it need not be opened for that."""
        if not self.dicom and len(self._start) < DICOM_START_BYTES:
            self._start += data[: DICOM_START_BYTES - len(self._start)]
            self.dicom = len(self._start) == DICOM_START_BYTES and starts_like_dicom(bytes(self._start))


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise ApiError(
            415, f"Send a multipart/form-data form with the scan in the field `{FILES_FIELD}`, not the bare file."
        )
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= 200:
        raise ApiError(400, "The content type multipart/form-data has no valid boundary.")
    return boundary
