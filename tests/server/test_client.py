"""The client: it waits, goes on after a restart of the server, and says clearly why it cannot."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from semiseg.client import Client, JobStatus, ServerUnreachableError
from semiseg.errors import InputError
from tests.bundles import make_threshold_bundle, scan_array, scan_without_air
from tests.fork_server import run_semiseg
from tests.server.harness import RunningServer, running_server
from tests.server.test_guard import LAB, WARD


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_threshold_bundle(tmp_path_factory.mktemp("bundle") / "b", window=(32, 32, 32), work=3).folder


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    file = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(scan_array((12, 10, 8)), np.eye(4)), file)
    return file


@pytest.fixture
def slow_scan(tmp_path: Path) -> Path:
    file = tmp_path / "slow.nii.gz"
    nib.save(nib.Nifti1Image(scan_without_air((80, 64, 64)), np.eye(4)), file)
    return file


def test_job_is_submitted_watched_fetched_and_deleted(bundle, scan, slow_scan, tmp_path):
    with running_server(bundle, tmp_path / "p", "--state", str(tmp_path / "s")) as server, Client(server.url) as client:
        assert client.keeps_jobs()
        assert [model["identity"]["name"] for model in client.models()] == ["threshold"]
        told: list[JobStatus] = []
        done = client.wait(client.submit(slow_scan, "nifti").id, told.append, every=0.1)
        assert done.state == "done" and any(0 < job.windows_done < job.windows_total for job in told)
        job = client.wait(client.submit(scan, "viewer-bundle").id)
        answer = client.ask(scan, "nifti")
        assert client.result(job.id, "nifti").body == answer.body
        assert client.stop(job.id).state == client.forget(job.id).state == "done"
        with pytest.raises(InputError, match="no such job"):
            client.result(job.id)


def test_client_goes_on_where_the_server_was_killed_and_started_again(bundle, slow_scan, tmp_path):
    options = ("--state", str(tmp_path / "s"))
    first = RunningServer(bundle, tmp_path / "1", *options)
    first.wait_until_ready()
    port = first.url.rsplit(":", 1)[1]
    with Client(first.url) as client:
        job = client.submit(slow_scan, "nifti")
        told: list[JobStatus] = []

        def restart() -> None:
            while not any(one.windows_done > 3 for one in told):
                time.sleep(0.05)
            first.kill()
            time.sleep(1)
            started.append(RunningServer(bundle, tmp_path / "2", *options, port=port))

        started: list[RunningServer] = []
        thread = threading.Thread(target=restart)
        thread.start()
        try:
            assert client.wait(job.id, told.append, every=0.1).state == "done"
            thread.join()
            assert client.result(job.id).body == client.ask(slow_scan, "nifti").body
        finally:
            thread.join()
            for server in started:
                server.stop()


def test_nobody_there_is_said_after_the_patience_is_over(scan):
    with (
        Client("http://127.0.0.1:9", patience=2) as client,
        pytest.raises(ServerUnreachableError, match="No server answers"),
    ):
        client.submit(scan)


def test_predict_shows_the_server_a_key_and_leaves_nothing_there(bundle, scan, tmp_path):
    state = tmp_path / "s"
    keys = {"SEMISEG_API_KEYS": f"ward {WARD}, lab {LAB}"}
    with running_server(bundle, tmp_path / "p", "--state", str(state), environ=keys) as server:
        command = ("predict", scan, "--server", server.url, "--out", tmp_path / "a.nii.gz")
        refused = run_semiseg(*command)
        assert refused.returncode == 2 and "API key" in refused.stderr and not (tmp_path / "a.nii.gz").exists()
        done = run_semiseg(*command, "--key", LAB)
        assert done.returncode == 0, done.stderr
        with Client(server.url, key=WARD) as client:
            answer = client.ask(scan, "nifti", model="threshold")
            with pytest.raises(InputError, match="it has threshold"):
                client.ask(scan, model="another")
        assert (tmp_path / "a.nii.gz").read_bytes() == answer.body
        assert not list((state / "results").iterdir()) and not list((state / "uploads").iterdir())
