"""HTTP/1.1 protocol with a time limit for request heads and a limit of connections per address.

uvicorn waits without limit for the first request head, so that a thousand silent connections would use up all file
descriptors.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.forwarded_headers import TrustedProxies

HEAD_TIMEOUT = 20.0
MAX_CONNECTIONS = 1000


class TimeoutH11Protocol(H11Protocol):
    """The h11 protocol of uvicorn, with a timer that runs while a request head is awaited."""

    _head_timer: asyncio.TimerHandle | None = None
    _address = ""
    # Shared by the connections of one server: make_protocol makes a subclass for each server.
    per_address = MAX_CONNECTIONS
    proxies = TrustedProxies()
    open_connections: ClassVar[Counter[str]] = Counter()

    def connection_made(self, transport: Any) -> None:
        """Count the connection and start the timer; close it if its address has too many."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        address = str(peer[0]) if isinstance(peer, tuple) else ""
        if address and not self.proxies.trusts(address):
            self._address = address
            self.open_connections[address] += 1
            if self.open_connections[address] > self.per_address:
                transport.write(_TOO_MANY)
                transport.close()
                return
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Stop the timer once the request head is complete."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer and uncount the connection."""
        self._stop_timer()
        if self._address:
            self.open_connections[self._address] -= 1
            if not self.open_connections[self._address]:
                del self.open_connections[self._address]
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self._give_up)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        # Between two requests of a connection uvicorn has its own, shorter timer; a running response is not cut off.
        if self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


def make_protocol(per_address: int, proxies: TrustedProxies) -> type[TimeoutH11Protocol]:
    """The protocol of one server: at most ``per_address`` connections of an address that is not in ``proxies``."""
    members = {"per_address": per_address, "proxies": proxies, "open_connections": Counter()}
    return type("TimeoutH11Protocol", (TimeoutH11Protocol,), members)


_SENTENCE = json.dumps({"error": "Your address has too many open connections here; close some of them."}).encode()
_TOO_MANY = (
    b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nConnection: close\r\nRetry-After: 5\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_SENTENCE), _SENTENCE)
)
