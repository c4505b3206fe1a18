"""One claimed workitem from its claim to its end.

    claiming     IN PROGRESS was asked for with our Transaction UID; ours, or somebody else was faster
    performing   the queue works: `workitem` (inputs), `segment`, `deliver`; the manager is told of the progress
    stopping     it is to be canceled; what the queue still does of it is being stopped
    ending       the final state and what it needs are told to the manager until it confirms them

The queue does the work and keeps it; here the queue is compared with the manager, and news is carried from one to the
other. Each stage is on the disk (`ups_claims`) before it is acted on, so a gateway that was killed goes on with it.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence

from server.gateway.backoff import Backoff, retry_delay
from server.gateway.config import PolledArchive
from server.gateway.context import GatewayContext
from server.gateway.job_kinds import WORKITEM
from server.gateway.ups_attributes import (
    REJECTED,
    UNSPECIFIED,
    CancellationReason,
    cancellation_changes,
    current_datetime,
    performed_changes,
    progress_changes,
)
from server.gateway.ups_claims import Claim, Claims
from server.gateway.ups_client import UpsClient, WorkitemConflict, WorkitemNotFound
from server.gateway.ups_config import Worklist
from server.gateway.ups_progress import WorkitemProgress, delivered_results, workitem_progress
from server.gateway.ups_workitem import UnusableInputs, Workitem

# Looks in a row after which the manager is believed: one answer may be a proxy's, or of a manager that is starting.
MAX_MISSES, MAX_REFUSALS = 3, 2


class ClaimLifecycle:
    """Moves claims of one worklist from stage to stage; used by the thread of the worklist.

    Attributes:
        due: Monotonic time of the next question to the manager about a claim, by its name.
        cancel_asked: Names of claims that the manager asked to cancel by an event.
        ends: Number of workitems by how they ended.
    """

    def __init__(
        self,
        context: GatewayContext,
        worklist: Worklist,
        client: UpsClient,
        claims: Claims,
        backoff: Backoff,
        *,
        archives: Sequence[tuple[PolledArchive, Sequence[str]]],
        lost: Callable[[str], None],
    ) -> None:
        """Configure it.

        Args:
            context: The gateway's parts.
            worklist: The worklist.
            client: Client of the manager.
            claims: Claimed workitems of all worklists.
            backoff: Delay of questions to a manager that is not well.
            archives: Archives that inputs may come from, each with the AE titles that stand for it.
            lost: Function that is told the name of each workitem that somebody else was faster with.
        """
        self._config, self._queue, self._audit, self._wake = context.config, context.queue, context.audit, context.wake
        self._worklist, self._client, self._claims, self._backoff = worklist, client, claims, backoff
        self._archives, self._lost = archives, lost
        self.due: dict[str, float] = {}
        self._paused: dict[str, float] = {}
        self.cancel_asked: set[str] = set()
        self.ends: Counter[str] = Counter()

    def record_answer(self) -> None:
        """The manager answered as it should."""
        if self._backoff.record_success():
            self._audit.record("worklist answers again", worklist=self._worklist.name)

    def delete_former_jobs(self, name: str) -> None:
        """Forget the jobs of a workitem that was here before and is scheduled once more: it is performed anew."""
        for job in self._queue.jobs(owner=name):
            if job.ended:
                self._queue.delete(job.id)

    def claim(self, claim: Claim) -> None:
        """Ask for a workitem; nothing is left of it here if somebody else has it."""
        again, claim.asked = claim.asked, True
        self._claims.write(claim)  # before the request: its answer may never be seen
        try:
            self._client.change_state(claim.uid, claim.transaction, "IN PROGRESS")
        except WorkitemNotFound:
            self._leave(claim)
            return
        except WorkitemConflict:
            # Of a request whose answer was not seen, nobody knows who was faster. Only the owner may set attributes.
            if not again or not self._is_ours(claim):
                self._leave(claim)
                return
        self.record_answer()
        self._take(claim)

    def _is_ours(self, claim: Claim) -> bool:
        try:
            self._client.update(claim.uid, claim.transaction, progress_changes(*(claim.progress or (0, "Claimed"))))
        except (WorkitemConflict, WorkitemNotFound):
            return False
        return True

    def _leave(self, claim: Claim) -> None:
        """Somebody else has it: nothing is said of it, since this is how performers share a worklist."""
        self.record_answer()
        self.ends["somebody else was faster"] += 1
        self._lost(claim.name)
        if self._queue.jobs("waiting", "running", owner=claim.name):
            self._drop(claim, "the manager gave it to somebody else")
        else:
            self._close(claim)

    def _take(self, claim: Claim) -> None:
        """The workitem is ours: read it, and have its inputs fetched."""
        item = Workitem.from_json(self._client.retrieve(claim.uid))
        claim.codes = [list(code) for code in item.codes]
        claim.started = claim.started or current_datetime()
        self._audit.record("workitem claimed", workitem=claim.name, worklist=claim.worklist)
        try:
            inputs = item.inputs(self._archives)
        except UnusableInputs as error:
            self._finish(claim, "CANCELED", CancellationReason(*REJECTED, str(error)))
            return
        outputs = item.outputs(self._config.destinations)
        payload = {
            "study": claim.name,
            "worklist": claim.worklist,
            "outputs": outputs.names,
            "outputs_elsewhere": outputs.elsewhere,
            "step": claim.step,
            "transaction": claim.transaction,
            "inputs": [
                {"archive": one.archive, "study": one.study, "series": one.series, "instances": one.instances}
                for one in inputs
            ],
        }
        begun = performed_changes(self._worklist.station, claim.codes, claim.started, "", "", [])
        with contextlib.suppress(
            WorkitemConflict
        ):  # a manager that wants less of it; whether we own it shows with the progress
            self._client.update(claim.uid, claim.transaction, begun)
        self._queue.put(WORKITEM, payload, key=f"{claim.name} {claim.transaction}", owner=claim.name)
        claim.stage = "performing"
        self._claims.write(claim)
        self._wake(WORKITEM)

    # Performing

    def advance(self, claim: Claim) -> None:
        """Do what is next for a claim.

        Raises:
            ManagerUnavailable: The manager is not well; the claim stays as it is.
        """
        if time.monotonic() < self._paused.get(claim.name, 0.0):
            return
        ready = self._backoff.ready()
        if claim.stage == "claiming":
            if ready:
                self.claim(claim)
        elif claim.stage == "performing":
            self._perform(claim, ready)
        elif claim.stage == "stopping":
            if self._stopped(claim):
                claim.stage = "ending"
                self._claims.write(claim)
        elif ready and time.monotonic() >= self.due.get(claim.name, 0.0):
            self._tell_end(claim)

    def pause(self, claim: Claim, sentence: str) -> None:
        """A claim could not be moved on in a way that nobody foresaw; it is left alone for a while, and shown."""
        claim.trouble = sentence
        self._paused[claim.name] = time.monotonic() + self._worklist.every_seconds

    def _perform(self, claim: Claim, ready: bool) -> None:
        standing = workitem_progress(self._queue, claim.name, f"{claim.name} {claim.transaction}")
        if claim.trouble != standing.trouble:
            claim.trouble = standing.trouble
            self._claims.write(claim)
        if standing.end:
            self._finish(claim, standing.end, standing.reason)
        elif claim.name in self.cancel_asked:
            self._cancel(claim)
        elif ready and time.monotonic() >= self.due.get(claim.name, 0.0):
            self.due[claim.name] = time.monotonic() + self._worklist.every_seconds
            self._compare(claim, standing)

    def _compare(self, claim: Claim, standing: WorkitemProgress) -> None:
        """Look what the manager says of a workitem in progress, and tell it how far we are."""
        try:
            item = Workitem.from_json(self._client.retrieve(claim.uid))
        except WorkitemNotFound as error:
            self._missed(claim, error)
            return
        self.record_answer()
        claim.missed = 0
        if item.state in ("CANCELED", "COMPLETED"):
            self._drop(claim, f"the manager says that it is {item.state}")
        elif item.state == "SCHEDULED":
            self._audit.record("workitem claim forgotten", workitem=claim.name, worklist=claim.worklist)
            claim.stage = "claiming"  # a manager that was set back: we claim it again, and go on with the work
            self._claims.write(claim)
        elif item.is_cancel_requested():
            self._cancel(claim)
        else:
            self._tell_progress(claim, standing)

    def _cancel(self, claim: Claim) -> None:
        self._audit.record("workitem cancel requested", workitem=claim.name, worklist=claim.worklist)
        self._finish(claim, "CANCELED", CancellationReason(*UNSPECIFIED, "It was canceled at the manager's request."))

    def _tell_progress(self, claim: Claim, standing: WorkitemProgress) -> None:
        """Told at each look, also when nothing is new: only the owner may, so it shows whether we still are."""
        try:
            self._client.update(claim.uid, claim.transaction, progress_changes(standing.percent, standing.words))
        except WorkitemNotFound as error:
            self._missed(claim, error)
        except WorkitemConflict:
            self._refused(claim)
        else:
            if claim.progress != [standing.percent, standing.words] or claim.refused or claim.missed:
                claim.progress, claim.refused, claim.missed = [standing.percent, standing.words], 0, 0
                self._claims.write(claim)

    def _missed(self, claim: Claim, error: WorkitemNotFound) -> None:
        claim.missed += 1
        if error.deleted or claim.missed >= MAX_MISSES:
            self._drop(claim, "the manager does not know it any more")
            return
        claim.trouble = "The manager does not know the workitem any more."
        self._claims.write(claim)

    def _refused(self, claim: Claim) -> None:
        """The manager does not let us write. Once may be a moment between two states."""
        claim.refused += 1
        if claim.refused >= MAX_REFUSALS:
            self._drop(claim, "the manager refuses our Transaction UID: somebody else has it")
        else:
            self._claims.write(claim)

    # Ending

    def _finish(self, claim: Claim, end: str, reason: CancellationReason | None) -> None:
        claim.end, claim.ended = end, current_datetime()
        claim.reason = list(reason) if reason is not None else []
        claim.refused = claim.missed = 0
        claim.stage = "ending" if self._stopped(claim) else "stopping"
        self.due.pop(claim.name, None)
        self.cancel_asked.discard(claim.name)
        self._claims.write(claim)

    def _stopped(self, claim: Claim) -> bool:
        """Stop what the queue still does of a workitem; whether there is nothing left."""
        left = self._queue.jobs("waiting", "running", owner=claim.name)
        for job in left:
            self._queue.stop(job.id)
        return not self._queue.jobs("waiting", "running", owner=claim.name)

    def _tell_end(self, claim: Claim) -> None:
        found = delivered_results(self._queue, claim.name, self._config)
        changes = performed_changes(
            self._worklist.station, claim.codes, claim.started or claim.ended, claim.ended, found.model, found.items
        )
        if claim.end == "CANCELED":
            changes.update(cancellation_changes(CancellationReason(*claim.reason), claim.ended))
        else:
            changes.update(progress_changes(100, "Segmented and delivered"))
        ours = False
        try:
            self._client.update(claim.uid, claim.transaction, changes)
            ours = True
            self._client.change_state(claim.uid, claim.transaction, claim.end)
        except WorkitemNotFound as error:
            self.due[claim.name] = time.monotonic() + self._worklist.every_seconds
            self._missed(claim, error)
        except WorkitemConflict as error:
            self.record_answer()
            self._understand(claim, error, ours)
        else:
            self.record_answer()
            self._ended(claim)

    def _understand(self, claim: Claim, error: WorkitemConflict, ours: bool) -> None:
        """Why the manager refuses the end of a workitem, whose attributes it let us set if it is surely ``ours``."""
        self.due[claim.name] = time.monotonic() + retry_delay(claim.refused + 1, self._config.retry)
        state = Workitem.from_json(self._client.retrieve(claim.uid)).state
        if state == claim.end:  # an earlier request did it, whose answer was not seen
            self._ended(claim)
        elif state in ("CANCELED", "COMPLETED"):
            self._drop(claim, f"the manager says that it is {state}")
        elif state == "SCHEDULED":
            self._audit.record("workitem claim forgotten", workitem=claim.name, worklist=claim.worklist)
            self._client.change_state(claim.uid, claim.transaction, "IN PROGRESS")
            self.due.pop(claim.name, None)
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
        self._audit.record(event, workitem=claim.name, worklist=claim.worklist, **why)
        self.ends[claim.end.lower()] += 1
        self._close(claim)

    def _drop(self, claim: Claim, why: str) -> None:
        """The workitem is not ours any more: its jobs are stopped, and the manager is told nothing more."""
        self._stopped(claim)
        self._audit.record("workitem lost", workitem=claim.name, worklist=claim.worklist, why=why)
        self.ends["lost"] += 1
        self._close(claim)

    def _close(self, claim: Claim) -> None:
        self._claims.remove(claim)
        self.cancel_asked.discard(claim.name)
        for times in (self.due, self._paused):
            times.pop(claim.name, None)
