"""Audit log of receptions, decisions and deliveries: one line of JSON for each event, never rewritten.

It is not a log for debugging and holds no patient data: studies and series appear under the names that
`semiseg gateway show` accepts (keyed hashes), unless the configuration reveals UIDs. A file that grows too large is
renamed, and a new one is begun.
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
    """Appends events to one file; thread-safe."""

    def __init__(self, file: Path, *, largest: int = FILE_BYTES) -> None:
        """Append to ``file``, and begin a new file when it is larger than ``largest`` bytes."""
        self._file, self._largest = file, largest
        self._lock = threading.Lock()

    def record(self, event: str, **told: object) -> None:
        """Write one line to the audit log, and to the process's log; the line is on the disk when this returns."""
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
            except OSError as error:  # a study must not fail because of the audit log; the process's log has the event
                _LOG.error("The audit log cannot be written (%s)", error.strerror)

    def _aside(self, moment: float) -> Path:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(moment))
        number = 0
        while True:
            aside = self._file.with_name(f"{self._file.stem}-{stamp}{f'-{number}' if number else ''}.jsonl")
            if not aside.exists():
                return aside
            number += 1
