"""Who is let in, how many at once, with what headers; and that nothing of a patient gets into logs or figures."""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.volume import Volume
from tests.bundles import make_threshold_bundle, scan_array, scan_without_air
from tests.polling import paths_in, wait_until
from tests.server.harness import RunningServer, busy_server, running_server

WARD, LAB = "ward-0123456789-abcdefghij", "lab-9876543210-jihgfedcba"
MARK = "QZMARKQZ"
SERIES = "QZSERIESQZ"  # told to whoever sent the scan, who may have to choose a series; to nobody else


def nifti(seed: int = 0) -> bytes:
    return nib.Nifti1Image(scan_array((12, 10, 8), seed), np.eye(4)).to_bytes()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_threshold_bundle(tmp_path_factory.mktemp("bundle") / "b", window=(32, 32, 32), work=3).folder


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys"


@pytest.fixture(scope="module")
def guarded(bundle: Path, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    keys.write_text(f"# who may\nward {WARD}\nlab {LAB}  # the lab\n", encoding="utf-8")
    folder = tmp_path_factory.mktemp("guarded")
    options = ("--keys", str(keys), "--state", str(folder / "state"), "--per-client", "1")
    with running_server(bundle, folder, *options) as server:
        yield server


def with_key(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_without_a_good_key_only_probes_and_the_page_answer(guarded):
    """SRV-04."""
    for path, status in (("/livez", 200), ("/readyz", 200), ("/", 200), ("/models", 401), ("/metrics", 401)):
        assert guarded.get(path).status_code == status, path
    for path in ("/docs.json", "/jobs/none", "/jobs/none/result"):
        assert guarded.get(path).status_code == 401
    for headers in ({}, with_key("ward-0123456789-abcdefghiX"), {"Authorization": f"Basic {WARD}"}):
        answer = guarded.segment(nifti(), headers=headers)
        assert answer.status_code == 401 and "key" in answer.json()["error"]
        assert answer.headers["www-authenticate"] == "Bearer"
    assert guarded.leftovers() == []


def test_either_header_brings_the_key(guarded):
    assert guarded.segment(nifti(), headers=with_key(WARD)).status_code == 200
    assert guarded.segment(nifti(), headers={"X-API-Key": LAB}).status_code == 200
    assert guarded.http.get(f"{guarded.url}/metrics", headers=with_key(LAB)).status_code == 200


def test_job_is_seen_by_who_put_it_in_and_by_nobody_else(guarded):
    """SRV-04."""
    sent = guarded.http.post(f"{guarded.url}/jobs", files={"scan": nifti()}, headers=with_key(WARD))
    address = f"{guarded.url}/jobs/{sent.json()['id']}"
    assert guarded.http.get(address, headers=with_key(WARD)).status_code == 200
    for path in (address, f"{address}/result", f"{address}/events"):
        assert guarded.http.get(path, headers=with_key(LAB)).status_code == 404
    assert guarded.http.delete(address, headers=with_key(LAB)).status_code == 404


def test_key_that_is_taken_out_of_the_file_is_refused_without_a_restart(guarded, keys):
    before = keys.read_text()
    keys.write_text(f"ward {WARD}\n")
    try:
        assert guarded.segment(nifti(), headers=with_key(LAB)).status_code == 401
        assert guarded.segment(nifti(), headers=with_key(WARD)).status_code == 200
        keys.write_text("")  # a file that says nothing lets nobody in
        assert guarded.segment(nifti(), headers=with_key(WARD)).status_code == 503
        assert guarded.get("/livez").status_code == 200
    finally:
        keys.write_text(before)
    assert guarded.segment(nifti(), headers=with_key(LAB)).status_code == 200


def test_one_client_cannot_take_all_the_places(guarded):
    slow = gzip.compress(nib.Nifti1Image(scan_without_air((128, 128, 128)), np.eye(4)).to_bytes(), 1)
    with busy_server(guarded, slow, f"Authorization: Bearer {WARD}") as first:
        second = guarded.segment(nifti(), headers=with_key(WARD))
        assert second.status_code == 429 and int(second.headers["retry-after"]) > 0
        assert guarded.segment(nifti(), headers=with_key(LAB)).status_code == 200
        assert first.recv(100).startswith(b"HTTP/1.1 200 ")
    assert guarded.segment(nifti(), headers=with_key(WARD)).status_code == 200


def test_keys_come_from_the_environment_too(bundle, tmp_path):
    with running_server(bundle, tmp_path, environ={"SEMISEG_API_KEYS": f"ward {WARD}, lab {LAB}"}) as server:
        assert server.segment(nifti()).status_code == 401
        assert server.segment(nifti(), headers=with_key(LAB)).status_code == 200


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ward\n", "a name, a space and the key"),
        ("ward short\n", "shorter than 20"),
        (f"ward {WARD}\nlab {WARD}\n", "the key is given twice"),
        ("", "has no key"),
        (None, "cannot be read"),
    ],
)
def test_keys_that_guard_nothing_are_refused_at_the_start(bundle, tmp_path, text, words):
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text)
    server = RunningServer(bundle, tmp_path / "p", "--keys", str(file))
    assert server.process.wait(60) == 2
    server.stop()
    assert words in server.output and WARD not in server.output and len(server.lines) == 1


