"""Exceptions for requests that fail: the server does not respond, is busy, rejects the request, or has an error."""

from __future__ import annotations

import datetime
import email.utils

import httpx

from semiseg.deprecation import RenamedMember
from semiseg.errors import InputError, SemisegError

_RETRY_STATUSES = (429, 502, 503, 507)  # 502 and 503 without a message come from a proxy while the server restarts


class ServerUnreachableError(SemisegError):
    """The server did not respond; the request may succeed later."""

    seconds = 1.0


class ServerBusyError(SemisegError):
    """The server is busy: it responded with the HTTP ``status`` and asks to retry after ``seconds``."""

    def __init__(self, sentence: str, seconds: float, status: int = 503) -> None:
        super().__init__(sentence)
        self.seconds, self.status = seconds, status


class RequestRejectedError(InputError):
    """The server rejected the request with HTTP status 4xx.

    Attributes:
        status: HTTP status.
        is_server_message: True if the message comes from a semiseg server (in its JSON format); False if the client
            wrote it because a proxy or another program responded.
    """

    own_words = RenamedMember("is_server_message")

    def __init__(self, sentence: str, status: int, *, is_server_message: bool) -> None:
        super().__init__(sentence)
        self.status, self.is_server_message = status, is_server_message


class ServerFailureError(SemisegError):
    """The server responded with another HTTP ``status`` that is not a success: 3xx or 5xx."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


def retry_after(value: str | None) -> float | None:
    """Parse a Retry-After header (RFC 9110 10.2.3) into seconds; None if it is absent or invalid.

    Args:
        value: Value of the header: a number of seconds or a date.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return max(0.0, (moment - datetime.datetime.now(datetime.UTC)).total_seconds())


def error_from_response(url: str, response: httpx.Response) -> SemisegError:
    """Return the exception for a response that is not a success, with the server's message if it has one."""
    status, is_server_message = response.status_code, False
    if response.has_redirect_location:
        return ServerFailureError(_redirected(url, response), status)
    sentence = f"{url}: The server there is not a semiseg server (HTTP {status})."
    try:
        told = response.json()["error"]
        is_server_message = isinstance(told, str) and bool(told.strip())
    except (ValueError, KeyError, TypeError):
        pass
    if is_server_message:
        sentence = f"{url}: {told}"
    if status in _RETRY_STATUSES:
        seconds = retry_after(response.headers.get("retry-after"))
        return ServerBusyError(sentence, 1.0 if seconds is None else seconds, status)
    if 400 <= status < 500:
        return RequestRejectedError(sentence, status, is_server_message=is_server_message)
    return ServerFailureError(sentence, status)


def _redirected(url: str, response: httpx.Response) -> str:
    """Return the message for a redirect, which is never followed: scans go only to the server that the user named."""
    try:
        target = response.url.join(response.headers["location"])
        where = f"{target.scheme}://{target.netloc.decode('ascii', 'replace')}"
    except (httpx.InvalidURL, ValueError):
        where = "an invalid address"
    return (
        f"{url} redirects to {where} (HTTP {response.status_code}); semiseg does not send scans to another address. "
        "Use the server's own address."
    )
