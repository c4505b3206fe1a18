"""What an operator does: look, cancel, purge, ask whether the others are there; and what goes by itself."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.harness import (
    RunningGateway,
    dimse_destination,
    make_config,
    running_gateway,
    write_study,
)
from tests.outputs.orthanc import Orthanc
from tests.polling import paths_in, wait_until
from tests.ports import free_port
from tests.server.harness import RunningServer


@pytest.fixture
def stuck(server: RunningServer, tmp_path: Path) -> Iterator[RunningGateway]:
    """A gateway whose archive is not there."""
    nowhere = {"archive": {"type": "dimse", "ae_title": "NOWHERE", "host": "127.0.0.1", "port": free_port()}}
    with running_gateway(make_config(tmp_path, server.url, destinations=nowhere), tmp_path / "gateway") as running:
        yield running


def test_job_is_looked_at_and_cancelled_and_tried_once_more(
    stuck: RunningGateway, send: Callable[..., Any], tmp_path: Path
) -> None:
    """GW-12."""
    write_study(tmp_path / "study", "stuck")
    assert send(stuck, tmp_path / "study").returncode == 0
    stuck.wait_for("failed")
    job, study = stuck.audit("failed")[0]["job"], stuck.audit("failed")[0]["study"]
    assert "does not answer" in stuck.command("show", job)
    # The job is not waiting while it is being tried.
    wait_until(lambda: "1 job(s) to be retried:" in stuck.command("status"))
    assert json.loads(stuck.command("status", "--json"))["dead_letters"] == []
    wait_until(lambda: [one["id"] for one in json.loads(stuck.command("status", "--json"))["held_up"]] == [job])

    def page() -> str:
        return httpx.get(stuck.web, trust_env=False).text

    wait_until(lambda: "1 waiting for the archive for archive" in page(), describe=page)
    shown = page()
    assert "One thing needs an operator" in shown and "Destination archive: NOWHERE at" in shown and job in shown
    assert "does not answer" in shown
    listed = stuck.command("show", study)
    assert [line.split()[3] for line in listed.splitlines()[:3]] == ["study", "segment", "deliver"]
    stuck.command("cancel", job)
    wait_until(lambda: "cancelled" in stuck.command("show", job))
    assert "waits again" in stuck.command("retry", job)
    tries = len(stuck.audit("failed"))
    wait_until(lambda: len(stuck.audit("failed")) > tries)
    for arguments in (("show", "nobody"), ("cancel", "nobody"), ("retry", "nobody"), ("retry",), ("purge", "nobody")):
        refused = stuck.try_command(*arguments)
        assert refused.returncode == 2 and refused.stderr.startswith("semiseg: "), refused


def test_purged_study_is_gone_with_all_that_was_made_of_it(
    stuck: RunningGateway, send: Callable[..., Any], tmp_path: Path
) -> None:
    """GW-10."""
    write_study(tmp_path / "study", "purged")
    assert send(stuck, tmp_path / "study").returncode == 0
    stuck.wait_for("failed")
    study = stuck.audit("failed")[0]["study"]
    assert (stuck.state / "studies" / study).is_dir()
    assert paths_in(stuck.state / "results", "*.dcm")
    assert "will be deleted" in stuck.command("purge", study)
    wait_until(lambda: stuck.audit("purged"), describe=lambda: stuck.output)
    assert list((stuck.state / "studies").iterdir()) == []
    assert paths_in(stuck.state / "results", "*.dcm") == []
    assert stuck.status()["jobs"]["deliver"]["waiting"] == 0


def test_study_that_was_delivered_goes_when_its_time_is_over(
    server: RunningServer, archive: Orthanc, send: Callable[..., Any], tmp_path: Path
) -> None:
    """GW-10."""
    destinations = {
        "archive": {"type": "dimse", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": archive.dicom_port}
    }
    keep = {"free_bytes": 1000, "hours": 1 / 3600, "overwrite": True}
    config = make_config(tmp_path, server.url, destinations=destinations, retention=keep)
    study = write_study(tmp_path / "study", "kept for a second")
    with running_gateway(config, tmp_path / "gateway") as gateway:
        assert send(gateway, tmp_path / "study").returncode == 0
        wait_until(lambda: gateway.audit("delivered"), describe=lambda: gateway.output)
    with running_gateway(config, tmp_path / "gateway") as gateway:  # it looks when it starts, and every minute
        wait_until(lambda: gateway.audit("purged"), 90, describe=lambda: gateway.output)
        assert list((gateway.state / "studies").iterdir()) == list((gateway.state / "results").iterdir()) == []
    assert len(archive.instances(study, "SEG")) == 1


def test_backup_of_a_gateway_that_runs_is_gone_on_with_elsewhere(
    stuck: RunningGateway,
    server: RunningServer,
    archive: Orthanc,
    send: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """GW-13."""
    study = write_study(tmp_path / "study", "backed up")
    assert send(stuck, tmp_path / "study").returncode == 0
    stuck.wait_for("failed")
    late = write_study(tmp_path / "late", "arriving")
    assert send(stuck, tmp_path / "late").returncode == 0  # its quiet time is not over yet
    copy = tmp_path / "copies" / "today"
    assert "file(s) of studies and results" in stuck.command("backup", str(copy))
    assert stat.S_IMODE(copy.stat().st_mode) == 0o700
    assert not [path for path in copy.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
    refused = stuck.try_command("backup", str(copy))
    assert refused.returncode == 2 and "exists; name a new folder" in refused.stderr
    stuck.kill()
    config = make_config(tmp_path, server.url, destinations=dimse_destination(archive.dicom_port), state=str(copy))
    with running_gateway(config, tmp_path / "standby") as standby:
        wait_until(lambda: len(standby.audit("delivered")) == 2, describe=lambda: standby.output)
        for uid in (study, late):
            assert len(archive.instances(uid, "SEG")) == 1


def test_check_asks_everybody(server: RunningServer, archive: Orthanc, tmp_path: Path) -> None:
    """GW-12."""
    port = free_port()
    config = make_config(
        tmp_path,
        server.url,
        servers={"urls": [server.url, f"http://127.0.0.1:{free_port()}"]},
        destinations={
            "archive": {"type": "dimse", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": archive.dicom_port},
            "web": {"type": "dicomweb", "url": archive.url},
            "nobody": {"type": "dimse", "ae_title": "NOBODY", "host": "127.0.0.1", "port": port},
        },
        rules=[{"name": "all", "model": "threshold", "to": ["archive"]}],
    )
    with running_gateway(config, tmp_path / "gateway") as gateway:
        answer = gateway.try_command("check")
    lines = answer.stdout.splitlines()
    assert answer.returncode == 1, answer.stderr
    assert [line.rsplit(": ", 1)[1] for line in lines].count("answers") == 3, answer
    assert any("NOBODY" in line and "does not answer" in line for line in lines)
    assert any("does not answer, or is not ready yet" in line for line in lines)


def test_second_gateway_on_the_same_folder_is_refused(stuck: RunningGateway) -> None:
    refused = stuck.try_command()
    assert refused.returncode == 2 and "Another process works in the folder" in refused.stderr
