"""A study out of an archive by WADO-RS (PS3.18 10.4), whole or not at all.

The parts go to the disk and stay there until all are there: the answer was 200, its closing boundary came, every part
is an instance of this study, and none is missing that QIDO-RS counts or lists. Otherwise all of them are deleted, and
the study is fetched again later: part of a study must not look like a study.
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

from semiseg.errors import Cancelled
from server.gateway.config import Poll
from server.gateway.delivery import NotDelivered
from server.gateway.dicom_json import first
from server.gateway.dicomweb import archive_at, said, session_of
from server.gateway.inbox import DiskFull, Identity, Inbox, NotOurs, count_in
from server.gateway.parts import Parts

STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
STUDY_COUNT, SERIES_COUNT = "00201208", "00201209"
PAGE, MOST = 1000, 200_000  # instances
_CHUNK = 2**20
_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'


@dataclass(frozen=True)
class Announced:
    """What an archive says of a study before it is fetched.

    Attributes:
        count: Number of Study Related Instances, None where it does not say.
        series: Number of Series Related Instances by Series Instance UID, of those that say it.
        instances: SOP Instance UIDs that it lists; none where it lists nothing.
    """

    count: int | None
    series: dict[str, int] = field(default_factory=dict)
    instances: frozenset[str] = frozenset()

    def missing(self, got: dict[str, str]) -> str:
        """What is missing, as a sentence; "" where nothing is.

        Args:
            got: Series Instance UID by SOP Instance UID of what came.
        """
        if self.count is not None and len(got) < self.count:
            return f"{len(got)} of {self.count} instances came."
        of_series = Counter(got.values())
        for uid, count in self.series.items():
            if of_series[uid] < count:
                return f"{of_series[uid]} of {count} instances of a series came."
        if lacking := len(self.instances - got.keys()):
            return f"{lacking} of {len(self.instances)} listed instances did not come."
        return ""


def fetch(poll: Poll, uid: str, inbox: Inbox, cancelled: Callable[[], bool]) -> int:
    """Put the instances of a study into the inbox.

    Args:
        poll: The archive.
        uid: Study Instance UID.
        inbox: Instances on the disk.
        cancelled: Function that returns True once the job is stopped; asked now and then.

    Returns:
        Number of instances.

    Raises:
        NotDelivered: The archive does not give the whole study, or there is no room for it.
        Cancelled: It was stopped before the whole study was there.
    """
    with failures_told(poll.url, "study"):
        announced = announced_by(archive_at(poll.url, poll.token), uid)
        with retrieved(poll, uid, inbox, cancelled) as files:
            found = [(file, *identity_of(inbox, file, uid, poll)) for file in files]
            got = {identity.instance: identity.series for _, identity, _ in found}
            if missing := announced.missing(got):
                raise NotDelivered(f"{poll.url} gave part of the study: {missing}")
            for file, identity, wrong in found:
                if wrong:
                    inbox.lacks(identity, f"An instance of {poll.name} was refused: {wrong}")
                else:
                    inbox.take(file, poll.name, identity)
    return len(got)


@contextlib.contextmanager
def failures_told(url: str, what: Literal["study", "inputs"]) -> Iterator[None]:
    """Failures to fetch something from the archive at ``url``, as one exception with a sentence.

    Raises:
        NotDelivered: The archive did not give it, or there is no room for it.
    """
    some, was = (f"A study of {url}", "was") if what == "study" else (f"Inputs of {url}", "were")
    try:
        yield
    except requests.RequestException as error:
        raise NotDelivered(f"{url} did not give the {what} ({said(error)}).") from None
    except DiskFull as error:
        raise NotDelivered(f"{some} {was} not taken. {error}") from None
    except OSError as error:
        raise NotDelivered(f"{some} could not be written ({error.strerror}).") from None


def announced_by(archive: DICOMwebClient, uid: str, only: str = "") -> Announced:
    """What QIDO-RS (PS3.18 10.6) says of a study: not every archive answers every one of these questions.

    Args:
        archive: The archive.
        uid: Study Instance UID.
        only: Series Instance UID of the only series that is asked about; "" for the whole study.

    Raises:
        NotDelivered: It answers none of them.
        RequestException: It does not answer at all.
    """
    count = None if only else _count_of(archive, uid)
    series: dict[str, int] = {}
    with contextlib.suppress(requests.RequestException, ValueError):
        for row in archive.search_for_series(uid, fields=[SERIES_COUNT]):
            number = count_in(first(row, SERIES_COUNT))
            if number is not None and first(row, SERIES) and only in ("", str(first(row, SERIES))):
                series[str(first(row, SERIES))] = number
    listed: frozenset[str] = frozenset()
    with contextlib.suppress(requests.RequestException, ValueError):
        listed = instances_at(archive, uid, only)
    if count is None and not series and not listed:
        raise NotDelivered("The archive does not say by QIDO-RS how many instances the study has.")
    return Announced(count, series, listed)


def _count_of(archive: DICOMwebClient, uid: str) -> int | None:
    """Number of Study Related Instances of a study, page by page: some archives give all studies, or few at a time."""
    seen: set[str] = set()
    asked = 0
    while asked < MOST:
        page: list[dict[str, Any]] = archive.search_for_studies(
            fields=[STUDY_COUNT], search_filters={"StudyInstanceUID": uid}, limit=100, offset=asked
        )
        before, asked = len(seen), asked + len(page)
        for row in page:
            if str(first(row, STUDY)) == uid:
                return count_in(first(row, STUDY_COUNT))
            seen.add(str(first(row, STUDY)))
        if len(seen) == before:
            break
    return None


def instances_at(archive: DICOMwebClient, uid: str, series: str = "") -> frozenset[str]:
    """SOP Instance UIDs of a study, or of one of its series, page by page.

    Raises:
        RequestException, ValueError: The archive does not list them.
    """
    found: set[str] = set()
    asked = 0
    while len(found) < MOST:
        page: list[dict[str, Any]] = archive.search_for_instances(uid, series or None, limit=PAGE, offset=asked)
        before, asked = len(found), asked + len(page)
        found.update(str(first(row, INSTANCE)) for row in page if first(row, INSTANCE))
        if len(found) == before:
            break
    return frozenset(found)


@contextlib.contextmanager
def retrieved(
    poll: Poll, uid: str, inbox: Inbox, cancelled: Callable[[], bool], series: str = ""
) -> Iterator[list[Path]]:
    """The parts of the archive's answer, each in a file, which are deleted at the end.

    Args:
        poll: The archive.
        uid: Study Instance UID.
        inbox: Folder of what arrives, in which the files are written.
        cancelled: Function that returns True once the job is stopped; asked now and then.
        series: Series Instance UID; "" for the whole study.

    Raises:
        NotDelivered, RequestException, DiskFull, OSError: It did not come, or came in part.
        Cancelled: It was stopped.
    """
    url = f"{poll.url}/studies/{quote(uid, safe='')}" + (f"/series/{quote(series, safe='')}" if series else "")
    inbox.require_room()
    with session_of(poll.token) as session, session.get(url, headers={"Accept": _ACCEPT}, stream=True) as answer:
        if answer.status_code != 200:  # 206: some instances could not be given (PS3.18 table 10.4.3-1)
            what = "part of the study" if answer.status_code == 206 else "no study"
            raise NotDelivered(f"{poll.url} gave {what} (HTTP {answer.status_code}).")
        kind, options = parse_options_header(answer.headers.get("Content-Type", ""))
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/related" or not boundary:
            raise NotDelivered(f"{poll.url} did not answer with multipart/related.")
        parts, files = Parts(inbox.incoming, boundary, "wado"), list[Path]()
        try:
            for chunk in answer.iter_content(_CHUNK):
                if cancelled():
                    raise Cancelled("The job was stopped.")
                inbox.require_room()
                parts.feed(chunk)
                files += parts.complete()
            if not parts.ended:
                raise NotDelivered(f"{poll.url} gave part of the study: its answer ended before the closing boundary.")
            yield files
        except FormParserError:
            raise NotDelivered(f"{poll.url} did not answer with a well-formed multipart/related.") from None
        finally:
            parts.drop()


def identity_of(inbox: Inbox, file: Path, uid: str, poll: Poll) -> tuple[Identity, str]:
    """What a part is, and why it is refused though it is an instance of the study; "" where it is not."""
    wrong = ""
    try:
        identity = inbox.identify(file)
    except NotOurs as error:
        if error.identity is None:
            raise NotDelivered(f"{poll.url} gave something that is no instance of the study: {error}") from None
        identity, wrong = error.identity, str(error)
    if identity.study != uid:
        raise NotDelivered(f"{poll.url} gave an instance of another study.")
    return identity, wrong
