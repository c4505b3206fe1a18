"""HTTP/1.1 with little patience: a connection that sends no whole head of a request is closed after a while.

uvicorn waits for ever for the first head, so that a thousand silent connections would take every descriptor there is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0
CONNECTIONS = 1000


class ImpatientProtocol(H11Protocol):
    """uvicorn's protocol on h11, with a timer that runs while a head is awaited."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client is there."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Something came."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._stop_timer()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        # Between two requests of a connection uvicorn has a shorter timer of its own; a running answer is left alone.
        if self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


def protocol_of(most_of_one_address: int | None) -> type[ImpatientProtocol]:
    """The protocol of a server that closes connections at once which one address has too many of.

    Args:
        most_of_one_address: Number of connections that an address may have, None for any number.
    """
    if most_of_one_address is None:
        return ImpatientProtocol
    most, connections = most_of_one_address, Counter[str]()

    class OfManyAddresses(ImpatientProtocol):
        """The protocol, with a count of the connections of each address."""

        _address = ""

        def connection_made(self, transport: Any) -> None:
            """A client is there."""
            super().connection_made(transport)
            self._address = str((transport.get_extra_info("peername") or ("",))[0])
            connections[self._address] += 1
            if connections[self._address] > most:
                transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            """The client is gone."""
            connections[self._address] -= 1
            if not connections[self._address]:
                del connections[self._address]
            super().connection_lost(exc)

    return OfManyAddresses
