"""Lifecycle of a claimed workitem.

    claiming     IN PROGRESS was requested with our Transaction UID; another performer may have been faster
    performing   jobs in the queue: `workitem` (inputs), `segment`, `deliver`; progress is reported to the manager
    stopping     the workitem is to be canceled; its remaining jobs are being stopped
    ending       the final state and its attributes are sent to the manager until it confirms them

The jobs in the queue do the work; this module compares the state of the jobs with the manager's, and passes on changes
in both directions. Each stage is on disk (`ups_claims`) before it is acted on, so a gateway that was killed continues.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence

from server.gateway.backoff import Backoff, retry_delay
from server.gateway.config import PolledArchive
from server.gateway.context import GatewayContext
from server.gateway.job_kinds import WORKITEM
from server.gateway.job_payloads import WorkitemPayload
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

# Consecutive responses after which the manager is believed: one may come from a proxy or from a manager that starts.
MAX_MISSES, MAX_REFUSALS = 3, 2


class ClaimLifecycle:
    """Moves claims of one worklist from stage to stage; used by the thread of the worklist.

    Attributes:
        due: Monotonic time of the next request to the manager about a claim, by its name.
        cancel_asked: Names of claims for which an event asked to cancel.
        ends: Number of workitems for each kind of end.
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
        """Configure the lifecycle.

        Args:
            context: Shared objects of the gateway.
            worklist: Configuration of the worklist.
            client: Client of the manager.
            claims: Claimed workitems of all worklists.
            backoff: Delay of requests to a manager that fails.
            archives: Archives of inputs, each with the AE titles that stand for it.
            lost: Function that is called with the name of each workitem that another performer claimed first.
        """
        self._config, self._queue, self._audit, self._wake = context.config, context.queue, context.audit, context.wake
        self._worklist, self._client, self._claims, self._backoff = worklist, client, claims, backoff
        self._archives, self._lost = archives, lost
        self.due: dict[str, float] = {}
        self._paused: dict[str, float] = {}
        self.cancel_asked: set[str] = set()
        self.ends: Counter[str] = Counter()

    def record_answer(self) -> None:
        """Record that the manager works."""
        if self._backoff.record_success():
            self._audit.record("worklist answers again", worklist=self._worklist.name)

    def delete_former_jobs(self, name: str) -> None:
        """Delete the jobs of an earlier performance of a workitem that was scheduled again."""
        for job in self._queue.jobs(owner=name):
            if job.ended:
                self._queue.delete(job.id)

    def claim(self, claim: Claim) -> None:
        """Claim a workitem; the claim is deleted if another performer has it."""
        again, claim.asked = claim.asked, True
        self._claims.write(claim)  # before the request, because its response may be lost
        try:
            self._client.change_state(claim.uid, claim.transaction, "IN PROGRESS")
        except WorkitemNotFound:
            self._leave(claim)
            return
        except WorkitemConflict:
            # If the response to an earlier request was lost, the claim may be ours; only the owner can set attributes.
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
        """Give up a workitem that another performer has; no warning, because performers share a worklist like this."""
        self.record_answer()
        self.ends["somebody else was faster"] += 1
        self._lost(claim.name)
        if self._queue.jobs("waiting", "running", owner=claim.name):
            self._drop(claim, "the manager gave it to another performer")
        else:
            self._close(claim)

    def _take(self, claim: Claim) -> None:
        """Read a workitem that was claimed, and add the job that retrieves its inputs."""
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
        payload = WorkitemPayload(
            study=claim.name,
            worklist=claim.worklist,
            step=claim.step,
            transaction=claim.transaction,
            inputs=[dataclasses.asdict(one) for one in inputs],
            outputs=outputs.names,
            outputs_elsewhere=outputs.elsewhere,
        )
        begun = performed_changes(self._worklist.station, claim.codes, claim.started, "", "", [])
        with contextlib.suppress(
            WorkitemConflict
        ):  # some managers refuse these attributes; the ownership is checked with the progress
            self._client.update(claim.uid, claim.transaction, begun)
        self._queue.put(WORKITEM, payload.to_json(), key=f"{claim.name} {claim.transaction}", owner=claim.name)
        claim.stage = "performing"
        self._claims.write(claim)
        self._wake(WORKITEM)

    # Performing

    def advance(self, claim: Claim) -> None:
        """Take the next step for a claim.

        Raises:
            ManagerUnavailable: The manager does not work; the claim stays as it is.
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
        """Pause a claim for a while after an unexpected error, and show the error."""
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
        """Compare a workitem in progress with the manager's state, and report the progress."""
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
            claim.stage = "claiming"  # the manager was reset: the workitem is claimed again, and the work continues
            self._claims.write(claim)
        elif item.is_cancel_requested():
            self._cancel(claim)
        else:
            self._tell_progress(claim, standing)

    def _cancel(self, claim: Claim) -> None:
        self._audit.record("workitem cancel requested", workitem=claim.name, worklist=claim.worklist)
        self._finish(claim, "CANCELED", CancellationReason(*UNSPECIFIED, "It was canceled at the manager's request."))

    def _tell_progress(self, claim: Claim, standing: WorkitemProgress) -> None:
        """Report the progress, also without news, because a refusal shows that the workitem is not ours any more."""
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
        """Handle a refused update; a single refusal may be caused by a change of state."""
        claim.refused += 1
        if claim.refused >= MAX_REFUSALS:
            self._drop(claim, "the manager refuses our Transaction UID: another performer has it")
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
        """Stop the remaining jobs of a workitem; return True if none is left."""
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
        """Find out why the manager refuses the end of a workitem; ``ours`` is True if it accepted the attributes."""
        self.due[claim.name] = time.monotonic() + retry_delay(claim.refused + 1, self._config.retry)
        state = Workitem.from_json(self._client.retrieve(claim.uid)).state
        if state == claim.end:  # an earlier request succeeded whose response was lost
            self._ended(claim)
        elif state in ("CANCELED", "COMPLETED"):
            self._drop(claim, f"the manager says that it is {state}")
        elif state == "SCHEDULED":
            self._audit.record("workitem claim forgotten", workitem=claim.name, worklist=claim.worklist)
            self._client.change_state(claim.uid, claim.transaction, "IN PROGRESS")
            self.due.pop(claim.name, None)
        elif ours or self._is_ours(claim):
            # No other performer will end it, so it is retried without limit, and stays in the status.
            claim.refused += 1
            what = f"the state {claim.end}" if ours else f"the attributes of {claim.end}"
            claim.trouble = f"The manager refuses {what} with HTTP {error.status}; its log gives the reason."
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
        """Give up a workitem that is not ours any more: stop its jobs, and send nothing more to the manager."""
        self._stopped(claim)
        self._audit.record("workitem lost", workitem=claim.name, worklist=claim.worklist, why=why)
        self.ends["lost"] += 1
        self._close(claim)

    def _close(self, claim: Claim) -> None:
        self._claims.remove(claim)
        self.cancel_asked.discard(claim.name)
        for times in (self.due, self._paused):
            times.pop(claim.name, None)
