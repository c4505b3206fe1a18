"""One destination, one server, one study cannot hold up another."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import generate_uid
from pynetdicom.sop_class import SegmentationStorage  # type: ignore[attr-defined]

from tests.gateway.harness import RunningGateway, make_config, running_gateway, write_study
from tests.gateway.peers import fake_storage_scp, http_peer, silent_port
from tests.polling import wait_until
from tests.ports import free_port
from tests.server.harness import RunningServer


def dimse(port: int, host: str = "127.0.0.1", **more: Any) -> dict[str, Any]:
    return {"type": "dimse", "ae_title": "ARCHIVE", "host": host, "port": port, **more}


def to_all(destinations: dict[str, Any], **more: Any) -> dict[str, Any]:
    rule = {"name": "all MR", "modality": "MR", "to": [*destinations], **more}
    return {"destinations": destinations, "rules": [rule], "retry": {}}


def send_studies(gateway: RunningGateway, send: Callable[..., Any], folder: Path, name: str, count: int) -> None:
    """Write so many studies below a folder, and send each as a modality does."""
    for k in range(count):
        write_study(folder / f"study{k}", f"{name}-{k}")
        assert send(gateway, folder / f"study{k}").returncode == 0


def test_healthy_archive_gets_everything_beside_those_that_hang_are_slow_or_nowhere(
    server: RunningServer, send: Callable[..., Any], tmp_path: Path
) -> None:
    def slow(*_: object) -> int:
        time.sleep(8)
        return 0

    with (
        silent_port() as hanging,
        silent_port() as hanging_web,
        fake_storage_scp(slow) as slow_one,
        fake_storage_scp() as good,
    ):
        destinations = {
            "hanging": dimse(hanging),
            "hanging by web": {"type": "dicomweb", "url": f"http://127.0.0.1:{hanging_web}"},
            "slow": dimse(slow_one.port),
            "down": dimse(free_port()),
            "nowhere": dimse(104, "archive.invalid"),
            "good": dimse(good.port),
        }
        config = make_config(tmp_path, server.url, **to_all(destinations))
        with running_gateway(config, tmp_path / "gateway") as gateway:
            send_studies(gateway, send, tmp_path, "starving", 12)
            wait_until(lambda: len(gateway.audit("segmented")) == 12, 60, describe=lambda: gateway.output)
            wait_until(lambda: len(good.received) == 12, 12, describe=lambda: gateway.output)
            troubles = {one["name"]: one["trouble"] for one in gateway.status()["destinations"]}
            assert troubles["good"] == troubles["slow"] == ""
            assert "does not answer" in troubles["down"] and "cannot be resolved" in troubles["nowhere"]
            assert len(gateway.audit("failed")) < 30, "an archive that is down is not knocked at for each result"


def test_what_waited_for_an_archive_is_sent_at_once_when_it_is_back(
    server: RunningServer, send: Callable[..., Any], tmp_path: Path
) -> None:
    well: list[bool] = []
    with http_peer(lambda e: e.reply(200 if well else 503)) as (url, seen):
        destinations = {
            "archive": {
                "type": "dicomweb",
                "url": url,
                "retry": {"first_seconds": 3, "longest_seconds": 3},
                "parallel": 1,
            }
        }
        config = make_config(tmp_path, server.url, **to_all(destinations))
        with running_gateway(config, tmp_path / "gateway") as gateway:
            send_studies(gateway, send, tmp_path, "back", 6)
            wait_until(lambda: len(gateway.audit("segmented")) == 6, 60, describe=lambda: gateway.output)
            wait_until(lambda: len(gateway.status()["held_up"]) == 6, describe=lambda: gateway.output)
            assert {one["kind"] for one in gateway.status()["held_up"]} == {"deliver"}
            posts = len(seen)
            well.append(True)
            wait_until(lambda: gateway.status()["jobs"]["deliver"]["done"] == 6, 15, describe=lambda: gateway.output)
            assert len(seen) - posts <= 7
            assert len(gateway.audit("destination answers again")) == 1
            assert gateway.status()["held_up"] == []


def test_archive_that_stays_away_makes_dead_letters_of_all_that_waits(
    server: RunningServer, send: Callable[..., Any], tmp_path: Path
) -> None:
    soon = {"first_seconds": 1.0, "longest_seconds": 1.0, "hours": 2 / 3600}
    config = make_config(tmp_path, server.url, **to_all({"archive": dimse(free_port(), retry=soon)}))
    with running_gateway(config, tmp_path / "gateway") as gateway:
        send_studies(gateway, send, tmp_path, "away", 4)
        wait_until(lambda: len(gateway.status()["dead_letters"]) == 4, 60, describe=lambda: gateway.output)
        assert len(gateway.audit("dead letter")) == 4
        assert all("Given up" in one["error"] for one in gateway.status()["dead_letters"])


def test_small_study_does_not_wait_for_a_large_one(
    server: RunningServer, send: Callable[..., Any], tmp_path: Path
) -> None:
    write_study(tmp_path / "one", "large")
    (tmp_path / "large").mkdir()
    for number in range(40):
        series = generate_uid()
        for file in sorted((tmp_path / "one").iterdir())[:4]:
            one = pydicom.dcmread(file)
            one.SeriesInstanceUID, one.SOPInstanceUID = series, generate_uid()
            one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
            one.save_as(tmp_path / "large" / f"{number}-{file.name}")
    small = write_study(tmp_path / "small", "small")
    with fake_storage_scp() as archive:
        servers = {"urls": [server.url], "parallel": 1}
        config = make_config(tmp_path, server.url, **to_all({"archive": dimse(archive.port)}), servers=servers)
        with running_gateway(config, tmp_path / "gateway") as gateway:
            assert send(gateway, tmp_path / "large").returncode == 0
            wait_until(lambda: gateway.audit("segmented"), describe=lambda: gateway.output)
            assert send(gateway, tmp_path / "small").returncode == 0
            wait_until(
                lambda: small in [one.StudyInstanceUID for one, _ in archive.received], describe=lambda: gateway.output
            )
            assert len(archive.received) < 35, "the large study was through before"


def test_instance_that_an_archive_refuses_is_tried_again_alone(
    server: RunningServer, send: Callable[..., Any], tmp_path: Path
) -> None:
    takes: list[bool] = []
    status = lambda event, _: 0 if takes or event.request.AffectedSOPClassUID != SegmentationStorage else 0xA900  # noqa: E731
    write_study(tmp_path / "study", "by instance")
    with fake_storage_scp(status) as archive:
        parts = to_all({"archive": dimse(archive.port)}, forms=["seg", "sr", "rtstruct"])
        config = make_config(tmp_path, server.url, **parts | {"retry": {"first_seconds": 0.5}})
        with running_gateway(config, tmp_path / "gateway") as gateway:
            assert send(gateway, tmp_path / "study").returncode == 0
            gateway.wait_for("failed", 2)
            (part,) = gateway.audit("delivered in part")
            assert (part["instances"], part["missing"]) == (2, 1)
            assert "0xA900 (Data Set Does Not Match SOP Class)" in gateway.audit("failed")[0]["why"]
            assert [one["delivered"] for one in gateway.status()["held_up"]] == [2]
            takes.append(True)
            wait_until(lambda: gateway.audit("delivered"), describe=lambda: gateway.output)
            uids = [str(one.SOPInstanceUID) for one, code in archive.received if code == 0]
            assert len(uids) == len(set(uids)) == 3


def test_words_of_peers_are_in_no_log_and_each_line_tells_event_peer_and_status(
    server: RunningServer, send: Callable[..., Any], tmp_path: Path
) -> None:
    def refuse(*_: object) -> pydicom.Dataset:
        answer = pydicom.Dataset()
        answer.Status, answer.ErrorComment = 0xA900, "Patient Mueller^Hans unknown"
        answer.OffendingElement = [0x00100010]
        return answer

    write_study(tmp_path / "study", "words")
    write_study(tmp_path / "other", "words too", description="Mueller^Hans knee")
    with (
        fake_storage_scp(refuse) as archive,
        http_peer(lambda e: e.reply(401, b"Mueller^Hans may not", "text/plain")) as (web, _),
        http_peer(lambda e: e.reply(500, {"error": "Mueller^Hans is no scan"}, "application/json")) as (bad, _),
    ):
        parts = to_all({"archive": dimse(archive.port), "web": {"type": "dicomweb", "url": web}})
        servers = {"urls": [bad, server.url]}
        config = make_config(tmp_path, server.url, **parts | {"retry": {"first_seconds": 0.3}}, servers=servers)
        with running_gateway(config, tmp_path / "gateway") as gateway:
            for name in ("study", "other"):
                assert send(gateway, tmp_path / name).returncode == 0
            wait_until(lambda: len(gateway.audit("failed")) >= 6, describe=lambda: gateway.output)
            page = gateway.status()
        written = gateway.output + (gateway.state / "audit.jsonl").read_text()
        assert "Mueller" not in written and "Mueller" not in str(page)
        lines = [line for line in gateway.output.splitlines() if line.startswith("{")]
        assert not [line for line in lines if '"message": "not shown' in line], lines
        assert any("0xA900 (Data Set Does Not Match SOP Class)" in line and "ARCHIVE at" in line for line in lines)
        assert any("HTTP 401 Unauthorized" in line and web in line for line in lines)
        assert any("HTTP 500" in line and bad in line for line in lines)
