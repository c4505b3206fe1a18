"""Lanes and shares of the queue: one destination's jobs, and one owner's, do not keep others from being begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.jobs.lanes import Lane, make_lanes
from server.jobs.queue import Queue


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "jobs.sqlite3")


def test_worker_of_a_lane_takes_its_jobs_only(queue: Queue) -> None:
    for name in ("one", "two", "gone"):
        queue.put("deliver", {"to": name})
    queue.put("deliver", {})
    lanes = make_lanes("to", ["one", "two"])
    taken: dict[str | None, list[str | None]] = {}
    for name, lane in lanes:
        while job := queue.lease("deliver", 10, lane=lane):
            taken.setdefault(name, []).append(job.payload.get("to"))
    assert taken == {"one": ["one"], "two": ["two"], None: ["gone", None]}


def test_owner_of_many_jobs_gives_way_to_a_newcomer_after_one(queue: Queue) -> None:
    for _ in range(5):
        queue.put("segment", {}, owner="large")
    begun = []

    def work() -> None:
        job = queue.lease("segment", 10, fair=True)
        assert job is not None
        begun.append(job.owner)
        queue.end(job, "done", {})

    work()
    work()
    for name in ("small", "other", "small"):
        queue.put("segment", {}, owner=name)
    for _ in range(6):
        work()
    assert begun[2:5].count("large") <= 1 and {"small", "other"} <= set(begun[2:5])
    assert begun[:2] == ["large", "large"] and sorted(begun[5:]) == ["large", "large", "small"]


def test_owners_take_turns_when_nothing_more_comes(queue: Queue) -> None:
    for owner in ("one", "two", "three"):
        for _ in range(4):
            queue.put("segment", {}, owner=owner)
    begun = []
    while job := queue.lease("segment", 10, fair=True):
        begun.append(job.owner)
        queue.end(job, "done", {})
    assert all(len(set(begun[k : k + 3])) == 3 for k in range(0, 12, 3)), begun


def test_newcomers_do_not_keep_the_owner_of_many_jobs_waiting(queue: Queue) -> None:
    for _ in range(20):
        queue.put("segment", {}, owner="large")
    begun: list[str] = []
    for number in range(100):
        queue.put("segment", {}, owner=f"newcomer {number}")
        job = queue.lease("segment", 10, fair=True)
        assert job is not None
        begun.append(job.owner)
    assert begun.count("large") >= 8 and "large" in begun[-30:]


def test_jobs_that_wait_get_another_payload_and_begin_at_once(queue: Queue) -> None:
    for name in ("one", "two"):
        queue.put("deliver", {"to": name})
        job = queue.lease("deliver", 10, lane=Lane("to", (name,)))
        assert job is not None
        queue.requeue(job, after=1000)
    changed = queue.change_waiting(
        "deliver", lambda job: job.payload | {"trouble": ""}, lane=Lane("to", ("one",)), at_once=True
    )
    assert changed == 1
    job = queue.lease("deliver", 10)
    assert job is not None and job.payload == {"to": "one", "trouble": ""}
    assert queue.lease("deliver", 10) is None


def test_only_a_job_that_waits_is_ended_as_failed(queue: Queue) -> None:
    put = queue.put("deliver", {})
    assert queue.fail_waiting(put.id, {"error": "x"})
    assert not queue.fail_waiting(put.id, {"error": "y"})
    found = queue.get(put.id)
    assert found is not None and (found.state, found.result) == ("failed", {"error": "x"})
    queue.put("deliver", {})
    running = queue.lease("deliver", 10)
    assert running is not None and not queue.fail_waiting(running.id, {"error": "x"})
