"""Multipart body (RFC 2046 5.1) that is written to disk while it is received, each part to a file of its own."""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

MAX_PREAMBLE_BYTES = 2**16  # bytes


@dataclass
class MultipartFiles:
    """Parts of a body, each in a file of its own.

    Attributes:
        folder: Folder of the files.
        boundary: Boundary of the parts, without the leading hyphens.
        prefix: Prefix of the files' names.
        ended: True once the closing boundary was received.
    """

    folder: Path
    boundary: bytes
    prefix: str
    ended: bool = False
    _started: bool = False
    _before: bytearray = field(default_factory=bytearray)
    _open: IO[bytes] | None = None
    _whole: list[Path] = field(default_factory=list)
    _all: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._parser = MultipartParser(
            self.boundary,
            {
                "on_part_begin": self._begin,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )

    def feed(self, chunk: bytes) -> None:
        """Process the next bytes of the body.

        Raises:
            FormParserError: The bytes are not part of a multipart body.
            OSError: A part cannot be written.
        """
        if self._started:
            self._parser.write(chunk)
            return
        # A preamble may precede the first boundary (RFC 2046 5.1.1), which the parser does not support.
        self._before += chunk
        marker = b"--" + self.boundary
        at = 0 if self._before.startswith(marker) else self._before.find(b"\r\n" + marker) + 2
        if at == 1:
            if len(self._before) > MAX_PREAMBLE_BYTES:
                raise FormParserError("it has no first boundary")
            return
        self._started = True
        self._parser.write(bytes(self._before[at:]))
        self._before.clear()

    def take_completed(self) -> list[Path]:
        """Return the files that were completed since the last call."""
        whole, self._whole = self._whole, []
        return whole

    def delete(self) -> None:
        """Delete the files that are left."""
        if self._open is not None:
            with suppress(OSError):  # buffered data cannot be written to a full disk
                self._open.close()
        for file in self._all:
            file.unlink(missing_ok=True)

    def _begin(self) -> None:
        file = self.folder / f"{self.prefix}-{secrets.token_hex(8)}"
        self._all.append(file)
        self._open = file.open("wb")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._open is not None:
            self._open.write(data[start:end])

    def _end(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None
            self._whole.append(self._all[-1])

    def _finish(self) -> None:
        self.ended = True