def test_server_without_keys_listens_for_everybody_only_when_told_so(bundle, tmp_path):
    """SRV-04."""
    server = RunningServer(bundle, tmp_path / "1", "--host", "0.0.0.0")
    assert server.process.wait(60) == 2
    server.stop()
    assert "--keys" in server.output and "--no-keys" in server.output
    with running_server(bundle, tmp_path / "2", "--host", "0.0.0.0", "--no-keys") as server:
        server.url = server.url.replace("0.0.0.0", "127.0.0.1")
        assert server.segment(nifti()).status_code == 200


def test_every_answer_is_sealed(guarded):
    """OUT-04, SRV-07."""
    for path in ("/", "/livez", "/models", "/nothing/here"):
        headers = guarded.get(path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == "no-store" and headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
    foreign = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"}
    preflight = guarded.http.options(f"{guarded.url}/segment", headers=foreign)
    assert preflight.status_code >= 400 and "access-control-allow-origin" not in preflight.headers


def test_pages_of_other_servers_may_use_it_only_when_they_are_named(bundle, tmp_path):
    keys = {"SEMISEG_API_KEYS": f"a {WARD}"}
    with running_server(bundle, tmp_path, "--origin", "https://viewer.example", environ=keys) as s:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        allowed = s.http.options(f"{s.url}/segment", headers=asked | {"Origin": "https://viewer.example"})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://viewer.example"
        other = s.http.options(f"{s.url}/segment", headers=asked | {"Origin": "https://elsewhere.example"})
        assert other.status_code == 400 and "access-control-allow-origin" not in other.headers
        answer = s.segment(nifti(), headers=with_key(WARD) | {"Origin": "https://viewer.example"})
        assert answer.status_code == 200
        assert "x-semiseg-model" in answer.headers["access-control-expose-headers"].lower()


def test_address_that_does_not_exist_is_a_sentence_and_counted_once(guarded):
    for name in ("schema.json", f"{MARK}/1", f"{MARK}/2", "static_content/x", "page/../../etc/passwd", "jobsx"):
        answer = guarded.get(f"/{name}")
        assert answer.status_code == 404 and answer.json()["error"]
    metrics = guarded.http.get(f"{guarded.url}/metrics", headers=with_key(WARD)).text
    assert MARK not in metrics
    assert len(re.findall(r'semiseg_requests_total\{route="other"', metrics)) == 1


def test_page_of_another_server_may_not_send_a_form(guarded):
    foreign = {"Origin": "https://elsewhere.example", "Sec-Fetch-Site": "cross-site"} | with_key(WARD)
    assert guarded.segment(nifti(), headers=foreign).status_code == 403
    assert guarded.segment(nifti(), headers={"Sec-Fetch-Site": "same-origin"} | with_key(WARD)).status_code == 200


def test_what_is_on_the_disk_is_the_servers_users_alone(guarded):
    state = guarded.temporary.parent / "state"
    guarded.http.post(f"{guarded.url}/jobs", files={"scan": nifti()}, headers=with_key(WARD))
    for path in (state / "jobs.sqlite3", state / "results", state / "uploads", state / "work"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_upload_is_refused_before_the_disk_is_full(bundle, tmp_path):
    """SRV-05."""
    with running_server(bundle, tmp_path, "--min-free-mb", "1e9", "--state", str(tmp_path / "s")) as server:
        for path in ("segment", "jobs"):
            answer = server.http.post(f"{server.url}/{path}", files={"scan": nifti()})
            assert answer.status_code == 507 and "disk" in answer.json()["error"]
        assert 'semiseg_refused_total{reason="disk"} 2.0' in server.get("/metrics").text


def test_several_bundles_are_chosen_by_name(tmp_path):
    one = make_threshold_bundle(tmp_path / "one", name="one").folder
    two = make_threshold_bundle(tmp_path / "two", name="two").folder
    with running_server(one, tmp_path / "p", str(two), "--state", str(tmp_path / "s")) as server:
        models = server.get("/models").json()
        assert [model["identity"]["name"] for model in models] == ["one", "two"]
        assert all("RESEARCH USE ONLY" in model["card"] and model["ready"] for model in models)
        for name in ("one", "two"):
            answer = server.segment(nifti(), fields={"model": name})
            assert json.loads(answer.headers["x-semiseg-model"])["name"] == name
        for fields in ({}, {"model": "three"}):
            answer = server.segment(nifti(), fields=fields)
            assert answer.status_code == 400 and "one, two" in answer.json()["error"]
        job = server.http.post(f"{server.url}/jobs", files={"scan": nifti()}, data={"model": "two"})
        assert job.json()["model"] == "two"
    twice = RunningServer(one, tmp_path / "q", str(one))
    assert twice.process.wait(60) == 2
    twice.stop()
    assert "Two of the bundles are named one" in twice.output


def marked_series(folder: Path) -> list[Path]:
    """A series whose patient and study say the mark, some in a way that their representation forbids."""
    volume = Volume(scan_array((16, 14, 9), 3), np.diag([-1.0, -1.0, 2.0, 1.0]))
    files = write_dicom_series(folder, volume, patient_id=f"{MARK}ID", description=f"{SERIES} series")
    for file in files:
        image = pydicom.dcmread(file)
        for name in ("PatientName", "PatientAddress", "InstitutionName", "AccessionNumber", "StudyDescription"):
            setattr(image, name, f"{MARK}{name}"[:16])
        image.PatientComments = MARK
        with pydicom.config.disable_value_validation():
            image.PatientBirthDate = MARK  # no date
            image.StudyTime = MARK
        image.save_as(file)
    return files


def test_nothing_of_a_patient_is_in_logs_errors_figures_or_names(bundle, tmp_path):
    """SRV-06."""
    files = marked_series(tmp_path / "series")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in files:
            archive.write(file, f"{MARK}/{file.name}")
    image = nib.Nifti1Image(scan_array((12, 10, 8)), np.eye(4))
    image.header["descrip"] = MARK
    image.header["db_name"] = MARK
    broken = [files[0].read_bytes()[:-50], *(file.read_bytes() for file in files[2:])]
    uploads: list[tuple[list[bytes], dict[str, str]]] = [
        ([packed.getvalue()], {}),
        ([packed.getvalue()], {"output_format": "sr"}),
        ([packed.getvalue()[:-40]], {}),
        ([file.read_bytes() for file in files], {"output_format": "json"}),
        (broken, {"strict": "true"}),
        ([image.to_bytes()], {}),
        ([image.to_bytes()[:-7]], {}),
        ([MARK.encode() * 100], {}),
        ([files[0].read_bytes()], {"series": "1.2.3"}),
        ([image.to_bytes()], {"output_format": MARK}),
        ([image.to_bytes()], {"model": MARK}),
    ]
    said: list[str] = []
    with running_server(bundle, tmp_path / "p", "--state", str(tmp_path / "s")) as server:
        for contents, fields in uploads:
            names = [f"{MARK}-{k}.dcm" for k in range(len(contents))]
            answer = server.segment(*contents, fields=fields, names=names)
            assert answer.status_code in (200, 400, 415, 422), answer.text
            if answer.status_code != 200:
                said.append(answer.text)
            job = server.http.post(
                f"{server.url}/jobs",
                files=[("scan", (name, content)) for name, content in zip(names, contents, strict=True)],
                data=fields,
            )
            said += [job.text] if job.status_code != 202 else []
            said += [str(path) for folder in ("s", "p") for path in paths_in(tmp_path / folder)]
        server.get(f"/{MARK}")
        server.http.request(MARK, f"{server.url}/segment")
        idle = [f'semiseg_jobs{{state="{state}"}} 0.0' for state in ("waiting", "running")]
        wait_until(lambda: all(line in server.get("/metrics").text for line in idle))
        said.append(server.get("/metrics").text)
        for row in (tmp_path / "s").glob("jobs.sqlite3*"):
            # What the caller wrote into the form is kept with its job; what the scan says is not.
            assert f"{MARK}ID" not in row.read_bytes().decode("latin-1")
    assert MARK not in server.output and SERIES not in server.output
    assert [one for one in said if MARK in one] == []
    assert [one for one in said if SERIES in one and not one.startswith('{"error"')] == []
    for line in server.lines:
        if not line.startswith("semiseg "):
            assert {"time", "level", "logger", "message"} <= set(json.loads(line))
