"""Nobody takes all there is: connections, places, jobs, the disk; and a server that is told to stop does so."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import nibabel as nib
import numpy as np
import pytest

from tests.bundles import make_threshold_bundle, scan_array
from tests.disks import small_disk
from tests.polling import wait_until
from tests.server.harness import PART_HEADER, RunningServer, running_server, send_raw
from tests.server.test_jobs import post, slow_scan, wait

STOP_SECONDS = 20.0


def nifti(seed: int = 0, shape: tuple[int, int, int] = (12, 10, 8)) -> bytes:
    return nib.Nifti1Image(scan_array(shape, seed), np.eye(4)).to_bytes()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_threshold_bundle(tmp_path_factory.mktemp("bundle") / "b", window=(32, 32, 32), work=3).folder


@contextlib.contextmanager
def connections(server: RunningServer, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    """Connections that have sent something; where it is a request, its answer was read."""
    address = urlsplit(server.url)
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            one = stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=30))
            one.sendall(sent)
            if sent.endswith(b"\r\n\r\n"):
                assert one.recv(65536).startswith(b"HTTP/1.1 200 ")
            made.append(one)
        yield made


def stopped_within(server: RunningServer, seconds: float) -> None:
    since = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - since < seconds, server.output


@pytest.mark.parametrize(
    ("sent", "count"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 200),  # idle, kept alive
        (b"", 200),  # silent
        (b"POST /segment HTTP/1.1\r\nHost: 127.0.0.1\r\n", 200),  # half a head
    ],
)
def test_server_stops_in_time_whatever_its_connections_wait_for(bundle, tmp_path, sent, count):
    with running_server(bundle, tmp_path) as server, connections(server, count, sent):
        stopped_within(server, STOP_SECONDS)


def test_server_stops_in_time_while_uploads_stand_still_and_jobs_are_watched(bundle, tmp_path):
    with running_server(bundle, tmp_path, "--state", str(tmp_path / "s"), "--parallel", "1") as server:
        job = post(server, slow_scan()).json()["id"]
        wait(server, job, "running")
        watching = f"GET /jobs/{job}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        with contextlib.ExitStack() as stack:
            stack.enter_context(connections(server, 10, watching))
            for _ in range(5):
                stack.enter_context(send_raw(server, "Content-Length: 5000", PART_HEADER, nifti()[:100]))
            wait_until(lambda: len(list(server.state.glob("work/semiseg-*"))) == 5)
            stopped_within(server, STOP_SECONDS)


def test_one_address_does_not_have_all_connections(bundle, tmp_path):
    with running_server(bundle, tmp_path / "1", "--per-address", "20") as server:
        server.http.close()
        server.http = httpx.Client(timeout=60, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
        with connections(server, 19, b""):
            wait_until(lambda: server.get("/livez").status_code == 200)
            with connections(server, 1, b""):
                refused = server.get("/livez")
                assert refused.status_code == 429 and "connections" in refused.json()["error"]
                assert int(refused.headers["retry-after"]) > 0
            other = httpx.HTTPTransport(local_address="127.0.0.2")  # another address of this machine
            with connections(server, 1, b""), httpx.Client(transport=other, timeout=60) as elsewhere:
                assert elsewhere.get(f"{server.url}/livez").status_code == 200
        wait_until(lambda: server.get("/livez").status_code == 200)
    proxied = ("--per-address", "5", "--proxy", "127.0.0.0/8")  # a proxy's connections are all of its clients'
    with running_server(bundle, tmp_path / "2", *proxied) as server, connections(server, 30, b""):
        assert server.get("/livez").status_code == 200


def test_one_client_leaves_a_place_to_others(bundle, tmp_path):
    options = ("--parallel", "1", "--waiting", "2", "--proxy", "127.0.0.1")
    with running_server(bundle, tmp_path, *options) as server:
        mine, other = "X-Forwarded-For: 10.0.0.1", {"X-Forwarded-For": "10.0.0.2"}
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(send_raw(server, f"Content-Length: 50000\r\n{mine}", PART_HEADER, nifti()[:100]))
            wait_until(lambda: len(list(server.temporary.glob("semiseg-serve-*/semiseg-*"))) == 2)
            refused = server.segment(nifti(), headers={"X-Forwarded-For": "10.0.0.1"})
            assert refused.status_code == 429, refused.text
            assert server.segment(nifti(), headers=other).status_code == 200


def test_one_address_leaves_a_waiting_job_to_others_where_there_are_no_keys(bundle, tmp_path):
    options = ("--state", str(tmp_path / "s"), "--parallel", "1", "--queued", "10", "--proxy", "127.0.0.1")
    with running_server(bundle, tmp_path, *options) as server:
        slow = post(server, slow_scan()).json()["id"]
        wait(server, slow, "running")
        sent = [post(server, nifti(), {"X-Forwarded-For": "10.0.0.1"}) for _ in range(10)]
        assert [one.status_code for one in sent] == [202] * 9 + [503]
        assert "of your jobs" in sent[-1].json()["error"] and int(sent[-1].headers["retry-after"]) > 0
        assert post(server, nifti(), {"X-Forwarded-For": "10.0.0.2"}).status_code == 202
        server.http.delete(f"{server.url}/jobs/{slow}")


@pytest.fixture(name="small_disk")
def disk_of_16_mb(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 16) as folder:
        yield folder


def fill(disk: Path, *, leave: int) -> Path:
    """A file that takes all but ``leave`` bytes of a disk."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as stream:
        while stream.write(bytes(4096)):
            pass
    size = ballast.stat().st_size
    os.truncate(ballast, size - leave)
    return ballast


