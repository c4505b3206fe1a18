"""Events of a worklist over WebSocket (PS3.18 11.10, 11.12, 11.13): requests to cancel, and new workitems.

Without events, a performer sees a change only when it polls the manager. The content of events is not relied upon: the
workitems that they name are read from the manager, and events missed while the connection was down are found by
polling.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import websocket

from semiseg.errors import InputError
from server.gateway.backoff import retry_delay
from server.gateway.config_types import Retry
from server.gateway.dicom_json import first_value
from server.gateway.dicomweb import read_secret
from server.gateway.ups_client import ManagerUnavailable, UpsClient, WorkitemConflict, WorkitemNotFound
from server.gateway.ups_config import Worklist

STATE_REPORT, CANCEL_REQUESTED = 1, 2  # Event Type IDs (PS3.4 table CC.2.4-1)
# Affected SOP Instance UID and Event Type ID (0000,1002); the example in earlier editions has (0000,1001).
_AFFECTED, _TYPES = "00001000", ("00001002", "00001001")
SILENCE = 60.0  # seconds without a message after which a ping checks the connection
LARGEST = 2**20  # maximum size of a message in bytes
_LOG = logging.getLogger("semiseg.gateway")


class EventListener:
    """Listens to the events of one worklist, in a thread of its own."""

    def __init__(
        self,
        worklist: Worklist,
        ae_title: str,
        retry: Retry,
        on_event: Callable[[int, str], None],
        on_connection: Callable[[bool], None],
    ) -> None:
        """Start the thread that listens.

        Args:
            worklist: Configuration of the worklist.
            ae_title: AE title of the gateway, which names the subscriber.
            retry: Delays after failures.
            on_event: Function that is called with the Event Type ID and the UID of the workitem of each event.
            on_connection: Function that is called with True when the connection is established, and with False when it
                is lost.
        """
        self._worklist, self._ae_title, self._retry, self._on_event = worklist, ae_title, retry, on_event
        self._on_connection = on_connection
        self._client = UpsClient(worklist, ae_title)
        self._stop = threading.Event()
        self._connection: Any = None
        self._thread = threading.Thread(target=self._run, name=f"events-{worklist.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop listening."""
        self._stop.set()
        connection = self._connection
        if connection is not None:
            connection.abort()  # wakes the thread, which waits for a message

    def _run(self) -> None:
        tries = 0
        while not self._stop.is_set():
            try:
                where = self._client.subscribe(self._address())
                self._listen(where)
                tries = 0
            except (ManagerUnavailable, WorkitemNotFound, WorkitemConflict, InputError) as error:
                _LOG.warning("The events of the worklist %s are not available: %s", self._worklist.name, error)
            except Exception as error:  # noqa: BLE001 - many kinds are raised; polling continues
                _LOG.warning(
                    "The event connection of the worklist %s was lost (%s)", self._worklist.name, type(error).__name__
                )
            self._on_connection(False)
            tries += 1
            self._stop.wait(retry_delay(tries, self._retry))

    def _address(self) -> str:
        scheme, _, rest = self._worklist.url.partition("://")
        return f"{'wss' if scheme == 'https' else 'ws'}://{rest}/subscribers/{quote(self._ae_title, safe='')}"

    def _listen(self, where: str) -> None:
        worklist = self._worklist
        headers = {name: read_secret(file) for name, file in worklist.headers.items()}
        if worklist.token is not None:
            headers["Authorization"] = f"Bearer {read_secret(worklist.token)}"
        self._connection = websocket.create_connection(
            where,
            timeout=worklist.connect_seconds,
            header=headers,
            sslopt={"ca_certs": str(worklist.authority)} if worklist.authority is not None else {},
            http_no_proxy=["*"],  # a proxy set for the internet must not see worklists
            redirect_limit=0,
        )
        try:
            self._on_connection(True)
            self._connection.settimeout(SILENCE)
            silent = False
            while not self._stop.is_set():
                try:
                    self._understand(self._connection.recv())
                    silent = False
                except websocket.WebSocketTimeoutException:
                    if silent:
                        raise
                    silent = True
                    self._connection.ping()
        finally:
            connection, self._connection = self._connection, None
            connection.close(timeout=1)

    def _understand(self, message: str | bytes) -> None:
        if not message:
            raise ConnectionError("The connection was closed.")
        if len(message) > LARGEST:
            return
        try:
            found = json.loads(message)
        except (ValueError, RecursionError):
            return
        kinds = [kind for kind in (first_value(found, tag) for tag in _TYPES) if isinstance(kind, int)]
        if kinds:
            self._on_event(kinds[0], str(first_value(found, _AFFECTED)))
