"""Request bodies: multipart forms are written to the disk as they arrive; small forms and JSON are kept in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from server.http.body import RequestBody
from server.http.limits import MEGABYTE, ApiError, Limits
from server.http.multipart import FormWriter, check_content_length, receive_parts

FIELD_BYTES = MEGABYTE
_FIELDS = 64
_LINE_BYTES = 202


@dataclass(frozen=True)
class UploadedFile:
    """One file of a form.

    Attributes:
        path: Path of the received file.
        name: File name that the client sent.
    """

    path: Path
    name: str


@dataclass(frozen=True)
class Form:
    """A form that a client sent.

    Attributes:
        fields: Text fields by name.
        files: Files of each field, in the order of their parts.
    """

    fields: Mapping[str, str]
    files: Mapping[str, tuple[UploadedFile, ...]]

    def json(self, field: str) -> dict[str, Any]:
        """The JSON object in a text field; an empty one if the field is missing or empty.

        Raises:
            ApiError: 400, the field is not a JSON object.
        """
        return _object(self.fields.get(field, ""), f"The field `{field}`")

    def file(self, field: str) -> UploadedFile:
        """The only file of a field.

        Raises:
            ApiError: 400, the field has no file or several.
        """
        found = self.files.get(field, ())
        if len(found) != 1:
            raise ApiError(400, f"Send one file in the field `{field}`; the form has {len(found)}.")
        return found[0]


async def receive_form(request: Request, body: RequestBody, folder: Path, limits: Limits) -> Form:
    """Receive a ``multipart/form-data`` or ``application/x-www-form-urlencoded`` body.

    Args:
        request: Request with the form.
        body: Body of the request.
        folder: Folder for the files, which are named by numbers, independent of the client's names.
        limits: Limits of the size of the body and of the free disk space.

    Raises:
        ApiError: 400, the form is malformed; 408, the upload stalled; 413, it is too large; 415, it is not a form.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind == b"application/x-www-form-urlencoded":
        try:
            table = parse_qs((await _small(body)).decode("utf-8"), keep_blank_values=True, max_num_fields=_FIELDS)
        except ValueError:
            raise ApiError(400, "The form is not URL-encoded UTF-8.") from None
        return Form({name: values[-1] for name, values in table.items()}, {})
    check_content_length(request, limits)
    start = await _first_line(body) if kind in (b"multipart/form-data", b"application/json") else b""
    boundary = _boundary(start, options.get(b"boundary", b"") if kind == b"multipart/form-data" else b"")
    writer = _AnyForm(folder, limits)
    await receive_parts(writer, body, boundary, start=start)
    return writer.form()


async def receive_json(body: RequestBody) -> dict[str, Any]:
    """Receive a JSON object; an empty body is an empty object.

    Raises:
        ApiError: 400, the body is not a JSON object; 413, it is longer than a megabyte.
    """
    content = await _small(body)
    try:
        return _object(content.decode("utf-8"), "The body")
    except UnicodeDecodeError:
        raise ApiError(400, "The body is not UTF-8.") from None


async def _first_line(body: RequestBody) -> bytes:
    """Read the beginning of a body, at least its first line."""
    start = b""
    while body.has_more and b"\r\n" not in start and len(start) < _LINE_BYTES:
        start += await body.next_chunk()
    return start


def _boundary(start: bytes, declared: bytes) -> bytes:
    """The boundary of a multipart body.

    The body's first line takes precedence over the header: after a log-in, MONAI Label's Python client sends the
    Content-Type of its previous request, so that the header may name another boundary, or JSON.

    Raises:
        ApiError: 415, the body is not a multipart form.
    """
    line = start.partition(b"\r\n")[0].rstrip(b" \t")
    if line.startswith(b"--") and 2 < len(line) <= _LINE_BYTES and line != b"--" + declared + b"--":
        return line[2:]
    if not 0 < len(declared) <= 200:
        raise ApiError(415, "Send a multipart/form-data form.")
    return declared


async def _small(body: RequestBody) -> bytes:
    content = bytearray()
    while body.has_more:
        content += await body.next_chunk()
        if len(content) > FIELD_BYTES:
            raise ApiError(413, "The body is longer than a megabyte.")
    return bytes(content)


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        raise ApiError(400, f"{what} is not JSON.") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ApiError(400, f"{what} is not a JSON object.")
    return found


class _AnyForm(FormWriter):
    """A form that accepts every text field and every file."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        super().__init__(folder, limits)
        self._fields: dict[str, bytearray] = {}
        self._sent: dict[str, tuple[UploadedFile, ...]] = {}
        self._text: bytearray | None = None  # text of the current part; None if it is a file

    def form(self) -> Form:
        try:
            return Form({name: text.decode("utf-8") for name, text in self._fields.items()}, self._sent)
        except UnicodeDecodeError:
            raise ApiError(400, "A text field of the form is not UTF-8.") from None

    def begin_part(self, name: str, filename: str | None) -> None:
        """See :meth:`FormWriter.begin_part`."""
        if not name:
            raise ApiError(400, "A part of the form has no name.")
        if filename is None:
            if len(self._fields) >= _FIELDS:
                raise ApiError(400, f"The form has more than {_FIELDS} text fields.")
            self._text = self._fields[name] = bytearray()
            return
        if len(self.files) >= self.limits.files:
            raise ApiError(413, f"The form has more than {self.limits.files} files.")
        self._text = None
        self.begin_file(self.folder / f"file-{len(self.files) + 1:05d}")
        self._sent[name] = (*self._sent.get(name, ()), UploadedFile(self.files[-1], filename))

    def add_data(self, data: bytes) -> None:
        """See :meth:`FormWriter.add_data`."""
        if self._text is None:
            self.add_to_file(data)
            return
        self._text += data
        if len(self._text) > FIELD_BYTES:
            raise ApiError(413, "A text field of the form is longer than a megabyte.")
