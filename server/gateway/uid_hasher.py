"""Names of studies that reveal nothing about them: keyed hashes, with a key that belongs to one installation."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from semiseg.errors import InputError
from semiseg.system.durable_files import atomic_file

KEY_FILE = "names.key"  # in the state folder


class UidHasher:
    """Hashes UIDs; the same UID keeps the same hash as long as the state folder exists.

    A hash without a key would not be enough: anyone who knows a study's UID could search a log for its hash.
    """

    def __init__(self, file: Path) -> None:
        """Read the key from ``file``; create the file with a new key if it does not exist.

        Raises:
            InputError: The file exists and does not hold a key.
        """
        if not file.exists():
            with atomic_file(file, private=True) as stream:
                stream.write(secrets.token_hex(32).encode())
        self._key = file.read_bytes()
        if len(self._key) != 64:
            raise InputError(
                f"{file} is damaged; restore it from a backup, because the names of all studies depend on it."
            )

    def hash(self, uid: str) -> str:
        """Return the hash: 128 bits in hexadecimal."""
        return hmac.new(self._key, uid.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:32]
