"""What the jobs of the other kinds do (:mod:`server.gateway.kinds`): fetch, segment, deliver, and forget it all.

Each puts the next ones into the queue before it ends, under keys that say what they are about: one that is killed
half-way and begins again finds what it has put in already.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from semiseg.errors import Cancelled, InputError
from server.gateway.context import GatewayContext
from server.gateway.deciding import WAIT
from server.gateway.delivery import Commitments, NotDelivered, deliver
from server.gateway.inbox import delete
from server.gateway.kinds import DELIVER, FETCH, PURGE, RESULTS, SEGMENT, again_of
from server.gateway.outcome import Outcome
from server.gateway.retrieving import fetch
from server.gateway.retrying import Retrying
from server.gateway.segmenting import NotNow, Segmenting
from server.gateway.superseding import earlier_orders, mark
from server.jobs.queue import Job
from server.jobs.worker import JobFailed, Postponed, Task

UNDECIDED = 30.0  # seconds after which a job looks again whether an operator has decided


class Work:
    """The work of each kind; its methods are run by workers."""

    def __init__(
        self,
        context: GatewayContext,
        segmenting: Segmenting,
        commitments: Commitments,
        retrying: Retrying,
        *,
        is_open: Callable[[str], bool],
        complete: Callable[[str, str], None],
    ) -> None:
        """Make the folder of results; no work begins.

        Args:
            context: The gateway's parts.
            segmenting: Requests to the servers.
            commitments: Reports of storage commitment from archives.
            retrying: Delays of jobs that are tried again.
            is_open: Function that returns True while something of a study is arriving.
            complete: Function that is told that a study is complete, and why.
        """
        self._config, self._queue, self._inbox = context.config, context.queue, context.inbox
        self._audit, self._wake = context.audit, context.wake
        self._segmenting, self._commitments, self._retrying = segmenting, commitments, retrying
        self._is_open, self._complete = is_open, complete
        self.results = context.config.state / RESULTS
        self.results.mkdir(exist_ok=True)

    def fetch(self, task: Task) -> dict[str, Any]:
        """Bring a study from an archive that is asked."""
        job, told = task.job, task.job.payload
        poll = next((poll for poll in self._config.polls if poll.url == told["url"]), None)
        if poll is None:
            raise JobFailed(f"The configuration does not ask {told['url']} any more.")
        try:
            count = fetch(poll, told["uid"], self._inbox, task.cancelled)
        except NotDelivered as error:
            raise self._retrying.again(job, str(error)) from None
        self._audit.tell("fetched", study=told["study"], job=job.id, sender=poll.name, instances=count)
        if (conflict := self._inbox.conflict(told["study"])) is not None:
            self._audit.tell("conflict", sender=poll.name, study=told["study"], attributes=conflict.attributes)
        self._complete(told["study"], f"all {count} instances that {poll.name} has were fetched")
        return {"instances": count}

    def segment(self, task: Task) -> dict[str, Any]:
        """Have one scan segmented."""
        job, told = task.job, task.job.payload
        folder = self.results / job.id
        files = [self._inbox.studies / told["study"] / name for name in told["files"]]
        if not all(file.exists() for file in files):
            raise JobFailed("The study is not here any more.")
        self._require_one_patient(told["study"])
        earlier = earlier_orders(self._queue, SEGMENT, job)
        if any(one.state == "running" for one in earlier):
            raise Postponed("The result before it is being made.", after=WAIT)
        folder.mkdir(exist_ok=True)
        try:
            made = self._segmenting.segment(files, told["forms"], told["model"], folder, task.cancelled)
        except NotNow as error:
            raise self._retrying.no_server(job, error) from None
        except InputError as error:
            self._retrying.servers_answer()
            raise JobFailed(str(error)) from None
        self._retrying.servers_answer()
        if task.cancelled():
            raise Cancelled("The job was stopped.")
        superseded = self._superseded(job, earlier, made.files)
        put = []
        for destination, forms in told["to"].items():
            payload = {
                "study": told["study"],
                "rule": told["rule"],
                "of": job.id,
                "files": [file for form in forms for file in made.files[form]],
                "to": destination,
            }
            # A series that an operator had segmented again is delivered again, whatever became of the first delivery.
            key = f"{job.key} {destination}" + (f" again {told['again']}" if told.get("again") else "")
            put.append(self._queue.put(DELIVER, payload, key=key, owner=told["study"]).id)
        self._wake(DELIVER)
        self._audit.tell(
            "segmented",
            study=told["study"],
            job=job.id,
            rule=told["rule"],
            server=made.server,
            jobs=put,
            supersedes=superseded,
            **made.told,
            **again_of(job),
        )
        return {"server": made.server, "files": made.files, "jobs": put, **made.told}

    def deliver(self, task: Task) -> dict[str, Any]:
        """Send results to one archive."""
        job, told = task.job, task.job.payload
        destination = self._config.destinations.get(told["to"])
        if destination is None:
            raise self._retrying.again(job, f"The configuration has no destination {told['to']} any more.")
        self._require_one_patient(told["study"])
        # What it has is not sent again, and what it refused the last time goes last.
        taken, refused = list(told.get("taken", ())), told.get("refused", ())
        names = sorted((name for name in told["files"] if name not in taken), key=lambda name: name in refused)
        files = [self.results / told["of"] / name for name in names]
        if not all(file.exists() for file in files):
            raise JobFailed("The results are not here any more; have the series segmented again.")
        try:
            outcome = deliver(files, destination, self._config.ae_title, self._commitments, task.cancelled)
        except InputError as error:
            outcome = Outcome(trouble=str(error))
        taken += outcome.taken
        payload = told | {"taken": taken, "refused": list(outcome.refused)}
        if outcome.refused:
            payload["refused_since"] = told.get("refused_since") or time.time()
        told_of = {"study": told["study"], "job": job.id, "to": told["to"], **again_of(job)}
        if outcome.remarks:
            told_of["remarks"] = outcome.remarks
        missing = len(told["files"]) - len(taken)
        if outcome.taken and missing:
            self._audit.tell("delivered in part", **told_of, instances=len(outcome.taken), missing=missing)
        if outcome.trouble:
            raise self._retrying.held_up(job, told["to"], payload, outcome)
        self._retrying.destination_answers(told["to"])
        if missing:
            raise self._retrying.again(job, outcome.sentence(), payload=payload)
        self._audit.tell("delivered", **told_of, instances=len(taken))
        return {"instances": len(taken)}

    def purge(self, task: Task) -> dict[str, Any]:
        """Delete a study, its results and its jobs, unless something of it is arriving or being worked on.

        A study that an archive listed is new afterwards, and is fetched again while the archive lists it, unless the
        job says ``for_good``.
        """
        name, told = task.job.payload["study"], task.job.payload
        fetches = self._queue.jobs(queue=FETCH, owner=name)
        for job in fetches:
            if not job.ended:
                self._queue.stop(job.id)
        if any(job.state == "running" for job in fetches):
            raise Postponed("The study is being fetched.", after=WAIT)
        jobs = [job for job in self._queue.jobs(owner=name) if job.queue not in (FETCH, PURGE)]
        for job in jobs:
            if not job.ended:
                self._queue.stop(job.id)
        if any(job.state == "running" for job in jobs):
            raise Postponed("Something of the study is being worked on.", after=1.0)
        if not self.forget(name, jobs):
            raise JobFailed("Something of the study is arriving; purge it when it is complete.")
        if told.get("fetch_again"):
            for job in fetches:
                self._queue.forget(job.id)
        self._audit.tell("purged", study=name, why=task.job.payload["why"])
        return {}

    def forget(self, name: str, jobs: list[Job]) -> bool:
        """Delete a study and what its ``jobs`` left; False when something of it is arriving."""
        if not self._inbox.remove(name, lambda: self._is_open(name), overwrite=self._config.keep.overwrite):
            return False
        for job in jobs:
            delete(self.results / job.id, overwrite=self._config.keep.overwrite)
            self._queue.forget(job.id)
        return True

    def _require_one_patient(self, study: str) -> None:
        """Wait while an operator has to decide of which patient a study is: its result may be another patient's."""
        if self._config.complete.patients == "hold" and self._inbox.is_of_two_patients(study):
            raise Postponed("The study has instances of two patients, and waits for a decision.", after=UNDECIDED)

    def _superseded(self, job: Job, earlier: list[Job], files: dict[str, list[str]]) -> list[str]:
        """Mark a result as superseding earlier ones, and stop deliveries of those that have not begun.

        Returns:
            The jobs whose results an archive may have.
        """
        if not earlier:
            return []
        there = set()
        for delivery in self._queue.jobs(queue=DELIVER, owner=job.payload["study"]):
            if delivery.payload["of"] not in {one.id for one in earlier}:
                continue
            if not delivery.ended:  # one that is running ends with its present try
                self._queue.stop(delivery.id)
                self._audit.tell("superseded", study=job.payload["study"], job=delivery.id, by=job.id)
            # One that was tried may have brought a part of it.
            if delivery.state != "cancelled" and (delivery.state != "waiting" or delivery.payload.get("tries")):
                there.add(delivery.payload["of"])
        known = [one for one in earlier if one.id in there and one.state == "done"]
        if known:
            before = [
                self.results / known[-1].id / name for names in known[-1].result["files"].values() for name in names
            ]
            mark(
                [self.results / job.id / name for names in files.values() for name in names],
                [file for file in before if file.exists()],
                len(known) + 1,
            )
        return [one.id for one in known]
