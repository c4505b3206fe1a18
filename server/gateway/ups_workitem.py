"""A workitem as the manager tells it: which step it is, whether it is for us, and which objects are its inputs."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

from pydicom.valuerep import DT

from server.gateway.config import Destination, GatewayConfig, PolledArchive
from server.gateway.dicomweb import url_origin
from server.gateway.uids import uid_error
from server.gateway.ups_client import Json, sequence_items, text_value, text_values
from server.gateway.ups_config import CodedConcept, Worklist, WorklistStep

PRIORITIES = ("HIGH", "MEDIUM", "LOW")


class UnusableInputs(Exception):  # noqa: N818 - an answer
    """The inputs of a workitem cannot be fetched, whoever tries; the message is a sentence without UIDs."""


@dataclass(frozen=True)
class WorkitemInput:
    """Objects of one series, or of one study, that a workitem names as input.

    Attributes:
        archive: DICOMweb root from which they are fetched; one of the configuration.
        study: Study Instance UID.
        series: Series Instance UID; "" for the whole study.
        instances: SOP Instance UIDs; none where the workitem does not list them.
    """

    archive: str
    study: str
    series: str
    instances: tuple[str, ...]


class RequestedDestinations(NamedTuple):
    """Where a workitem asks results to be stored.

    Attributes:
        names: Names of the configured destinations that it asks for.
        elsewhere: True: it also asks for a place that the configuration does not have.
    """

    names: tuple[str, ...]
    elsewhere: bool


@dataclass
class Workitem:
    """What is known of a workitem.

    Attributes:
        uid: SOP Instance UID.
        state: Procedure Step State.
        label: Procedure Step Label.
        codes: Scheduled Workitem Code Sequence, as (value, scheme, meaning).
        priority: Place of its Scheduled Procedure Step Priority among HIGH, MEDIUM and LOW.
        start: Scheduled Procedure Step Start DateTime, as it is written.
        document: The workitem in DICOM JSON.
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
        """Read the DICOM JSON of a search or retrieval."""
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
        """Index of the first configured step that the workitem is; None where it is none, or is not for us now."""
        readiness = text_value(self.document, "InputReadinessState")
        stations = code_values(self.document, "ScheduledStationNameCodeSequence")
        if uid_error(self.uid, "lenient") or (readiness and readiness != "READY") or self.is_expired():
            return None
        if stations and not any(_is(worklist.station, one) for one in stations):
            return None
        return next((number for number, step in enumerate(worklist.steps) if self._matches(step)), None)

    def is_expired(self) -> bool:
        """Whether its Scheduled Procedure Step Expiration DateTime is over; a time without a zone is meant as ours."""
        written = text_value(self.document, "ScheduledProcedureStepExpirationDateTime")
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            found = DT(written)
            if isinstance(found, datetime.datetime):
                return found.astimezone(datetime.UTC) < datetime.datetime.now(datetime.UTC)
        return False

    def is_cancel_requested(self) -> bool:
        """Whether the manager wrote a reason for a cancellation into a workitem that is in progress.

        A performer that does not listen to events sees a request to cancel in this way only: it never writes these
        attributes itself before it cancels.
        """
        return any(
            text_value(one, "ReasonForCancellation")
            or sequence_items(one, "ProcedureStepDiscontinuationReasonCodeSequence")
            for one in sequence_items(self.document, "ProcedureStepProgressInformationSequence")
        )

    def inputs(self, archives: Sequence[tuple[PolledArchive, Sequence[str]]]) -> list[WorkitemInput]:
        """The inputs, and where they are fetched.

        Args:
            archives: Archives of the configuration, each with the AE titles that stand for it.

        Raises:
            UnusableInputs: There are none, or some are somewhere else.
        """
        found = [_input(item, archives) for item in sequence_items(self.document, "InputInformationSequence")]
        if not found:
            raise UnusableInputs("The workitem names no input objects.")
        return found

    def outputs(self, destinations: Mapping[str, Destination]) -> RequestedDestinations:
        """The destinations that the workitem asks for (Output Destination Sequence, PS3.3 C.30.2).

        An item for a single SOP class counts as one that is not configured, since a destination gets all results.

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
    """Archives from which inputs may come, each with the AE titles that stand for it: the worklist's, then polls'."""
    found: list[tuple[PolledArchive, Sequence[str]]] = []
    for one in worklist.inputs:
        found.append((PolledArchive(url=one.url, name=worklist.name, token=one.token), one.ae_titles))
    for poll in config.polls:
        found.append((PolledArchive(url=poll.url, name=worklist.name, token=poll.token), (poll.name,)))
    return found


def code_values(document: Json, keyword: str) -> list[tuple[str, str, str]]:
    """The codes of a sequence, as (value, scheme, meaning); a long or URN code value counts as the value."""
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
        raise UnusableInputs("An input is no DICOM object.")
    if not study or any(uid_error(uid, "lenient") for uid in (study, series or "0", *listed)):
        raise UnusableInputs("An input lacks a UID of its study, or has a UID that breaks PS3.5 9.1.")
    return WorkitemInput(_archive(item, archives), study, series, tuple(dict.fromkeys(listed)))


def _archive(item: Json, archives: Sequence[tuple[PolledArchive, Sequence[str]]]) -> str:
    """Root of the archive that an input is fetched from.

    The addresses in a workitem only choose among those of the configuration; nothing else is ever asked.
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
        f"The workitem offers an input by {where} retrieval from a place that gateway.yaml does not name (`inputs`)."
    )


def _place(item: Json, destinations: Mapping[str, Destination]) -> str | None:
    """Name of the destination that an item of the Output Destination Sequence means; None where there is none."""
    titles = [text_value(one, "DestinationAE").strip() for one in sequence_items(item, "DICOMStorageSequence")]
    urls = [text_value(one, "StorageURL") for one in sequence_items(item, "STOWRSStorageSequence")]
    for name, one in destinations.items():
        if one.dimse is not None and one.dimse.ae_title in titles:
            return name
        if one.web is not None and any(is_below(url, one.web.url) for url in urls):
            return name
    return None


def is_below(url: str, root: str) -> bool:
    """Whether an address lies below the root of an archive: the same scheme, host and port, and a path below it."""
    if url_origin(url) != url_origin(root):
        return False
    one, above = urlsplit(url), urlsplit(root).path.rstrip("/")
    if one.username is not None or ".." in one.path or "%2e" in one.path.lower():
        return False
    return one.path == above or one.path.startswith(f"{above}/")