@pytest.mark.parametrize("leave", [pytest.param(0, marks=pytest.mark.long), 8192, 300_000])
def test_full_disk_is_a_507_with_a_sentence_and_nothing_is_left(bundle, small_disk, tmp_path, leave):
    """SRV-05. Although no free space was asked for: the disk is full in the middle of it."""
    options = ("--state", str(small_disk / "s"), "--min-free-mb", "0")
    with running_server(bundle, tmp_path / "p", *options) as server:
        scan = nifti(1, (70, 60, 50))
        done = post(server, nifti(), output_format="nifti").json()["id"]
        wait(server, done)
        ballast = fill(small_disk, leave=leave)
        for path in ("segment", "jobs"):
            for fields in ({"output_format": "nifti"}, {"output_format": "viewer-bundle"}):
                answer = server.http.post(f"{server.url}/{path}", files={"scan": scan}, data=fields)
                assert answer.status_code == 507, (path, fields, answer.text)
                assert "disk" in answer.json()["error"] and int(answer.headers["retry-after"]) > 0
        assert server.get("/livez").status_code == 200
        assert server.get(f"/jobs/{done}").status_code == 200
        ballast.unlink()
        assert [p.name for p in (small_disk / "s" / "uploads").iterdir()] == []
        assert [p.name for p in (small_disk / "s" / "work").iterdir() if not p.name.startswith("bentoml")] == []
        again = post(server, scan, output_format="nifti")
        assert again.status_code == 202 and wait(server, again.json()["id"])["state"] == "done"


@pytest.mark.parametrize("leave", [0, 16384, pytest.param(65536, marks=pytest.mark.long)])
def test_disk_that_is_full_once_the_upload_is_there_loses_no_job(bundle, small_disk, tmp_path, leave):
    """SRV-03."""
    options = ("--state", str(small_disk / "s"), "--min-free-mb", "0")
    with running_server(bundle, tmp_path / "p", *options) as server:
        accepted = []
        ballast = fill(small_disk, leave=leave)
        for seed in range(8):
            job = post(server, nifti(seed), output_format="viewer-bundle")
            assert job.status_code in (202, 507), job.text
            accepted += [job.json()["id"]] if job.status_code == 202 else []
            assert server.segment(nifti(seed)).status_code in (200, 507)
        ballast.unlink()
        assert server.segment(nifti()).status_code == 200
        for name in accepted:
            assert wait(server, name)["state"] == "done"
