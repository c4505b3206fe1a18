"""Workers: their turns, their leases, and how a job ends that they work on."""

from __future__ import annotations

import threading

import pytest

from semiseg.errors import Cancelled
from server.jobs import worker
from server.jobs.fifo_limiter import FifoLimiter
from server.jobs.queue import Queue
from server.jobs.worker import JobFailed, JobPostponed, RunningJob, Worker
from tests.polling import wait_until


@pytest.fixture
def queue(tmp_path) -> Queue:
    return Queue(tmp_path / "jobs.sqlite3")


class Work:
    """Work that waits until it may go on, and writes down what it did."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Event()
        self.finished: list[str] = []

    def __call__(self, task: RunningJob) -> dict:
        self.begun.set()
        while not self.go.wait(0.01):
            if task.cancelled():
                raise Cancelled("stopped")
        self.finished.append(task.job.id)
        kind = task.job.payload.get("kind")
        if kind == "fail":
            raise JobFailed("It cannot be.", status=422)
        if kind == "later" and self.finished.count(task.job.id) == 1:
            raise JobPostponed("Not now.", after=0.1)
        return {"id": task.job.id}


@pytest.fixture
def work() -> Work:
    return Work()


def start(queue: Queue, work: Work, **options) -> Worker:
    return Worker(queue, "work", work, threads=1, limiter=FifoLimiter(1), **options)


def test_worker_ends_jobs_as_the_work_does(queue, work, monkeypatch):
    monkeypatch.setattr(worker, "POLL_INTERVAL", 0.05)
    names = {kind: queue.put("work", {"kind": kind}).id for kind in ("good", "fail", "later")}
    told = []
    running = start(queue, work, ended=lambda job, state: told.append((job.id, state)))
    work.go.set()
    wait_until(lambda: all(queue.get(name).ended for name in names.values()))
    running.close()
    assert queue.get(names["good"]).result == {"id": names["good"]}
    assert queue.get(names["fail"]).result == {"error": "It cannot be.", "status": 422}
    assert queue.get(names["later"]).state == "done" and queue.get(names["later"]).attempts == 1
    assert sorted(told) == sorted([(names["good"], "done"), (names["fail"], "failed"), (names["later"], "done")])


def test_worker_that_is_closed_gives_its_job_back_uncounted(queue, work):
    job = queue.put("work", {})
    running = start(queue, work)
    assert work.begun.wait(60)
    running.close()
    assert (queue.get(job.id).state, queue.get(job.id).attempts) == ("waiting", 0)
    assert work.finished == []


@pytest.mark.parametrize("here", [True, False], ids=["at once when its worker is told", "at the next heartbeat"])
def test_cancelled_job_stops(queue, work, monkeypatch, here):
    monkeypatch.setattr(worker, "HEARTBEAT_INTERVAL", 60.0 if here else 0.05)
    job = queue.put("work", {})
    running = start(queue, work)
    assert work.begun.wait(60)
    queue.stop(job.id)
    if here:  # otherwise another process cancelled it
        running.stop(job.id)
    wait_until(lambda: queue.get(job.id).state == "cancelled")
    running.close()


def test_worker_whose_lease_was_taken_stops_and_changes_nothing(queue, work, monkeypatch):
    monkeypatch.setattr(worker, "HEARTBEAT_INTERVAL", 0.05)
    job = queue.put("work", {})
    running = start(queue, work)
    assert work.begun.wait(60)
    queue.release_all()
    other = queue.lease("work", 60)
    wait_until(lambda: not running._tasks)
    assert queue.get(job.id).lease == other.lease
    assert queue.end(other, "done", {})
    running.close()


def test_no_job_is_leased_while_it_is_not_its_turn(queue, work):
    limiter = FifoLimiter(1)
    assert limiter.acquire(1)
    job = queue.put("work", {})
    running = Worker(queue, "work", work, threads=2, limiter=limiter)
    assert not work.begun.wait(0.3)
    assert queue.get(job.id).state == "waiting"
    limiter.release()
    assert work.begun.wait(60)
    running.close()


def test_turns_are_taken_in_the_order_in_which_they_were_asked_for():
    """A worker that gives its turn back and asks again must not get it before a request that waits."""
    limiter, order = FifoLimiter(1), []
    assert limiter.acquire(1)

    def request() -> None:
        assert limiter.acquire(60)
        order.append("request")
        limiter.release()

    thread = threading.Thread(target=request)
    thread.start()
    wait_until(lambda: limiter._waiting)
    limiter.release()
    assert limiter.acquire(60)
    order.append("worker")
    limiter.release()
    thread.join()
    assert order == ["request", "worker"]
    assert limiter.acquire(0.1) and not limiter.acquire(0.05)
    limiter.release()
    assert limiter.acquire(0.1)
