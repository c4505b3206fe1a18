"""The audit log: who sent, what was decided, what was delivered; a line of JSON for each, never rewritten.

It is no log for debugging and holds nothing of a patient: studies and series by the names that `semiseg gateway show`
takes (keyed hashes), unless the configuration reveals UIDs. A file that grows too large is moved aside.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from pathlib import Path

from server.logs import utc_timestamp

FILE_BYTES = 64 * 2**20

_LOG = logging.getLogger("semiseg.gateway")


class AuditLog:
    """Appends to one file; to be used from any thread."""

    def __init__(self, file: Path, *, largest: int = FILE_BYTES) -> None:
        """Append to ``file``, and begin a new one when it is larger than ``largest`` bytes."""
        self._file, self._largest = file, largest
        self._lock = threading.Lock()

    def record(self, event: str, **told: object) -> None:
        """Write one line, on the disk when this returns; also to the process's log."""
        moment = time.time()
        line = json.dumps({"time": utc_timestamp(moment), "event": event, **told}) + "\n"
        _LOG.info("%s", event, extra={"fields": told})
        with self._lock:
            try:
                if self._file.exists() and self._file.stat().st_size > self._largest:
                    self._file.rename(self._aside(moment))
                handle = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                try:
                    os.write(handle, line.encode())
                    os.fsync(handle)
                finally:
                    os.close(handle)
            except OSError as error:  # a study must not fail for its line; the process's log has it
                _LOG.error("The audit log cannot be written (%s)", error.strerror)

    def _aside(self, moment: float) -> Path:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(moment))
        number = 0
        while True:
            aside = self._file.with_name(f"{self._file.stem}-{stamp}{f'-{number}' if number else ''}.jsonl")
            if not aside.exists():
                return aside
            number += 1
