"""`semiseg gateway check` negotiates what will be sent, and says in a sentence what to do about each thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.sop_class import SegmentationStorage  # type: ignore[attr-defined]

from tests.fork_server import run_semiseg
from tests.gateway.harness import dimse_destination, make_config
from tests.gateway.peers import ALL_CONTEXTS, fake_storage_scp, http_peer, silent_port
from tests.outputs.orthanc import Orthanc
from tests.server.harness import RunningServer


def checked(folder: Path, config: dict[str, Any]) -> tuple[int, dict[str, str]]:
    """The exit code, and for each thing what is told of it."""
    folder.mkdir(exist_ok=True)
    file = folder / "gateway.yaml"
    file.write_text(yaml.safe_dump(config))
    done = run_semiseg("gateway", "--config", file, "check")
    assert done.stdout, done.stderr
    return done.returncode, dict(line.split(": ", 1) for line in done.stdout.splitlines())


def test_all_is_well_beside_a_real_archive(server: RunningServer, archive: Orthanc, tmp_path: Path) -> None:
    destinations = dimse_destination(archive.dicom_port, commitment=True) | {
        "web": {"type": "dicomweb", "url": archive.url}
    }
    rules = [
        {"name": "all", "model": "threshold", "output_formats": ["seg", "sr", "rtstruct"], "to": ["archive", "web"]}
    ]
    code, told = checked(tmp_path, make_config(tmp_path, server.url, destinations=destinations, rules=rules))
    assert code == 0, told
    assert told["rule all"] == f"model threshold is at {server.url.replace('localhost', '127.0.0.1')}"
    for form in ("seg", "sr", "rtstruct"):
        assert "Implicit VR Little Endian" in told[f"destination archive, {form}"]
    assert told["destination archive, commitment"] == "is offered"
    assert told["destination web, STOW-RS"] == "is available"
    assert any(what.startswith("disk of") and "GB are free" in said for what, said in told.items())
    assert len(archive.instances("1.2.3")) == 0


def test_what_an_archive_will_not_take_is_told_before_it_is_sent(server: RunningServer, tmp_path: Path) -> None:
    without = {sop_class: syntaxes for sop_class, syntaxes in ALL_CONTEXTS.items() if sop_class != SegmentationStorage}
    without |= dict.fromkeys(list(without), (ImplicitVRLittleEndian,))
    rules = [{"name": "all", "output_formats": ["seg", "sr"], "to": ["archive"]}]
    with fake_storage_scp(accepted=without) as archive:
        code, told = checked(
            tmp_path,
            make_config(
                tmp_path, server.url, destinations=dimse_destination(archive.port, commitment=True), rules=rules
            ),
        )
        assert archive.received == []
    assert code == 1
    assert "does not accept Segmentation Storage" in told["destination archive, seg"]
    assert told["destination archive, sr"] == "is accepted as Implicit VR Little Endian"
    assert "`commitment: false`" in told["destination archive, commitment"]


def test_archive_without_verification_is_no_trouble(server: RunningServer, tmp_path: Path) -> None:
    with fake_storage_scp(accepted={SegmentationStorage: [ExplicitVRLittleEndian]}) as archive:
        code, told = checked(tmp_path, make_config(tmp_path, server.url, destinations=dimse_destination(archive.port)))
    assert code == 0 and told["destination archive, seg"] == "is accepted as Explicit VR Little Endian"


@pytest.mark.parametrize("status", [302, 401, 403, 404, 503])
def test_web_archive_and_server_that_refuse_are_told_with_what_to_do(tmp_path: Path, status: int) -> None:
    with http_peer(lambda e: e.reply(200 if e.path == "/readyz" else status, Location="http://other/")) as (url, seen):
        config = make_config(tmp_path, url, destinations={"web": {"type": "dicomweb", "url": url}}, rules=[
            {"name": "all", "to": ["web"]}
        ])  # fmt: skip
        code, told = checked(tmp_path, config)
        assert all("other" not in one.headers["Host"] for one in seen)
    assert code == 1
    assert f"HTTP {status}" in told[f"server {url}"] and len(told[f"server {url}"]) > 40
    assert f"HTTP {status}" in told[f"destination web ({url})"] or status == 302, told
    assert told["rule all"] == "no server lists its models"


def test_stow_that_an_archive_lacks_is_found(server: RunningServer, tmp_path: Path) -> None:
    def answer(exchange: Any) -> None:
        if exchange.method == "POST":
            exchange.reply(405)
        else:
            exchange.reply(200, [], "application/dicom+json")

    with http_peer(answer) as (url, seen):
        rules = [{"name": "all", "to": ["web"]}]
        code, told = checked(
            tmp_path,
            make_config(tmp_path, server.url, destinations={"web": {"type": "dicomweb", "url": url}}, rules=rules),
        )
        (posted,) = [one for one in seen if one.method == "POST"]
        assert posted.objects == []
    assert code == 1 and "HTTP 405" in told["destination web, STOW-RS"]


def test_disk_keys_models_and_tls_are_looked_at(server: RunningServer, tmp_path: Path) -> None:
    with silent_port() as port, fake_storage_scp() as archive:
        hung = {"type": "dimse", "ae_title": "H", "host": "127.0.0.1", "port": port, "connect_seconds": 1}
        config = make_config(
            tmp_path,
            server.url,
            destinations=dimse_destination(archive.port, tls={}) | {"hung": hung},
            rules=[{"name": "all", "model": "liver", "to": ["archive", "hung"]}],
            retention={"free_bytes": 2**60},
        )
        code, told = checked(tmp_path, config)
        config["servers"]["key"] = str(tmp_path / "nowhere")
        _, without_key = checked(tmp_path, config)
    assert code == 1
    assert "free disk space" in next(said for what, said in told.items() if what.startswith("disk of"))
    assert "no server has the model liver, only threshold" in told["rule all"]
    assert "makes no TLS connection" in told[f"destination archive (ORTHANC at 127.0.0.1:{archive.port})"]
    assert "does not answer in DICOM" in told[f"destination hung (H at 127.0.0.1:{port})"]
    assert any("cannot be read" in said for what, said in without_key.items() if what.startswith("server"))
