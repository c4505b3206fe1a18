"""Studies of an archive that are new: found by QIDO-RS (PS3.18 10.6); `retrieving` fetches them."""

from __future__ import annotations

import datetime
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from dicomweb_client import DICOMwebClient
from requests import RequestException

from semiseg.errors import SemisegError
from server.gateway.config import Poll
from server.gateway.dicomweb import archive_at, said
from server.gateway.inbox import count_in
from server.gateway.retrieving import STUDY, STUDY_COUNT, first, instances_at

MOST = 5000  # studies of one look

_LOG = logging.getLogger("semiseg.gateway")


class Polling:
    """Asks one archive again and again, in a thread of its own."""

    def __init__(self, poll: Poll, quiet: float, found: Callable[[Poll, str, int], None]) -> None:
        """Begin to ask.

        Args:
            poll: whom, and for what.
            quiet: seconds for which a study's number of instances has to stay the same.
            found: told of each study that has stayed the same, its UID and its number of instances; again at each look.
        """
        self._poll, self._quiet, self._found = poll, quiet, found
        self._stop = threading.Event()
        self._seen: dict[str, tuple[int, float]] = {}
        self._thread = threading.Thread(target=self._run, name=f"poll-{poll.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask no more, after the question that is being asked."""
        self._stop.set()

    def close(self, seconds: float) -> None:
        """Ask no more, and wait for so many seconds at most."""
        self._stop.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - the archive answers again some day, and this thread has to live
                told = str(error) if isinstance(error, SemisegError) else type(error).__name__
                told = said(error) if isinstance(error, RequestException) else told
                _LOG.warning("The archive %s could not be asked: %s", self._poll.url, told)
            if self._stop.wait(self._poll.every_seconds):
                return

    def _look(self) -> None:
        seen = counts_at(self._poll)
        now = time.monotonic()
        self._seen = {
            uid: (count, self._seen[uid][1] if self._seen.get(uid, (None,))[0] == count else now)
            for uid, count in seen.items()
        }
        for uid, (count, since) in self._seen.items():
            if now - since >= self._quiet:
                self._found(self._poll, uid, count)


def counts_at(poll: Poll) -> dict[str, int]:
    """The studies of an archive that match, and how many instances each has at present; 0 where it does not say."""
    archive = archive_at(poll.url, poll.token)
    today = datetime.date.today()
    earliest = today - datetime.timedelta(days=poll.days - 1)
    filters = {"StudyDate": f"{earliest:%Y%m%d}-{today:%Y%m%d}", **poll.matching}
    counts: dict[str, int] = {}
    asked = 0
    while len(counts) < MOST:
        page: list[dict[str, Any]] = archive.search_for_studies(
            fields=[STUDY_COUNT], search_filters=filters, limit=100, offset=asked
        )
        before, asked = len(counts), asked + len(page)
        for row in page:
            if (uid := first(row, STUDY)) and str(uid) not in counts:
                counts[str(uid)] = count_in(first(row, STUDY_COUNT)) or _listed(archive, str(uid))
        if len(counts) == before:
            break
    return counts


def _listed(archive: DICOMwebClient, uid: str) -> int:
    """Number of the instances that an archive lists of a study whose number it does not say."""
    try:
        return len(instances_at(archive, uid))
    except (RequestException, ValueError):  # one study must not hide the others; its fetch says what is wrong
        return 0
