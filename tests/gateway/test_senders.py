"""Senders over DIMSE that break rules: what each instance, each association and the operator are told."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from pynetdicom import AE, _config
from pynetdicom.sop_class import MRImageStorage, Verification  # type: ignore[attr-defined]

from tests.gateway.harness import RunningGateway, associate, make_offline_config, running_gateway, write_study
from tests.gateway.test_dimse_listener import association_request
from tests.polling import wait_until


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets the test send UIDs that pynetdicom and pydicom would not."""
    monkeypatch.setitem(_config.VALIDATORS, "UI", lambda _: (True, ""))
    with pydicom.config.disable_value_validation():
        yield


def objects_of(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(file) for file in sorted(folder.iterdir())]


@contextlib.contextmanager
def sending(gateway: RunningGateway, one: pydicom.Dataset, calling: str = "SCANNER") -> Iterator[Any]:
    """An association for MR images; released at the end."""
    entity = AE(ae_title=calling)
    entity.dimse_timeout = 10
    entity.add_requested_context(MRImageStorage, one.file_meta.TransferSyntaxUID)
    association = entity.associate("127.0.0.1", gateway.dicom_port, ae_title="SEMISEG")
    assert association.is_established
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def in_trouble(gateway: RunningGateway) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = gateway.status()["studies_in_trouble"]
    return found


LONG = "1.2.840.113845.11.1000000001883867009.20220304103601.3981489.14079.12345"
BAD_UIDS = [LONG, "1.2." + "3" * 61, "1.2.x.4", "1.2..4", ".1.2", "1.2.", "1.02.3", "1,2,3", "1.2.\xe9", "one"]


