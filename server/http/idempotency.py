"""The Idempotency-Key header: its validation, and a digest of the scan and the options of a request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from semiseg.outputs.formats import FORMER_NAMES
from semiseg.predicting.segmentation_options import SegmentationOptions
from server.http.limits import ApiError
from server.http.uploads import FILES_FIELD

MAX_KEY_LENGTH = 200  # characters of a key
# Jobs that an earlier version accepted have digests with the former names of formats.
_DIGESTED_NAMES = {present: former for former, present in FORMER_NAMES.items()}


def validate_idempotency_key(key: str | None) -> str | None:
    """Return the value of the header, or None if there is none.

    Raises:
        ApiError: 400, the key is empty or too long.
    """
    if key is not None and not 0 < len(key) <= MAX_KEY_LENGTH:
        raise ApiError(400, f"The header Idempotency-Key must have 1 to {MAX_KEY_LENGTH} characters.")
    return key


def request_digest(files: Sequence[Path], channels: Mapping[str, Sequence[Path]], options: SegmentationOptions) -> str:
    """Compute the SHA-256 of the contents of the files and of the options.

    Equivalent requests have the same digest: the names of the files, their order within the form, and options that are
    given with their default value make no difference.

    Args:
        files: All files of the upload.
        channels: The same files by channel, if they were sent in fields of channels.
        options: Options of the request, with the model as it was named, or not.

    Raises:
        OSError: A file cannot be read.
    """
    told = options.to_fields()
    told.pop("output_format", None)
    told["answer"] = ",".join(_DIGESTED_NAMES.get(name, name) for name in options.output_formats)
    parts = channels or {FILES_FIELD: files}
    contents = {name: sorted(_digest_of(file) for file in members) for name, members in parts.items()}
    return hashlib.sha256(json.dumps([told, contents], sort_keys=True).encode()).hexdigest()


def key_reused_error() -> ApiError:
    """Make the error for a request whose Idempotency-Key belongs to another request."""
    return ApiError(
        422,
        "The header Idempotency-Key was already used with another scan or other options; send each scan with a key "
        "of its own.",
    )


def _digest_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
