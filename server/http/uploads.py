"""A multipart upload, written to disk as it arrives and never beyond its limit.

Nothing that the client says decides a path: files are numbered in the order in which they come. Nothing that it says
about length is believed: a declared length beyond the limit is refused at once, and the bytes are counted anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import anyio.to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from semiseg.volumes.dicom_file import starts_like_dicom
from server.http.limits import MEGABYTE, Limits, Refusal, require_disk

FILES_FIELD = "scan"
CHANNEL_FIELDS = "channel:"  # and the channel's name
TEXT_FIELDS = ("model", "answer", "series", "strict", "aligned")
TEXT_BYTES = 4096
FLUSH_BYTES = MEGABYTE
START_BYTES = 132  # a preamble and "DICM" (PS3.10 7.1)
DRAIN_BYTES = 64 * MEGABYTE
DRAIN_SECONDS = 5.0


@dataclass(frozen=True)
class Upload:
    """What a request brought.

    Attributes:
        files: all of them, in their order.
        channels: the same by channel, where they came under channels' names.
        fields: the values of the text fields that were given.
        received: bytes.
        dicom: True where one of the files was seen to begin like DICOM while it came in.
    """

    files: tuple[Path, ...]
    channels: dict[str, tuple[Path, ...]]
    fields: dict[str, str]
    received: int
    dicom: bool = False


class Body:
    """A request's body, as it comes in.

    Attributes:
        more: whether reading on could bring more.
        complete: whether its end was seen.
        received: bytes so far.
    """

    def __init__(self, request: Request, limits: Limits) -> None:
        self.more = True
        self.complete = False
        self.received = 0
        self._receive = request.receive
        self._idle_seconds = limits.idle_seconds
        # Such a client sends nothing before it is asked to go on, which the first call of `receive` does.
        self._waits_for_us = "100-continue" in request.headers.get("expect", "").lower()

    async def next_chunk(self) -> bytes:
        """The bytes that came next, b"" at the end.

        Raises:
            Refusal: 408, nothing came for too long.
            ClientDisconnect: the client went away.
        """
        self._waits_for_us = False
        try:
            message = await asyncio.wait_for(self._receive(), self._idle_seconds)
        except TimeoutError:
            self.more = False
            raise Refusal(408, f"The upload stood still for {self._idle_seconds:g} seconds; send it again.") from None
        if message["type"] == "http.disconnect":
            self.more = False
            raise ClientDisconnect
        self.more = message.get("more_body", False)
        self.complete = not self.more
        chunk: bytes = message.get("body", b"")
        self.received += len(chunk)
        return chunk

    async def drain(self) -> None:
        """Read on for a while after a refusal and throw away what comes.

        Most clients read the answer only when they have sent everything; a connection closed under them shows them an
        error of the network instead of our sentence.
        """
        if self._waits_for_us:
            return
        until = time.monotonic() + DRAIN_SECONDS
        enough = self.received + DRAIN_BYTES
        with contextlib.suppress(Refusal, ClientDisconnect, TimeoutError):
            while self.more and self.received < enough and (left := until - time.monotonic()) > 0:
                await asyncio.wait_for(self.next_chunk(), left)


async def receive_upload(request: Request, body: Body, folder: Path, limits: Limits) -> Upload:
    """Write the files of a multipart request into ``folder``.

    Raises:
        Refusal: 400 not a usable form, 408 the upload stood still, 413 too large, 415 not a multipart form.
        ClientDisconnect: the client went away before the end.
    """
    boundary = _boundary(request)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limits.upload_bytes:
        raise _too_large(limits)
    form = _Form(folder, limits)
    parser = form.parser(boundary)
    try:
        while body.more:
            chunk = await body.next_chunk()
            if body.received > limits.upload_bytes:
                raise _too_large(limits)
            try:
                parser.write(chunk)
            except FormParserError as error:
                raise Refusal(400, f"The upload is not a well-formed multipart form: {error}.") from error
            if form.pending_bytes >= FLUSH_BYTES or not body.more:
                await anyio.to_thread.run_sync(form.flush)
    finally:
        form.close()
    if not form.complete:
        raise Refusal(400, "The upload ended before its form was complete; send it again.")
    if not form.files:
        raise Refusal(400, f"The form has no file in its field `{FILES_FIELD}`.")
    return Upload(tuple(form.files), form.by_channel(), form.texts(), body.received, form.dicom)


@dataclass
class _Form:
    """Callbacks of the parser: they only collect; :meth:`flush` writes, away from the event loop."""

    folder: Path
    limits: Limits
    files: list[Path] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)  # which field each file came in
    complete: bool = False
    dicom: bool = False
    pending_bytes: int = 0
    _pending: list[tuple[int, bytes]] = field(default_factory=list)
    _values: dict[str, bytearray] = field(default_factory=dict)
    _name: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _disposition: bytes = b""
    _part: str = ""
    _is_file: bool = False
    _start: bytearray = field(default_factory=bytearray)  # of the present file, until one is known for DICOM
    _open: IO[bytes] | None = None
    _open_number: int = -1

    def parser(self, boundary: bytes) -> MultipartParser:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begins,
                "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._part_data,
                "on_end": self._form_ends,
            },
        )

    def texts(self) -> dict[str, str]:
        try:
            return {name: value.decode("utf-8").strip() for name, value in self._values.items()}
        except UnicodeDecodeError as error:
            raise Refusal(400, "A text field of the form is not UTF-8.") from error

    def by_channel(self) -> dict[str, tuple[Path, ...]]:
        """The files of each channel; none where they came as one scan."""
        if FILES_FIELD in self.parts:
            if set(self.parts) != {FILES_FIELD}:
                raise Refusal(
                    400, f"Send the files in `{FILES_FIELD}` or each channel's in `{CHANNEL_FIELDS}NAME`, not both."
                )
            return {}
        names = dict.fromkeys(part.removeprefix(CHANNEL_FIELDS) for part in self.parts)
        return {
            name: tuple(
                file for file, part in zip(self.files, self.parts, strict=True) if part == CHANNEL_FIELDS + name
            )
            for name in names
        }

    def flush(self) -> None:
        """Write what was collected, in order, as long as there is room."""
        require_disk(self.folder, self.limits)
        pending, self._pending, self.pending_bytes = self._pending, [], 0
        for number, data in pending:
            if number != self._open_number:
                self.close()
                self._open, self._open_number = self.files[number].open("ab"), number
            if self._open is not None:
                self._open.write(data)
        if self._open is not None:
            self._open.flush()

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open, self._open_number = None, -1

    def _part_begins(self) -> None:
        self._disposition, self._part, self._is_file = b"", "", False
        self._name.clear()
        self._value.clear()

    def _header_ends(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._part = options.get(b"name", b"").decode("utf-8", "replace")
        self._is_file = b"filename" in options or b"filename*" in options
        takes_files = self._part == FILES_FIELD or self._part.startswith(CHANNEL_FIELDS)
        if self._is_file and takes_files:
            if len(self.files) >= self.limits.files:
                raise Refusal(413, f"The upload has more than {self.limits.files} files; send a zip of one series.")
            self.files.append(self.folder / f"scan-{len(self.files) + 1:05d}")
            self.parts.append(self._part)
            self._start.clear()
            self._pending.append((len(self.files) - 1, b""))  # an empty file is a file too
        elif self._part in TEXT_FIELDS and not self._is_file:
            if self._part in self._values:
                raise Refusal(400, f"The field `{self._part}` is given twice.")
            self._values[self._part] = bytearray()
        elif takes_files:
            raise Refusal(400, f"The field `{self._part[:80]}` holds text; it takes files (with a filename).")
        else:
            known = ", ".join(f"`{name}`" for name in (FILES_FIELD, CHANNEL_FIELDS + "NAME", *TEXT_FIELDS))
            raise Refusal(400, f"The form has a field or file this server does not know; it takes {known}.")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._pending.append((len(self.files) - 1, data[start:end]))
            self._look(data[start:end])
            self.pending_bytes += end - start
            return
        text = self._values.get(self._part)
        if text is None:
            raise Refusal(400, "A part of the form has no name.")
        text += data[start:end]
        if len(text) > TEXT_BYTES:
            raise Refusal(400, f"The field `{self._part}` is longer than {TEXT_BYTES} bytes.")

    def _look(self, data: bytes) -> None:
        """Notice a DICOM file by its first bytes, so that nobody has to open it for that."""
        if not self.dicom and len(self._start) < START_BYTES:
            self._start += data[: START_BYTES - len(self._start)]
            self.dicom = len(self._start) == START_BYTES and starts_like_dicom(bytes(self._start))

    def _form_ends(self) -> None:
        self.complete = True


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise Refusal(
            415, f"Send a multipart/form-data form with the scan in the field `{FILES_FIELD}`, not the bare file."
        )
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= 200:
        raise Refusal(400, "The content type multipart/form-data lacks a usable boundary.")
    return boundary


def _too_large(limits: Limits) -> Refusal:
    megabytes = limits.upload_bytes / MEGABYTE
    return Refusal(413, f"The upload is larger than this server's limit of {megabytes:g} MB.")
