"""What is too large, too slow or too much is refused in time, with a sentence, and costs nothing afterwards."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import nibabel as nib
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server import http_protocol
from server.http_listener import bind_socket, listener_url, make_uvicorn_server
from tests.bundles import expected_mask, make_threshold_bundle, scan_array, scan_without_air
from tests.polling import paths_in, wait_until
from tests.server.harness import (
    CLOSING_BOUNDARY,
    FORM_TYPE,
    PART_HEADER,
    RunningServer,
    busy_server,
    running_server,
    send_raw,
)

LIMIT = 3 * 2**20


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that accepts 3 MB and waits a second for the next byte."""
    folder = tmp_path_factory.mktemp("small")
    bundle = make_threshold_bundle(folder / "bundle")
    with running_server(bundle.folder, folder / "process", "--max-upload-mb", "3", "--idle-timeout", "1") as server:
        yield server


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that takes one scan at a time, lets nobody wait, and is slow for each window."""
    folder = tmp_path_factory.mktemp("slow")
    bundle = make_threshold_bundle(folder / "bundle", window=(32, 32, 32), work=3)
    with running_server(bundle.folder, folder / "process", "--parallel", "1", "--waiting", "0") as server:
        yield server


def nifti(shape: tuple[int, int, int] = (12, 10, 8), seed: int = 0) -> bytes:
    return nib.Nifti1Image(scan_array(shape, seed), np.eye(4)).to_bytes()


def many_windows() -> bytes:
    return gzip.compress(nib.Nifti1Image(scan_without_air((256, 256, 128)), np.eye(4)).to_bytes(), 1)


def answer_of(connection: socket.socket) -> tuple[int, dict[str, str]]:
    received = b""
    with connection:
        while chunk := connection.recv(65536):
            received += chunk
            _, _, body = received.partition(b"\r\n\r\n")
            if body.endswith(b"}"):
                break
    return int(received.split()[1]), json.loads(received.partition(b"\r\n\r\n")[2])


def test_upload_just_below_the_limit_is_accepted(small):
    image = nifti()
    padded = image + bytes(LIMIT - len(PART_HEADER) - len(CLOSING_BOUNDARY) - len(image))
    answer = small.http.post(
        f"{small.url}/segment", content=PART_HEADER + padded + CLOSING_BOUNDARY, headers={"content-type": FORM_TYPE}
    )
    assert answer.status_code == 200, answer.text
    over = small.http.post(
        f"{small.url}/segment",
        content=PART_HEADER + padded + b"x" + CLOSING_BOUNDARY,
        headers={"content-type": FORM_TYPE},
    )
    assert over.status_code == 413


def test_declared_length_beyond_the_limit_is_refused_before_it_is_sent(small):
    connection = send_raw(small, f"Content-Length: {2**40}\r\nExpect: 100-continue")
    status, document = answer_of(connection)
    assert status == 413
    assert "3 MB" in document["error"]


def test_client_that_reads_only_after_sending_gets_the_sentence_too(small):
    answer = small.segment(bytes(20 * LIMIT))
    assert answer.status_code == 413
    assert "3 MB" in answer.json()["error"]


def test_chunked_upload_without_a_length_is_cut_off_at_the_limit(small):
    def pieces() -> Iterator[bytes]:
        yield PART_HEADER
        for _ in range(15):
            yield bytes(LIMIT // 10)
        yield CLOSING_BOUNDARY

    answer = small.http.post(f"{small.url}/segment", content=pieces(), headers={"content-type": FORM_TYPE})
    assert answer.request.headers["transfer-encoding"] == "chunked"
    assert answer.status_code == 413
    assert small.leftovers() == []


def test_endless_chunked_upload_never_fills_the_disk(small):
    """SRV-05."""
    connection = send_raw(small, "Transfer-Encoding: chunked")
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    most = 0
    with pytest.raises(OSError), connection:
        connection.sendall(b"%x\r\n%s\r\n" % (len(PART_HEADER), PART_HEADER))
        for _ in range(3000):
            connection.sendall(chunk)
            most = max(most, sum(p.stat().st_size for p in paths_in(small.temporary, "scan-*") if p.exists()))
    assert 0 < most <= LIMIT  # it was written to disk as it came, and no further than that


def test_length_that_promises_less_than_is_sent_ends_the_form_early(small):
    status, document = answer_of(send_raw(small, "Content-Length: 200", PART_HEADER, nifti(), CLOSING_BOUNDARY))
    assert status == 400
    assert "ended before" in document["error"]


def test_upload_that_stands_still_is_given_up(small):
    """SRV-05."""
    status, document = answer_of(send_raw(small, "Content-Length: 5000", PART_HEADER, nifti()[:100]))
    assert status == 408
    assert "1 second" in document["error"]
    assert small.leftovers() == []


def test_client_that_goes_away_during_the_upload_leaves_nothing(small):
    with send_raw(small, "Content-Length: 500000", PART_HEADER, nifti()):
        wait_until(lambda: small.leftovers() != [])
    assert small.segment(nifti()).status_code == 200
    wait_until(lambda: small.leftovers() == [])


def test_parallel_requests_each_get_their_own_mask(small):
    """SRV-09."""
    scans = [scan_array((20, 18, 12 + k % 3), seed=k) for k in range(12)]

    def ask(values: np.ndarray) -> httpx.Response:
        return small.segment(nib.Nifti1Image(values, np.eye(4)).to_bytes())

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, scans))
    for values, answer in zip(scans, answers, strict=True):
        assert answer.status_code == 200, answer.text
        mask = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
        assert np.array_equal(np.asanyarray(mask.dataobj), expected_mask(values))
    assert small.leftovers() == []


def test_full_house_says_when_to_come_again_and_stays_alive(slow):
    """SRV-05."""
    with busy_server(slow, many_windows()):
        refused = slow.segment(nifti())
        assert slow.get("/livez").status_code == 200
        assert slow.segment(nifti()).status_code == 503  # it had answered before the scan was done
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert "busy" in refused.json()["error"]


def test_scan_of_a_client_that_went_away_is_given_up_between_two_windows(slow):
    with busy_server(slow, many_windows()):
        time.sleep(0.5)  # some windows are run; then the client closes its connection, long before its scan is done
    wait_until(lambda: slow.segment(nifti()).status_code == 200)
    assert slow.leftovers() == []
    windows = [line for line in slow.get("/metrics").text.splitlines() if line.startswith("semiseg_windows_total")]
    assert float(windows[0].split()[1]) < 100  # hundreds, if it had gone on to the end


def test_request_that_takes_longer_than_allowed_is_ended(tmp_path):
    bundle = make_threshold_bundle(tmp_path / "bundle", window=(32, 32, 32), work=3)
    with running_server(bundle.folder, tmp_path / "process", "--timeout", "1") as server:
        answer = server.segment(many_windows())
        assert answer.status_code == 504
        assert "1 seconds" in answer.json()["error"]
        wait_until(lambda: server.leftovers() == [])
        assert server.segment(nifti()).status_code == 200


def test_connection_that_sends_no_whole_head_is_closed(monkeypatch):
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT", 1.0)

    async def hello(_: Request) -> Response:
        return Response("hello")

    with bind_socket("127.0.0.1", 0, host_hint="", port_hint="") as listener:
        server = make_uvicorn_server(Starlette(routes=[Route("/", hello)]), stop_seconds=1)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with socket.create_connection(listener.getsockname()[:2], timeout=60) as connection:
                connection.sendall(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
                assert connection.recv(100) == b""  # and no timeout of this side
            assert httpx.get(listener_url(listener), trust_env=False).text == "hello"
        finally:
            server.should_exit = True
            thread.join()
