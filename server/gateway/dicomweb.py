"""Archives over DICOMweb: who is asked, with which token, and never through a proxy of the internet."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
from dicomweb_client import DICOMwebClient

from semiseg.errors import InputError

READ_TIMEOUT_SECONDS = 120.0  # without a byte of an answer
_PORTS = {"http": 80, "https": 443}
_BECOMES_GET = (301, 302, 303)  # what clients make a GET of, without the body


class RedirectRefused(requests.RequestException):  # type: ignore[misc, unused-ignore]
    """An archive answered with a redirect that is not followed; the message is the end of a sentence."""


class _TimeoutAdapter(requests.adapters.HTTPAdapter):
    """Gives up on an answer that does not come; the client library itself would wait for ever."""

    def send(self, *args: object, **options: object) -> requests.Response:
        """As the base class, with a time limit."""
        options["timeout"] = options.get("timeout") or (10.0, READ_TIMEOUT_SECONDS)
        return super().send(*args, **options)  # type: ignore[arg-type]


class _Session(requests.Session):
    """Stays at the host that the configuration names: addresses hold UIDs, requests hold tokens and patients' data."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """The address that a redirect names, if it is on the same host and port.

        Raises:
            RedirectRefused: It is not, or the request would lose its body.
        """
        target = super().get_redirect_target(resp)
        if target is None:
            return None
        asked = str(resp.request.url)
        where = url_origin(redirect_target(asked, target))
        if not where:
            raise RedirectRefused(f"HTTP {resp.status_code}, a redirect to an address that cannot be read")
        if where != url_origin(asked):
            raise RedirectRefused(
                f"HTTP {resp.status_code} to {where}, which is not followed: name it in the configuration"
            )
        if resp.request.method != "GET" and resp.status_code in _BECOMES_GET:
            raise RedirectRefused(f"HTTP {resp.status_code}, a redirect that would lose what is sent")
        return target


def create_dicomweb_client(url: str, token: Path | None) -> DICOMwebClient:
    """A client of the archive whose DICOMweb root is ``url``.

    Raises:
        InputError: the token cannot be read.
    """
    client = DICOMwebClient(url, session=create_session(token))
    client.set_http_retry_params(retry=False)  # the queue tries again, and writes it down
    return client


def create_session(token: Path | None) -> requests.Session:
    """A session that sends a token, gives up in time and follows no redirect to another host.

    Raises:
        InputError: The token cannot be read.
    """
    session = _Session()
    session.trust_env = False
    for scheme in _PORTS:
        session.mount(f"{scheme}://", _TimeoutAdapter())
    if token is not None:
        session.headers["Authorization"] = f"Bearer {read_secret(token)}"
    return session


def url_origin(url: str) -> str:
    """Scheme, host and port of a URL, which hold nothing of a patient; "" where it cannot be read."""
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.hostname}:{port}" if parts.hostname else ""


def redirect_target(asked: str, location: str) -> str:
    """The address that an answer's Location names; "" where it cannot be read.

    Args:
        asked: Address that was asked.
        location: The header of the answer.
    """
    try:
        return urljoin(asked, location)
    except ValueError:
        return ""


def request_error_text(error: requests.RequestException) -> str:
    """What became of a request, as part of a sentence: never the address, which may hold UIDs."""
    if isinstance(error, RedirectRefused):
        return str(error)
    return f"HTTP {error.response.status_code}" if error.response is not None else type(error).__name__


def read_secret(file: Path) -> str:
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
