"""Done again for an operator: a result delivered, a series segmented, a study decided on with today's rules."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from semiseg.errors import InputError
from server.gateway.gateway import DATABASE_FILE
from server.gateway.reprocessing import deliveries, reapply_rules, redeliver, reprocess, resegment, segmentations
from server.gateway.uid_hasher import KEY_FILE, UidHasher
from server.jobs.queue import Queue
from tests.gateway.harness import (
    RunningGateway,
    dimse_destination,
    make_config,
    running_gateway,
    scan_payload,
    write_study,
)
from tests.gateway.peers import FakeStorageSCP, fake_storage_scp
from tests.polling import wait_until
from tests.server.harness import RunningServer


@contextlib.contextmanager
def queue_of(gateway: RunningGateway) -> Iterator[Queue]:
    """The queue as another process sees it."""
    queue = Queue(gateway.state / DATABASE_FILE)
    try:
        yield queue
    finally:
        queue.close()


@pytest.fixture
def archive() -> Iterator[FakeStorageSCP]:
    with fake_storage_scp() as made:
        yield made


@pytest.fixture
def delivered(
    server: RunningServer, archive: FakeStorageSCP, send: Callable[..., Any], tmp_path: Path
) -> Iterator[RunningGateway]:
    """A gateway that has delivered one result."""
    write_study(tmp_path / "study", "again")
    config = make_config(tmp_path, server.url, destinations=dimse_destination(archive.port))
    with running_gateway(config, tmp_path / "gateway") as gateway:
        assert send(gateway, tmp_path / "study").returncode == 0
        wait_until(lambda: gateway.audit("delivered"), describe=lambda: gateway.output)
        wait_until(lambda: gateway.status()["jobs"]["deliver"]["done"] == 1)
        yield gateway


def test_result_that_the_archive_lost_is_delivered_again(delivered: RunningGateway, archive: FakeStorageSCP) -> None:
    with queue_of(delivered) as queue:
        job = delivered.audit("delivered")[0]["job"]
        for number in (1, 2):
            redeliver(queue, delivered.state, job)
            wait_until(lambda number=number: len(archive.received) == 1 + number, describe=lambda: delivered.output)
            wait_until(lambda: queue.get(job).state == "done")
        assert len({one.SOPInstanceUID for one, _ in archive.received}) == 1
        assert [line.get("again") for line in delivered.audit("delivered")] == [None, 1, 2]
        assert len(delivered.audit("segmented")) == 1
        shutil.rmtree(delivered.state / "results")
        with pytest.raises(InputError, match="have the series segmented again"):
            redeliver(queue, delivered.state, job)
        with pytest.raises(InputError, match="not a delivery job"):
            redeliver(queue, delivered.state, delivered.audit("segmented")[0]["job"])


def test_series_is_segmented_and_delivered_again(delivered: RunningGateway, archive: FakeStorageSCP) -> None:
    with queue_of(delivered) as queue:
        study = delivered.audit("segmented")[0]["study"]
        (job,) = segmentations(queue, study)
        assert [one.id for one in segmentations(queue, study, job.payload["series"])] == [job.id]
        assert segmentations(queue, study, "another") == []
        shutil.rmtree(delivered.state / "results" / job.id)
        resegment(queue, delivered.state, job.id)
        wait_until(lambda: len(archive.received) == 2, describe=lambda: delivered.output)
        assert [line.get("again") for line in delivered.audit("segmented")] == [None, 1]
        assert len(deliveries(queue, study, job.id)) == 2
        shutil.rmtree(delivered.state / "studies" / study)
        wait_until(lambda: all(one.ended for one in queue.jobs()))
        with pytest.raises(InputError, match="have it sent again"):
            resegment(queue, delivered.state, job.id)
        with pytest.raises(InputError, match="have it sent again"):
            reapply_rules(queue, delivered.state, study)


def test_mended_rule_is_applied_to_a_study_that_is_here(
    server: RunningServer, archive: FakeStorageSCP, send: Callable[..., Any], tmp_path: Path
) -> None:
    rule = {"name": "brain", "description": ["*brain*"], "to": ["archive"]}
    write_study(tmp_path / "study", "mended", description="knee")
    config = make_config(tmp_path, server.url, destinations=dimse_destination(archive.port), rules=[rule])
    with running_gateway(config, tmp_path / "gateway") as gateway:
        assert send(gateway, tmp_path / "study").returncode == 0
        wait_until(lambda: gateway.audit("decided"), describe=lambda: gateway.output)
        assert gateway.audit("decided")[0]["jobs"] == []
        study = gateway.audit("decided")[0]["study"]
    rule["description"] = ["*knee*"]
    with running_gateway(config, tmp_path / "gateway") as gateway:
        with queue_of(gateway) as queue:
            reapply_rules(queue, gateway.state, study)
            with pytest.raises(InputError, match="are being applied"):
                reapply_rules(queue, gateway.state, study)
        wait_until(lambda: archive.received, describe=lambda: gateway.output)
        assert gateway.audit("decided")[-1]["again"] == 1
        with queue_of(gateway) as queue:  # what is done stays done
            wait_until(lambda: all(one.ended for one in queue.jobs()))
            reapply_rules(queue, gateway.state, study)
            wait_until(lambda: gateway.audit("decided")[-1].get("again") == 2, describe=lambda: gateway.output)
            wait_until(
                lambda: all(one.ended for one in queue.jobs())
            )  # what the rules begin is queued with the decision
        assert len(archive.received) == 1 and len(gateway.audit("segmented")) == 1


def test_order_that_todays_rules_do_not_make_is_stopped_and_a_cancelled_one_begun(
    server: RunningServer, send: Callable[..., Any], tmp_path: Path
) -> None:
    rules = [{"name": name, "modality": "MR", "model": "none", "to": ["archive"]} for name in ("wrong", "right")]
    write_study(tmp_path / "study", "stopped")
    with fake_storage_scp() as archive:
        config = make_config(
            tmp_path,
            server.url,
            destinations=dimse_destination(archive.port),
            rules=rules,
            retry={"first_seconds": 600},
        )
        with running_gateway(config, tmp_path / "gateway") as gateway:
            assert send(gateway, tmp_path / "study").returncode == 0
            gateway.wait_for("failed", 2)
            study = gateway.audit("decided")[0]["study"]
            wrong, right = gateway.audit("decided")[0]["jobs"]
            gateway.command("cancel", right)
        config["rules"] = rules[1:]
        with running_gateway(config, tmp_path / "gateway") as gateway, queue_of(gateway) as queue:
            wait_until(lambda: queue.get(wrong).state == "waiting")
            reapply_rules(queue, gateway.state, study)
            wait_until(lambda: queue.get(wrong).state == "cancelled", describe=lambda: gateway.output)
            wait_until(lambda: queue.get(right).state == "waiting", describe=lambda: gateway.output)


def test_nothing_is_begun_again_while_it_is_done(tmp_path: Path) -> None:
    queue = Queue(tmp_path / DATABASE_FILE)
    (tmp_path / "studies" / "s").mkdir(parents=True)
    (tmp_path / "results" / "r").mkdir(parents=True)
    for file in ("studies/s/a", "results/r/f"):
        (tmp_path / file).touch()
    segment = queue.put("segment", scan_payload("s", "x", "a"), owner="s")
    with pytest.raises(InputError, match="is waiting already"):
        resegment(queue, tmp_path, segment.id)
    held = queue.lease("segment", 60)
    assert held is not None
    with pytest.raises(InputError, match="is running"):
        resegment(queue, tmp_path, segment.id)
    with pytest.raises(InputError, match="is being segmented"):
        reapply_rules(queue, tmp_path, "s")
    queue.end(held, "done", {})
    one, other = (queue.put("deliver", {"of": segment.id, "to": name, "files": []}, owner="s") for name in "ab")
    sending = queue.lease("deliver", 60)
    assert sending is not None and sending.id == one.id
    with pytest.raises(InputError, match="is being delivered"):
        resegment(queue, tmp_path, segment.id)
    with pytest.raises(InputError, match="is running"):
        redeliver(queue, tmp_path, one.id)
    queue.end(sending, "done", {})
    assert resegment(queue, tmp_path, segment.id).payload["again"] == 1
    assert queue.get(other.id).state == "cancelled", "it would send what is about to be replaced"
    for name in ("nobody", ""):
        with pytest.raises(InputError):
            resegment(queue, tmp_path, name)
        with pytest.raises(InputError):
            reapply_rules(queue, tmp_path, name)


def test_newest_of_each_series_is_done_again_and_the_rest_is_said(tmp_path: Path) -> None:
    """A result that was superseded is not sent again, and what waits by itself is left as it is."""
    queue = Queue(tmp_path / DATABASE_FILE)
    hasher = UidHasher(tmp_path / KEY_FILE)
    study = hasher.hash("1.2.3")
    (tmp_path / "studies" / study).mkdir(parents=True)
    orders, sent = [], []
    for number, series in enumerate(("1.2.3.1", "1.2.3.1", "1.2.3.2")):
        orders.append(queue.put("segment", scan_payload(study, hasher.hash(series)), owner=study))
        queue.end(queue.lease("segment", 60), "done", {})
        sent.append(queue.put("deliver", {"of": orders[-1].id, "to": "pacs", "files": []}, owner=study))
        if number < 2:
            queue.end(queue.lease("deliver", 60), "done", {})
    put, left = reprocess(queue, tmp_path, "1.2.3", "deliver")
    assert [job.id for job in put] == [sent[1].id] and "is waiting already" in left[0]
    put, _ = reprocess(queue, tmp_path, "1.2.3.1")
    assert [job.id for job in put] == [orders[1].id], "a series, by its UID, is segmented"
    put, _ = reprocess(queue, tmp_path, "1.2.3")
    assert put[0].queue == "study" and put[0].owner == study
    with pytest.raises(InputError, match="being applied"):
        reprocess(queue, tmp_path, study)
    put, _ = reprocess(queue, tmp_path, sent[0].id)
    assert [job.id for job in put] == [sent[0].id], "a job that is named is meant"
    for typed in ("", "1.2.9", "nobody"):
        with pytest.raises(InputError, match="no such study"):
            reprocess(queue, tmp_path, typed)
