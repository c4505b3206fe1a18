"""Which request an Idempotency-Key belongs to: a digest of the scan and of all that is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from server.http.limits import ApiError
from server.http.output_formats import requested_formats
from server.http.uploads import FILES_FIELD

MAX_KEY_LENGTH = 200  # characters of a key
_DEFAULTS = {"strict": "false", "aligned": "false"}


def validate_idempotency_key(key: str | None) -> str | None:
    """The value of the header, where there is one.

    Raises:
        ApiError: 400, it is empty or too long.
    """
    if key is not None and not 0 < len(key) <= MAX_KEY_LENGTH:
        raise ApiError(400, f"The header Idempotency-Key has 1 to {MAX_KEY_LENGTH} characters.")
    return key


def request_digest(
    files: Sequence[Path], channels: Mapping[str, Sequence[Path]], fields: Mapping[str, str], accept: str
) -> str:
    """A SHA-256 of the contents of the files and of the options.

    Requests that ask for the same thing have the same digest: the names of the files, their order within the form and
    an option that is given as its default make no difference.

    Args:
        files: All files of the upload.
        channels: The same files by channel, where they came under the names of channels.
        fields: The text fields of the form.
        accept: The Accept header.

    Raises:
        OSError: a file cannot be read.
        ApiError: 400, the forms that are asked for do not exist.
    """
    options = {name: value for name, value in fields.items() if value and value != _DEFAULTS.get(name)}
    options["answer"] = ",".join(requested_formats(fields.get("answer", ""), accept))
    parts = channels or {FILES_FIELD: files}
    contents = {name: sorted(_digest_of(file) for file in members) for name, members in parts.items()}
    return hashlib.sha256(json.dumps([options, contents], sort_keys=True).encode()).hexdigest()


def key_reused_error() -> ApiError:
    """The refusal of a request whose key was first sent with another one."""
    return ApiError(
        422,
        "The header Idempotency-Key was sent before with another scan or with other options, and is still that "
        "request's; send each scan with a key of its own.",
    )


def _digest_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
