"""What goes wrong beside a PACS: nothing that was acknowledged is lost, and nothing is there twice."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pynetdicom import AE
from pynetdicom.sop_class import MRImageStorage  # type: ignore[attr-defined]

from tests.bundles import make_threshold_bundle
from tests.gateway.harness import (
    RunningGateway,
    dimse_destination,
    make_config,
    running_gateway,
    write_study,
)
from tests.outputs.orthanc import Orthanc, running_orthanc
from tests.polling import wait_until
from tests.ports import free_port
from tests.server.harness import RunningServer, running_server


def delivered(gateway: RunningGateway) -> int:
    done: int = gateway.status()["jobs"]["deliver"]["done"]
    return done


def test_archive_that_is_down_for_five_tries_gets_it_at_last(
    server: RunningServer, require_program: Callable[[str], str], send: Callable[..., Any], tmp_path: Path
) -> None:
    """GW-06."""
    ports = free_port(), free_port()
    config = make_config(tmp_path, server.url, destinations=dimse_destination(ports[1]))
    study = write_study(tmp_path / "study", "patient")
    with running_gateway(config, tmp_path / "gateway") as gateway:
        assert send(gateway, tmp_path / "study").returncode == 0
        wait_until(lambda: len(gateway.audit("failed")) >= 5, describe=lambda: gateway.output)
        delays = [line["again_in"] for line in gateway.audit("failed")]
        assert delays[3] > delays[0] * 3
        (tmp_path / "orthanc").mkdir()
        with running_orthanc(require_program("Orthanc"), tmp_path / "orthanc", ports=ports) as archive:
            wait_until(lambda: delivered(gateway) == 1, describe=lambda: gateway.output)
            assert len(archive.instances(study, "SEG")) == 1


def test_archive_that_refuses_leaves_a_dead_letter_that_an_operator_sends_once_more(
    server: RunningServer, require_program: Callable[[str], str], send: Callable[..., Any], tmp_path: Path
) -> None:
    """GW-06, GW-12."""
    (tmp_path / "orthanc").mkdir()
    study = write_study(tmp_path / "study", "patient")
    with running_orthanc(
        require_program("Orthanc"), tmp_path / "orthanc", more={"DicomCheckCalledAet": True, "DicomAet": "OTHER"}
    ) as archive:
        config = make_config(
            tmp_path,
            server.url,
            destinations=dimse_destination(archive.dicom_port),
            retry={"first_seconds": 0.1, "longest_seconds": 0.2, "hours": 1 / 3600},
        )
        with running_gateway(config, tmp_path / "gateway") as gateway:
            assert send(gateway, tmp_path / "study").returncode == 0
            wait_until(lambda: gateway.status()["dead_letters"], describe=lambda: gateway.output)
            (letter,) = gateway.status()["dead_letters"]
            assert "Called AE title not recognised" in letter["error"], letter
            assert letter["id"] in gateway.command("status")
            assert "Called AE title not recognised" in gateway.command("show", letter["id"])
            assert [line["kind"] for line in gateway.audit("dead letter")] == ["deliver"]
        config["destinations"]["archive"]["ae_title"] = "OTHER"
        with running_gateway(config, tmp_path / "gateway") as gateway:
            assert archive.instances(study, "SEG") == []
            assert "waits again" in gateway.command("retry", "--all")
            wait_until(lambda: archive.instances(study, "SEG"), describe=lambda: gateway.output)
            assert gateway.status()["dead_letters"] == []


def test_replicas_that_are_killed_in_turn_lose_no_study(
    archive: Orthanc, send: Callable[..., Any], tmp_path: Path
) -> None:
    """GW-08."""
    bundle = make_threshold_bundle(tmp_path / "bundle", work=4).folder
    ports = [free_port() for _ in range(3)]
    servers = [RunningServer(bundle, tmp_path / f"server{k}", port=str(port)) for k, port in enumerate(ports)]
    try:
        for server in servers:
            server.wait_until_ready()
        config = make_config(
            tmp_path,
            servers[0].url,
            destinations=dimse_destination(archive.dicom_port),
            servers={"urls": [server.url for server in servers], "parallel": 1},
        )
        studies = [write_study(tmp_path / f"study{k}", f"replica-{k}", shape=(80, 64, 40)) for k in range(5)]
        with running_gateway(config, tmp_path / "gateway") as gateway:
            for k in range(5):
                assert send(gateway, tmp_path / f"study{k}").returncode == 0
            for k, port in enumerate(ports):
                wait_until(
                    lambda: gateway.status()["jobs"]["segment"]["running"] or delivered(gateway) == 5,
                    describe=lambda: gateway.output,
                )
                time.sleep(0.5)
                servers[k].kill()
                servers[k] = RunningServer(bundle, tmp_path / f"again{k}", port=str(port))
                servers[k].wait_until_ready()
            wait_until(lambda: delivered(gateway) == 5, 120, describe=lambda: gateway.output)
            for study in studies:
                assert len(archive.instances(study, "SEG")) == 1
            assert len({line["server"] for line in gateway.audit("segmented")}) > 1
    finally:
        for server in servers:
            server.stop()


def test_two_senders_of_one_study_at_once_make_one_result(
    server: RunningServer, archive: Orthanc, send: Callable[..., Any], tmp_path: Path
) -> None:
    """GW-02."""
    config = make_config(tmp_path, server.url, destinations=dimse_destination(archive.dicom_port))
    study = write_study(tmp_path / "study", "both")
    with running_gateway(config, tmp_path / "gateway") as gateway:
        answers: list[int] = []
        senders = [
            threading.Thread(
                target=lambda name=name: answers.append(send(gateway, tmp_path / "study", calling=name).returncode)
            )
            for name in ("ONE", "TWO")
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        assert answers == [0, 0]
        wait_until(lambda: delivered(gateway) == 1, describe=lambda: gateway.output)
        wait_until(
            lambda: (
                not gateway.status()["open_studies"]
                and not any(n["waiting"] + n["running"] for n in gateway.status()["jobs"].values())
            ),
            describe=gateway.status,
        )
        assert len(archive.instances(study, "SEG")) == 1
        assert gateway.audit("complete")[0]["senders"] == ["ONE", "TWO"]
        assert sum(line["instances"] for line in gateway.audit("received")) == 12


def test_association_that_breaks_off_and_late_instances_reopen_the_study(
    server: RunningServer, archive: Orthanc, send: Callable[..., Any], tmp_path: Path
) -> None:
    """GW-03."""
    config = make_config(tmp_path, server.url, destinations=dimse_destination(archive.dicom_port))
    study = write_study(tmp_path / "study", "late")
    files = [pydicom.dcmread(file) for file in sorted((tmp_path / "study").iterdir())]
    files.sort(key=lambda one: one.InstanceNumber)
    with running_gateway(config, tmp_path / "gateway") as gateway:
        entity = AE(ae_title="SCANNER")
        entity.add_requested_context(MRImageStorage, files[0].file_meta.TransferSyntaxUID)
        association = entity.associate("127.0.0.1", gateway.dicom_port, ae_title="SEMISEG")
        for one in files[:4]:
            assert association.send_c_store(one).Status == 0
        association.abort()
        wait_until(lambda: delivered(gateway) == 1, describe=lambda: gateway.output)
        assert send(gateway, tmp_path / "study").returncode == 0
        wait_until(lambda: delivered(gateway) == 2, describe=lambda: gateway.output)
        counts = [line["instances"] for line in gateway.audit("complete")]
        assert counts == [4, 6]
        assert len(archive.instances(study, "SEG")) == 2  # of four slices, and of all


def test_study_sent_once_more_is_not_segmented_again(
    server: RunningServer, archive: Orthanc, send: Callable[..., Any], tmp_path: Path
) -> None:
    """GW-02."""
    config = make_config(tmp_path, server.url, destinations=dimse_destination(archive.dicom_port))
    study = write_study(tmp_path / "study", "twice")
    with running_gateway(config, tmp_path / "gateway") as gateway:
        for _ in range(2):
            assert send(gateway, tmp_path / "study").returncode == 0
            wait_until(lambda: delivered(gateway) == 1 and not gateway.status()["open_studies"])
        assert len(gateway.audit("complete")) == len(gateway.audit("segmented")) == 1
        assert len(archive.instances(study, "SEG")) == 1


def test_gateway_that_is_killed_between_acknowledging_and_delivering_delivers_once(
    server: RunningServer, archive: Orthanc, send: Callable[..., Any], tmp_path: Path
) -> None:
    """GW-01, GW-02."""
    config = make_config(tmp_path, server.url, destinations=dimse_destination(archive.dicom_port))
    study = write_study(tmp_path / "study", "killed")
    gateway = RunningGateway(config, tmp_path / "gateway")
    gateway.wait_until_ready()
    assert send(gateway, tmp_path / "study").returncode == 0
    gateway.kill()
    with running_gateway(config, tmp_path / "gateway") as gateway:
        wait_until(lambda: delivered(gateway) == 1, describe=lambda: gateway.output)
        assert len(archive.instances(study, "SEG")) == 1
        assert list((gateway.state / "incoming").iterdir()) == []


# The sitecustomize.py that is found first hides the next one (tests/conditions has one), so it runs that, too.
CLOCK = """
import importlib.machinery, importlib.util, pathlib, sys, time
_rest = [path for path in sys.path if pathlib.Path(path) != pathlib.Path(__file__).parent]
if _hidden := importlib.machinery.PathFinder.find_spec("sitecustomize", _rest):
    _hidden.loader.exec_module(importlib.util.module_from_spec(_hidden))
