"""Archives over DICOMweb: who is asked, with which token, and never through a proxy of the internet."""

from __future__ import annotations

from pathlib import Path

import requests
from dicomweb_client import DICOMwebClient

from semiseg.errors import InputError

SECONDS = 120.0  # without a byte of an answer


class _Patient(requests.adapters.HTTPAdapter):
    """Gives up on an answer that does not come; the client library itself would wait for ever."""

    def send(self, *args: object, **options: object) -> requests.Response:
        """As the base class, with a time limit."""
        options["timeout"] = options.get("timeout") or (10.0, SECONDS)
        return super().send(*args, **options)  # type: ignore[arg-type]


def archive_at(url: str, token: Path | None) -> DICOMwebClient:
    """A client of the archive whose DICOMweb root is ``url``.

    Raises:
        InputError: the token cannot be read.
    """
    session = requests.Session()
    session.trust_env = False
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Patient())
    if token is not None:
        session.headers["Authorization"] = f"Bearer {secret_in(token)}"
    client = DICOMwebClient(url, session=session)
    client.set_http_retry_params(retry=False)  # the queue tries again, and writes it down
    return client


def said(error: requests.RequestException) -> str:
    """What became of a request, as part of a sentence: never the address, which may hold UIDs."""
    return f"HTTP {error.response.status_code}" if error.response is not None else type(error).__name__


def secret_in(file: Path) -> str:
    """A token or key in a file.

    Raises:
        InputError: it cannot be read or is empty.
    """
    try:
        found = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read ({error}).") from None
    if not found:
        raise InputError(f"{file} is empty.")
    return found
