"""Clients and sessions for archives over DICOMweb, with tokens and restricted redirects, without internet proxies."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
from dicomweb_client import DICOMwebClient

from semiseg.errors import InputError

READ_TIMEOUT_SECONDS = 120.0  # time without a byte of the response
_PORTS = {"http": 80, "https": 443}
_BECOMES_GET = (301, 302, 303)  # clients follow these with a GET without the body


class RedirectRefused(requests.RequestException):  # type: ignore[misc, unused-ignore]
    """The archive answered with a redirect that is not followed; the message is the end of a sentence."""


class _TimeoutAdapter(requests.adapters.HTTPAdapter):
    """Adds a default time-out to requests; the client library itself would wait for ever."""

    def send(self, *args: object, **options: object) -> requests.Response:
        """Send a request with the default time-out unless it has one."""
        options["timeout"] = options.get("timeout") or (10.0, READ_TIMEOUT_SECONDS)
        return super().send(*args, **options)  # type: ignore[arg-type]


class _Session(requests.Session):
    """Session that follows redirects on the configured host only, since requests hold UIDs, tokens and patient data."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return the target of a redirect, if it is on the same host and port.

        Raises:
            RedirectRefused: The target is elsewhere, or the request would lose its body.
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
            raise RedirectRefused(f"HTTP {resp.status_code}, a redirect that would drop the body of the request")
        return target


def create_dicomweb_client(url: str, token: Path | None) -> DICOMwebClient:
    """Create a client of the archive whose DICOMweb root is ``url``.

    Raises:
        InputError: The token cannot be read.
    """
    client = DICOMwebClient(url, session=create_session(token))
    client.set_http_retry_params(retry=False)  # the queue retries, and records it
    return client


def create_session(token: Path | None) -> requests.Session:
    """Create a session that sends a token, has time-outs and follows no redirect to another host.

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
    """Return scheme, host and port of a URL, which contain no patient data; "" if it cannot be parsed."""
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.hostname}:{port}" if parts.hostname else ""


def redirect_target(asked: str, location: str) -> str:
    """Return the address that a Location header refers to; "" if it cannot be parsed.

    Args:
        asked: Address of the request.
        location: Location header of the response.
    """
    try:
        return urljoin(asked, location)
    except ValueError:
        return ""


def request_error_text(error: requests.RequestException) -> str:
    """Describe the failure of a request, as part of a sentence without the address, which may hold UIDs."""
    if isinstance(error, RedirectRefused):
        return str(error)
    return f"HTTP {error.response.status_code}" if error.response is not None else type(error).__name__


def read_secret(file: Path) -> str:
    """Read a token or key from a file.

    Raises:
        InputError: The file cannot be read or is empty.
    """
    try:
        found = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read ({error}).") from None
    if not found:
        raise InputError(f"{file} is empty.")
    return found
