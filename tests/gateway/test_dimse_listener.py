"""Who gets in by DIMSE, with what, and what happens to whoever means harm."""

from __future__ import annotations

import random
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    MRImageStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from tests.gateway.harness import (
    RunningGateway,
    associate,
    dcmtk_program,
    dimse_destination,
    make_config,
    make_offline_config,
    running_gateway,
    storescu,
    write_study,
)
from tests.polling import wait_until
from tests.ports import free_port


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("doors")
    door = {
        "port": 0,
        "senders": [
            {"ae_title": "SCANNER", "addresses": ["127.0.0.0/8"]},
            {"ae_title": "FAR", "addresses": ["10.1.2.3"]},
        ],
        "associations": 10,
        "associations_per_address": 10,
        "pdu": 65536,
        "acse_seconds": 3.0,
        "network_seconds": 5.0,
    }
    with running_gateway(make_offline_config(folder, dimse=door), folder / "gateway") as running:
        yield running


@pytest.mark.parametrize(
    ("calling", "called", "reason"),
    [
        ("STRANGER", "SEMISEG", "Calling AE title not recognised"),
        ("FAR", "SEMISEG", "Calling AE title not recognised"),
        ("SCANNER", "OTHER", "Called AE title not recognised"),
    ],
)
def test_who_is_not_on_the_list_or_calls_another_is_rejected_with_the_reason(
    gateway: RunningGateway, calling: str, called: str, reason: str
) -> None:
    """GW-05."""
    association = associate(gateway, calling, called)
    assert association.is_rejected
    assert association.acceptor.primitive.reason_str == reason


def test_echo_is_answered_to_dcmtk(gateway: RunningGateway, require_program: Callable[[str], str]) -> None:
    command = [dcmtk_program(require_program, "echoscu"), "-aet", "SCANNER", "-aec", "SEMISEG", "127.0.0.1"]
    assert subprocess.run([*command, str(gateway.dicom_port)], timeout=120).returncode == 0


def test_more_associations_than_allowed_are_rejected_for_the_moment(gateway: RunningGateway) -> None:
    open_ones = [associate(gateway, "SCANNER") for _ in range(10)]
    try:
        assert all(one.is_established for one in open_ones)
        more = associate(gateway, "SCANNER")
        assert more.is_rejected and more.acceptor.primitive.reason_str == "Local limit exceeded"
    finally:
        for one in open_ones:
            one.release()
    wait_until(lambda: associate(gateway, "SCANNER").is_established)


def test_instance_that_is_none_or_another_than_announced_is_refused(gateway: RunningGateway, tmp_path: Path) -> None:
    write_study(tmp_path / "study", "refused")
    one = pydicom.dcmread(next((tmp_path / "study").iterdir()))
    entity = AE(ae_title="SCANNER")
    entity.add_requested_context(MRImageStorage, one.file_meta.TransferSyntaxUID)
    association = entity.associate("127.0.0.1", gateway.dicom_port, ae_title="SEMISEG")
    del one.StudyInstanceUID
    assert association.send_c_store(one).Status == 0xC000
    association.release()
    wait_until(lambda: gateway.audit("received") and gateway.audit("received")[-1]["refused"] == 1)
    assert list((gateway.state / "studies").iterdir()) == []
    assert list((gateway.state / "incoming").iterdir()) == []


def test_data_set_that_breaks_off_leaves_nothing(gateway: RunningGateway) -> None:
    peer = socket.create_connection(("127.0.0.1", gateway.dicom_port))
    peer.sendall(association_request("SCANNER"))
    assert peer.recv(1) == b"\x02"
    command = Dataset()
    command.CommandField, command.MessageID, command.CommandDataSetType, command.Priority = 0x0001, 1, 1, 0
    command.AffectedSOPClassUID, command.AffectedSOPInstanceUID = MRImageStorage, generate_uid()
    from pynetdicom.dsutils import encode

    encoded = encode(command, True, True)
    assert encoded is not None
    encoded = b"\x00\x00\x00\x00\x04\x00\x00\x00" + struct.pack("<I", len(encoded)) + encoded
    peer.sendall(p_data(0x03, encoded) + p_data(0x00, b"\x08\x00" * 1000))
    wait_until(lambda: list((gateway.state / "incoming").iterdir()))
    peer.close()
    wait_until(lambda: not list((gateway.state / "incoming").iterdir()))