_file, _time, _time_ns, _gmtime = pathlib.Path({file!r}), time.time, time.time_ns, time.gmtime
_shift = lambda: float(_file.read_text() or 0)
time.time = lambda: _time() + _shift()
time.time_ns = lambda: _time_ns() + int(_shift() * 1e9)
time.gmtime = lambda seconds=None: _gmtime(time.time() if seconds is None else seconds)
"""


def test_clock_set_back_changes_nothing(
    server: RunningServer, archive: Orthanc, send: Callable[..., Any], tmp_path: Path
) -> None:
    """GW-11.

    The process gets another time of day while it works; faketime gives it one from its start.
    """
    shift = tmp_path / "shift"
    shift.write_text("0")
    (tmp_path / "sitecustomize.py").write_text(CLOCK.format(file=str(shift)))
    environ = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    port = free_port()  # where nobody listens: the delivery waits for its next try when the clock is set back
    config = make_config(
        tmp_path, server.url, destinations=dimse_destination(port), completeness={"quiet_seconds": 2.0}
    )
    study = write_study(tmp_path / "study", "clock")
    gateway = RunningGateway(config, tmp_path / "gateway", environ=environ)
    try:
        gateway.wait_until_ready()
        assert send(gateway, tmp_path / "study").returncode == 0
        shift.write_text(str(-3 * 86400))
        wait_until(lambda: len(gateway.audit("failed")) >= 2, describe=lambda: gateway.output)
        days = [line["time"][:10] for line in gateway.audit()]
        assert days[0] > days[-1], days
        shift.write_text(str(3 * 86400))
        before = len(gateway.audit("failed"))
        wait_until(lambda: len(gateway.audit("failed")) >= before + 2, describe=lambda: gateway.output)
    finally:
        gateway.stop()
    config["destinations"] = dimse_destination(archive.dicom_port)
    with running_gateway(config, tmp_path / "gateway") as gateway:
        wait_until(lambda: delivered(gateway) == 1, describe=lambda: gateway.output)
        assert len(archive.instances(study, "SEG")) == 1


def test_full_disk_refuses_and_takes_again_when_there_is_room(
    server: RunningServer, archive: Orthanc, send: Callable[..., Any], disk: Path, tmp_path: Path
) -> None:
    """GW-07."""
    config = make_config(
        disk, server.url, destinations=dimse_destination(archive.dicom_port), retention={"free_bytes": 4 * 2**20}
    )
    study = write_study(tmp_path / "study", "full")
    with running_gateway(config, tmp_path / "gateway") as gateway:
        (disk / "ballast").write_bytes(bytes(21 * 2**20))
        refused = send(gateway, tmp_path / "study")
        assert refused.returncode != 0
        assert "disk is nearly full" in gateway.status()["trouble"]
        assert list((gateway.state / "incoming").iterdir()) == []
        (disk / "ballast").unlink()
        assert send(gateway, tmp_path / "study").returncode == 0
        wait_until(lambda: delivered(gateway) == 1, describe=lambda: gateway.output)
        assert len(archive.instances(study, "SEG")) == 1
        assert gateway.status()["trouble"] == ""
        assert gateway.audit("received")[0]["refused"] > 0


def test_server_that_will_not_have_a_scan_makes_a_dead_letter_that_says_why(
    archive: Orthanc, send: Callable[..., Any], tmp_path: Path
) -> None:
    bundle = make_threshold_bundle(tmp_path / "bundle", channels=("one", "two")).folder
    write_study(tmp_path / "study", "channels")
    with running_server(bundle, tmp_path / "process") as server:
        config = make_config(tmp_path, server.url, destinations=dimse_destination(archive.dicom_port))
        with running_gateway(config, tmp_path / "gateway") as gateway:
            assert send(gateway, tmp_path / "study").returncode == 0
            wait_until(lambda: gateway.status()["dead_letters"], describe=lambda: gateway.output)
            (letter,) = gateway.status()["dead_letters"]
            assert letter["kind"] == "segment" and "one, two" in letter["error"]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_fifty_kills_while_thirty_studies_arrive_lose_and_double_none(require_program: Callable[[str], str]) -> None:
    require_program("Orthanc")
    require_program("dcmodify")
    script = Path(__file__).parents[2] / "docs" / "results" / "gateway" / "kills.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
