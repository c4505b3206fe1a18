"""Workitem as described by the manager: its step, whether this gateway may perform it, its inputs and outputs."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

from pydicom.valuerep import DT

from server.gateway.config import GatewayConfig, PolledArchive
from server.gateway.destinations import DestinationBase, DicomwebDestination, DimseDestination
from server.gateway.dicomweb import url_origin
from server.gateway.uids import uid_error
from server.gateway.ups_client import Json, sequence_items, text_value, text_values
from server.gateway.ups_config import CodedConcept, Worklist, WorklistStep

PRIORITIES = ("HIGH", "MEDIUM", "LOW")


class UnusableInputs(Exception):  # noqa: N818 - an answer
    """The inputs of a workitem cannot be retrieved by this gateway; the message is a sentence without UIDs."""


@dataclass(frozen=True)
class WorkitemInput:
    """Objects of one series, or of one study, that a workitem names as input.

    Attributes:
        archive: DICOMweb root of the configured archive from which they are retrieved.
        study: Study Instance UID.
        series: Series Instance UID; "" for the whole study.
        instances: SOP Instance UIDs; empty if the workitem does not list them.
    """

    archive: str
    study: str
    series: str
    instances: tuple[str, ...]


class RequestedDestinations(NamedTuple):
    """Destinations that a workitem requests for its results.

    Attributes:
        names: Names of the requested destinations that are configured.
        elsewhere: True if it also requests a destination that is not configured.
    """

    names: tuple[str, ...]
    elsewhere: bool


@dataclass
class Workitem:
    """Attributes of a workitem.

    Attributes:
        uid: SOP Instance UID.
        state: Procedure Step State.
        label: Procedure Step Label.
        codes: Scheduled Workitem Code Sequence, as (value, scheme, meaning).
        priority: Index of its Scheduled Procedure Step Priority among HIGH, MEDIUM and LOW.
        start: Scheduled Procedure Step Start DateTime, as written.
        document: Workitem in DICOM JSON.
    """

    uid: str
    state: str
    label: str
    codes: list[tuple[str, str, str]]
    priority: int
    start: str
    document: Json = field(repr=False)

    @classmethod
    def from_json(cls, document: Json) -> Workitem:
        """Read a workitem from the DICOM JSON of a search or retrieval."""
        priority = text_value(document, "ScheduledProcedureStepPriority")
        return cls(
            text_value(document, "SOPInstanceUID"),
            text_value(document, "ProcedureStepState"),
            text_value(document, "ProcedureStepLabel"),
            code_values(document, "ScheduledWorkitemCodeSequence"),
            PRIORITIES.index(priority) if priority in PRIORITIES else 1,
            text_value(document, "ScheduledProcedureStepStartDateTime"),
            document,
        )

    def find_step(self, worklist: Worklist) -> int | None:
        """Return the index of the first matching step; None if none matches or it cannot be performed here now."""
        readiness = text_value(self.document, "InputReadinessState")
        stations = code_values(self.document, "ScheduledStationNameCodeSequence")
        if uid_error(self.uid, "lenient") or (readiness and readiness != "READY") or self.is_expired():
            return None
        if stations and not any(_is(worklist.station, one) for one in stations):
            return None
        return next((number for number, step in enumerate(worklist.steps) if self._matches(step)), None)

    def is_expired(self) -> bool:
        """Return True if its Scheduled Procedure Step Expiration DateTime has passed; local time if it has no zone."""
        written = text_value(self.document, "ScheduledProcedureStepExpirationDateTime")
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            found = DT(written)
            if isinstance(found, datetime.datetime):
                return found.astimezone(datetime.UTC) < datetime.datetime.now(datetime.UTC)
        return False

    def is_cancel_requested(self) -> bool:
        """Return True if the manager wrote a reason for a cancellation into a workitem that is in progress.

        Without events, this is the only way in which a performer sees a request to cancel. The gateway itself writes
        these attributes only when it cancels.
        """
        return any(
            text_value(one, "ReasonForCancellation")
            or sequence_items(one, "ProcedureStepDiscontinuationReasonCodeSequence")
            for one in sequence_items(self.document, "ProcedureStepProgressInformationSequence")
        )

    def inputs(self, archives: Sequence[tuple[PolledArchive, Sequence[str]]]) -> list[WorkitemInput]:
        """Return the inputs, with the archives from which they are retrieved.

        Args:
            archives: Archives of the configuration, each with the AE titles that stand for it.

        Raises:
            UnusableInputs: There are no inputs, or some are in an archive that is not configured.
        """
        found = [_input(item, archives) for item in sequence_items(self.document, "InputInformationSequence")]
        if not found:
            raise UnusableInputs("The workitem names no input objects.")
        return found

    def outputs(self, destinations: Mapping[str, DestinationBase]) -> RequestedDestinations:
        """Return the destinations that the workitem requests (Output Destination Sequence, PS3.3 C.30.2).

        An item for a single SOP class counts as not configured, because a destination receives all results.

        Args:
            destinations: Destinations of the configuration, by name.
        """
        items = sequence_items(self.document, "OutputDestinationSequence")
        found = [None if text_value(item, "ReferencedSOPClassUID") else _place(item, destinations) for item in items]
        names = tuple(dict.fromkeys(name for name in found if name is not None))
        return RequestedDestinations(names, elsewhere=None in found)

    def _matches(self, step: WorklistStep) -> bool:
        if step.label is not None and step.label.strip().casefold() != self.label.casefold():
            return False
        return step.code is None or any(_is(step.code, one) for one in self.codes)


def input_archives(config: GatewayConfig, worklist: Worklist) -> list[tuple[PolledArchive, Sequence[str]]]:
    """Return the archives of inputs with the AE titles that stand for them: first the worklist's, then polled ones."""
    found: list[tuple[PolledArchive, Sequence[str]]] = []
    for one in worklist.inputs:
        found.append((PolledArchive(url=one.url, name=worklist.name, token=one.token), one.ae_titles))
    for poll in config.polls:
        found.append((PolledArchive(url=poll.url, name=worklist.name, token=poll.token), (poll.name,)))
    return found


