"""A workitem as the manager tells it: which step it is, whether it is for us, and which objects are its inputs."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

from pydicom.valuerep import DT

from server.gateway.config import Destination, GatewayConfig, Poll
from server.gateway.dicomweb import origin_of
from server.gateway.uids import breaks_the_standard
from server.gateway.ups_client import Json, items_of, value_of, values_of
from server.gateway.ups_config import Code, Step, Worklist

PRIORITIES = ("HIGH", "MEDIUM", "LOW")


class Unusable(Exception):  # noqa: N818 - an answer
    """The inputs of a workitem cannot be fetched, whoever tries; the message is a sentence without UIDs."""


@dataclass(frozen=True)
class Input:
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


class Outputs(NamedTuple):
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
    def of(cls, document: Json) -> Workitem:
        """Read the DICOM JSON of a search or retrieval."""
        priority = value_of(document, "ScheduledProcedureStepPriority")
        return cls(
            value_of(document, "SOPInstanceUID"),
            value_of(document, "ProcedureStepState"),
            value_of(document, "ProcedureStepLabel"),
            codes_of(document, "ScheduledWorkitemCodeSequence"),
            PRIORITIES.index(priority) if priority in PRIORITIES else 1,
            value_of(document, "ScheduledProcedureStepStartDateTime"),
            document,
        )

    def step_among(self, worklist: Worklist) -> int | None:
        """Index of the first configured step that the workitem is; None where it is none, or is not for us now."""
        readiness = value_of(self.document, "InputReadinessState")
        stations = codes_of(self.document, "ScheduledStationNameCodeSequence")
        if breaks_the_standard(self.uid, "lenient") or (readiness and readiness != "READY") or self.is_expired():
            return None
        if stations and not any(_is(worklist.station, one) for one in stations):
            return None
        return next((number for number, step in enumerate(worklist.steps) if self._matches(step)), None)

    def is_expired(self) -> bool:
        """Whether its Scheduled Procedure Step Expiration DateTime is over; a time without a zone is meant as ours."""
        written = value_of(self.document, "ScheduledProcedureStepExpirationDateTime")
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            found = DT(written)
            if isinstance(found, datetime.datetime):
                return found.astimezone(datetime.UTC) < datetime.datetime.now(datetime.UTC)
        return False

    def asks_to_cancel(self) -> bool:
        """Whether the manager wrote a reason for a cancellation into a workitem that is in progress.

        A performer that does not listen to events sees a request to cancel in this way only: it never writes these
        attributes itself before it cancels.
        """
        return any(
            value_of(one, "ReasonForCancellation") or items_of(one, "ProcedureStepDiscontinuationReasonCodeSequence")
            for one in items_of(self.document, "ProcedureStepProgressInformationSequence")
        )

    def inputs(self, archives: Sequence[tuple[Poll, Sequence[str]]]) -> list[Input]:
        """The inputs, and where they are fetched.

        Args:
            archives: Archives of the configuration, each with the AE titles that stand for it.

        Raises:
            Unusable: There are none, or some are somewhere else.
        """
        found = [_input(item, archives) for item in items_of(self.document, "InputInformationSequence")]
        if not found:
            raise Unusable("The workitem names no input objects.")
        return found

    def outputs(self, destinations: Mapping[str, Destination]) -> Outputs:
        """The destinations that the workitem asks for (Output Destination Sequence, PS3.3 C.30.2).

        An item for a single SOP class counts as one that is not configured, since a destination gets all results.

        Args:
            destinations: Destinations of the configuration, by name.
        """
        items = items_of(self.document, "OutputDestinationSequence")
        found = [None if value_of(item, "ReferencedSOPClassUID") else _place(item, destinations) for item in items]
        names = tuple(dict.fromkeys(name for name in found if name is not None))
        return Outputs(names, elsewhere=None in found)

    def _matches(self, step: Step) -> bool:
        if step.label is not None and step.label.strip().casefold() != self.label.casefold():
            return False
        return step.code is None or any(_is(step.code, one) for one in self.codes)


def archives_of(config: GatewayConfig, worklist: Worklist) -> list[tuple[Poll, Sequence[str]]]:
    """Archives from which inputs may come, each with the AE titles that stand for it: the worklist's, then polls'."""
    found: list[tuple[Poll, Sequence[str]]] = []
    for one in worklist.inputs:
        found.append((Poll(url=one.url, name=worklist.name, token=one.token), one.ae_titles))
    for poll in config.polls:
        found.append((Poll(url=poll.url, name=worklist.name, token=poll.token), (poll.name,)))
    return found


def codes_of(document: Json, keyword: str) -> list[tuple[str, str, str]]:
    """The codes of a sequence, as (value, scheme, meaning); a long or URN code value counts as the value."""
    return [
        (
            value_of(one, "CodeValue") or value_of(one, "LongCodeValue") or value_of(one, "URNCodeValue"),
            value_of(one, "CodingSchemeDesignator"),
            value_of(one, "CodeMeaning"),
        )
        for one in items_of(document, keyword)
    ]


def _is(code: Code, found: tuple[str, str, str]) -> bool:
    return (code.value, code.scheme) == found[:2]


def _input(item: Json, archives: Sequence[tuple[Poll, Sequence[str]]]) -> Input:
    study, series = value_of(item, "StudyInstanceUID"), value_of(item, "SeriesInstanceUID")
    listed = [value_of(one, "ReferencedSOPInstanceUID") for one in items_of(item, "ReferencedSOPSequence")]
    if value_of(item, "TypeOfInstances") not in ("", "DICOM"):
        raise Unusable("An input is no DICOM object.")
    if not study or any(breaks_the_standard(uid, "lenient") for uid in (study, series or "0", *listed)):
        raise Unusable("An input lacks a UID of its study, or has a UID that breaks PS3.5 9.1.")
    return Input(_archive(item, archives), study, series, tuple(dict.fromkeys(listed)))


def _archive(item: Json, archives: Sequence[tuple[Poll, Sequence[str]]]) -> str:
    """Root of the archive that an input is fetched from.

    The addresses in a workitem only choose among those of the configuration; nothing else is ever asked.
    """
    urls = [
        *(value_of(one, "RetrieveURL") for one in items_of(item, "WADORSRetrievalSequence")),
        *(value_of(one, "RetrieveURI") for one in items_of(item, "WADORetrievalSequence")),
    ]
    titles = [title for one in items_of(item, "DICOMRetrievalSequence") for title in values_of(one, "RetrieveAETitle")]
    for poll, known in archives:
        if any(is_below(url, poll.url) for url in urls) or set(titles) & set(known):
            return poll.url
    if not urls and not titles and archives:
        return archives[0][0].url
    where = " and ".join([*(["WADO-RS"] if urls else []), *(["DICOM"] if titles else [])])
    raise Unusable(
        f"The workitem offers an input by {where} retrieval from a place that gateway.yaml does not name (`inputs`)."
    )


def _place(item: Json, destinations: Mapping[str, Destination]) -> str | None:
    """Name of the destination that an item of the Output Destination Sequence means; None where there is none."""
    titles = [value_of(one, "DestinationAE").strip() for one in items_of(item, "DICOMStorageSequence")]
    urls = [value_of(one, "StorageURL") for one in items_of(item, "STOWRSStorageSequence")]
    for name, one in destinations.items():
        if one.dimse is not None and one.dimse.ae_title in titles:
            return name
        if one.web is not None and any(is_below(url, one.web.url) for url in urls):
            return name
    return None


def is_below(url: str, root: str) -> bool:
    """Whether an address lies below the root of an archive: the same scheme, host and port, and a path below it."""
    if origin_of(url) != origin_of(root):
        return False
    one, above = urlsplit(url), urlsplit(root).path.rstrip("/")
    if one.username is not None or ".." in one.path or "%2e" in one.path.lower():
        return False
    return one.path == above or one.path.startswith(f"{above}/")
