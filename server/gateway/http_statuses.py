"""What the status of another program's HTTP answer means, and what an operator does about it; never its words."""

from __future__ import annotations

import http

_ADVICE = {
    401: "the key or token is missing or not valid there any more; put a valid one into its file, which is read anew",
    403: "the key or token is known there and may not do this; have it allowed, or use another one",
    404: "the address is not the one of such a service; check `url`, and that the proxy in front knows its backend",
    405: "the address does not take this kind of request; check `url`",
    407: "a proxy wants to be asked with a password; the gateway needs a direct way",
    408: "the request took too long on the way; look at the network and at the time-outs in between",
    409: "it is in conflict with what is there, and the answer does not say what; its log may",
    413: "the request is larger than is allowed there; raise the limit (of nginx `client_max_body_size`, of "
    "`semiseg serve` the upload limit)",
    421: "the host name is not one that it answers for; check `url` and the proxy's host names",
    429: "it has too much to do, or allows fewer requests",
    431: "the request's header is larger than is allowed there; look at the proxy in front",
    500: "it failed; its log says why",
    502: "the proxy in front does not reach it; is it running?",
    503: "it has no room or is not ready",
    504: "the proxy in front waited too short a time for it; raise the proxy's read time-out",
    507: "its disk is full",
}
_REDIRECT = "it sends elsewhere, and scans and results go to the configured host only; write the final address as `url`"


def describe(status: int) -> str:
    """A status as a part of a sentence: its number, its name, and what is to be done."""
    name = next((one.phrase for one in http.HTTPStatus if one == status), "")
    advice = _REDIRECT if 300 <= status < 400 else _ADVICE.get(status, "")
    return f"HTTP {status}{f' {name}' if name else ''}{f': {advice}' if advice else ''}"


def is_peer_error(status: int) -> bool:
    """Whether a status speaks of the other program, the way to it or our right to use it, and not of what was sent."""
    return 300 <= status < 400 or status in (401, 403, 404, 405, 407, 408, 421, 429, 431, 502, 503, 504, 507)
