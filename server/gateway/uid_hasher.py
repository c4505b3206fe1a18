"""Names for studies that say nothing about them: a keyed hash, with a key that belongs to one installation."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from semiseg.errors import InputError
from semiseg.system.durable_files import atomic_file

KEY_FILE = "names.key"  # in the state folder


class UidHasher:
    """Hashes UIDs; the same UID has the same name as long as the state folder lives.

    A plain hash would not do: whoever has a study's UID from elsewhere could look for it in a log.
    """

    def __init__(self, file: Path) -> None:
        """Read the key from ``file``, or make one.

        Raises:
            InputError: it is there and is no key.
        """
        if not file.exists():
            with atomic_file(file, private=True) as stream:
                stream.write(secrets.token_hex(32).encode())
        self._key = file.read_bytes()
        if len(self._key) != 64:
            raise InputError(f"{file} is damaged; put its backup back, since it names everything in its folder.")

    def hash(self, uid: str) -> str:
        """128 bits in hexadecimal."""
        return hmac.new(self._key, uid.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:32]
