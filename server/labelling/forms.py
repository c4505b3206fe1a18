"""The bodies of requests: multipart forms written to the disk as they arrive, and small forms and JSON in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs

import anyio.to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from server.http.limits import MEGABYTE, Limits, Refusal, require_disk
from server.http.uploads import Body

FIELD_BYTES = MEGABYTE
_FIELDS = 64
_LINE_BYTES = 202


@dataclass(frozen=True)
class SentFile:
    """One file of a form.

    Attributes:
        path: The file on this machine.
        name: The name that the client gave it.
    """

    path: Path
    name: str


@dataclass(frozen=True)
class Form:
    """A form that a client sent.

    Attributes:
        fields: The text fields by name.
        files: The files of each field, in the order in which they came.
    """

    fields: Mapping[str, str]
    files: Mapping[str, tuple[SentFile, ...]]

    def json(self, field: str) -> dict[str, Any]:
        """The JSON object in a text field; an empty one where the field is missing or empty.

        Raises:
            Refusal: 400, it is not a JSON object.
        """
        return _object(self.fields.get(field, ""), f"The field `{field}`")

    def file(self, field: str) -> SentFile:
        """The one file of a field.

        Raises:
            Refusal: 400, there is none, or there are several.
        """
        found = self.files.get(field, ())
        if len(found) != 1:
            raise Refusal(400, f"Send one file in the field `{field}`; the form has {len(found)}.")
        return found[0]


async def receive_form(request: Request, body: Body, folder: Path, limits: Limits) -> Form:
    """Receive a ``multipart/form-data`` or ``application/x-www-form-urlencoded`` body.

    Args:
        request: The request.
        body: Its body.
        folder: Folder for the files; their names in it are numbers and nothing that the client said.
        limits: Largest body, and the free space that it has to leave.

    Raises:
        Refusal: 400 the form is malformed, 408 the upload stood still, 413 it is too large, 415 it is no form.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind == b"application/x-www-form-urlencoded":
        try:
            table = parse_qs((await _small(body)).decode("utf-8"), keep_blank_values=True, max_num_fields=_FIELDS)
        except ValueError:
            raise Refusal(400, "The form is not URL-encoded UTF-8.") from None
        return Form({name: values[-1] for name, values in table.items()}, {})
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limits.upload_bytes:
        raise _too_large(limits)
    start = await _first_line(body) if kind in (b"multipart/form-data", b"application/json") else b""
    boundary = _boundary(start, options.get(b"boundary", b"") if kind == b"multipart/form-data" else b"")
    writer = _FormWriter(folder, limits)
    parser = MultipartParser(boundary, writer.callbacks())
    chunk = start
    try:
        while True:
            if body.received > limits.upload_bytes:
                raise _too_large(limits)
            try:
                parser.write(chunk)
            except FormParserError as error:
                raise Refusal(400, f"The body is not a well-formed multipart form: {error}.") from None
            if writer.pending >= MEGABYTE or not body.more:
                await anyio.to_thread.run_sync(writer.flush)
            if not body.more:
                break
            chunk = await body.next_chunk()
    finally:
        writer.close()
    if not writer.complete:
        raise Refusal(400, "The body ended before its form was complete; send it again.")
    return writer.form()


async def receive_json(body: Body) -> dict[str, Any]:
    """Receive a JSON object; an empty body is an empty object.

    Raises:
        Refusal: 400 it is not a JSON object, 413 it is longer than a megabyte.
    """
    content = await _small(body)
    try:
        return _object(content.decode("utf-8"), "The body")
    except UnicodeDecodeError:
        raise Refusal(400, "The body is not UTF-8.") from None


async def _first_line(body: Body) -> bytes:
    """The beginning of a body, at least its first line."""
    start = b""
    while body.more and b"\r\n" not in start and len(start) < _LINE_BYTES:
        start += await body.next_chunk()
    return start


def _boundary(start: bytes, declared: bytes) -> bytes:
    """The boundary of a multipart body.

    The body's first line counts: MONAI Label's Python client, once it has logged in, sends the Content-Type of its last
    request along with the next one, so that the header may name another boundary, or JSON.

    Raises:
        Refusal: 415, the body is no multipart form.
    """
    line = start.partition(b"\r\n")[0].rstrip(b" \t")
    if line.startswith(b"--") and 2 < len(line) <= _LINE_BYTES and line != b"--" + declared + b"--":
        return line[2:]
    if not 0 < len(declared) <= 200:
        raise Refusal(415, "Send a multipart/form-data form.")
    return declared


async def _small(body: Body) -> bytes:
    content = bytearray()
    while body.more:
        content += await body.next_chunk()
        if len(content) > FIELD_BYTES:
            raise Refusal(413, "The body is longer than a megabyte.")
    return bytes(content)


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        raise Refusal(400, f"{what} is not JSON.") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Refusal(400, f"{what} is not a JSON object.")
    return found


def _too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"The upload is larger than this server's limit of {limits.upload_bytes / MEGABYTE:g} MB.")


@dataclass
class _FormWriter:
    """Callbacks of the multipart parser, which only collect; :meth:`flush` writes, in a thread."""

    folder: Path
    limits: Limits
    complete: bool = False
    pending: int = 0
    _chunks: list[tuple[Path, bytes]] = field(default_factory=list)
    _fields: dict[str, bytearray] = field(default_factory=dict)
    _files: list[tuple[str, SentFile]] = field(default_factory=list)
    _header: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _disposition: bytes = b""
    _target: Path | None = None  # of the present part, where it is a file
    _text: bytearray = field(default_factory=bytearray)
    _open: IO[bytes] | None = None

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._part_begins,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._part_data,
            "on_end": self._form_ends,
        }

    def form(self) -> Form:
        files: dict[str, tuple[SentFile, ...]] = {}
        for name, sent in self._files:
            files[name] = (*files.get(name, ()), sent)
        try:
            return Form({name: text.decode("utf-8") for name, text in self._fields.items()}, files)
        except UnicodeDecodeError:
            raise Refusal(400, "A text field of the form is not UTF-8.") from None

    def flush(self) -> None:
        require_disk(self.folder, self.limits)
        chunks, self._chunks, self.pending = self._chunks, [], 0
        for path, data in chunks:
            if self._open is None or Path(self._open.name) != path:
                self.close()
                self._open = path.open("ab")
            self._open.write(data)
        if self._open is not None:
            self._open.flush()

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def _part_begins(self) -> None:
        self._disposition, self._target = b"", None
        self._header.clear()
        self._value.clear()

    def _header_ends(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if not name:
            raise Refusal(400, "A part of the form has no name.")
        sent = options.get(b"filename", options.get(b"filename*"))
        if sent is None:
            if len(self._fields) >= _FIELDS:
                raise Refusal(400, f"The form has more than {_FIELDS} text fields.")
            self._text = self._fields[name] = bytearray()
            return
        if len(self._files) >= self.limits.files:
            raise Refusal(413, f"The form has more than {self.limits.files} files.")
        self._target = self.folder / f"file-{len(self._files) + 1:05d}"
        self._files.append((name, SentFile(self._target, sent.decode("utf-8", "replace"))))
        self._chunks.append((self._target, b""))  # an empty file is a file, too

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._target is not None:
            self._chunks.append((self._target, data[start:end]))
            self.pending += end - start
            return
        self._text += data[start:end]
        if len(self._text) > FIELD_BYTES:
            raise Refusal(413, "A text field of the form is longer than a megabyte.")

    def _form_ends(self) -> None:
        self.complete = True
