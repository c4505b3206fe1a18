"""/jobs on the real server: accepted is kept, progress is told, stopping stops, and a crash loses nothing."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pytest

from tests.bundles import make_threshold_bundle, scan_array, scan_without_air
from tests.polling import paths_in, wait_until
from tests.server.harness import RunningServer, running_server


def nifti(seed: int = 0, shape: tuple[int, int, int] = (12, 10, 8)) -> bytes:
    return nib.Nifti1Image(scan_array(shape, seed), np.eye(4)).to_bytes()


def slow_scan(side: int = 128) -> bytes:
    return gzip.compress(nib.Nifti1Image(scan_without_air((side, side, side)), np.eye(4)).to_bytes(), 1)


def post(server: RunningServer, scan: bytes, headers: dict[str, str] | None = None, **fields: str) -> httpx.Response:
    return server.http.post(f"{server.url}/jobs", files={"scan": scan}, data=fields, headers=headers)


def wait(server: RunningServer, name: str, *states: str, seconds: float = 120) -> dict:
    job: dict = {}

    def reached() -> bool:
        job.update(server.get(f"/jobs/{name}").json())
        return job["state"] in (states or ("done", "failed", "cancelled"))

    wait_until(reached, seconds, lambda: job)
    return job


def windows_run(server: RunningServer) -> float:
    return float(re.findall(r"semiseg_windows_total\{.*\} (\S+)", server.get("/metrics").text)[0])


def files_of(state: Path) -> list[str]:
    return sorted(str(p.relative_to(state)) for p in paths_in(state) if p.is_file() and not p.name.startswith("jobs."))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_threshold_bundle(tmp_path_factory.mktemp("bundle") / "b", window=(32, 32, 32), work=3).folder


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    with running_server(bundle, folder, "--state", str(folder / "state"), "--parallel", "1", "--queued", "3") as server:
        yield server


@pytest.fixture(scope="module")
def state(server: RunningServer) -> Path:
    return server.temporary.parent / "state"


def test_result_of_a_job_is_the_answer_of_segment(server, state):
    scan = nifti()
    accepted = post(server, scan, output_format="nifti")
    assert accepted.status_code == 202
    job = accepted.json()
    assert accepted.headers["location"] == f"/jobs/{job['id']}"
    ended = wait(server, job["id"])
    assert (ended["state"], ended["attempts"], ended["error"]) == ("done", 1, None)
    assert ended["windows_done"] == ended["windows_total"] == 1
    result, answer = server.get(f"/jobs/{job['id']}/result"), server.segment(scan, fields={"output_format": "nifti"})
    assert result.status_code == 200
    assert result.content == answer.content
    for name in ("content-type", "content-disposition", "x-semiseg-millilitres", "x-semiseg-model"):
        assert result.headers[name] == answer.headers[name]
    assert files_of(state) == ["lock", f"results/{job['id']}"]
    assert server.http.delete(f"{server.url}/jobs/{job['id']}").json()["state"] == "done"
    assert server.get(f"/jobs/{job['id']}").status_code == 404
    assert files_of(state) == ["lock"]


def test_progress_is_told_and_a_running_job_stops_between_windows(server, state):
    job = post(server, slow_scan()).json()["id"]
    wait_until(lambda: server.get(f"/jobs/{job}").json()["windows_done"] >= 10)
    running_job = wait(server, job, "running")
    assert running_job["windows_total"] == 7**3
    assert 0 < running_job["seconds_left"] < 600
    waiting = post(server, nifti()).json()
    behind = post(server, nifti()).json()
    assert (waiting["ahead"], behind["ahead"]) == (0, 1)
    early = server.get(f"/jobs/{job}/result")
    assert early.status_code == 409 and "retry-after" in early.headers
    assert server.http.delete(f"{server.url}/jobs/{behind['id']}").json()["state"] == "cancelled"
    assert server.http.delete(f"{server.url}/jobs/{job}").status_code == 202
    assert wait(server, job)["state"] == "cancelled"
    assert server.get(f"/jobs/{job}/result").status_code == 410
    assert wait(server, waiting["id"])["state"] == "done"
    for name in (job, waiting["id"], behind["id"]):
        server.http.delete(f"{server.url}/jobs/{name}")
    assert files_of(state) == ["lock"]


def test_events_tell_each_change_until_the_end(server):
    job = post(server, slow_scan(64)).json()["id"]
    seen = []
    with server.http.stream("GET", f"{server.url}/jobs/{job}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("data: "):
                seen.append(json.loads(line[6:]))
    assert seen[-1]["state"] == "done" and seen[-1]["windows_done"] == 27
    done = [one["windows_done"] for one in seen]
    assert done == sorted(done)
    assert len({json.dumps(one) for one in seen}) == len(seen)


def test_wrong_scan_fails_with_the_sentence_and_status_of_segment(server, state):
    text = post(server, b"no scan at all")
    assert text.status_code == 415  # what can be seen at once is said at once
    assert post(server, nifti(), output_format="picture").status_code == 400
    broken = nifti()[:-100]
    job = post(server, broken).json()
    ended = wait(server, job["id"])
    refused = server.segment(broken)
    assert (ended["state"], ended["status"]) == ("failed", 422)
    assert ended["error"] == refused.json()["error"]
    result = server.get(f"/jobs/{job['id']}/result")
    assert (result.status_code, result.json()) == (422, refused.json())
    assert not any("uploads" in name or "work" in name for name in files_of(state))


def test_same_idempotency_key_is_the_same_job(server):
    first = post(server, nifti(), {"Idempotency-Key": "one"}).json()
    again = post(server, nifti(), {"Idempotency-Key": "one"}).json()
    other = post(server, nifti(), {"Idempotency-Key": "two"}).json()
    assert first["id"] == again["id"] != other["id"]
    assert post(server, nifti(), {"Idempotency-Key": "x" * 201}).status_code == 400
    for name in (first["id"], other["id"]):
        wait(server, name)


def test_idempotency_key_belongs_to_its_scan_and_options(server):
    key = {"Idempotency-Key": "mine"}
    first = post(server, nifti(1), key, output_format="nifti").json()["id"]
    for scan, fields in ((nifti(2), {"output_format": "nifti"}), (nifti(1), {"output_format": "json"}), (nifti(1), {})):
        refused = post(server, scan, key, **fields)
        assert refused.status_code == 422 and "Idempotency-Key" in refused.json()["error"]
    wait(server, first)
    assert post(server, nifti(2), key, output_format="nifti").status_code == 422  # also after the end
    # What is said with other words is the same request.
    again = post(server, nifti(1), key, output_format="nifti", strict="false").json()
    assert post(server, nifti(1), key, answer="nifti").json()["id"] == again["id"]  # the former name of the field
    named = post(server, nifti(1), key | {"Accept": "application/dicom"}, output_format="nifti").json()
    assert (again["id"], again["state"], named["id"]) == (first, "done", first)
    assert server.http.delete(f"{server.url}/jobs/{first}").json()["state"] == "done"
    other = post(server, nifti(2), key, output_format="nifti")  # with the job its key is forgotten
    assert other.status_code == 202 and other.json()["id"] != first
    wait(server, other.json()["id"])
    wait_until(lambda: not list(server.state.glob("uploads/*")))  # nothing is kept of what was refused


def test_uploads_with_one_key_at_the_same_time_make_one_job(server):
    scans = [nifti(seed, (40, 36, 20)) for seed in (1, 1, 1, 2, 2, 2)]
    with ThreadPoolExecutor(len(scans)) as pool:
        answers = list(pool.map(lambda scan: post(server, scan, {"Idempotency-Key": "race"}), scans))
    accepted = {(answer.json()["id"], scan) for answer, scan in zip(answers, scans, strict=True) if answer.is_success}
    assert len(accepted) == 1
    assert sorted(answer.status_code for answer in answers) == [202] * 3 + [422] * 3
    wait(server, accepted.pop()[0])


def test_key_of_a_job_that_an_earlier_version_accepted_is_compared_too(bundle, tmp_path):
    options, key = ("--state", str(tmp_path / "s"), "--parallel", "1"), {"Idempotency-Key": "old"}
    with running_server(bundle, tmp_path / "1", *options) as server:
        slow = post(server, slow_scan(96)).json()["id"]
        old = post(server, nifti(1), key).json()["id"]
        wait(server, slow, "running")
    with contextlib.closing(sqlite3.connect(tmp_path / "s" / "jobs.sqlite3")) as database, database:
        # The payload as version 0.1 wrote it.
        database.execute("UPDATE jobs SET payload = json_remove(payload, '$.digest')")
    with running_server(bundle, tmp_path / "2", *options) as server:
        wait(server, slow, "running")
        assert post(server, nifti(2), key).status_code == 422
        same = post(server, nifti(1), key).json()
        assert same.get("id") == old, same
        wait(server, old)
        # Its upload is gone: that it is the same cannot be shown any more, and another patient's is never handed out.
        assert post(server, nifti(1), key).status_code == 422


def test_job_that_nobody_made_is_not_found(server):
    for path in ("/jobs/none", f"/jobs/{'0' * 32}/result", "/jobs/none/events"):
        answer = server.get(path)
        assert answer.status_code == 404 and "no such job" in answer.json()["error"]
    assert server.http.delete(f"{server.url}/jobs/none").status_code == 404
    wrong = server.get("/jobs")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"


def test_queue_has_an_end(server):
    slow = post(server, slow_scan()).json()["id"]
    wait(server, slow, "running")
    waiting = [post(server, nifti()) for _ in range(3)]
    assert [one.status_code for one in waiting] == [202] * 3
    refused = post(server, nifti())
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
    server.http.delete(f"{server.url}/jobs/{slow}")
    for one in waiting:
        assert wait(server, one.json()["id"])["state"] == "done"


def test_metrics_tell_the_queue(server):
    metrics = server.get("/metrics").text
    assert 'semiseg_jobs{state="waiting"} 0.0' in metrics
    assert 'semiseg_jobs_ended_total{state="done"}' in metrics
    assert 'route="/jobs/{id}"' in metrics


def test_jobs_are_off_without_a_folder_for_them(bundle, tmp_path):
    with running_server(bundle, tmp_path) as server:
        answer = post(server, nifti())
        assert answer.status_code == 404 and "--state" in answer.json()["error"]
        assert "/jobs" not in server.get("/docs.json").json()["paths"]


def test_second_server_on_the_same_folder_is_refused(server, bundle, state, tmp_path):
    second = RunningServer(bundle, tmp_path, "--state", str(state))
    assert second.process.wait(60) == 2
    second.stop()
    assert "Another process works in" in second.output and len(second.lines) == 1


def test_results_are_forgotten_after_their_time(bundle, tmp_path):
    with running_server(bundle, tmp_path, "--state", str(tmp_path / "s"), "--keep-hours", "0.0003") as server:
        job = post(server, nifti()).json()["id"]
        wait_until(lambda: server.get(f"/jobs/{job}").status_code == 404)
        assert files_of(tmp_path / "s") == ["lock"]


def test_stopped_server_goes_on_with_its_jobs_when_it_starts_again(bundle, tmp_path):
    options = ("--state", str(tmp_path / "s"), "--parallel", "1")
    with running_server(bundle, tmp_path / "1", *options) as server:
        slow = post(server, slow_scan(96)).json()["id"]
        small = post(server, nifti(), output_format="nifti").json()["id"]
        wait(server, slow, "running")
        assert server.stop() == 0
    with running_server(bundle, tmp_path / "2", *options) as server:
        assert wait(server, slow)["attempts"] == 1  # a stop in good order is no attempt
        assert wait(server, small)["state"] == "done"
        expected = server.segment(nifti(), fields={"output_format": "nifti"}).content
        assert server.get(f"/jobs/{small}/result").content == expected


def test_no_accepted_job_is_lost_when_the_server_is_killed_again_and_again(bundle, tmp_path):
    """SRV-03.

    A short form of the 50 kills of docs/results/server: SIGKILL at seeded random moments while jobs arrive.
    """
    rng = np.random.default_rng(7)
    options = ("--state", str(tmp_path / "s"), "--parallel", "2")
    scans = [nifti(seed, (40, 36, 20 + 8 * (seed % 3))) for seed in range(8)]
    names: dict[str, bytes] = {}
    for k in range(4):
        server = RunningServer(bundle, tmp_path / f"p{k}", *options)
        try:
            server.wait_until_ready()
            killer = threading.Timer(float(rng.uniform(0.1, 1.5)), server.process.kill)
            killer.start()
            for scan in scans[2 * k : 2 * k + 2]:
                with contextlib.suppress(httpx.TransportError, json.JSONDecodeError):  # then it was not acknowledged
                    names[post(server, scan, output_format="nifti").json()["id"]] = scan
            killer.join()
            server.process.wait(30)
        finally:
            server.kill()
    with running_server(bundle, tmp_path / "last", *options) as server:
        for name, scan in names.items():
            assert wait(server, name)["state"] == "done"
            expected = server.segment(scan, fields={"output_format": "nifti"}).content
            found = server.get(f"/jobs/{name}/result").content
            assert hashlib.sha256(found).digest() == hashlib.sha256(expected).digest()
        kept = [name for name in files_of(tmp_path / "s") if name.startswith("results/")]
        # A job may have been accepted whose answer the kill cut off; it is done too, and nothing else is there.
        assert {f"results/{name}" for name in names} <= set(kept)
        assert not [name for name in files_of(tmp_path / "s") if name.startswith(("uploads/", "work/scan"))]
    assert len(names) >= 4


def test_killed_server_leaves_a_folder_that_the_next_one_deletes(bundle, tmp_path):
    """SRV-03."""
    first = RunningServer(bundle, tmp_path)
    first.wait_until_ready()
    first.kill()
    left = [p for p in (tmp_path / "tmp").iterdir() if p.name.startswith("semiseg-serve-")]
    assert len(left) == 1
    with running_server(bundle, tmp_path) as server:
        assert not left[0].exists()
        assert os.path.isdir(server.temporary)  # noqa: PTH112
        third = RunningServer(bundle, tmp_path)
        third.wait_until_ready()
        third.stop()
        assert server.segment(nifti()).status_code == 200  # the folder of a server that lives is left alone


def test_job_that_takes_too_long_is_given_up(bundle, tmp_path):
    with running_server(bundle, tmp_path, "--state", str(tmp_path / "s"), "--timeout", "1") as server:
        job = wait(server, post(server, slow_scan()).json()["id"])
        assert (job["state"], job["status"]) == ("failed", 504) and "1 seconds" in job["error"]


def test_case_is_answered_in_other_forms_without_the_network(server):
    scan = nifti(4, (40, 36, 20))
    job = post(server, scan, output_format="case").json()["id"]
    wait(server, job)
    before = windows_run(server)
    answers = {
        kind: server.get(f"/jobs/{job}/result?output_format={kind}") for kind in ("nifti", "nifti-labelmap", "json")
    }
    assert server.get(f"/jobs/{job}/result?answer=nifti").content == answers["nifti"].content  # the former name
    assert windows_run(server) == before
    for kind in ("nifti", "nifti-labelmap"):
        assert answers[kind].content == server.segment(scan, fields={"output_format": kind}).content
    assert (
        answers["json"].json()["segments"] == server.segment(scan, fields={"output_format": "json"}).json()["segments"]
    )
    assert server.get(f"/jobs/{job}/result?output_format=seg").status_code == 400  # no DICOM was sent
    assert server.get(f"/jobs/{job}/result?output_format=picture").status_code == 400
    server.http.delete(f"{server.url}/jobs/{job}")
    plain = post(server, scan, output_format="json").json()["id"]
    wait(server, plain)
    assert "viewer-bundle" in server.get(f"/jobs/{plain}/result?output_format=nifti").json()["error"]


def test_one_clients_jobs_do_not_go_before_all_of_anothers(bundle, tmp_path):
    """The second client's only job begins after about one of the first client's, and not after all of them."""
    keys = tmp_path / "keys"
    keys.write_text("first " + "a" * 64 + "\nsecond " + "b" * 64 + "\n")
    options = ("--state", str(tmp_path / "s"), "--parallel", "1", "--keys", str(keys))
    with running_server(bundle, tmp_path / "1", *options) as server:
        first, second = ({"Authorization": f"Bearer {letter * 64}"} for letter in "ab")

        def state_of(name: str, key: dict[str, str]) -> str:
            return str(server.http.get(f"{server.url}/jobs/{name}", headers=key).json()["state"])

        slow = post(server, slow_scan(96), first).json()["id"]
        wait_until(lambda: state_of(slow, first) == "running")
        waiting = [post(server, slow_scan(96), first).json()["id"] for _ in range(4)]
        only = post(server, nifti(), second).json()["id"]
        wait_until(lambda: state_of(only, second) == "done")
        assert sum(state_of(name, first) == "waiting" for name in waiting) >= 2


def test_request_that_is_sent_again_is_answered_although_its_address_has_as_many_jobs_as_one_may(bundle, tmp_path):
    options = ("--state", str(tmp_path / "s"), "--parallel", "1", "--queued", "10")
    with running_server(bundle, tmp_path, *options) as server:
        wait(server, post(server, slow_scan()).json()["id"], "running")
        keys = [{"Idempotency-Key": str(number)} for number in range(9)]
        accepted = [post(server, nifti(), key).json()["id"] for key in keys]
        assert post(server, nifti(), {"Idempotency-Key": "new"}).status_code == 503
        again = post(server, nifti(), keys[-1])
        assert again.status_code == 202, again.text
        assert again.json()["id"] == accepted[-1]
