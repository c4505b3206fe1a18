"""Performer of one worklist (IHE AI Workflow for Imaging): finds workitems, claims them, and completes each one."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

from pydicom.uid import generate_uid

from semiseg.errors import SemisegError
from server.gateway.backoff import Backoff
from server.gateway.context import GatewayContext
from server.gateway.ups_claims import Claim, Claims
from server.gateway.ups_client import ManagerUnavailable, UpsClient
from server.gateway.ups_config import Worklist
from server.gateway.ups_events import CANCEL_REQUESTED, STATE_REPORT, EventListener
from server.gateway.ups_lifecycle import ClaimLifecycle
from server.gateway.ups_selection import WorkitemSelector
from server.gateway.ups_workitem import input_archives

POLL_INTERVAL = 0.5  # seconds between two checks of the queue

_LOG = logging.getLogger("semiseg.gateway")


class WorklistPerformer:
    """Performs the workitems of one worklist, in a thread of its own."""

    def __init__(self, context: GatewayContext, worklist: Worklist, claims: Claims) -> None:
        """Start the thread that polls the manager of ``worklist``; ``claims`` are those of all worklists."""
        config = context.config
        self._worklist, self._claims = worklist, claims
        self._client = UpsClient(worklist, config.ae_title)
        self._backoff = Backoff(config.retry)
        self._stop = threading.Event()
        self._next_search = 0.0
        archives = input_archives(config, worklist)
        self._selector = WorkitemSelector(worklist, archives, context.instance_store, context.hasher, claims)
        self._lifecycle = ClaimLifecycle(
            context, worklist, self._client, claims, self._backoff, archives=archives, lost=self._selector.mark_lost
        )
        self._listening = False
        self._events = (
            EventListener(worklist, config.ae_title, config.retry, self._heard, self._connected)
            if worklist.events
            else None
        )
        self._thread = threading.Thread(target=self._run, name=f"worklist-{worklist.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop after the request that is in progress."""
        self._stop.set()
        if self._events is not None:
            self._events.stop()

    def close(self, seconds: float) -> None:
        """Stop, and wait for at most ``seconds`` until the thread has ended."""
        self._stop.set()
        self._thread.join(seconds)

    def status(self) -> dict[str, Any]:
        """Return the status of the worklist, without patient data."""
        passed = dict(self._selector.passed_over)
        mine = [claim for claim in self._claims.all() if claim.worklist == self._worklist.name]
        return {
            "name": self._worklist.name,
            "url": self._worklist.url,
            "trouble": self._backoff.trouble() or self._selector.disk_full,
            "claimed": len(mine),
            "passed_over": [{"workitem": name, "why": why} for name, why in passed.items()],
            "ends": dict(self._lifecycle.ends),
            "events": self._listening,
        }

    def _connected(self, stands: bool) -> None:
        self._listening = stands
        if stands:
            self._next_search = 0.0  # finds workitems whose events were missed

    def _heard(self, kind: int, uid: str) -> None:
        """Record an event; the thread of the worklist handles it at its next check."""
        name = self._selector.name_of(uid)
        if kind == CANCEL_REQUESTED and self._claims.has(name):
            self._lifecycle.cancel_asked.add(name)
        elif kind == STATE_REPORT:
            self._lifecycle.due.pop(name, None)
            self._next_search = 0.0

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - nothing would notice that the thread has ended
                told = str(error) if isinstance(error, SemisegError) else f"{type(error).__name__} in a worklist."
                _LOG.error("%s", told, exc_info=not isinstance(error, SemisegError))
            self._stop.wait(POLL_INTERVAL)

    def _look(self) -> None:
        for claim in self._claims.all():
            if claim.worklist != self._worklist.name or self._stop.is_set():
                continue
            with self._asking(claim):
                self._lifecycle.advance(claim)
        if self._backoff.ready() and time.monotonic() >= self._next_search and not self._stop.is_set():
            # Set before the search, so that an event that arrives during the search triggers another one.
            self._next_search = time.monotonic() + self._worklist.every_seconds * random.uniform(0.9, 1.1)
            with self._asking():
                self._search()

    @contextlib.contextmanager
    def _asking(self, claim: Claim | None = None) -> Iterator[None]:
        """Handle failures of requests to the manager, which is contacted less and less often while it fails."""
        try:
            yield
        except ManagerUnavailable as error:
            delay = self._backoff.record_failure(str(error), error.seconds)
            _LOG.warning("The worklist %s waits for %.1f s: %s", self._worklist.name, delay, error)
        except Exception as error:  # noqa: BLE001 - one workitem must not stop the others
            told = str(error) if isinstance(error, SemisegError) else f"{type(error).__name__}; see the log."
            told = f"An unexpected error occurred: {told}"
            if claim is None:
                self._backoff.record_failure(told)
            else:
                self._lifecycle.pause(claim, told)
            _LOG.error("The worklist %s failed", self._worklist.name, exc_info=True)

    def _search(self) -> None:
        room = self._worklist.parallel - sum(one.worklist == self._worklist.name for one in self._claims.all())
        if room <= 0:
            return
        found = self._selector.candidates(self._client.search())
        self._lifecycle.record_answer()
        for one in found:
            if room <= 0 or self._stop.is_set():
                return
            step = self._worklist.steps[one.step].model_dump_json()
            claim = Claim(one.name, self._worklist.name, self._worklist.url, one.uid, str(generate_uid(None)), step)
            self._lifecycle.delete_former_jobs(claim.name)
            self._lifecycle.claim(claim)
            room -= self._claims.has(claim.name)