@pytest.mark.usefixtures("unchecked")
def test_uid_that_breaks_the_standard_costs_its_instance_and_not_the_association(tmp_path: Path) -> None:
    """GW-14."""
    with running_gateway(make_offline_config(tmp_path), tmp_path / "gateway") as gateway:
        for number, uid in enumerate(BAD_UIDS):
            folder = tmp_path / f"study{number}"
            write_study(folder, f"bad uid {number}")
            objects = objects_of(folder)
            with sending(gateway, objects[0]) as association:
                statuses = []
                for k, one in enumerate(objects):
                    if k == 2:
                        one.SOPInstanceUID = uid
                    statuses.append(association.send_c_store(one).get("Status"))
                assert statuses == [0, 0, 0xC000, 0, 0, 0], uid
        wait_until(lambda: len(in_trouble(gateway)) == len(BAD_UIDS), describe=lambda: gateway.output[-3000:])
        assert gateway.audit("complete") == []
        told = [one["why"] for one in in_trouble(gateway)]
        assert any("72 characters" in why for why in told) and any("begins with a zero" in why for why in told)
        assert all("SCANNER" in why and "0xC000" in why for why in told)
        assert not any(uid in gateway.output for uid in BAD_UIDS[:6])
        study = in_trouble(gateway)[0]["study"]
        assert "is taken as it is" in gateway.command("complete", study)
        wait_until(lambda: gateway.audit("decided"), describe=lambda: gateway.output[-3000:])
        assert gateway.audit("decided")[0]["instances"] == 5
        wait_until(lambda: len(in_trouble(gateway)) == len(BAD_UIDS) - 1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_study_whose_own_uids_break_the_standard_is_shown(tmp_path: Path, keyword: str) -> None:
    write_study(tmp_path / "study", "own uid")
    objects = objects_of(tmp_path / "study")
    with running_gateway(make_offline_config(tmp_path), tmp_path / "gateway") as gateway:
        with sending(gateway, objects[0]) as association:
            for one in objects:
                setattr(one, keyword, LONG)
                assert association.send_c_store(one).Status == 0xC000
        wait_until(lambda: in_trouble(gateway), describe=lambda: gateway.output[-3000:])
        (trouble,) = in_trouble(gateway)
        assert f"The {keyword} of the instance has 72 characters" in trouble["why"]
        gateway.command("purge", trouble["study"])
        wait_until(lambda: not in_trouble(gateway), describe=lambda: gateway.output[-3000:])


@pytest.mark.usefixtures("unchecked")
def test_leading_zeros_are_taken_where_that_is_wanted(tmp_path: Path) -> None:
    write_study(tmp_path / "study", "zeros")
    one = objects_of(tmp_path / "study")[0]
    one.SOPInstanceUID = "1.02.3"
    config = make_offline_config(tmp_path, uids="lenient")
    with running_gateway(config, tmp_path / "gateway") as gateway, sending(gateway, one) as association:
        assert association.send_c_store(one).Status == 0
        one.SOPInstanceUID = LONG
        assert association.send_c_store(one).Status == 0xC000


def test_study_that_is_held_is_deleted_after_its_time(tmp_path: Path) -> None:
    """GW-10."""
    write_study(tmp_path / "study", "held for long")
    objects = objects_of(tmp_path / "study")
    keep = {"free_bytes": 1000, "hours": 1 / 3600, "failed_days": 5 / 86400}
    with running_gateway(make_offline_config(tmp_path, retention=keep), tmp_path / "gateway") as gateway:
        with sending(gateway, objects[0]) as association:
            for one in objects:
                if one is objects[2]:
                    del one.StudyInstanceUID
                association.send_c_store(one)
        wait_until(lambda: in_trouble(gateway), describe=lambda: gateway.output[-3000:])
        wait_until(lambda: gateway.audit("purged"), describe=lambda: gateway.output[-3000:])
        assert "The study is incomplete" in gateway.audit("purged")[0]["why"]
        assert list((gateway.state / "studies").iterdir()) == []
        wait_until(lambda: not in_trouble(gateway), describe=lambda: gateway.output[-3000:])


def test_study_that_lacked_an_instance_goes_on_when_it_comes(tmp_path: Path) -> None:
    write_study(tmp_path / "study", "comes again")
    objects = objects_of(tmp_path / "study")
    with running_gateway(make_offline_config(tmp_path), tmp_path / "gateway") as gateway:
        with sending(gateway, objects[0]) as association:
            study = objects[2].StudyInstanceUID
            del objects[2].StudyInstanceUID
            statuses = [association.send_c_store(one).Status for one in objects]
            assert statuses == [0, 0, 0xC000, 0, 0, 0]
        wait_until(lambda: in_trouble(gateway), describe=lambda: gateway.output[-3000:])
        objects[2].StudyInstanceUID = study
        with sending(gateway, objects[0]) as association:
            assert association.send_c_store(objects[2]).Status == 0
        wait_until(lambda: gateway.audit("complete"), describe=lambda: gateway.output[-3000:])
        assert [line["instances"] for line in gateway.audit("complete")] == [6]
        assert in_trouble(gateway) == []


def test_association_that_breaks_off_does_not_complete_a_study_sooner(tmp_path: Path, send: Callable[..., Any]) -> None:
    write_study(tmp_path / "study", "broken")
    objects = objects_of(tmp_path / "study")
    config = make_offline_config(tmp_path, completeness={"quiet_seconds": 2.0, "interrupted_seconds": 600.0})
    with running_gateway(config, tmp_path / "gateway") as gateway:
        with sending(gateway, objects[0], "STORESCU") as association:
            for one in objects[:3]:
                assert association.send_c_store(one).Status == 0
            association.abort()
        wait_until(lambda: gateway.audit("received"), describe=lambda: gateway.output[-3000:])
        assert gateway.audit("received")[0]["ended"] == "broken off"
        gateway.complete_another_study(tmp_path / "witness")
        assert [line["instances"] for line in gateway.audit("complete")] == [4]
        assert send(gateway, tmp_path / "study", calling="STORESCU").returncode == 0
        gateway.wait_for("complete", 2)
        assert [line["instances"] for line in gateway.audit("complete")] == [4, 6]
        assert gateway.audit("received")[-1]["ended"] == "released"


@pytest.mark.parametrize("pdu", [2**14, 2**20], ids=["after its header", "before its header"])
def test_instance_in_whose_middle_the_connection_broke_off_is_missed(tmp_path: Path, pdu: int) -> None:
    """GW-14. All but one instance arrive; that one breaks off in the middle, and nobody sends it again."""
    write_study(tmp_path / "study", "half", shape=(200, 180, 6))
    objects = objects_of(tmp_path / "study")
    config = make_offline_config(tmp_path, dimse={"port": 0, "any_sender": True, "pdu": pdu})
    with running_gateway(config, tmp_path / "gateway") as gateway:
        with sending(gateway, objects[0]) as association:
            for one in objects[1:]:
                assert association.send_c_store(one).Status == 0
            connection, left = association.dul.socket.socket, 40_000

            def send(data: bytes) -> None:
                nonlocal left
                with contextlib.suppress(OSError):
                    connection.sendall(data[: max(0, left)])
                    left -= len(data)
                    if left <= 0:
                        connection.shutdown(socket.SHUT_RDWR)

            association.dul.socket.send = send
            association.send_c_store(objects[0])
        wait_until(lambda: in_trouble(gateway), 60, describe=lambda: gateway.output[-3000:])
        assert "The transfer of an instance from SCANNER was interrupted" in in_trouble(gateway)[0]["why"]
        assert gateway.audit("complete") == []
        assert list((gateway.state / "incoming").iterdir()) == []


def test_disk_that_becomes_full_in_the_middle_of_an_instance_is_a_status(tmp_path: Path, disk: Path) -> None:
    """GW-07. keep.free_bytes does not help against an instance that is larger than it."""
    write_study(tmp_path / "study", "large", shape=(2000, 1500, 2))
    write_study(tmp_path / "small", "small")
    large, small = objects_of(tmp_path / "study")[0], objects_of(tmp_path / "small")[0]
    with running_gateway(make_offline_config(disk), tmp_path / "gateway") as gateway:
        (disk / "ballast").write_bytes(bytes(21 * 2**20))
        with sending(gateway, large) as association:
            assert association.send_c_store(large).Status == 0xA700
            assert association.send_c_store(small).Status == 0
        assert list((gateway.state / "incoming").iterdir()) == []
        whole = b"--cut\r\nContent-Type: application/dicom\r\n\r\n" + bytes(6 * 2**20) + b"\r\n--cut--\r\n"
        headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=cut'}
        url = f"{gateway.web}/dicom-web/studies"
        assert httpx.post(url, content=whole, headers=headers, timeout=60, trust_env=False).status_code == 507
        assert list((gateway.state / "incoming").iterdir()) == []


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("strict")
    senders = [
        {"ae_title": "CT_SCANNER", "addresses": ["127.0.0.1"]},
        {"ae_title": "OTHER", "addresses": ["10.9.9.0/24"]},
    ]
    with running_gateway(
        make_offline_config(folder, dimse={"port": 0, "senders": senders}), folder / "gateway"
    ) as running:
        yield running


def rejected(gateway: RunningGateway) -> dict[str, float]:
    """The metric, by reason."""
    lines = httpx.get(f"{gateway.web}/metrics", trust_env=False).text.splitlines()
    found = [line for line in lines if line.startswith("semiseg_gateway_rejected_total{")]
    return {line.split('"')[1]: float(line.rsplit(" ", 1)[1]) for line in found}


@pytest.mark.parametrize(
    ("calling", "called", "reason"),
    [
        (b"MR_SCANNER_2", b"SEMISEG", "calling title"),
        (b"ct_scanner", b"SEMISEG", "calling title"),
        (b"OTHER", b"SEMISEG", "address"),
        (b"CT_SCANNER", b"semiseg", "called title"),
        (b"", b"SEMISEG", "not understood"),
        (b"CT_SCANNER\0\0", b"SEMISEG", "not understood"),
        (b"CT_SCANNER", b"SEMISEG\0\0", "not understood"),
    ],
)
def test_rejected_association_is_written_down_with_what_did_not_match(
    strict: RunningGateway, calling: bytes, called: bytes, reason: str
) -> None:
    before = rejected(strict).get(reason, 0), len(strict.audit("rejected"))
    request = bytearray(association_request("X"))
    request[10:26], request[26:42] = called.ljust(16), calling.ljust(16)
    with socket.create_connection(("127.0.0.1", strict.dicom_port)) as peer:
        peer.settimeout(10)
        peer.sendall(request)
        assert peer.recv(1) in (b"\x03", b"\x07")  # rejected, aborted
    wait_until(lambda: len(strict.audit("rejected")) == before[1] + 1, describe=lambda: strict.output)
    line = strict.audit("rejected")[-1]
    assert (line["reason"], line["address"]) == (reason, "127.0.0.1")
    assert line["calling"] == repr(calling)[2:-1] and line["called"] == repr(called)[2:-1]
    assert reason == "not understood" or line["contexts"] == ["MR Image Storage"]
    assert line["why"] in strict.output and line["why"] == strict.status()["rejected"][0]["why"]
    assert rejected(strict)[reason] == before[0] + 1
    assert line["why"].split()[0] in httpx.get(strict.web, trust_env=False).text


@pytest.mark.parametrize("calling", [b"CT_SCANNER", b"      CT_SCANNER"])
def test_title_with_spaces_around_it_is_the_same(strict: RunningGateway, calling: bytes) -> None:
    request = bytearray(association_request("X"))
    request[26:42] = calling.ljust(16)
    with socket.create_connection(("127.0.0.1", strict.dicom_port)) as peer:
        peer.sendall(request)
        assert peer.recv(1) == b"\x02"


def test_association_of_which_nothing_is_taken_is_written_down(strict: RunningGateway) -> None:
    entity = AE(ae_title="CT_SCANNER")
    entity.add_requested_context("1.2.840.10008.5.1.4.31")  # Modality Worklist
    entity.associate("127.0.0.1", strict.dicom_port, ae_title="SEMISEG")
    wait_until(lambda: rejected(strict).get("contexts"), describe=lambda: strict.output)
    line = strict.audit("rejected")[-1]
    assert line["contexts"] == ["Modality Worklist Information Model - FIND"]


def test_one_address_cannot_take_all_associations(tmp_path: Path) -> None:
    config = make_offline_config(tmp_path, dimse={"port": 0, "any_sender": True, "associations": 10})
    with running_gateway(config, tmp_path / "gateway") as gateway:
        open_ones = [associate(gateway, "GREEDY") for _ in range(12)]
        assert sum(one.is_established for one in open_ones) == 8
        wait_until(
            lambda: rejected(gateway).get("associations of one address") == 4, describe=lambda: gateway.output[-3000:]
        )
        entity = AE(ae_title="OTHER")
        entity.add_requested_context(Verification)
        others = [
            entity.associate("127.0.0.1", gateway.dicom_port, ae_title="SEMISEG", bind_address=("127.0.0.2", 0))
            for _ in range(3)
        ]
        assert [one.is_established for one in others] == [True, True, False]
        for one in [*open_ones, *others]:
            one.abort()


def test_connections_that_ask_for_nothing_take_no_place_of_an_association(tmp_path: Path) -> None:
    config = make_offline_config(tmp_path, dimse={"port": 0, "any_sender": True, "associations": 5})
    with running_gateway(config, tmp_path / "gateway") as gateway, contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(socket.create_connection(("127.0.0.1", gateway.dicom_port)))
        association = associate(gateway, "SCANNER")
        assert association.is_established
        association.release()


@pytest.mark.parametrize(
    "silent",
    [pytest.param(False, id="associations", marks=pytest.mark.long), pytest.param(True, id="silent connections")],
)
def test_gateway_with_two_hundred_idle_peers_stops_within_twenty_seconds(tmp_path: Path, silent: bool) -> None:
    door = {"port": 0, "any_sender": True, "associations": 300, "acse_seconds": 300.0, "network_seconds": 300.0}
    with (
        running_gateway(make_offline_config(tmp_path, dimse=door), tmp_path / "gateway") as gateway,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(200):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", gateway.dicom_port)))
            peer.settimeout(60)
            if not silent:
                peer.sendall(association_request("SCANNER"))
                assert peer.recv(1) == b"\x02"
        since = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(60) == 0
        assert time.monotonic() - since < 20


def test_log_names_event_and_peer_and_nothing_of_a_patient(tmp_path: Path) -> None:
    """Damaged objects, with a name in whatever can be damaged; what libraries say of them is not repeated."""
    write_study(tmp_path / "study", "SECRETNAME")
    content = sorted((tmp_path / "study").iterdir())[0].read_bytes()
    with running_gateway(make_offline_config(tmp_path), tmp_path / "gateway") as gateway:
        with socket.create_connection(("127.0.0.1", gateway.dicom_port)) as peer:
            peer.sendall(b"\x04\x00\x00\x00\x00\x0aSECRETNAME")
        with socket.create_connection(("127.0.0.1", gateway.dicom_port)) as peer:
            peer.sendall(association_request("SCANNER"))
            peer.recv(1000)
            peer.sendall(b"\x04\x00\x00\x00\x00\x10" + b"\x00\x00\x00\x0c\x01\x03SECRETNAME")
            with contextlib.suppress(OSError):
                peer.recv(1000)
        headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=cut'}
        for broken in (content[:600], content[:400] + b"SECRETNAME" * 20, b"SECRETNAME" * 100):
            body = b"--cut\r\nContent-Type: application/dicom\r\n\r\n" + broken + b"\r\n--cut--\r\n"
            httpx.post(f"{gateway.web}/dicom-web/studies", content=body, headers=headers, trust_env=False)
        wait_until(
            lambda: "0xC000 by STOW-RS" in gateway.output and "is left out" in gateway.output,
            describe=lambda: gateway.output,
        )
        gateway.stop()
        logs = gateway.output + (gateway.state / "audit.jsonl").read_text()
        assert "SECRETNAME" not in logs
        hidden = [line for line in gateway.output.splitlines() if "is left out" in line]
        assert hidden and all('"peer": "127.0.0.1"' in line and ".py:" in line for line in hidden), hidden


def test_stop_while_an_archive_hangs_takes_less_than_twenty_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=50) as hangs:
        url = f"http://127.0.0.1:{hangs.getsockname()[1]}/dicom-web"
        polls = [{"url": f"{url}/{k}", "every_seconds": 0.1, "name": f"P{k}"} for k in range(4)]
        with running_gateway(make_offline_config(tmp_path, polls=polls), tmp_path / "gateway") as gateway:
            time.sleep(1)
            since = time.monotonic()
            gateway.process.send_signal(signal.SIGTERM)
            assert gateway.process.wait(60) == 0
            assert time.monotonic() - since < 20
