"""API keys of the users of a server, read from a file or the environment; changes need no restart."""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from semiseg.errors import InputError

KEYS_ENV = "SEMISEG_API_KEYS"
MIN_KEY_LENGTH = 20  # characters; a key made with `openssl rand -hex 32` has 64


class ApiKeys:
    """The currently valid keys, each with the name of its owner."""

    def __init__(self, file: Path | None = None) -> None:
        """Read the keys.

        Args:
            file: File with one line for each key: the owner's name, a space and the key; `#` begins a comment. If None,
                the environment variable SEMISEG_API_KEYS is read, with commas in place of line ends.

        Raises:
            InputError: The file cannot be read, contains no key, or contains a key that is too short or given twice.
        """
        self._file = file
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._owners: dict[bytes, str] = {}
        self._read()

    @property
    def required(self) -> bool:
        """True if requests need a key; if no keys are configured, the server accepts all requests."""
        return self._file is not None or bool(self._owners)

    def find_owner(self, key: str) -> str | None:
        """Return the owner of a key; None if it is not, or no longer, valid. Runs in constant time for all keys."""
        self._read()
        digest = _digest(key)
        found = None
        for known, owner in self._owners.items():
            if hmac.compare_digest(known, digest):
                found = owner
        return found

    def _read(self) -> None:
        with self._lock:
            if self._file is None:
                if self._stamp is None:
                    self._stamp = (0, 0)
                    self._owners = _parsed(os.environ.get(KEYS_ENV, "").replace(",", "\n"), KEYS_ENV)
                return
            try:
                found = self._file.stat()
                stamp = (found.st_mtime_ns, found.st_size)
                if stamp == self._stamp:
                    return
                text = self._file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                self._stamp, self._owners = None, {}
                raise InputError(f"The file of API keys {self._file} cannot be read ({error}).") from None
            self._stamp = None
            self._owners = {}
            self._owners = _parsed(text, str(self._file))
            if not self._owners:
                raise InputError(f"The file of API keys {self._file} has no key in it.")
            self._stamp = stamp


def key_from_headers(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The API key in a request's ASGI headers: ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``."""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip().decode("latin-1")
        if name == b"x-api-key":
            return value.strip().decode("latin-1")
    return None


def _parsed(text: str, where: str) -> dict[bytes, str]:
    owners: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2:
            raise InputError(f"{where}, key {number}: write a name, a space and the key.")
        name, key = words
        if len(key) < MIN_KEY_LENGTH:
            raise InputError(f"{where}, key {number}: the key is shorter than {MIN_KEY_LENGTH} characters.")
        digest = _digest(key)
        if digest in owners:
            raise InputError(f"{where}, key {number}: the key is given twice.")
        owners[digest] = name
    return owners


def _digest(key: str) -> bytes:
    # All digests have one length, for comparison in constant time, and no key stays in memory.
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
