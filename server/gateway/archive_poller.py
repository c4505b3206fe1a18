"""Polling of an archive for new studies by QIDO-RS (PS3.18 10.6); :mod:`server.gateway.retrieval` fetches them."""

from __future__ import annotations

import datetime
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dicomweb_client import DICOMwebClient
from requests import RequestException

from semiseg.errors import SemisegError
from server.gateway.config import PolledArchive
from server.gateway.dicom_json import first_value
from server.gateway.dicomweb import create_dicomweb_client, request_error_text
from server.gateway.instance_store import parse_count
from server.gateway.retrieval import STUDY, STUDY_COUNT, list_instances

MAX_STUDIES = 5000  # maximum number of studies of one query
# Quiet times after which a study whose number of instances keeps changing is shown as a problem.
SETTLING_PERIODS = 10

_LOG = logging.getLogger("semiseg.gateway")


@dataclass(frozen=True)
class _Seen:
    """Study in an archive, with monotonic times.

    Attributes:
        count: Number of its instances.
        since: Time at which this number was first seen.
        unsettled_since: Time since which the number has not stayed the same for the quiet time.
    """

    count: int
    since: float
    unsettled_since: float


class ArchivePoller:
    """Polls one archive in a thread of its own."""

    def __init__(
        self,
        poll: PolledArchive,
        quiet: float,
        found: Callable[[PolledArchive, str, int], None],
        name_of: Callable[[str], str] = lambda uid: uid,
    ) -> None:
        """Start polling.

        Args:
            poll: Configuration of the archive.
            quiet: Seconds for which a study's number of instances has to stay the same.
            found: Function that is called after each query, for each study whose number of instances has stayed the
                same, with its UID and this number.
            name_of: Function that returns the name of a study, by its UID.
        """
        self._poll, self._quiet, self._found, self._name_of = poll, quiet, found, name_of
        self.url = poll.url
        self._trouble = ""
        self._stop = threading.Event()
        self._seen: dict[str, _Seen] = {}
        self._thread = threading.Thread(target=self._run, name=f"poll-{poll.name}", daemon=True)
        self._thread.start()

    def trouble(self) -> str:
        """Return the reason why the last query failed; "" if it succeeded."""
        return self._trouble

    def unstable_studies(self) -> list[dict[str, Any]]:
        """Return the studies that are not fetched because their instance count keeps changing: name, since, why."""
        now = time.monotonic()
        return [
            {
                "study": self._name_of(uid),
                "since": time.time() - (now - one.unsettled_since),
                "why": f"It has not been fetched: its number of instances at {self._poll.name} keeps changing, and "
                f"has not been constant for {self._quiet:g} s. `semiseg gateway again UID --fetch` fetches it now.",
            }
            for uid, one in list(self._seen.items())
            if now - one.since < self._quiet and now - one.unsettled_since > SETTLING_PERIODS * self._quiet
        ]

    def stop(self) -> None:
        """Stop after the request that is in progress."""
        self._stop.set()

    def close(self, seconds: float) -> None:
        """Stop, and wait for at most ``seconds`` until the thread has ended."""
        self._stop.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            try:
                self._look()
                self._trouble = ""
            except Exception as error:  # noqa: BLE001 - the archive may work again, and this thread has to go on
                told = str(error) if isinstance(error, SemisegError) else type(error).__name__
                told = request_error_text(error) if isinstance(error, RequestException) else told
                self._trouble = f"The query failed: {told}"
                _LOG.warning("The query of the archive %s failed: %s", self._poll.url, told)
            if self._stop.wait(self._poll.every_seconds):
                return

    def _look(self) -> None:
        seen = query_instance_counts(self._poll)
        now = time.monotonic()
        self._seen = {uid: self._now(self._seen.get(uid), count, now) for uid, count in seen.items()}
        for uid, one in self._seen.items():
            if now - one.since >= self._quiet:
                self._found(self._poll, uid, one.count)

    def _now(self, before: _Seen | None, count: int, now: float) -> _Seen:
        if before is None:
            return _Seen(count, now, now)
        if before.count == count:
            return before
        settled = now - before.since >= self._quiet
        return _Seen(count, now, now if settled else before.unsettled_since)


def query_instance_counts(poll: PolledArchive) -> dict[str, int]:
    """Query the matching studies of an archive and the current number of instances of each; 0 if it is unknown."""
    archive = create_dicomweb_client(poll.url, poll.token)
    today = datetime.date.today()
    earliest = today - datetime.timedelta(days=poll.days - 1)
    filters = {"StudyDate": f"{earliest:%Y%m%d}-{today:%Y%m%d}", **poll.matching}
    counts: dict[str, int] = {}
    asked = 0
    while len(counts) < MAX_STUDIES:
        page: list[dict[str, Any]] = archive.search_for_studies(
            fields=[STUDY_COUNT], search_filters=filters, limit=100, offset=asked
        )
        before, asked = len(counts), asked + len(page)
        for row in page:
            if (uid := first_value(row, STUDY)) and str(uid) not in counts:
                counts[str(uid)] = parse_count(first_value(row, STUDY_COUNT)) or _listed(archive, str(uid))
        if len(counts) == before:
            break
    return counts


def _listed(archive: DICOMwebClient, uid: str) -> int:
    """Count the listed instances of a study for which the archive reports no number."""
    try:
        return len(list_instances(archive, uid))
    except (RequestException, ValueError):  # one study must not hide the others; its fetch reports the error
        return 0
