"""Sessions: images that a client uploads for segmentation only, outside the dataset; they expire."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from server.http.limits import ApiError
from server.labelling.forms import UploadedFile

EXPIRY_SECONDS = 3600
MAX_SESSIONS = 32  # maximum number of sessions at the same time
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Session:
    """One session, with the field names of MONAI Label.

    Attributes:
        name: Id of the session.
        path: Folder of the session, below the server's folder of sessions.
        image: Name of the image; for several files, the name of their folder.
        meta: Always empty.
        create_ts: Unix time at which the session was created.
        last_access_ts: Unix time of its last use.
        expiry: Seconds from the last use until it is deleted.
    """

    name: str
    path: str
    image: str
    meta: dict[str, str]
    create_ts: int
    last_access_ts: int
    expiry: int


class Sessions:
    """The sessions in a folder, which is emptied when the server starts and stops."""

    def __init__(self, folder: Path) -> None:
        """Use ``folder``; sessions that an earlier server left there are deleted."""
        self._folder = folder
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self.clear()

    def clear(self) -> None:
        """Delete all sessions."""
        with self._lock:
            self._sessions.clear()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True, exist_ok=True)

    def create(self, files: Sequence[UploadedFile], expiry: int = 0) -> Session:
        """Create a session from received files; the files are moved.

        Raises:
            ApiError: 400, there is no file; 503, there are too many sessions.
        """
        if not files:
            raise ApiError(400, "Send the image in the field `files`.")
        self.expire()
        now, name = int(time.time()), secrets.token_hex(16)
        seconds = min(expiry, EXPIRY_SECONDS) if expiry > 0 else EXPIRY_SECONDS
        with self._lock:
            if len(self._sessions) >= MAX_SESSIONS:
                raise ApiError(503, "The server has too many sessions; delete one, or try again later.")
            inside = self._folder / name / "image"
            inside.mkdir(parents=True)
            for number, file in enumerate(files):
                shutil.move(file.path, inside / (f"{number:05d}-{_plain(file.name)}"))
            image = f"00000-{_plain(files[0].name)}" if len(files) == 1 else "image"
            session = Session(name, name, image, {}, now, now, seconds)
            self._sessions[name] = session
        return session

    def get(self, name: str) -> Session:
        """Return a session by its id and restart its expiry time.

        Raises:
            ApiError: 404, the session does not exist or has expired.
        """
        self.expire()
        with self._lock:
            session = self._sessions.get(name) if _ID.fullmatch(name) else None
            if session is None:
                raise ApiError(404, "The session does not exist or has expired; send the image again.")
            session = self._sessions[name] = replace(session, last_access_ts=int(time.time()))
            return session

    def image_of(self, name: str) -> Path:
        """The folder that holds the files of a session.

        Raises:
            ApiError: 404, there is no such session.
        """
        return self._folder / self.get(name).path / "image"

    def remove(self, name: str) -> Session:
        """Delete a session.

        Raises:
            ApiError: 404, there is no such session.
        """
        session = self.get(name)
        with self._lock:
            self._sessions.pop(name, None)
            shutil.rmtree(self._folder / name, ignore_errors=True)
        return session

    def expire(self) -> None:
        """Delete the sessions that have expired."""
        now = time.time()
        with self._lock:
            over = [name for name, one in self._sessions.items() if one.last_access_ts + one.expiry < now]
            for name in over:
                del self._sessions[name]
                shutil.rmtree(self._folder / name, ignore_errors=True)


def session_document(session: Session) -> dict[str, object]:
    """Convert a session to a JSON document."""
    found: dict[str, object] = json.loads(json.dumps(asdict(session)))
    return found


def _plain(name: str) -> str:
    """The last part of a client's file name, with safe characters only."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", re.split(r"[/\\]", name)[-1]).lstrip(".")[-80:] or "image"
