"""Payloads of the gateway's jobs as JSON and back, also those that an earlier version wrote."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from server.gateway.job_payloads import (
    DeliverPayload,
    FetchPayload,
    JobPayload,
    PurgePayload,
    StudyPayload,
    UnreadablePayload,
    payload_of,
    readable_payload_of,
)
from server.gateway.status_document import job_record
from server.jobs.queue import Queue


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "jobs.sqlite3")


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("fetch", FetchPayload(study="s", url="http://archive", uid="1.2", tries=3, trouble="It does not answer.")),
        ("study", StudyPayload(study="s", why="nothing has arrived for 60 s", conflict="new")),
        ("deliver", DeliverPayload(study="s", of="job", files=["a", "b"], to="pacs", taken=["a"], refused_since=5.0)),
        ("purge", PurgePayload(study="s", why="an operator asked for it", fetch_again=True)),
    ],
)
def test_payload_comes_back_from_the_queue_as_it_was(queue: Queue, kind: str, payload: JobPayload) -> None:
    job = queue.put(kind, payload.to_json())
    assert payload_of(job) == payload
    assert type(payload).from_job(job) == payload


def test_what_has_its_default_is_not_written() -> None:
    written = DeliverPayload(study="s", of="job", files=["a"], to="pacs").to_json()
    assert json.loads(json.dumps(written)) == {"study": "s", "of": "job", "files": ["a"], "to": "pacs"}


def test_fields_of_a_later_version_are_ignored_and_missing_ones_have_defaults(queue: Queue) -> None:
    job = queue.put("deliver", {"of": "job", "files": [], "to": "pacs", "priority": 7})
    delivery = DeliverPayload.from_job(job)
    assert (delivery.study, delivery.taken, delivery.tries) == ("", (), 0)


def test_failures_add_up_and_are_forgotten_on_a_restart() -> None:
    delivery = DeliverPayload(
        study="s", of="job", files=["a", "b"], to="pacs", taken=["a"], refused=["b"], refused_since=5
    )
    later = delivery.after_failure("It refused b.", 5.0).after_failure("It refused b.", 10.0, held=True)
    assert (later.tries, later.waited, later.trouble, later.held) == (2, 15.0, "It refused b.", True)
    assert later.refused_text().startswith("Refused since 1970-01-01")
    again = later.without_failures()
    assert again == dataclasses.replace(delivery, refused=(), refused_since=None), "confirmed files stay confirmed"


def test_payload_that_lacks_a_field_stops_its_own_job_and_not_the_status(queue: Queue) -> None:
    job = queue.put("deliver", {"study": "s", "tries": 2})
    with pytest.raises(UnreadablePayload, match="cannot be read"):
        payload_of(job)
    assert readable_payload_of(job) == JobPayload(study="s", tries=2)
    record = job_record(job)
    assert (record["study"], record["to"], record["tries"]) == ("s", [], 2)
