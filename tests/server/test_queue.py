"""The lease queue: what was accepted ends exactly once, whoever dies meanwhile."""

from __future__ import annotations

import multiprocessing
import sqlite3
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from semiseg.errors import InputError
from semiseg.system import boot_clock
from server.jobs.database import QueueError
from server.jobs.queue import ENDED_STATES, SCHEMA_VERSION, Queue, QueuedJob, QueueFull
from tests.polling import wait_until


@pytest.fixture
def queue(tmp_path) -> Queue:
    return Queue(tmp_path / "jobs.sqlite3")


def test_jobs_are_taken_in_the_order_in_which_they_came(queue):
    names = [queue.put("work", {"n": n}).id for n in range(3)]
    assert [queue.lease("work", 10).id for _ in names] == names
    assert queue.lease("work", 10) is None


def test_kinds_of_work_do_not_see_each_other(queue):
    queue.put("one", {})
    assert queue.lease("two", 10) is None
    assert queue.count("two")["waiting"] == 0


def test_payload_progress_and_result_come_back_as_they_went_in(queue):
    put = queue.put("work", {"files": ["a"], "n": 1.5}, owner="ward")
    job = queue.lease("work", 10)
    assert (job.payload, job.owner, job.attempts) == ({"files": ["a"], "n": 1.5}, "ward", 1)
    assert queue.renew(job, 10, {"done": 3}) == "held"
    assert queue.get(put.id).progress == {"done": 3}
    assert queue.end(job, "done", {"ml": 2})
    assert queue.get(put.id).state == "done"
    assert queue.get(put.id).result == {"ml": 2}


def test_lease_that_ran_out_is_taken_by_the_next_and_the_first_one_changes_nothing_any_more(queue):
    queue.put("work", {})
    first = queue.lease("work", 0.0)
    second = queue.lease("work", 10)
    assert second.id == first.id and second.attempts == 2
    assert queue.renew(first, 10, {}) == "lost"
    assert not queue.end(first, "done", {"by": "first"})
    assert not queue.requeue(first)
    assert queue.end(second, "done", {"by": "second"})
    assert queue.get(first.id).result == {"by": "second"}
    assert not queue.end(second, "failed", {})


def test_heartbeat_keeps_a_lease_that_would_have_run_out(queue, monkeypatch):
    now = boot_clock.seconds()
    monkeypatch.setattr(boot_clock, "seconds", lambda: now)
    queue.put("work", {})
    job = queue.lease("work", 2)
    for _ in range(4):
        now += 1
        assert queue.renew(job, 2, {}) == "held"
    now += 1
    assert queue.lease("work", 10) is None
    now += 2
    assert queue.lease("work", 10).id == job.id


def test_lease_of_another_start_of_the_machine_is_over(queue, monkeypatch):
    queue.put("work", {})
    job = queue.lease("work", 1e9)
    monkeypatch.setattr(queue, "_boot", "another boot")
    assert queue.lease("work", 10).id == job.id


def test_time_of_day_set_back_or_forward_changes_no_lease_and_no_delay(queue, monkeypatch):
    """GW-11."""
    queue.put("work", {})
    job = queue.lease("work", 60)
    for shift in (-1e6, 1e6):
        monkeypatch.setattr(time, "time", lambda by=shift: 1.8e9 + by)
        assert queue.lease("work", 60) is None
        assert queue.renew(job, 60, {}) == "held"
    queue.requeue(job, after=60)
    assert queue.lease("work", 60) is None
    job = queue.put("work", {})
    assert queue.lease("work", 60).id == job.id


def test_job_begun_less_often_goes_first_and_one_begun_too_often_is_given_up(tmp_path):
    queue = Queue(tmp_path / "jobs.sqlite3", attempts=2)
    poison = queue.put("work", {})
    queue.lease("work", 0.0)
    good = queue.put("work", {})
    assert queue.lease("work", 60).id == good.id
    assert queue.lease("work", 0.0).id == poison.id
    assert queue.lease("work", 60) is None
    failed = queue.get(poison.id)
    assert failed.state == "failed" and "each of the 2 attempts" in failed.result["error"]