def p_data(control: int, content: bytes) -> bytes:
    value = struct.pack(">IBB", len(content) + 2, 1, control) + content
    return b"\x04\x00" + struct.pack(">I", len(value)) + value


def association_request(calling: str) -> bytes:
    """An A-ASSOCIATE-RQ (PS3.8 9.3.2) for MR images in implicit little endian."""

    def item(kind: int, content: bytes) -> bytes:
        return struct.pack(">BBH", kind, 0, len(content)) + content

    context = b"\x01\x00\x00\x00" + item(0x30, MRImageStorage.encode()) + item(0x40, b"1.2.840.10008.1.2")
    user = item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3.4")
    body = struct.pack(">HH", 1, 0) + b"SEMISEG".ljust(16) + calling.encode().ljust(16) + bytes(32)
    body += item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, context) + item(0x50, user)
    return b"\x01\x00" + struct.pack(">I", len(body)) + body


def test_whoever_means_harm_takes_nobody_down_and_little_memory(gateway: RunningGateway) -> None:
    """GW-05. Fuzzed PDUs, PDUs of 4 GB, silence, and 200 connections at once; a neighbour is served between them."""
    process = psutil.Process(gateway.process.pid)
    assert associate(gateway, "SCANNER").is_established
    before = process.memory_info().rss
    rng = random.Random(7)
    request = association_request("SCANNER")
    peers = []
    for number in range(200):
        peer = socket.create_connection(("127.0.0.1", gateway.dicom_port))
        kind = number % 5
        if kind == 0:
            damaged = bytearray(request)
            for _ in range(rng.randint(1, 20)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            peer.sendall(damaged)
        elif kind == 1:
            peer.sendall(b"\x04\x00\xff\xff\xff\xff")
        elif kind == 2:
            peer.sendall(rng.randbytes(rng.randint(1, 2000)))
        elif kind == 3:
            peer.sendall(request)
            content = rng.randbytes(rng.randint(1, 500))
            peer.sendall(p_data(rng.randrange(256), content))
        peers.append(peer)
    wait_until(lambda: associate(gateway, "SCANNER").is_established, describe=lambda: gateway.output)
    flood = threading.Thread(target=_flood, args=(peers[1],))
    flood.start()
    flood.join(30)
    assert not flood.is_alive()
    for peer in peers:
        peer.close()
    wait_until(lambda: associate(gateway, "SCANNER").is_established, describe=lambda: gateway.output)
    assert gateway.process.poll() is None
    assert process.memory_info().rss < before + 150 * 2**20
    assert list((gateway.state / "studies").iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        b"",
        b"\xff\xff\xff\xff",
        bytes.fromhex("00000000040000003800000000000001020000ff"),
        bytes.fromhex("000000010200000001000000000010000400000050617469"),
    ],
    ids=["empty", "no tag", "no such command", "patient's words"],
)
def test_message_that_cannot_be_decoded_ends_its_association_and_is_told_without_its_words(
    gateway: RunningGateway, command: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", gateway.dicom_port), timeout=20) as peer:
        peer.sendall(association_request("SCANNER"))
        assert peer.recv(6)[0] == 0x02  # A-ASSOCIATE-AC
        peer.sendall(p_data(0x03, command))
        answer = b""
        while more := peer.recv(4096):
            answer += more
        assert b"\x07\x00\x00\x00\x00\x04" in answer, "an A-ABORT (PS3.8 9.3.8)"
    wait_until(lambda: "violates PS3.7" in gateway.output)  # the same of one address is written once in a while
    assert "Traceback" not in gateway.output and "Pati" not in gateway.output
    assert associate(gateway, "SCANNER").is_established


def _flood(peer: socket.socket) -> None:
    """As many bytes as are taken of what was announced as 4 GB."""
    try:
        for _ in range(2000):
            peer.sendall(bytes(2**17))
    except OSError:
        return
    raise AssertionError("250 MB of one PDU were taken.")


def test_damaged_data_sets_are_taken_or_refused_and_stop_nobody(
    server: Any, archive: Any, require_program: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of instances are changed at random; what is kept of them goes through rules and server like any other."""
    monkeypatch.setattr("pynetdicom._config.STORE_SEND_CHUNKED_DATASET", True)  # sends a file as it is
    to = dimse_destination(archive.dicom_port)
    rng = random.Random(3)
    good = write_study(tmp_path / "good", "whole")
    with running_gateway(make_config(tmp_path, server.url, destinations=to), tmp_path / "gateway") as gateway:
        entity = AE(ae_title="SCANNER")
        one = pydicom.dcmread(next((tmp_path / "good").iterdir()))
        entity.add_requested_context(MRImageStorage, one.file_meta.TransferSyntaxUID)
        statuses = set()
        for number in range(12):
            write_study(tmp_path / f"bad{number}", f"damaged {number}")
            association = entity.associate("127.0.0.1", gateway.dicom_port, ae_title="SEMISEG")
            for file in (tmp_path / f"bad{number}").iterdir():
                content = bytearray(file.read_bytes())
                for _ in range(rng.randint(1, 12)):  # behind the file meta information, which is the test's own
                    content[rng.randrange(400, min(len(content), 1400))] = rng.randrange(256)
                file.write_bytes(content)
                status = association.send_c_store(file)
                assert "Status" in status, gateway.output
                statuses.add(status.Status)
            association.release()
        assert statuses == {0x0000, 0xC000}
        program = dcmtk_program(require_program, "storescu")
        assert storescu(program, gateway.dicom_port, tmp_path / "good").returncode == 0
        wait_until(lambda: archive.instances(good, "SEG"), describe=lambda: gateway.output)
        wait_until(lambda: not gateway.status()["open_studies"])
        wait_until(lambda: not any(gateway.status()["jobs"]["study"][state] for state in ("waiting", "running")))
        assert gateway.status()["jobs"]["study"]["failed"] == 0, gateway.command("status")


def test_commitment_is_reported_on_the_same_association(gateway: RunningGateway, tmp_path: Path) -> None:
    write_study(tmp_path / "study", "committed")
    one = pydicom.dcmread(next((tmp_path / "study").iterdir()))
    reports: list[Dataset] = []
    entity = AE(ae_title="SCANNER")
    entity.add_requested_context(MRImageStorage, one.file_meta.TransferSyntaxUID)
    entity.add_requested_context(StorageCommitmentPushModel)
    association = entity.associate(
        "127.0.0.1",
        gateway.dicom_port,
        ae_title="SEMISEG",
        evt_handlers=[(evt.EVT_N_EVENT_REPORT, lambda event: _keep(event, reports))],
    )
    assert association.send_c_store(one).Status == 0
    asked = Dataset()
    asked.TransactionUID = generate_uid()
    asked.ReferencedSOPSequence = [_reference(one.SOPInstanceUID), _reference(generate_uid())]
    status, _ = association.send_n_action(asked, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
    assert status.Status == 0
    wait_until(lambda: reports)
    association.release()
    (report,) = reports
    assert report.TransactionUID == asked.TransactionUID
    assert [item.ReferencedSOPInstanceUID for item in report.ReferencedSOPSequence] == [one.SOPInstanceUID]
    assert [item.FailureReason for item in report.FailedSOPSequence] == [0x0112]


def test_commitment_is_reported_where_the_sender_wants_it(tmp_path: Path) -> None:
    port = free_port()
    reports: list[Dataset] = []
    listener = AE(ae_title="SCANNER")
    listener.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    running = listener.start_server(
        ("127.0.0.1", port),
        block=False,
        evt_handlers=[(evt.EVT_N_EVENT_REPORT, lambda event: _keep(event, reports))],
    )
    assert running is not None
    try:
        door = {"port": 0, "senders": [{"ae_title": "SCANNER", "commitment": ["127.0.0.1", port]}]}
        with running_gateway(make_offline_config(tmp_path, dimse=door), tmp_path / "gateway") as gateway:
            entity = AE(ae_title="SCANNER")
            entity.add_requested_context(StorageCommitmentPushModel)
            association = entity.associate("127.0.0.1", gateway.dicom_port, ae_title="SEMISEG")
            asked = Dataset()
            asked.TransactionUID = generate_uid()
            asked.ReferencedSOPSequence = [_reference(generate_uid())]
            association.send_n_action(asked, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
            association.release()
            wait_until(lambda: reports, describe=lambda: gateway.output)
            assert reports[0].TransactionUID == asked.TransactionUID
    finally:
        running.shutdown()


def _keep(event: Any, reports: list[Dataset]) -> tuple[int, None]:
    reports.append(event.event_information)
    return 0x0000, None


def _reference(uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = MRImageStorage, uid
    return item
