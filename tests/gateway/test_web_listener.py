"""STOW-RS, the status page and the metrics, and who may see them."""

from __future__ import annotations

import contextlib
import io
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from dicomweb_client import DICOMwebClient

from tests.gateway.harness import (
    UNREACHABLE_DESTINATIONS,
    RunningGateway,
    make_config,
    make_offline_config,
    running_gateway,
    write_study,
)
from tests.polling import paths_in, wait_until

KEY = "ward-0123456789-abcdefghij"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("web")
    (folder / "keys").write_text(f"ward {KEY}\n")
    config = make_config(
        folder,
        "http://127.0.0.1:9",
        destinations=UNREACHABLE_DESTINATIONS,
        dimse=None,
        web={"port": 0, "keys": str(folder / "keys"), "upload_bytes": 2**20},
        completeness={"quiet_seconds": 60.0},
    )
    with running_gateway(config, folder / "gateway") as running:
        yield running


def ask(gateway: RunningGateway, method: str, path: str, **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {KEY}"} | options.pop("headers", {})
    with httpx.Client(trust_env=False, timeout=30) as client:
        return client.request(method, gateway.web + path, headers=headers, **options)


def body(*parts: bytes, end: bytes = b"--cut--\r\n") -> dict[str, Any]:
    content = b"".join(b"--cut\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n" for part in parts) + end
    return {
        "content": content,
        "headers": {"Content-Type": 'multipart/related; type="application/dicom"; boundary=cut'},
    }


def encoded(one: pydicom.Dataset) -> bytes:
    stream = io.BytesIO()
    one.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def instances(folder: Path, name: str) -> list[pydicom.Dataset]:
    write_study(folder / name, name)
    return [pydicom.dcmread(file) for file in sorted((folder / name).iterdir())]


def test_instances_come_in_through_the_client_that_everybody_uses(gateway: RunningGateway, tmp_path: Path) -> None:
    found = instances(tmp_path, "stow")
    client = DICOMwebClient(f"{gateway.web}/dicom-web", headers={"Authorization": f"Bearer {KEY}"})
    answer = client.store_instances(found)
    assert len(answer.ReferencedSOPSequence) == len(found)
    assert "FailedSOPSequence" not in answer
    assert len(paths_in(gateway.state / "studies", "*.dcm")) >= len(found)
    assert gateway.audit("received")[-1]["sender"] == "ward"


def test_what_is_refused_is_told_beside_what_is_taken(gateway: RunningGateway, tmp_path: Path) -> None:
    one, two = instances(tmp_path, "some")[:2]
    answer = ask(gateway, "POST", "/dicom-web/studies", **body(encoded(one), b"no DICOM at all"))
    assert answer.status_code == 202, answer.text
    document = answer.json()
    assert document["00081199"]["Value"][0]["00081155"]["Value"] == [one.SOPInstanceUID]
    assert document["00081198"]["Value"][0]["00081197"]["Value"] == [0xC000]
    answer = ask(gateway, "POST", "/dicom-web/studies/1.2.3", **body(encoded(two)))
    assert answer.status_code == 409
    assert answer.json()["00081198"]["Value"][0]["00081197"]["Value"] == [0xC409]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"content": b"x", "headers": {"Content-Type": "application/dicom"}}, 415),
        ({"content": b"x", "headers": {"Content-Type": "multipart/related"}}, 400),
        (body(end=b""), 400),
        (body(b"part", end=b""), 400),
        (body(bytes(2**20)), 413),
    ],
    ids=["bare file", "no boundary", "empty", "cut off", "too large"],
)
def test_bodies_that_cannot_be_understood_leave_nothing(
    gateway: RunningGateway, request_: dict[str, Any], status: int
) -> None:
    answer = ask(gateway, "POST", "/dicom-web/studies", **request_)
    assert answer.status_code == status and answer.json()["error"], answer.text
    assert list((gateway.state / "incoming").iterdir()) == []


def test_study_is_complete_when_somebody_says_so(gateway: RunningGateway, tmp_path: Path) -> None:
    found = instances(tmp_path, "said")
    uid = found[0].StudyInstanceUID
    assert ask(gateway, "POST", f"/studies/{uid}/complete").status_code == 404
    assert ask(gateway, "POST", "/dicom-web/studies", **body(*map(encoded, found[:2]))).status_code == 200
    assert ask(gateway, "POST", f"/studies/{uid}/complete?instances=no").status_code == 400
    answer = ask(gateway, "POST", f"/studies/{uid}/complete?instances={len(found)}")
    assert answer.status_code == 202
    name = answer.json()["study"]
    assert not [line for line in gateway.audit("complete") if line["study"] == name]
    assert ask(gateway, "POST", "/dicom-web/studies", **body(*map(encoded, found[2:]))).status_code == 200
    wait_until(lambda: [line for line in gateway.audit("complete") if line["study"] == name])
    (line,) = [line for line in gateway.audit("complete") if line["study"] == name]
    assert line["instances"] == len(found) and "announced" in line["why"]