def test_waiting_job_is_cancelled_at_once_and_a_running_one_hears_of_it(queue):
    waiting, running = queue.put("work", {}), queue.put("work", {})
    assert queue.lease("work", 60).id == waiting.id
    running, waiting = queue.get(waiting.id), running
    assert queue.stop(waiting.id).state == "cancelled"
    assert queue.stop(running.id).state == "running"
    assert queue.renew(running, 60, {}) == "stop"
    assert queue.end(running, "cancelled", {})
    assert queue.stop("nobody") is None


def test_job_that_was_to_be_stopped_does_not_begin_again_after_a_crash(queue):
    job = queue.put("work", {})
    queue.lease("work", 60)
    queue.stop(job.id)
    queue.release_all()
    assert queue.lease("work", 60) is None
    assert queue.get(job.id).state == "cancelled"


def test_same_key_is_the_same_job(queue):
    first = queue.put("work", {"n": 1}, key="k")
    again = queue.put("work", {"n": 2}, key="k")
    assert again.id == first.id and again.payload == {"n": 1}
    assert queue.put("other", {}, key="k").id != first.id
    assert queue.count("work")["waiting"] == 1


def test_queue_and_each_owner_have_an_end_but_a_known_key_is_let_in(queue):
    limits = {"max_waiting": 3, "max_waiting_of_owner": 2}
    first = queue.put("work", {}, owner="ward", key="k", **limits)
    queue.put("work", {}, owner="ward", **limits)
    with pytest.raises(QueueFull, match="2 of your jobs"):
        queue.put("work", {}, owner="ward", **limits)
    queue.put("work", {}, owner="lab", **limits)
    with pytest.raises(QueueFull, match="3 jobs are waiting"):
        queue.put("work", {}, owner="icu", **limits)
    assert queue.put("work", {}, owner="ward", key="k", **limits).id == first.id
    queue.lease("work", 60)
    queue.put("work", {}, owner="icu", **limits)


def test_jobs_that_end_without_being_begun_are_told(tmp_path):
    queue = Queue(tmp_path / "jobs.sqlite3", attempts=1)
    poison, unwanted = queue.put("work", {}), queue.put("work", {})
    queue.lease("work", 0.0)
    second = queue.lease("work", 60)
    queue.stop(unwanted.id)
    assert queue.requeue(second) == "cancelled"
    told = []
    assert queue.lease("work", 60, lambda job, state: told.append((job.id, state))) is None
    assert told == [(poison.id, "failed")]


def test_only_ended_jobs_are_forgotten(queue):
    job = queue.put("work", {})
    assert not queue.delete(job.id)
    queue.end(queue.lease("work", 60), "done", {})
    assert queue.delete(job.id)
    assert queue.get(job.id) is None


def test_jobs_are_found_by_state_and_age(queue):
    old = queue.put("work", {})
    queue.end(queue.lease("work", 60), "done", {})
    wait_until(lambda: time.time() > queue.get(old.id).changed)  # some systems' clocks go on in steps
    between = time.time()
    new = queue.put("work", {})
    assert [job.id for job in queue.jobs()] == [old.id, new.id]
    assert [job.id for job in queue.jobs("done", queue="work")] == [old.id]
    assert [job.id for job in queue.jobs(before=between)] == [old.id]
    assert queue.count_ahead(new) == 0
    assert queue.count_ahead(queue.put("work", {})) == 1


def _take_all(file: Path, taken: multiprocessing.Queue) -> None:
    queue = Queue(file)
    while job := queue.lease("work", 60):
        queue.end(job, "done", {})
        taken.put(job.id)


