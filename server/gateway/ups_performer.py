"""A performer of one worklist (IHE AI Workflow for Imaging): finds workitems, claims them, and sees each to its end.

    claiming     IN PROGRESS was asked for with our Transaction UID; ours, or somebody else was faster
    performing   the queue works: `workitem` (inputs), `segment`, `deliver`; the manager is told of the progress
    stopping     it is to be canceled; what the queue still does of it is being stopped
    ending       the final state and what it needs are told to the manager until it confirms them

The queue does the work and keeps it; this thread only compares the queue with the manager and carries news from one to
the other. Each stage is on the disk (`ups_claims`) before it is acted on, so a gateway that was killed goes on with it.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from pydicom.uid import generate_uid

from semiseg.errors import SemisegError
from server.gateway.audit import Audit
from server.gateway.backoff import Backoff, delay_after
from server.gateway.config import GatewayConfig
from server.gateway.inbox import Inbox
from server.gateway.names import Names
from server.gateway.ups_attributes import REJECTED, UNSPECIFIED, Reason, canceled, now, performed, progress
from server.gateway.ups_claims import Claim, Claims
from server.gateway.ups_client import Conflict, ManagerTrouble, NotThere, UpsClient
from server.gateway.ups_config import Worklist
from server.gateway.ups_events import CANCEL_REQUESTED, STATE_REPORT, Events
from server.gateway.ups_finding import Finder
from server.gateway.ups_progress import Standing, outputs_of, standing_of
from server.gateway.ups_workitem import Unusable, Workitem, archives_of
from server.gateway.work import WORKITEM
from server.jobs.queue import Queue

GLANCE = 0.5  # seconds between two looks at the queue
# Looks in a row after which the manager is believed: one answer may be a proxy's, or of a manager that is starting.
MISSES, REFUSALS = 3, 2

_LOG = logging.getLogger("semiseg.gateway")


class Performer:
    """Performs the workitems of one worklist, in a thread of its own."""

    def __init__(
        self,
        config: GatewayConfig,
        worklist: Worklist,
        queue: Queue,
        inbox: Inbox,
        names: Names,
        claims: Claims,
        audit: Audit,
        wake: Callable[[str], None],
    ) -> None:
        """Begin.

        Args:
            config: The configuration.
            worklist: The worklist.
            queue: Where the jobs are.
            inbox: Where the inputs are kept.
            names: What UIDs are called.
            claims: Where claimed workitems are kept.
            audit: Told of everything.
            wake: Told of the kind of each new job.
        """
        self._config, self._worklist, self._queue = config, worklist, queue
        self._claims, self._audit, self._wake = claims, audit, wake
        self._client = UpsClient(worklist, config.ae_title)
        self._backoff = Backoff(config.retry)
        self._archives = archives_of(config, worklist)
        self._stop = threading.Event()
        self._next_search = 0.0
        self._due: dict[str, float] = {}
        self._finder = Finder(worklist, self._archives, inbox, names, claims)
        self._ends: Counter[str] = Counter()
        self._listening = False
        self._cancel_asked: set[str] = set()
        self._events = (
            Events(worklist, config.ae_title, config.retry, self._heard, self._connected) if worklist.events else None
        )
        self._thread = threading.Thread(target=self._run, name=f"worklist-{worklist.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Do nothing more, after the question that is being asked."""
        self._stop.set()
        if self._events is not None:
            self._events.stop()

    def close(self, seconds: float) -> None:
        """Do nothing more, and wait for so many seconds at most."""
        self._stop.set()
        self._thread.join(seconds)

    def told(self) -> dict[str, Any]:
        """What there is to see of the worklist, without anything of a patient."""
        passed = dict(self._finder.passed)
        mine = [claim for claim in self._claims.all() if claim.worklist == self._worklist.name]
        return {
            "name": self._worklist.name,
            "url": self._worklist.url,
            "trouble": self._backoff.told() or self._finder.full,
            "claimed": len(mine),
            "passed_over": [{"workitem": name, "why": why} for name, why in passed.items()],
            "ends": dict(self._ends),
            "events": self._listening,
        }

    def _connected(self, stands: bool) -> None:
        self._listening = stands
        self._next_search = 0.0  # for what came while nobody listened

    def _heard(self, kind: int, uid: str) -> None:
        """An event; it is acted on at the next look, in the thread of the worklist."""
        name = self._finder.name_of(uid)
        if kind == CANCEL_REQUESTED and self._claims.has(name):
            self._cancel_asked.add(name)
        elif kind == STATE_REPORT:
            self._due.pop(name, None)
            self._next_search = 0.0

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - a thread that ends would never be missed
                told = str(error) if isinstance(error, SemisegError) else f"{type(error).__name__} in a worklist."
                _LOG.error("%s", told, exc_info=not isinstance(error, SemisegError))
            self._stop.wait(GLANCE)

    def _look(self) -> None:
        for claim in self._claims.all():
            if claim.worklist != self._worklist.name or self._stop.is_set():
                continue
            with self._asking():
                self._advance(claim)
        if self._backoff.ready() and time.monotonic() >= self._next_search and not self._stop.is_set():
            with self._asking():
                self._search()
            self._next_search = time.monotonic() + self._worklist.every_seconds * random.uniform(0.9, 1.1)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Whatever the manager is asked; while it is not well it is asked less and less often."""
        try:
            yield
        except ManagerTrouble as error:
            delay = self._backoff.failed(str(error), error.seconds)
            _LOG.warning("The worklist %s waits for %.1f s: %s", self._worklist.name, delay, error)
        except Exception as error:  # noqa: BLE001 - one workitem must not stop the others
            told = str(error) if isinstance(error, SemisegError) else f"{type(error).__name__}; the log says where."
            self._backoff.failed(f"The worklist failed in an unforeseen way: {told}")
            _LOG.error("The worklist %s failed", self._worklist.name, exc_info=True)

    def _answered(self) -> None:
        if self._backoff.worked():
            self._audit.tell("worklist answers again", worklist=self._worklist.name)

    # Claiming

    def _search(self) -> None:
        room = self._worklist.parallel - sum(one.worklist == self._worklist.name for one in self._claims.all())
        if room <= 0:
            return
        found = self._finder.candidates(self._client.search())
        self._answered()
        for one in found:
            if room <= 0 or self._stop.is_set():
                return
            step = self._worklist.steps[one.step].model_dump_json()
            claim = Claim(one.name, self._worklist.name, self._worklist.url, one.uid, str(generate_uid(None)), step)
            self._forget_former(claim.name)
            self._claim(claim)
            room -= self._claims.has(claim.name)

    def _forget_former(self, name: str) -> None:
        """Forget the jobs of a workitem that was here before and is scheduled once more: it is performed anew."""
        for job in self._queue.jobs(owner=name):
            if job.ended:
                self._queue.forget(job.id)

    def _claim(self, claim: Claim) -> None:
        """Ask for a workitem; nothing is left of it here if somebody else has it."""
        again, claim.asked = claim.asked, True
        self._claims.write(claim)  # before the request: its answer may never be seen
        try:
            self._client.change_state(claim.uid, claim.transaction, "IN PROGRESS")
        except NotThere:
            self._leave(claim)
            return
        except Conflict:
            # Of a request whose answer was not seen, nobody knows who was faster. Only the owner may set attributes.
            if not again or not self._is_ours(claim):
                self._leave(claim)
                return
        self._answered()
        self._take(claim)

    def _is_ours(self, claim: Claim) -> bool:
        try:
            self._client.update(claim.uid, claim.transaction, progress(*(claim.progress or (0, "Claimed"))))
        except (Conflict, NotThere):
            return False
        return True

    def _leave(self, claim: Claim) -> None:
        """Somebody else has it: nothing is said of it, since this is how performers share a worklist."""
        self._answered()
        self._ends["somebody else was faster"] += 1
        self._finder.lost(claim.name)
        if self._queue.jobs("waiting", "running", owner=claim.name):
            self._drop(claim, "the manager gave it to somebody else")
        else:
            self._close(claim)

    def _take(self, claim: Claim) -> None:
        """The workitem is ours: read it, and have its inputs fetched."""
        item = Workitem.of(self._client.retrieve(claim.uid))
        claim.codes = [list(code) for code in item.codes]
        claim.started = claim.started or now()
        self._audit.tell("workitem claimed", workitem=claim.name, worklist=claim.worklist)
        try:
            inputs = item.inputs(self._archives)
        except Unusable as error:
            self._finish(claim, "CANCELED", Reason(*REJECTED, str(error)))
            return
        payload = {
            "study": claim.name,
            "worklist": claim.worklist,
            "step": claim.step,
            "transaction": claim.transaction,
            "inputs": [
                {"archive": one.archive, "study": one.study, "series": one.series, "instances": one.instances}
                for one in inputs
            ],
        }
        begun = performed(self._worklist.station, claim.codes, claim.started, "", "", [])
        with contextlib.suppress(
            Conflict
        ):  # a manager that wants less of it; whether we own it shows with the progress
            self._client.update(claim.uid, claim.transaction, begun)
        self._queue.put(WORKITEM, payload, key=f"{claim.name} {claim.transaction}", owner=claim.name)
        claim.stage = "performing"
        self._claims.write(claim)
        self._wake(WORKITEM)

    # Performing

    def _advance(self, claim: Claim) -> None:
        ready = self._backoff.ready()
        if claim.stage == "claiming":
            if ready:
                self._claim(claim)
        elif claim.stage == "performing":
            self._perform(claim, ready)
        elif claim.stage == "stopping":
            if self._stopped(claim):
                claim.stage = "ending"
                self._claims.write(claim)
        elif ready and time.monotonic() >= self._due.get(claim.name, 0.0):
            self._tell_end(claim)

    def _perform(self, claim: Claim, ready: bool) -> None:
        standing = standing_of(self._queue, claim.name, f"{claim.name} {claim.transaction}")
        if claim.trouble != standing.trouble:
            claim.trouble = standing.trouble
            self._claims.write(claim)
        if standing.end:
            self._finish(claim, standing.end, standing.reason)
        elif claim.name in self._cancel_asked:
            self._cancel(claim)
        elif ready and time.monotonic() >= self._due.get(claim.name, 0.0):
            self._due[claim.name] = time.monotonic() + self._worklist.every_seconds
            self._compare(claim, standing)

    def _compare(self, claim: Claim, standing: Standing) -> None:
        """Look what the manager says of a workitem in progress, and tell it how far we are."""
        try:
            item = Workitem.of(self._client.retrieve(claim.uid))
        except NotThere as error:
            self._missed(claim, error)
            return
        self._answered()
        claim.missed = 0
        if item.state in ("CANCELED", "COMPLETED"):
            self._drop(claim, f"the manager says that it is {item.state}")
        elif item.state == "SCHEDULED":
            self._audit.tell("workitem claim forgotten", workitem=claim.name, worklist=claim.worklist)
            claim.stage = "claiming"  # a manager that was set back: we claim it again, and go on with the work
            self._claims.write(claim)
        elif item.asks_to_cancel():
            self._cancel(claim)
        else:
            self._tell_progress(claim, standing)

    def _cancel(self, claim: Claim) -> None:
        self._audit.tell("workitem cancel requested", workitem=claim.name, worklist=claim.worklist)
        self._finish(claim, "CANCELED", Reason(*UNSPECIFIED, "It was canceled at the manager's request."))

    def _tell_progress(self, claim: Claim, standing: Standing) -> None:
        """Told at each look, also when nothing is new: only the owner may, so it shows whether we still are."""
        try:
            self._client.update(claim.uid, claim.transaction, progress(standing.percent, standing.words))
        except NotThere as error:
            self._missed(claim, error)
        except Conflict:
            self._refused(claim)
        else:
            if claim.progress != [standing.percent, standing.words] or claim.refused or claim.missed:
                claim.progress, claim.refused, claim.missed = [standing.percent, standing.words], 0, 0
                self._claims.write(claim)

    def _missed(self, claim: Claim, error: NotThere) -> None:
        claim.missed += 1
        if error.deleted or claim.missed >= MISSES:
            self._drop(claim, "the manager does not know it any more")
            return
        claim.trouble = "The manager does not know the workitem any more."
        self._claims.write(claim)

    def _refused(self, claim: Claim) -> None:
        """The manager does not let us write. Once may be a moment between two states."""
        claim.refused += 1
        if claim.refused >= REFUSALS:
            self._drop(claim, "the manager refuses our Transaction UID: somebody else has it")
        else:
            self._claims.write(claim)

    # Ending

    def _finish(self, claim: Claim, end: str, reason: Reason | None) -> None:
        claim.end, claim.ended = end, now()
        claim.reason = list(reason) if reason is not None else []
        claim.refused = claim.missed = 0
        claim.stage = "ending" if self._stopped(claim) else "stopping"
        self._due.pop(claim.name, None)
        self._cancel_asked.discard(claim.name)
        self._claims.write(claim)

    def _stopped(self, claim: Claim) -> bool:
        """Stop what the queue still does of a workitem; whether there is nothing left."""
        left = self._queue.jobs("waiting", "running", owner=claim.name)
        for job in left:
            self._queue.stop(job.id)
        return not self._queue.jobs("waiting", "running", owner=claim.name)

    def _tell_end(self, claim: Claim) -> None:
        found = outputs_of(self._queue, claim.name, self._config)
        changes = performed(
            self._worklist.station, claim.codes, claim.started or claim.ended, claim.ended, found.model, found.items
        )
        if claim.end == "CANCELED":
            changes.update(canceled(Reason(*claim.reason), claim.ended))
        else:
            changes.update(progress(100, "Segmented and delivered"))
        ours = False
        try:
            self._client.update(claim.uid, claim.transaction, changes)
            ours = True
            self._client.change_state(claim.uid, claim.transaction, claim.end)
        except NotThere as error:
            self._due[claim.name] = time.monotonic() + self._worklist.every_seconds
            self._missed(claim, error)
        except Conflict as error:
            self._answered()
            self._understand(claim, error, ours)
        else:
            self._answered()
            self._ended(claim)

    def _understand(self, claim: Claim, error: Conflict, ours: bool) -> None:
        """Why the manager refuses the end of a workitem, whose attributes it let us set if it is surely ``ours``."""
        self._due[claim.name] = time.monotonic() + delay_after(claim.refused + 1, self._config.retry)
        state = Workitem.of(self._client.retrieve(claim.uid)).state
        if state == claim.end:  # an earlier request did it, whose answer was not seen
            self._ended(claim)
        elif state in ("CANCELED", "COMPLETED"):
            self._drop(claim, f"the manager says that it is {state}")
        elif state == "SCHEDULED":
            self._audit.tell("workitem claim forgotten", workitem=claim.name, worklist=claim.worklist)
            self._client.change_state(claim.uid, claim.transaction, "IN PROGRESS")
            self._due.pop(claim.name, None)
        elif ours or self._is_ours(claim):
            # Nobody else will end it, so it is tried for ever, and stays in the status.
            claim.refused += 1
            what = f"the state {claim.end}" if ours else f"what {claim.end} needs"
            claim.trouble = f"The manager refuses {what} with HTTP {error.status}; its log says why."
            self._claims.write(claim)
        else:
            self._refused(claim)

    def _ended(self, claim: Claim) -> None:
        event = "workitem completed" if claim.end == "COMPLETED" else "workitem canceled"
        why = {"code": claim.reason[0], "why": claim.reason[2]} if claim.reason else {}
        self._audit.tell(event, workitem=claim.name, worklist=claim.worklist, **why)
        self._ends[claim.end.lower()] += 1
        self._close(claim)

    def _drop(self, claim: Claim, why: str) -> None:
        """The workitem is not ours any more: its jobs are stopped, and the manager is told nothing more."""
        self._stopped(claim)
        self._audit.tell("workitem lost", workitem=claim.name, worklist=claim.worklist, why=why)
        self._ends["lost"] += 1
        self._close(claim)

    def _close(self, claim: Claim) -> None:
        self._claims.remove(claim)
        self._due.pop(claim.name, None)
