"""STOW-RS (PS3.18 10.5): receives a multipart/related body of DICOM files; each is on disk before it is confirmed."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from semiseg.errors import SemisegError
from server.gateway.audit import AuditLog
from server.gateway.instance_store import DiskFull, InstanceIdentity, InstanceStore, InvalidInstance
from server.gateway.multipart_files import MultipartFiles
from server.gateway.study_tracker import StudyTracker

OUT_OF_RESOURCES, CANNOT_UNDERSTAND, OTHER_STUDY = 0xA700, 0xC000, 0xC409
_REFERENCED, _FAILED = "00081199", "00081198"  # Referenced and Failed SOP Sequence
_CLASS, _INSTANCE, _REASON = "00081150", "00081155", "00081197"

_LOG = logging.getLogger("semiseg.gateway")


class StowError(SemisegError):
    """The request fails with ``status`` and a message; none of its instances was confirmed."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass
class _RequestRecord:
    """Instances of a request.

    Attributes:
        sender: Name of the API key of the request.
        only: UID of the only study whose instances are accepted; None for all studies.
        taken, failed: Items of the response.
        studies: Names of the studies of accepted instances, and of refused instances whose study could be read.
        unplaced: Reasons for refused instances whose study could not be read.
    """

    sender: str
    only: str | None
    taken: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    studies: set[str] = field(default_factory=set)
    unplaced: list[str] = field(default_factory=list)


class StowHandler:
    """Receives instances over HTTP."""

    def __init__(self, instance_store: InstanceStore, audit: AuditLog, largest: int, studies: StudyTracker) -> None:
        """Configure the handler; ``largest`` is the maximum size of a request, ``studies`` is notified of its end."""
        self._instance_store, self._audit, self._largest, self._studies = instance_store, audit, largest, studies

    async def store(self, request: Request, study: str | None, sender: str) -> tuple[int, dict[str, Any]]:
        """Store the instances of a request.

        Args:
            request: HTTP request.
            study: UID of the only study whose instances are accepted; None accepts all.
            sender: Name that stands for an AE title.

        Returns:
            Status (200 if all instances were stored, 202 if some were, 409 if none was) and DICOM JSON (PS3.18 10.5.3).

        Raises:
            StowError: The request failed with status 400, 413, 415 or 507.
            ClientDisconnect: The client disconnected; completely received instances may have been stored.
        """
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/related" or options.get(b"type", b"application/dicom") != b"application/dicom":
            raise StowError(415, 'Send multipart/related; type="application/dicom".')
        if not 0 < len(boundary) <= 200:
            raise StowError(400, "The content type multipart/related lacks a usable boundary.")
        parts, brought = MultipartFiles(self._instance_store.incoming, boundary, "stow"), _RequestRecord(sender, study)
        whole = False
        try:
            await self._receive(request, parts, brought)
            whole = True
        finally:
            parts.delete()
            # Only an interrupted request can be cancelled here, and its end has to be recorded, too.
            self._end(brought, whole)
        taken, failed = brought.taken, brought.failed
        document = {
            tag: {"vr": "SQ", "Value": items} for tag, items in ((_REFERENCED, taken), (_FAILED, failed)) if items
        }
        return (200 if not failed else 202 if taken else 409), document

    async def _receive(self, request: Request, parts: MultipartFiles, brought: _RequestRecord) -> None:
        received = 0
        try:
            self._instance_store.require_free_space()
            async for chunk in request.stream():
                received += len(chunk)
                if received > self._largest:
                    raise StowError(413, f"The request is larger than {self._largest / 2**20:g} MB.")
                await anyio.to_thread.run_sync(parts.feed, chunk)
                for file in parts.take_completed():
                    await anyio.to_thread.run_sync(partial(self._take, file, brought))
        except FormParserError as error:
            raise StowError(400, f"The body is not well-formed multipart/related: {error}.") from None
        except DiskFull as error:
            raise StowError(507, str(error)) from None
        except OSError as error:
            sentence = f"The body could not be written ({error.strerror}); send it again when there is free space."
            raise StowError(507, sentence) from None
        if not parts.ended:
            raise StowError(400, "The body ended before its last part was complete; send it again.")
        if not brought.taken and not brought.failed:
            raise StowError(400, "The body has no parts.")

    def _take(self, file: Path, brought: _RequestRecord) -> None:
        item: dict[str, Any] = {}
        reason, why = 0, ""
        identity: InstanceIdentity | None = None
        try:
            identity = self._instance_store.identify(file)
            if brought.only is not None and identity.study != brought.only:
                reason = OTHER_STUDY
            else:
                arrival = self._instance_store.add(file, brought.sender, identity, more_follows=True)
                brought.studies.add(arrival.study)
                self._studies.transfer_started(arrival.study, id(brought))
                if arrival.differs:
                    told = {"instance": arrival.instance, "attributes": arrival.attributes}
                    self._audit.record("conflict", sender=brought.sender, study=arrival.study, **told)
        except InvalidInstance as error:
            reason, why, identity = CANNOT_UNDERSTAND, str(error), error.identity
        except DiskFull as error:
            reason, why = OUT_OF_RESOURCES, str(error)
        except OSError as error:
            reason, why = OUT_OF_RESOURCES, f"It could not be written ({error.strerror})."
        finally:
            file.unlink(missing_ok=True)
        if identity is not None:
            for tag, uid in ((_CLASS, identity.sop_class), (_INSTANCE, identity.instance)):
                item[tag] = {"vr": "UI", "Value": [uid]}
        if not reason:
            brought.taken.append(item)
            return
        brought.failed.append(item | {_REASON: {"vr": "US", "Value": [reason]}})
        if why:
            _LOG.warning("An instance from %s was refused with 0x%04X by STOW-RS: %s", brought.sender, reason, why)
            self._lacks(brought, identity, f"An instance from {brought.sender} was refused with 0x{reason:04X}: {why}")

    def _lacks(self, brought: _RequestRecord, identity: InstanceIdentity | None, why: str) -> None:
        if identity is None:
            brought.unplaced.append(why)
        else:
            study = self._instance_store.record_missing(identity, why)
            brought.studies.add(study)
            self._studies.transfer_started(study, id(brought))

    def _end(self, brought: _RequestRecord, whole: bool) -> None:
        """Record the end of a request for each of its studies."""
        for study in brought.studies:
            for number, why in enumerate(brought.unplaced, start=1):
                self._instance_store.record_incomplete(study, f"part-{number}", why)
            if whole:
                self._instance_store.transfer_ended(study, brought.sender)
        self._studies.transfer_ended(id(brought), broken_by="" if whole else brought.sender)
        if brought.taken or brought.failed:
            counts = {"instances": len(brought.taken), "refused": len(brought.failed)}
            ended = "complete" if whole else "broken off"
            self._audit.record("received", sender=brought.sender, **counts, by="STOW-RS", ended=ended)
