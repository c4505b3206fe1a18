"""STOW-RS (PS3.18 10.5): a multipart/related body of DICOM files, each on the disk before it is confirmed."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import anyio.to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from semiseg.errors import SemisegError
from server.gateway.audit import Audit
from server.gateway.inbox import DiskFull, Inbox, NotOurs

OUT_OF_RESOURCES, CANNOT_UNDERSTAND, OTHER_STUDY = 0xA700, 0xC000, 0xC409
_REFERENCED, _FAILED = "00081199", "00081198"  # Referenced and Failed SOP Sequence
_CLASS, _INSTANCE, _REASON = "00081150", "00081155", "00081197"


class StowRefused(SemisegError):  # noqa: N818 - an answer like others
    """A request that is answered with ``status`` and a sentence; none of its instances was confirmed."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Stow:
    """Takes instances over HTTP."""

    def __init__(self, inbox: Inbox, audit: Audit, largest: int) -> None:
        """Put them into ``inbox``; a request has ``largest`` bytes at most."""
        self._inbox, self._audit, self._largest = inbox, audit, largest

    async def store(self, request: Request, study: str | None, sender: str) -> tuple[int, dict[str, Any]]:
        """Take what a request brings.

        Args:
            request: the request.
            study: the only study whose instances are taken; None takes all.
            sender: stands for an AE title.

        Returns:
            The status (200 all were taken, 202 some, 409 none) and the DICOM JSON of PS3.18 10.5.3.

        Raises:
            StowRefused: 400, 413, 415 or 507.
            ClientDisconnect: the client went away; what was complete may have been taken.
        """
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/related" or options.get(b"type", b"application/dicom") != b"application/dicom":
            raise StowRefused(415, 'Send multipart/related; type="application/dicom".')
        if not 0 < len(boundary) <= 200:
            raise StowRefused(400, "The content type multipart/related lacks a usable boundary.")
        parts = _Parts(self._inbox.incoming, boundary)
        received, taken, failed = 0, list[dict[str, Any]](), list[dict[str, Any]]()
        try:
            self._inbox.require_room()
            async for chunk in request.stream():
                received += len(chunk)
                if received > self._largest:
                    raise StowRefused(413, f"The request is larger than {self._largest / 2**20:g} MB.")
                await anyio.to_thread.run_sync(parts.feed, chunk)
                for file in parts.complete():
                    await anyio.to_thread.run_sync(self._take, file, study, sender, taken, failed)
        except FormParserError as error:
            raise StowRefused(400, f"The body is no well-formed multipart/related: {error}.") from None
        except DiskFull as error:
            raise StowRefused(507, str(error)) from None
        finally:
            parts.drop()
            if taken or failed:
                self._audit.tell("received", sender=sender, instances=len(taken), refused=len(failed), by="STOW-RS")
        if not parts.ended:
            raise StowRefused(400, "The body ended before its last part was complete; send it again.")
        if not taken and not failed:
            raise StowRefused(400, "The body holds no part.")
        document = {
            tag: {"vr": "SQ", "Value": items} for tag, items in ((_REFERENCED, taken), (_FAILED, failed)) if items
        }
        return (200 if not failed else 202 if taken else 409), document

    def _take(
        self,
        file: Path,
        study: str | None,
        sender: str,
        taken: list[dict[str, Any]],
        failed: list[dict[str, Any]],
    ) -> None:
        item: dict[str, Any] = {}
        reason = 0
        try:
            identity = self._inbox.identify(file)
            for tag, uid in ((_CLASS, identity.sop_class), (_INSTANCE, identity.instance)):
                item[tag] = {"vr": "UI", "Value": [uid]}
            if study is not None and identity.study != study:
                reason = OTHER_STUDY
            else:
                self._inbox.take(file, sender, identity)
        except NotOurs:
            reason = CANNOT_UNDERSTAND
        except (DiskFull, OSError):
            reason = OUT_OF_RESOURCES
        finally:
            file.unlink(missing_ok=True)
        if reason:
            failed.append(item | {_REASON: {"vr": "US", "Value": [reason]}})
        else:
            taken.append(item)


@dataclass
class _Parts:
    """The parts of a body, each in a file of its own."""

    folder: Path
    boundary: bytes
    ended: bool = False
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
        self._parser.write(chunk)

    def complete(self) -> list[Path]:
        """The files that became complete since it was asked last."""
        whole, self._whole = self._whole, []
        return whole

    def drop(self) -> None:
        """Delete what was not taken."""
        if self._open is not None:
            self._open.close()
        for file in self._all:
            file.unlink(missing_ok=True)

    def _begin(self) -> None:
        file = self.folder / f"stow-{secrets.token_hex(8)}"
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
