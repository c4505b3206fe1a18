"""Parsing of a multipart body, whose files are written to the disk as they arrive, within the size limits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO

import anyio.to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from server.http.body import RequestBody
from server.http.limits import MEGABYTE, ApiError, Limits, require_disk_space

FLUSH_BYTES = MEGABYTE


class FormWriter(ABC):
    """Callbacks of the multipart parser, which only collect data; :meth:`flush` writes it, outside the event loop.

    Subclasses decide what the parts mean.

    Attributes:
        folder: Folder for the files.
        limits: Limits of the server.
        files: Files in the order of their parts.
        complete: True if the end of the form was read.
        pending_bytes: Number of bytes that are not written yet.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        """Create an empty form."""
        self.folder, self.limits = folder, limits
        self.files: list[Path] = []
        self.complete = False
        self.pending_bytes = 0
        self._pending: list[tuple[Path, bytes]] = []
        self._name, self._value, self._disposition = bytearray(), bytearray(), b""
        self._open: IO[bytes] | None = None

    @abstractmethod
    def begin_part(self, name: str, filename: str | None) -> None:
        """Begin a part.

        Args:
            name: Name of its field; empty if it has none.
            filename: Name of its file; None for a text field.

        Raises:
            ApiError: The form does not accept the part.
        """

    @abstractmethod
    def add_data(self, data: bytes) -> None:
        """Add bytes to the current part."""

    def begin_file(self, file: Path) -> None:
        """Write the data of the current part into ``file``."""
        self.files.append(file)
        self._pending.append((file, b""))  # creates the file even if the part is empty

    def add_to_file(self, data: bytes) -> None:
        """Add bytes to the file of the current part."""
        self._pending.append((self.files[-1], data))
        self.pending_bytes += len(data)

    def parser(self, boundary: bytes) -> MultipartParser:
        """Create the parser that calls the methods of this form."""
        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begins,
                "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_end,
                "on_part_data": lambda data, start, end: self.add_data(data[start:end]),
                "on_end": self._form_ends,
            },
        )

    def flush(self) -> None:
        """Write the collected data to the files.

        Raises:
            ApiError: 507, the disk is nearly full.
        """
        require_disk_space(self.folder, self.limits)
        pending, self._pending, self.pending_bytes = self._pending, [], 0
        for file, data in pending:
            if self._open is None or Path(self._open.name) != file:
                self.close()
                self._open = file.open("ab")
            self._open.write(data)
        if self._open is not None:
            self._open.flush()

    def close(self) -> None:
        """Close the open file, if any."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _part_begins(self) -> None:
        self._disposition = b""
        self._name.clear()
        self._value.clear()

    def _header_ends(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        filename = options.get(b"filename", options.get(b"filename*"))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        self.begin_part(name, None if filename is None else filename.decode("utf-8", "replace"))

    def _form_ends(self) -> None:
        self.complete = True


async def receive_parts(form: FormWriter, body: RequestBody, boundary: bytes, *, start: bytes = b"") -> None:
    """Receive a multipart body into a form.

    Args:
        form: Form that receives the parts.
        body: Body of the request.
        boundary: Boundary of the parts.
        start: Bytes of the body that were read before.

    Raises:
        ApiError: 400, the body is malformed or incomplete; 408, the upload stalled; 413, it is too large.
        ClientDisconnect: The client disconnected before the end.
    """
    parser = form.parser(boundary)
    chunk = start
    try:
        while True:
            if body.received > form.limits.upload_bytes:
                raise upload_too_large_error(form.limits)
            try:
                parser.write(chunk)
            except FormParserError as error:
                raise ApiError(400, f"The upload is not a well-formed multipart form: {error}.") from error
            if form.pending_bytes >= FLUSH_BYTES or not body.has_more:
                await anyio.to_thread.run_sync(form.flush)
            if not body.has_more:
                break
            chunk = await body.next_chunk()
    finally:
        form.close()
    if not form.complete:
        raise ApiError(400, "The upload ended before its form was complete; send it again.")


def check_content_length(request: Request, limits: Limits) -> None:
    """Reject a body whose declared length exceeds the limit.

    Raises:
        ApiError: 413, the declared length is too large.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limits.upload_bytes:
        raise upload_too_large_error(limits)


def upload_too_large_error(limits: Limits) -> ApiError:
    """Make the error of an upload that is too large."""
    return ApiError(413, f"The upload is larger than this server's limit of {limits.upload_bytes / MEGABYTE:g} MB.")
