"""Worker threads that lease jobs from a queue, renew the leases, and end the jobs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from semiseg.errors import Cancelled, SemisegError
from server.jobs.database import QueueError
from server.jobs.fifo_limiter import FifoLimiter
from server.jobs.lanes import Lane
from server.jobs.queue import JobState, Queue, QueuedJob

LEASE_SECONDS = 60.0  # a process that is suspended for longer loses its jobs to another worker
HEARTBEAT_INTERVAL = 1.0
POLL_INTERVAL = 1.0  # seconds between polls of an empty queue, for jobs that another process added

_LOG = logging.getLogger("semiseg.jobs")


class JobFailed(SemisegError):  # noqa: N818 - a state of a job
    """The work cannot be done, and a retry would not help."""

    def __init__(self, sentence: str, **details: Any) -> None:
        super().__init__(sentence)
        self.details = details


class JobPostponed(SemisegError):  # noqa: N818 - a state of a job
    """The work cannot be done now, for a reason outside the job; it is retried in ``after`` seconds.

    The next attempt gets ``payload``, if one is given.
    """

    def __init__(self, sentence: str, *, after: float, payload: dict[str, Any] | None = None) -> None:
        super().__init__(sentence)
        self.after, self.payload = after, payload


@dataclass
class RunningJob:
    """A running job, as it is passed to the work function.

    Attributes:
        job: The job at the time of leasing.
        progress: Progress that the next heartbeat stores; the work function replaces it.
    """

    job: QueuedJob
    progress: dict[str, Any] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _reason: str = ""

    def cancelled(self) -> bool:
        """Return True if the work is to be given up; the work function calls this regularly."""
        return self._stop.is_set()

    def cancel(self, reason: str) -> None:
        """Ask the work to stop; only the first reason is kept."""
        if not self._stop.is_set():
            self._reason = reason
            self._stop.set()

    @property
    def reason(self) -> str:
        """``cancelled``, ``lost`` or ``closing`` once the work is to be given up; empty before."""
        return self._reason


class Worker:
    """Works on the jobs of one kind until it is closed."""

    def __init__(
        self,
        queue: Queue,
        name: str,
        work: Callable[[RunningJob], dict[str, Any]],
        *,
        threads: int,
        limiter: FifoLimiter,
        ready: Callable[[], bool] = lambda: True,
        ended: Callable[[QueuedJob, JobState], None] = lambda *_: None,
        lane: Lane | None = None,
        fair: bool = False,
    ) -> None:
        """Start the threads.

        Args:
            queue: Queue of the jobs.
            name: Kind of the jobs.
            work: Function that works on a job; it returns the job's result, or raises :class:`JobFailed`,
                :class:`JobPostponed`, or ``Cancelled`` if the job was cancelled.
            threads: Number of jobs at the same time.
            limiter: Limiter of which a slot is acquired before a job is leased, so that no lease runs while it waits.
            ready: Function that returns True when work can begin; no job is leased before.
            ended: Function that is called with each job that ended here, and its state.
            lane: Lane from which jobs are taken; all jobs of the kind if None.
            fair: If True, the owners of jobs take turns.
        """
        self._queue, self._name, self._work, self._limiter = queue, name, work, limiter
        self._ready, self._ended, self._lane, self._fair = ready, ended, lane, fair
        self._closing = threading.Event()
        self._wake_ups = threading.Semaphore(0)
        self._tasks: dict[str, RunningJob] = {}
        self._threads = [threading.Thread(target=self._run, name=f"{name}-{k}", daemon=True) for k in range(threads)]
        self._heart = threading.Thread(target=self._beat, name=f"{name}-heartbeat", daemon=True)
        for thread in (*self._threads, self._heart):
            thread.start()

    def wake(self) -> None:
        """Notify the worker of a new job."""
        self._wake_ups.release()

    def stop(self, id: str) -> None:  # noqa: A002 - the field's name
        """Stop the work on a cancelled job now, before the next heartbeat notices."""
        for task in self._of(id):
            task.cancel("cancelled")

    def progress(self, id: str) -> dict[str, Any] | None:  # noqa: A002 - the field's name
        """Progress of a job that runs in this worker; None for other jobs."""
        return next((task.progress for task in self._of(id)), None)

    def _of(self, id: str) -> list[RunningJob]:  # noqa: A002 - the field's name
        return [task for task in list(self._tasks.values()) if task.job.id == id]

    def close(self, seconds: float | None = None) -> None:
        """Stop the running jobs, return them to the queue, and wait for the threads to end.

        The wait is at most ``seconds`` long: leases of a process that has ended are released at the next start.
        """
        self._closing.set()
        for task in list(self._tasks.values()):
            task.cancel("closing")
        for _ in self._threads:
            self._wake_ups.release()
        until = None if seconds is None else time.monotonic() + seconds
        for thread in (*self._threads, self._heart):
            thread.join(None if until is None else max(0.0, until - time.monotonic()))

    def _run(self) -> None:
        while not self._closing.is_set():
            if not self._limiter.acquire_unless_stopped(self._closing.is_set, POLL_INTERVAL):
                return
            busy = False
            try:
                busy = self._one()
            except Exception as error:  # noqa: BLE001 - nothing would restart a thread that ended
                told = error if isinstance(error, QueueError) else type(error).__name__
                _LOG.error("A job could not be worked on: %s", told, exc_info=not isinstance(error, QueueError))
            finally:
                self._limiter.release()
            if not busy:
                self._wake_ups.acquire(timeout=POLL_INTERVAL)

    def _one(self) -> bool:
        """Work on the next job; return False if there is none."""
        if self._closing.is_set() or not self._ready():
            return False
        job = self._queue.lease(self._name, LEASE_SECONDS, self._ended, lane=self._lane, fair=self._fair)
        if job is None:
            return False
        # The key is the lease: after a pause longer than a lease, two threads may have the same job for a moment.
        assert job.lease is not None
        task = self._tasks[job.lease] = RunningJob(job)
        if self._closing.is_set():
            task.cancel("closing")
        try:
            self._finish(task)
        finally:
            self._tasks.pop(job.lease, None)
        return True

    def _finish(self, task: RunningJob) -> None:
        job, queue = task.job, self._queue
        state: JobState
        result: dict[str, Any] = {}
        try:
            state, result = "done", self._work(task)
        except Cancelled:
            if task.reason == "closing":
                self._requeue(job)
                return
            state = "cancelled"
        except JobPostponed as error:
            _LOG.warning("Job %s was postponed: %s", job.id, error)
            self._requeue(job, error.after, error.payload)
            return
        except JobFailed as error:
            state, result = "failed", {"error": str(error), **error.details}
        if queue.end(job, state, result):
            self._ended(job, state)
        elif task.reason != "cancelled":
            _LOG.warning("Job %s was taken over by another worker; its result here is discarded", job.id)

    def _requeue(self, job: QueuedJob, after: float = 0.0, payload: dict[str, Any] | None = None) -> None:
        if self._queue.requeue(job, after=after, payload=payload) == "cancelled":
            self._ended(job, "cancelled")

    def _beat(self) -> None:
        while not self._closing.wait(HEARTBEAT_INTERVAL):
            for task in list(self._tasks.values()):
                try:
                    standing = self._queue.renew(task.job, LEASE_SECONDS, task.progress)
                except Exception as error:  # noqa: BLE001 - as above
                    told = error if isinstance(error, QueueError) else type(error)
                    _LOG.error("A heartbeat could not be written: %s", told)
                    continue
                if standing == "stop":
                    task.cancel("cancelled")
                elif standing == "lost" and task.job.lease in self._tasks:
                    task.cancel("lost")