def test_several_processes_take_each_job_once(queue, tmp_path):
    names = [queue.put("work", {}).id for _ in range(60)]
    context = multiprocessing.get_context("spawn")
    taken = context.Queue()
    processes = [context.Process(target=_take_all, args=(tmp_path / "jobs.sqlite3", taken)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(taken.get(timeout=5) for _ in names) == sorted(names)
    assert taken.empty()


def test_file_that_is_no_database_or_of_another_version_is_refused(tmp_path):
    (tmp_path / "text").write_text("not a database, and longer than a header of SQLite" * 20)
    with pytest.raises(InputError, match="not a job database"):
        Queue(tmp_path / "text")
    Queue(tmp_path / "newer").close()
    with sqlite3.connect(tmp_path / "newer") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(InputError, match=r"version 99.*newer semiseg"):
        Queue(tmp_path / "newer")
    with sqlite3.connect(tmp_path / "newer") as connection:
        connection.execute("PRAGMA user_version = 0")
    with pytest.raises(InputError, match=f"version 0, which this semiseg cannot migrate to {SCHEMA_VERSION}"):
        Queue(tmp_path / "newer")
    with pytest.raises(QueueError, match="cannot be opened"):
        Queue(tmp_path / "no" / "folder")


def test_full_disk_is_an_error_and_the_queue_goes_on_afterwards(queue):
    queue.put("work", {})
    queue._database.connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(QueueError, match="full"):
        for _ in range(2000):
            queue.put("work", {"much": "x" * 1000})
    before = queue.count("work")["waiting"]
    queue._database.connection.execute("PRAGMA max_page_count = 1000000")
    queue.put("work", {})
    assert queue.count("work")["waiting"] == before + 1


class Model(RuleBasedStateMachine):
    """Whatever is done in whatever order, a job ends once, with the result of the one who held it."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.queue = Queue(Path(self.folder.name) / "jobs.sqlite3", attempts=1000)
        self.held: dict[str, QueuedJob] = {}
        self.old: list[QueuedJob] = []
        self.ended: dict[str, tuple[str, dict]] = {}

    def teardown(self) -> None:
        self.queue.close()
        self.folder.cleanup()

    @rule(target=ids)
    def put(self) -> str:
        return self.queue.put("work", {}).id

    @rule(seconds=st.sampled_from([0.0, 1000.0]))
    def lease(self, seconds: float) -> None:
        job = self.queue.lease("work", seconds)
        if job is None:
            return
        assert job.id not in self.ended
        if job.id in self.held:
            self.old.append(self.held.pop(job.id))
        self.held[job.id] = job

    @rule(which=st.integers(0, 9), state=st.sampled_from(["done", "failed"]))
    def end(self, which: int, state: str) -> None:
        jobs = [*self.held.values(), *self.old]
        if jobs:
            job = jobs[which % len(jobs)]
            result = {"lease": job.lease}
            if self.queue.end(job, state, result):
                assert job.id not in self.ended and self.held[job.id] == job
                self.ended[job.id] = (state, result)
                del self.held[job.id]
            else:
                assert job in self.old

    @rule(which=st.integers(0, 9))
    def requeue(self, which: int) -> None:
        if jobs := list(self.held.values()):
            job = jobs[which % len(jobs)]
            assert self.queue.requeue(job) == "waiting"
            self.old.append(self.held.pop(job.id))

    @rule()
    def crash(self) -> None:
        self.queue.release_all()
        self.old += self.held.values()
        self.held.clear()

    @invariant()
    def what_ended_stays_as_it_ended(self) -> None:
        for job in self.queue.jobs():
            if job.id in self.ended:
                assert (job.state, job.result) == self.ended[job.id]
            else:
                assert job.state not in ENDED_STATES


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


def test_job_that_fails_again_and_again_does_not_keep_later_ones_waiting(queue):
    failing = queue.put("work", {}).id
    later = [queue.put("work", {}).id for _ in range(3)]
    begun = []
    for _ in range(6):
        job = queue.lease("work", 10)
        begun.append(job.id)
        if job.id == failing:
            queue.requeue(job, after=1e-6)
        else:
            queue.end(job, "done", {})
    assert begun == [failing, *later, failing, failing]


def test_job_that_is_given_back_without_a_delay_keeps_its_place(queue):
    first = queue.put("work", {}).id
    queue.put("work", {})
    queue.requeue(queue.lease("work", 10))  # as a server does that stops
    assert queue.lease("work", 10).id == first
