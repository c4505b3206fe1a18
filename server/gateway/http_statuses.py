"""Meaning of HTTP statuses of other programs, and advice for operators; the text of a response is never quoted."""

from __future__ import annotations

import http

_ADVICE = {
    401: "the key or token is missing or no longer valid; put a valid one into its file, which is read again",
    403: "the key or token lacks the permission for this request; grant it, or use another key or token",
    404: "there is no such service at this address; check `url`, and the backend of the proxy in front of it",
    405: "the address does not accept this kind of request; check `url`",
    407: "a proxy requires a password; the gateway needs a direct connection",
    408: "the request took too long; check the network and the time-outs of proxies",
    409: "the request conflicts with stored data, and the response gives no details; look into the log of that service",
    413: "the request is larger than is allowed there; raise the limit (`client_max_body_size` of nginx, the upload "
    "limit of `semiseg serve`)",
    421: "the service does not serve this host name; check `url` and the host names of the proxy",
    429: "the service is overloaded, or limits the rate of requests",
    431: "the request's header is larger than is allowed there; check the proxy in front of it",
    500: "the service failed; its log gives the reason",
    502: "the proxy in front does not reach the service; check that it is running",
    503: "the service is overloaded or not ready",
    504: "the proxy in front timed out; raise its read time-out",
    507: "the disk of the service is full",
}
_REDIRECT = "it redirects elsewhere, but data is sent to the configured host only; set `url` to the final address"


def describe(status: int) -> str:
    """Describe a status as part of a sentence: its number, its name and advice."""
    name = next((one.phrase for one in http.HTTPStatus if one == status), "")
    advice = _REDIRECT if 300 <= status < 400 else _ADVICE.get(status, "")
    return f"HTTP {status}{f' {name}' if name else ''}{f': {advice}' if advice else ''}"


def is_peer_error(status: int) -> bool:
    """Return True if a status concerns the peer, the network or our permissions, and not the data that was sent."""
    return 300 <= status < 400 or status in (401, 403, 404, 405, 407, 408, 421, 429, 431, 502, 503, 504, 507)
