"""Done again for an operator: a result delivered, a series segmented, a study decided on with today's rules."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from semiseg.errors import InputError
from server.gateway.again import again, decide_again, deliver_again, deliveries, segment_again, segmentations
from server.gateway.gateway import DATABASE
from server.gateway.names import KEY, Names
from server.jobs.queue import Queue
from tests.gateway.peers import DimseArchive, dimse_archive
from tests.gateway.stand import RunningGateway, configuration, running_gateway, to, write_study
from tests.server.running import RunningServer
from tests.waiting import until


@contextlib.contextmanager
def queue_of(gateway: RunningGateway) -> Iterator[Queue]:
    """The queue as another process sees it."""
    queue = Queue(gateway.state / DATABASE)
    try:
        yield queue
    finally:
        queue.close()


@pytest.fixture
def archive() -> Iterator[DimseArchive]:
    with dimse_archive() as made:
        yield made


@pytest.fixture
def delivered(
    server: RunningServer, archive: DimseArchive, send: Callable[..., Any], tmp_path: Path
) -> Iterator[RunningGateway]:
    """A gateway that has delivered one result."""
    write_study(tmp_path / "study", "again")
    config = configuration(tmp_path, server.url, destinations=to(archive.port))
    with running_gateway(config, tmp_path / "gateway") as gateway:
        assert send(gateway, tmp_path / "study").returncode == 0
        until(lambda: gateway.audit("delivered"), told=lambda: gateway.output)
        until(lambda: gateway.status()["jobs"]["deliver"]["done"] == 1)
        yield gateway


def test_result_that_the_archive_lost_is_delivered_again(delivered: RunningGateway, archive: DimseArchive) -> None:
    with queue_of(delivered) as queue:
        job = delivered.audit("delivered")[0]["job"]
        for number in (1, 2):
            deliver_again(queue, delivered.state, job)
            until(lambda number=number: len(archive.got) == 1 + number, told=lambda: delivered.output)
            until(lambda: queue.get(job).state == "done")
        assert len({one.SOPInstanceUID for one, _ in archive.got}) == 1
        assert [line.get("again") for line in delivered.audit("delivered")] == [None, 1, 2]
        assert len(delivered.audit("segmented")) == 1
        shutil.rmtree(delivered.state / "results")
        with pytest.raises(InputError, match="have the series segmented again"):
            deliver_again(queue, delivered.state, job)
        with pytest.raises(InputError, match="no job of a delivery"):
            deliver_again(queue, delivered.state, delivered.audit("segmented")[0]["job"])


def test_series_is_segmented_and_delivered_again(delivered: RunningGateway, archive: DimseArchive) -> None:
    with queue_of(delivered) as queue:
        study = delivered.audit("segmented")[0]["study"]
        (job,) = segmentations(queue, study)
        assert [one.id for one in segmentations(queue, study, job.payload["series"])] == [job.id]
        assert segmentations(queue, study, "another") == []
        shutil.rmtree(delivered.state / "results" / job.id)
        segment_again(queue, delivered.state, job.id)
        until(lambda: len(archive.got) == 2, told=lambda: delivered.output)
        assert [line.get("again") for line in delivered.audit("segmented")] == [None, 1]
        assert len(deliveries(queue, study, job.id)) == 2
        shutil.rmtree(delivered.state / "studies" / study)
        until(lambda: all(one.ended for one in queue.jobs()))
        with pytest.raises(InputError, match="have it sent again"):
            segment_again(queue, delivered.state, job.id)
        with pytest.raises(InputError, match="have it sent again"):
            decide_again(queue, delivered.state, study)


def test_mended_rule_is_applied_to_a_study_that_is_here(
    server: RunningServer, archive: DimseArchive, send: Callable[..., Any], tmp_path: Path
) -> None:
    rule = {"name": "brain", "description": ["*brain*"], "to": ["archive"]}
    write_study(tmp_path / "study", "mended", description="knee")
    config = configuration(tmp_path, server.url, destinations=to(archive.port), rules=[rule])
    with running_gateway(config, tmp_path / "gateway") as gateway:
        assert send(gateway, tmp_path / "study").returncode == 0
        until(lambda: gateway.audit("decided"), told=lambda: gateway.output)
        assert gateway.audit("decided")[0]["jobs"] == []
        study = gateway.audit("decided")[0]["study"]
    rule["description"] = ["*knee*"]
    with running_gateway(config, tmp_path / "gateway") as gateway:
        with queue_of(gateway) as queue:
            decide_again(queue, gateway.state, study)
            with pytest.raises(InputError, match="are being applied"):
                decide_again(queue, gateway.state, study)
        until(lambda: archive.got, told=lambda: gateway.output)
        assert gateway.audit("decided")[-1]["again"] == 1
        with queue_of(gateway) as queue:  # what is done stays done
            until(lambda: all(one.ended for one in queue.jobs()))
            decide_again(queue, gateway.state, study)
            until(lambda: gateway.audit("decided")[-1].get("again") == 2, told=lambda: gateway.output)
        time.sleep(1)
        assert len(archive.got) == 1 and len(gateway.audit("segmented")) == 1


def test_order_that_todays_rules_do_not_make_is_stopped_and_a_cancelled_one_begun(
    server: RunningServer, send: Callable[..., Any], tmp_path: Path
) -> None:
    rules = [{"name": name, "modality": "MR", "model": "none", "to": ["archive"]} for name in ("wrong", "right")]
    write_study(tmp_path / "study", "stopped")
    with dimse_archive() as archive:
        config = configuration(
            tmp_path, server.url, destinations=to(archive.port), rules=rules, retry={"first_seconds": 600}
        )
        with running_gateway(config, tmp_path / "gateway") as gateway:
            assert send(gateway, tmp_path / "study").returncode == 0
            until(lambda: len(gateway.audit("failed")) == 2, told=lambda: gateway.output)
            study = gateway.audit("decided")[0]["study"]
            wrong, right = gateway.audit("decided")[0]["jobs"]
            gateway.command("cancel", right)
        config["rules"] = rules[1:]
        with running_gateway(config, tmp_path / "gateway") as gateway, queue_of(gateway) as queue:
            until(lambda: queue.get(wrong).state == "waiting")
            decide_again(queue, gateway.state, study)
            until(lambda: queue.get(wrong).state == "cancelled", told=lambda: gateway.output)
            until(lambda: queue.get(right).state == "waiting", told=lambda: gateway.output)


def test_nothing_is_begun_again_while_it_is_done(tmp_path: Path) -> None:
    queue = Queue(tmp_path / DATABASE)
    (tmp_path / "studies" / "s").mkdir(parents=True)
    (tmp_path / "results" / "r").mkdir(parents=True)
    for file in ("studies/s/a", "results/r/f"):
        (tmp_path / file).touch()
    segment = queue.put("segment", {"study": "s", "files": ["a"], "series": "x"}, owner="s")
    with pytest.raises(InputError, match="waits already"):
        segment_again(queue, tmp_path, segment.id)
    held = queue.lease("segment", 60)
    assert held is not None
    with pytest.raises(InputError, match="is being worked on"):
        segment_again(queue, tmp_path, segment.id)
    with pytest.raises(InputError, match="is being segmented"):
        decide_again(queue, tmp_path, "s")
    queue.end(held, "done", {})
    one, other = (queue.put("deliver", {"of": segment.id, "to": name, "files": []}, owner="s") for name in "ab")
    sending = queue.lease("deliver", 60)
    assert sending is not None and sending.id == one.id
    with pytest.raises(InputError, match="is being delivered"):
        segment_again(queue, tmp_path, segment.id)
    with pytest.raises(InputError, match="is being worked on"):
        deliver_again(queue, tmp_path, one.id)
    queue.end(sending, "done", {})
    assert segment_again(queue, tmp_path, segment.id).payload["again"] == 1
    assert queue.get(other.id).state == "cancelled", "it would send what is about to be replaced"
    for name in ("nobody", ""):
        with pytest.raises(InputError):
            segment_again(queue, tmp_path, name)
        with pytest.raises(InputError):
            decide_again(queue, tmp_path, name)


def test_newest_of_each_series_is_done_again_and_the_rest_is_said(tmp_path: Path) -> None:
    """A result that was superseded is not sent again, and what waits by itself is left as it is."""
    queue = Queue(tmp_path / DATABASE)
    names = Names(tmp_path / KEY)
    study = names.of("1.2.3")
    (tmp_path / "studies" / study).mkdir(parents=True)
    orders, sent = [], []
    for number, series in enumerate(("1.2.3.1", "1.2.3.1", "1.2.3.2")):
        payload = {"study": study, "files": [], "series": names.of(series), "rule": "r"}
        orders.append(queue.put("segment", payload, owner=study))
        queue.end(queue.lease("segment", 60), "done", {})
        sent.append(queue.put("deliver", {"of": orders[-1].id, "to": "pacs", "files": []}, owner=study))
        if number < 2:
            queue.end(queue.lease("deliver", 60), "done", {})
    put, left = again(queue, tmp_path, "1.2.3", "deliver")
    assert [job.id for job in put] == [sent[1].id] and "waits already" in left[0]
    put, _ = again(queue, tmp_path, "1.2.3.1")
    assert [job.id for job in put] == [orders[1].id], "a series, by its UID, is segmented"
    put, _ = again(queue, tmp_path, "1.2.3")
    assert put[0].queue == "study" and put[0].owner == study
    with pytest.raises(InputError, match="being applied"):
        again(queue, tmp_path, study)
    put, _ = again(queue, tmp_path, sent[0].id)
    assert [job.id for job in put] == [sent[0].id], "a job that is named is meant"
    for typed in ("", "1.2.9", "nobody"):
        with pytest.raises(InputError, match="no such study"):
            again(queue, tmp_path, typed)
