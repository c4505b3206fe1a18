"""Studies out of an archive: found by QIDO-RS (PS3.18 10.6), fetched by WADO-RS (10.4)."""

from __future__ import annotations

import datetime
import logging
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from requests import RequestException

from semiseg.errors import SemisegError
from server.gateway.config import Poll
from server.gateway.delivery import NotDelivered
from server.gateway.dicomweb import archive_at, said
from server.gateway.inbox import DiskFull, Inbox, NotOurs

_LOG = logging.getLogger("semiseg.gateway")
_STUDY, _COUNT = "0020000D", "00201208"
MOST = 5000  # studies of one look


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

    def close(self, seconds: float) -> None:
        """Ask no more."""
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
    """The studies of an archive that match, and how many instances each has at present."""
    archive = archive_at(poll.url, poll.token)
    today = datetime.date.today()
    first = today - datetime.timedelta(days=poll.days - 1)
    filters = {"StudyDate": f"{first:%Y%m%d}-{today:%Y%m%d}", **poll.matching}
    counts: dict[str, int] = {}
    while len(counts) < MOST:
        page: list[dict[str, Any]] = archive.search_for_studies(
            fields=[_COUNT], search_filters=filters, limit=100, offset=len(counts)
        )
        before = len(counts)
        for one in page:
            uid = _first(one, _STUDY)
            if uid:
                count = _first(one, _COUNT)
                counts[str(uid)] = int(count) if count else len(archive.search_for_instances(str(uid)))
        if len(counts) == before:
            break
    return counts


def fetch(poll: Poll, uid: str, inbox: Inbox, cancelled: Callable[[], bool]) -> int:
    """Put the instances of a study into the inbox, one after the other until ``cancelled``; how many there were.

    Raises:
        NotDelivered: the archive does not give it, or there is no room for it.
    """
    count = 0
    archive = archive_at(poll.url, poll.token)
    try:
        for one in archive.iter_study(uid, media_types=(("application/dicom", "*"),)):
            if cancelled():
                break
            file = inbox.incoming / f"wado-{secrets.token_hex(8)}"
            one.save_as(file, enforce_file_format=True)
            try:
                inbox.take(file, poll.name)
                count += 1
            except NotOurs as error:
                _LOG.warning("%s gave something that is refused: %s", poll.name, error)
    except RequestException as error:
        raise NotDelivered(f"{poll.url} did not give the study ({said(error)}).") from None
    except (DiskFull, OSError, ValueError) as error:
        raise NotDelivered(f"A study of {poll.url} could not be fetched ({error}).") from None
    return count


def _first(one: dict[str, Any], tag: str) -> Any:
    values = one.get(tag, {}).get("Value") or [None]
    return values[0]
