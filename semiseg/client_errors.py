"""Why a server did not do what it was asked: whether nobody answered, nobody has room, or the answer is no."""

from __future__ import annotations

import datetime
import email.utils

import httpx

from semiseg.errors import InputError, SemisegError

_RETRY_STATUSES = (429, 502, 503, 507)  # 502 and a bare 503 are a proxy's, while the server starts anew


class ServerUnreachableError(SemisegError):
    """Nobody answered; the same question may be answered later."""

    seconds = 1.0


class ServerBusyError(SemisegError):
    """The server has no room at present; it said after how many ``seconds`` to ask again, with the HTTP ``status``."""

    def __init__(self, sentence: str, seconds: float, status: int = 503) -> None:
        super().__init__(sentence)
        self.seconds, self.status = seconds, status


class RequestRejectedError(InputError):
    """HTTP 4xx.

    Attributes:
        status: The HTTP status.
        is_server_message: True for a sentence that a semiseg server wrote, in its JSON form; False for one that was
            made up here for an answer of a proxy or another program.
    """

    def __init__(self, sentence: str, status: int, *, is_server_message: bool) -> None:
        super().__init__(sentence)
        self.status, self.is_server_message = status, is_server_message


class ServerFailureError(SemisegError):
    """Another HTTP ``status`` that is no success: 3xx or 5xx."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header (RFC 9110 10.2.3), which may be a date; None where there is none or no sense."""
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
    """The error of a response that is no success; its sentence is the server's where it has one."""
    status, is_server_message = response.status_code, False
    if response.has_redirect_location:
        return ServerFailureError(_redirected(url, response), status)
    sentence = f"{url}: What answers there is not a semiseg server (HTTP {status})."
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
    """A scan goes to the address that was named, and nowhere else, whatever that address says."""
    try:
        target = response.url.join(response.headers["location"])
        where = f"{target.scheme}://{target.netloc.decode('ascii', 'replace')}"
    except (httpx.InvalidURL, ValueError):
        where = "an address that is none"
    return (
        f"{url} redirects to {where} (HTTP {response.status_code}); no scan is sent on. Name the server's own address."
    )
