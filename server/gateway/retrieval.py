"""Retrieval of a study from an archive by WADO-RS (PS3.18 10.4), completely or not at all.

The parts are written to disk and kept there until the retrieval is complete: the status is 200, the closing boundary
was received, every part is an instance of this study, and no instance is missing that QIDO-RS counts or lists.
Otherwise all parts are deleted and the study is retrieved again later, because an incomplete study must not be taken
for a complete one.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import requests
from dicomweb_client import DICOMwebClient
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from semiseg.errors import Cancelled, SemisegError
from server.gateway.config import PolledArchive
from server.gateway.dicom_json import first_value
from server.gateway.dicomweb import create_dicomweb_client, create_session, request_error_text
from server.gateway.instance_store import DiskFull, InstanceIdentity, InstanceStore, InvalidInstance, parse_count
from server.gateway.multipart_files import MultipartFiles

STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
STUDY_COUNT, SERIES_COUNT = "00201208", "00201209"
PAGE, MAX_INSTANCES = 1000, 200_000  # instances
_CHUNK = 2**20
_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'


class FetchError(SemisegError):
    """The archive did not return everything; the message describes its response."""


@dataclass(frozen=True)
class ExpectedInstances:
    """Instances that an archive reports for a study before it is retrieved.

    Attributes:
        count: Number of Study Related Instances; None if it is not reported.
        series: Number of Series Related Instances by Series Instance UID, for the series that report it.
        instances: SOP Instance UIDs that the archive lists; empty if it lists none.
    """

    count: int | None
    series: dict[str, int] = field(default_factory=dict)
    instances: frozenset[str] = frozenset()

    def missing(self, got: dict[str, str]) -> str:
        """Describe what is missing, as a sentence; "" if nothing is.

        Args:
            got: Series Instance UIDs of the received instances, by SOP Instance UID.
        """
        if self.count is not None and len(got) < self.count:
            return f"{len(got)} of {self.count} instances were received."
        of_series = Counter(got.values())
        for uid, count in self.series.items():
            if of_series[uid] < count:
                return f"{of_series[uid]} of {count} instances of a series were received."
        if lacking := len(self.instances - got.keys()):
            return f"{lacking} of {len(self.instances)} listed instances were not received."
        return ""


def fetch_study(poll: PolledArchive, uid: str, instance_store: InstanceStore, cancelled: Callable[[], bool]) -> int:
    """Retrieve the instances of a study into the instance store.

    Args:
        poll: Configuration of the archive.
        uid: Study Instance UID.
        instance_store: Store of the instances.
        cancelled: Function that returns True once the job is to stop; called repeatedly.

    Returns:
        Number of instances.

    Raises:
        FetchError: The archive does not return the complete study, or the disk is full.
        Cancelled: The job was stopped before the study was complete.
    """
    with fetch_errors(poll.url, "study"):
        announced = query_expected_instances(create_dicomweb_client(poll.url, poll.token), uid)
        place = ReceivingFolder.of_store(instance_store, cancelled)
        with retrieve_parts(poll.url, poll.token, uid, place) as files:
            found = [(file, *identify_part(instance_store, file, uid, poll)) for file in files]
            got = {identity.instance: identity.series for _, identity, _ in found}
            if missing := announced.missing(got):
                raise FetchError(f"{poll.url} returned only part of the study: {missing}")
            for file, identity, wrong in found:
                if wrong:
                    instance_store.record_missing(identity, f"An instance from {poll.name} was refused: {wrong}")
                else:
                    instance_store.add(file, poll.name, identity)
    return len(got)


@contextlib.contextmanager
def fetch_errors(url: str, what: Literal["study", "inputs"]) -> Iterator[None]:
    """Convert errors while retrieving from the archive at ``url`` to one exception with a sentence.

    Raises:
        FetchError: The archive did not return the instances, or the disk is full.
    """
    some, was = (f"A study from {url}", "was") if what == "study" else (f"Inputs from {url}", "were")
    try:
        yield
    except requests.RequestException as error:
        raise FetchError(f"{url} did not return the {what} ({request_error_text(error)}).") from None
    except DiskFull as error:
        raise FetchError(f"{some} {was} not accepted. {error}") from None
    except OSError as error:
        raise FetchError(f"{some} could not be written ({error.strerror}).") from None


def query_expected_instances(archive: DICOMwebClient, uid: str, only: str = "") -> ExpectedInstances:
    """Query the instances of a study by QIDO-RS (PS3.18 10.6), on each level, since archives differ in support.

    Args:
        archive: Client of the archive.
        uid: Study Instance UID.
        only: Series Instance UID to limit the query to one series; "" for the whole study.

    Raises:
        FetchError: The archive reports no number and no list.
        RequestException: The archive does not answer.
    """
    count = None if only else _count_of(archive, uid)
    series: dict[str, int] = {}
    with contextlib.suppress(requests.RequestException, ValueError):
        for row in archive.search_for_series(uid, fields=[SERIES_COUNT]):
            number = parse_count(first_value(row, SERIES_COUNT))
            if number is not None and first_value(row, SERIES) and only in ("", str(first_value(row, SERIES))):
                series[str(first_value(row, SERIES))] = number
    listed: frozenset[str] = frozenset()
    with contextlib.suppress(requests.RequestException, ValueError):
        listed = list_instances(archive, uid, only)
    if count is None and not series and not listed:
        raise FetchError("The archive does not report by QIDO-RS how many instances the study has.")
    return ExpectedInstances(count, series, listed)


def _count_of(archive: DICOMwebClient, uid: str) -> int | None:
    """Query the Number of Study Related Instances, page by page: some archives return all studies, or few at a time."""
    seen: set[str] = set()
    asked = 0
    while asked < MAX_INSTANCES:
        page: list[dict[str, Any]] = archive.search_for_studies(
            fields=[STUDY_COUNT], search_filters={"StudyInstanceUID": uid}, limit=100, offset=asked
        )
        before, asked = len(seen), asked + len(page)
        for row in page:
            if str(first_value(row, STUDY)) == uid:
                return parse_count(first_value(row, STUDY_COUNT))
            seen.add(str(first_value(row, STUDY)))
        if len(seen) == before:
            break
    return None


def list_instances(archive: DICOMwebClient, uid: str, series: str = "") -> frozenset[str]:
    """List the SOP Instance UIDs of a study, or of one of its series, page by page.

    Raises:
        RequestException, ValueError: The archive does not list them.
    """
    found: set[str] = set()
    asked = 0
    while len(found) < MAX_INSTANCES:
        page: list[dict[str, Any]] = archive.search_for_instances(uid, series or None, limit=PAGE, offset=asked)
        before, asked = len(found), asked + len(page)
        found.update(str(first_value(row, INSTANCE)) for row in page if first_value(row, INSTANCE))
        if len(found) == before:
            break
    return frozenset(found)


@dataclass(frozen=True)
class ReceivingFolder:
    """Where the parts of a response are written.

    Attributes:
        path: The folder.
        proceed: Function that is called before each write; it raises an exception to end the retrieval.
    """

    path: Path
    proceed: Callable[[], None]

    @classmethod
    def of_store(cls, instance_store: InstanceStore, cancelled: Callable[[], bool]) -> ReceivingFolder:
        """The folder of an instance store for arriving data, as long as it has space and the job is not stopped."""

        def proceed() -> None:
            if cancelled():
                raise Cancelled("The job was stopped.")
            instance_store.require_free_space()

        return cls(instance_store.incoming, proceed)


@contextlib.contextmanager
def retrieve_parts(
    root: str, token: Path | None, uid: str, place: ReceivingFolder, series: str = ""
) -> Iterator[list[Path]]:
    """Retrieve a study as one file for each part of the response; the files are deleted when the context is closed.

    Args:
        root: DICOMweb root of the archive.
        token: File whose content is sent as bearer token; None for none.
        uid: Study Instance UID.
        place: Folder of the files.
        series: Series Instance UID; "" for the whole study.

    Raises:
        FetchError, RequestException, OSError: The response failed or was incomplete.
        Exception: An exception of ``place.proceed``.
    """
    url = f"{root}/studies/{quote(uid, safe='')}" + (f"/series/{quote(series, safe='')}" if series else "")
    place.proceed()
    with create_session(token) as session, session.get(url, headers={"Accept": _ACCEPT}, stream=True) as answer:
        if answer.status_code != 200:  # 206: some instances are not available (PS3.18 table 10.4.3-1)
            what = "only part of the study" if answer.status_code == 206 else "no study"
            raise FetchError(f"{root} returned {what} (HTTP {answer.status_code}).")
        kind, options = parse_options_header(answer.headers.get("Content-Type", ""))
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/related" or not boundary:
            raise FetchError(f"{root} did not answer with multipart/related.")
        parts, files = MultipartFiles(place.path, boundary, "wado"), list[Path]()
        try:
            for chunk in answer.iter_content(_CHUNK):
                place.proceed()
                parts.feed(chunk)
                files += parts.take_completed()
            if not parts.ended:
                raise FetchError(f"{root} returned only part of the study: the closing boundary is missing.")
            yield files
        except FormParserError:
            raise FetchError(f"{root} did not answer with well-formed multipart/related.") from None
        finally:
            parts.delete()


def identify_part(
    instance_store: InstanceStore, file: Path, uid: str, poll: PolledArchive
) -> tuple[InstanceIdentity, str]:
    """Read the identity of a part, and the reason if it is an instance of the study that is refused; "" otherwise."""
    wrong = ""
    try:
        identity = instance_store.identify(file)
    except InvalidInstance as error:
        if error.identity is None:
            raise FetchError(f"{poll.url} returned a part that is not an instance of the study: {error}") from None
        identity, wrong = error.identity, str(error)
    if identity.study != uid:
        raise FetchError(f"{poll.url} returned an instance of another study.")
    return identity, wrong