def test_uid_that_breaks_the_standard_fails_its_instance_and_the_study_waits(
    gateway: RunningGateway, tmp_path: Path
) -> None:
    """GW-14."""
    one, two, three = instances(tmp_path, "long uid")[:3]
    with pydicom.config.disable_value_validation():
        two.SOPInstanceUID = two.file_meta.MediaStorageSOPInstanceUID = "1.2." + "3" * 68
        answer = ask(gateway, "POST", "/dicom-web/studies", **body(*map(encoded, (one, two, three))))
    assert answer.status_code == 202, answer.text
    assert [item["00081155"]["Value"] for item in answer.json()["00081198"]["Value"]] == [[two.SOPInstanceUID]]
    assert answer.json()["00081198"]["Value"][0]["00081197"]["Value"] == [0xC000]
    path = f"/studies/{one.StudyInstanceUID}/complete"
    refused = ask(gateway, "POST", path)
    assert refused.status_code == 409 and "72 characters" in refused.json()["error"]
    assert ask(gateway, "POST", f"{path}?anyway=perhaps").status_code == 400
    name = ask(gateway, "POST", f"{path}?anyway=true").json()["study"]
    wait_until(lambda: [line for line in gateway.audit("complete") if line["study"] == name])
    assert two.SOPInstanceUID not in gateway.output


def test_request_that_breaks_off_does_not_complete_a_study_sooner(tmp_path: Path) -> None:
    """GW-14."""
    found = instances(tmp_path, "cut off")
    complete = {"quiet_seconds": 0.5, "interrupted_seconds": 600.0}
    with running_gateway(make_offline_config(tmp_path, completeness=complete), tmp_path / "gateway") as gateway:
        url = f"{gateway.web}/dicom-web/studies"
        broken = httpx.post(url, **body(*map(encoded, found[:3]), b"half", end=b""), trust_env=False)
        assert broken.status_code == 400
        assert gateway.audit("received")[0]["ended"] == "broken off"
        gateway.complete_another_study(tmp_path / "witness")
        assert [line["instances"] for line in gateway.audit("complete")] == [4]
        assert httpx.post(url, **body(*map(encoded, found)), trust_env=False).status_code == 200
        gateway.wait_for("complete", 2)
        assert [line["instances"] for line in gateway.audit("complete")] == [4, 6]


def test_one_address_cannot_take_all_connections(tmp_path: Path) -> None:
    config = make_offline_config(tmp_path, web={"port": 0, "connections_per_address": 5})
    with running_gateway(config, tmp_path / "gateway") as gateway, contextlib.ExitStack() as stack:
        port = int(gateway.web.rsplit(":", 1)[1])
        for _ in range(5):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        refused = httpx.get(f"{gateway.web}/livez", trust_env=False)
        assert refused.status_code == 429 and "close some of them" in refused.json()["error"]
        transport = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=transport, trust_env=False) as other:
            assert other.get(f"{gateway.web}/livez").status_code == 200
        stack.close()
        wait_until(lambda: _answers(f"{gateway.web}/livez"))


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url, trust_env=False).status_code == 200
    return False


def test_nobody_without_a_key_sees_more_than_that_it_lives(gateway: RunningGateway) -> None:
    """GW-05."""
    with httpx.Client(trust_env=False) as client:
        assert client.get(f"{gateway.web}/livez").status_code == 200
        assert client.get(f"{gateway.web}/readyz").status_code == 200
        for path in ("/", "/status", "/metrics", "/dicom-web/studies"):
            assert client.get(gateway.web + path).status_code == 401
        wrong = client.get(f"{gateway.web}/status", headers={"X-API-Key": "x" * 30})
        assert wrong.status_code == 401


def test_page_and_metrics_tell_what_there_is(gateway: RunningGateway) -> None:
    page = ask(gateway, "GET", "/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for word in ("semiseg gateway", "studies are arriving", "deliver", "RESEARCH USE ONLY"):
        assert word in page.text
    metrics = ask(gateway, "GET", "/metrics").text
    assert 'semiseg_gateway_jobs{kind="segment",state="waiting"}' in metrics
    assert "semiseg_gateway_ready 1.0" in metrics
    assert ask(gateway, "GET", "/status").json()["trouble"] == ""