def code_values(document: Json, keyword: str) -> list[tuple[str, str, str]]:
    """Return the codes of a sequence, as (value, scheme, meaning); a long or URN code value counts as the value."""
    return [
        (
            text_value(one, "CodeValue") or text_value(one, "LongCodeValue") or text_value(one, "URNCodeValue"),
            text_value(one, "CodingSchemeDesignator"),
            text_value(one, "CodeMeaning"),
        )
        for one in sequence_items(document, keyword)
    ]


def _is(code: CodedConcept, found: tuple[str, str, str]) -> bool:
    return (code.value, code.scheme) == found[:2]


def _input(item: Json, archives: Sequence[tuple[PolledArchive, Sequence[str]]]) -> WorkitemInput:
    study, series = text_value(item, "StudyInstanceUID"), text_value(item, "SeriesInstanceUID")
    listed = [text_value(one, "ReferencedSOPInstanceUID") for one in sequence_items(item, "ReferencedSOPSequence")]
    if text_value(item, "TypeOfInstances") not in ("", "DICOM"):
        raise UnusableInputs("An input is not a DICOM object.")
    if not study or any(uid_error(uid, "lenient") for uid in (study, series or "0", *listed)):
        raise UnusableInputs("An input lacks a Study Instance UID, or has a UID that violates PS3.5 9.1.")
    return WorkitemInput(_archive(item, archives), study, series, tuple(dict.fromkeys(listed)))


def _archive(item: Json, archives: Sequence[tuple[PolledArchive, Sequence[str]]]) -> str:
    """Return the root of the archive from which an input is retrieved.

    The addresses in a workitem only select among those of the configuration; no other address is contacted.
    """
    urls = [
        *(text_value(one, "RetrieveURL") for one in sequence_items(item, "WADORSRetrievalSequence")),
        *(text_value(one, "RetrieveURI") for one in sequence_items(item, "WADORetrievalSequence")),
    ]
    titles = [
        title for one in sequence_items(item, "DICOMRetrievalSequence") for title in text_values(one, "RetrieveAETitle")
    ]
    for poll, known in archives:
        if any(is_below(url, poll.url) for url in urls) or set(titles) & set(known):
            return poll.url
    if not urls and not titles and archives:
        return archives[0][0].url
    where = " and ".join([*(["WADO-RS"] if urls else []), *(["DICOM"] if titles else [])])
    raise UnusableInputs(
        f"The workitem offers an input by {where} retrieval from an archive that gateway.yaml does not list (`inputs`)."
    )


def _place(item: Json, destinations: Mapping[str, DestinationBase]) -> str | None:
    """Return the name of the destination of an item in the Output Destination Sequence; None if not configured."""
    titles = [text_value(one, "DestinationAE").strip() for one in sequence_items(item, "DICOMStorageSequence")]
    urls = [text_value(one, "StorageURL") for one in sequence_items(item, "STOWRSStorageSequence")]
    for name, one in destinations.items():
        if isinstance(one, DimseDestination) and one.ae_title in titles:
            return name
        if isinstance(one, DicomwebDestination) and any(is_below(url, one.url) for url in urls):
            return name
    return None


def is_below(url: str, root: str) -> bool:
    """Return True if an address is below the root of an archive: same scheme, host and port, and a path below it."""
    if url_origin(url) != url_origin(root):
        return False
    one, above = urlsplit(url), urlsplit(root).path.rstrip("/")
    if one.username is not None or ".." in one.path or "%2e" in one.path.lower():
        return False
    return one.path == above or one.path.startswith(f"{above}/")
