"""Starting and stopping: nothing is promised before it holds, and nothing is left when the server is gone."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from semiseg.bundle.bundle import MODEL, Bundle, write_bundle
from semiseg.bundle.manifest import Manifest
from tests.bundles import make_threshold_bundle, scan_array, scan_without_air
from tests.server.harness import RunningServer, busy_server, running_server


def nifti() -> bytes:
    return nib.Nifti1Image(scan_array((12, 10, 8)), np.eye(4)).to_bytes()


def assert_refused(bundle: Path, folder: Path, *options: str) -> str:
    """The server ends by itself with exit code 2 and one sentence; the sentence."""
    server = RunningServer(bundle, folder, *options)
    assert server.process.wait(60) == 2, server.output
    server.stop()
    assert "Traceback" not in server.output
    assert list(server.temporary.iterdir()) == []
    sentences = [line for line in server.lines if line.startswith("semiseg: ")]
    assert len(sentences) == 1, server.output
    return sentences[0]


def test_server_is_alive_but_not_ready_until_it_is_warm(tmp_path):
    """SRV-01."""
    bundle = make_threshold_bundle(tmp_path / "bundle", window=(96, 96, 96), work=8)
    server = RunningServer(bundle.folder, tmp_path / "process")
    try:
        server.wait_until_listening()
        early = server.get("/readyz")
        assert early.status_code == 503
        assert server.get("/livez").status_code == 200
        refused = server.segment(nifti())
        assert refused.status_code == 503, refused.text
        assert "warming up" in refused.json()["error"]
        assert int(refused.headers["retry-after"]) > 0
        server.wait_until_ready()
        assert server.segment(nifti()).status_code == 200
    finally:
        server.stop()


def test_ready_server_answers_its_probes_and_metrics(tmp_path):
    bundle = make_threshold_bundle(tmp_path / "bundle")
    with running_server(bundle.folder, tmp_path / "process") as server:
        assert server.segment(nifti()).status_code == 200
        assert server.segment(b"text").status_code == 415
        for path in ("/livez", "/readyz"):
            assert server.get(path).status_code == 200
        metrics = server.get("/metrics").text
        assert 'semiseg_requests_total{route="/segment",status="200"} 1.0' in metrics
        assert 'semiseg_requests_total{route="/segment",status="415"} 1.0' in metrics
        assert 'semiseg_refused_total{reason="type"} 1.0' in metrics
        assert 'semiseg_stage_seconds_count{stage="network"} 1.0' in metrics
        assert "process_resident_memory_bytes" in metrics
        assert 'precision="fp32"' in metrics


def test_uploads_go_to_the_scratch_folder_that_was_named(tmp_path):
    bundle, scratch = make_threshold_bundle(tmp_path / "bundle"), tmp_path / "scratch"
    scratch.mkdir()
    with running_server(bundle.folder, tmp_path / "process", "--scratch", str(scratch)) as server:
        (own,) = scratch.iterdir()
        assert server.segment(nifti()).status_code == 200
        assert own.is_dir() and [p for p in server.temporary.iterdir() if p.name.startswith("semiseg-")] == []
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server_stops_cleanly_when_told_to(tmp_path, number):
    bundle = make_threshold_bundle(tmp_path / "bundle")
    with running_server(bundle.folder, tmp_path / "process") as server:
        assert server.segment(nifti()).status_code == 200
        assert server.stop(number) == 0, server.output
        assert "Traceback" not in server.output
        assert list(server.temporary.iterdir()) == []
        assert list(server.home.iterdir()) == []  # no library keeps anything there either


def test_server_stops_within_seconds_in_the_middle_of_a_scan(tmp_path):
    """SRV-10."""
    bundle = make_threshold_bundle(tmp_path / "bundle", window=(32, 32, 32), work=3)
    with running_server(bundle.folder, tmp_path / "process") as server:
        big = gzip.compress(nib.Nifti1Image(scan_without_air((256, 256, 256)), np.eye(4)).to_bytes(), 1)
        with busy_server(server, big) as connection:
            time.sleep(0.5)  # so that some windows are run
            assert server.stop() == 0, server.output
            assert b" 200 " not in connection.recv(1000)  # it did not go on to the end of the scan
        assert list(server.temporary.iterdir()) == []


def test_port_that_is_taken_is_one_sentence(tmp_path):
    bundle = make_threshold_bundle(tmp_path / "bundle")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        server = RunningServer(bundle.folder, tmp_path / "process", port=port)
        assert server.process.wait(60) == 2
        server.stop()
    assert len(server.lines) == 1, server.output
    assert port in server.output and "--port" in server.output


def test_host_that_does_not_exist_is_one_sentence(tmp_path):
    bundle = make_threshold_bundle(tmp_path / "bundle")
    assert "--host" in assert_refused(bundle.folder, tmp_path / "process", "--host", "no.such.host.invalid")


def test_missing_bundle_is_refused_before_the_port_is_bound(tmp_path):
    assert "no bundle folder" in assert_refused(tmp_path / "nothing", tmp_path / "process")


def test_altered_bundle_is_refused_before_the_port_is_bound(tmp_path):
    """SRV-01."""
    bundle = make_threshold_bundle(tmp_path / "bundle")
    with bundle.model.open("ab") as model:
        model.write(b"\0")
    server_output = assert_refused(bundle.folder, tmp_path / "process")
    assert "altered" in server_output and "listening" not in server_output


def test_window_that_the_model_does_not_allow_is_refused(tmp_path):
    bundle = make_threshold_bundle(tmp_path / "bundle")
    assert "16x16x16" in assert_refused(bundle.folder, tmp_path / "process", "--window", "17x16x16")


def test_graph_that_is_none_is_refused_before_the_port_is_bound(tmp_path):
    good = make_threshold_bundle(tmp_path / "good")
    bad = _bundle_with(tmp_path / "bad", good.manifest, b"not a graph")
    server = RunningServer(bad.folder, tmp_path / "process")
    assert server.process.wait(60) == 1, server.output  # not wrong use: the bundle is whole, its graph is not
    server.stop()
    assert "Traceback" not in server.output and "listening" not in server.output
    assert [line for line in server.lines if line.startswith("semiseg: ")]


def test_graph_that_breaks_the_manifests_promise_ends_the_server(tmp_path):
    good = make_threshold_bundle(tmp_path / "good")
    manifest = good.manifest.model_copy(update={"segments": good.manifest.segments[:1]})
    bad = _bundle_with(tmp_path / "bad", manifest, good.model.read_bytes())
    assert "the manifest specifies" in assert_refused(bad.folder, tmp_path / "process")


def test_server_runs_with_only_its_temporary_folder_writable(tmp_path):
    """DEP-02. As in a container whose root file system is read-only: no home, no working folder to write into."""
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("only Linux lists the files that a process has open")
    bundle = make_threshold_bundle(tmp_path / "bundle")
    folder = tmp_path / "process"
    with running_server(bundle.folder, folder) as server:
        assert server.segment(nifti()).status_code == 200
        open_for_writing = _files_open_for_writing(server.process.pid)
    outside = [name for name in open_for_writing if name.startswith("/") and not name.startswith(str(folder / "tmp"))]
    outside = [name for name in outside if not name.startswith(("/dev/", "/proc/", "/memfd", "/sys/"))]
    assert open_for_writing, "its lock at least is open"
    assert outside == []


def test_environment_of_the_server_has_no_torch_in_it(tmp_path):
    """Serving must not import torch, even where it happens to be installed."""
    bundle = make_threshold_bundle(tmp_path / "bundle")
    code = (
        "import sys, json, threading\n"
        "from pathlib import Path\n"
        "from server.http.app import ServerContext\n"
        "from server.keys import ApiKeys\n"
        "from server.http.limits import Limits\n"
        "from server.http.model import ModelSettings\n"
        "from server.http.models import ServedModels\n"
        "from server.http.service import make_service\n"
        f"models = ServedModels.open([ModelSettings(bundle=Path({str(bundle.folder)!r}))])\n"
        f"make_service(ServerContext.create(models, Limits(), Path({str(tmp_path)!r}), None), ApiKeys()).to_asgi()\n"
        "print(json.dumps(sorted(m for m in sys.modules if m.split('.')[0] in "
        "('torch', 'monai', 'transformers', 'trainer', 'exporter'))))\n"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "TMPDIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment | {"BENTOML_HOME": str(tmp_path / "b")}, capture_output=True
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == []


def _files_open_for_writing(pid: int) -> list[str]:
    names = []
    for handle in Path(f"/proc/{pid}/fdinfo").iterdir():
        flags = next(line for line in handle.read_text().splitlines() if line.startswith("flags:"))
        if int(flags.split()[1], 8) & 0o3 != os.O_RDONLY:
            names.append(str(Path(f"/proc/{pid}/fd/{handle.name}").readlink()))
    return names


def _bundle_with(folder: Path, manifest: Manifest, model: bytes) -> Bundle:
    def fill(scratch: Path) -> Manifest:
        (scratch / MODEL).write_bytes(model)
        return manifest

    return write_bundle(folder, fill)
