"""The datastore over HTTP: what 3D Slicer, its reviewer and scripts ask, and what they must hear."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from semiseg.dataset import load_dataset, read_split
from semiseg.errors import InputError
from semiseg.volumes.nifti import read_labels
from tests.datasets import SHAPE, random_labels
from tests.server.labelling.datasets import write_labelled_dataset
from tests.server.labelling.harness import RunningLabelServer, label_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningLabelServer]:
    with label_server(write_labelled_dataset(tmp_path / "data")) as running:
        yield running


def labels_in(content: bytes, folder: Path) -> np.ndarray:
    path = folder / "received.nii.gz"
    path.write_bytes(content)
    return read_labels(path).array


def test_the_information_has_what_clients_read(server: RunningLabelServer) -> None:
    info = server.info()
    assert info["name"] == "semiseg: Noise" and info["labels"] == ["low", "high"]
    assert "config" not in info  # 3D Slicer takes a server with it for one that is too old
    assert info["models"] == info["trainers"] == info["train_stats"] == info["scoring"] == {}
    assert set(info["strategies"]) == {"random", "first"}
    assert info["datastore"] == {"total": 5, "completed": 2, "label_tags": {"final": 2}}


def test_addresses_lead_on_without_their_last_slash(server: RunningLabelServer) -> None:
    assert server.get("/info", follow_redirects=True).json() == server.info()
    assert server.get("/datastore?output=all", follow_redirects=True).json()["objects"].keys() == {
        f"s{k}" for k in range(7)
    }
    assert server.get("/").status_code == 200  # the reviewer's test of the connection


def test_a_saved_label_is_listed_downloaded_and_described(server: RunningLabelServer, tmp_path: Path) -> None:
    saved = server.save("s5", 50, params={"label_info": [{"name": "low", "idx": 1}, {"name": "high", "idx": 2}]})
    assert saved.status_code == 200
    assert saved.json()["image"] == saved.json()["label"] == "s5" and saved.json()["version"] == 1
    found = server.get("/datastore/", params={"output": "all"}).json()["objects"]["s5"]
    assert found["image"]["ext"] == ".nii.gz" and found["image"]["info"]["name"] == "s5.nii.gz"
    info = found["labels"]["final"]["info"]
    assert info["who"] == "anna" and info["state"] == "final" and info["version"] == 1
    assert info["params"]["label_names"] == {"low": 1, "high": 2} and info["label_info"][0]["name"] == "low"

    answer = server.get("/datastore/label", params={"label": "s5", "tag": "final"})
    assert answer.headers["content-disposition"] == 'attachment; filename="s5.nii.gz"'
    assert np.array_equal(labels_in(answer.content, tmp_path), random_labels(50))
    assert info["checksum"] == f"SHA256:{hashlib.sha256(answer.content).hexdigest()}"
    assert server.get("/datastore/label/info", params={"label": "s5", "tag": "final"}).json() == info
    head = server.http.head("/datastore/label", params={"image": "s5", "tag": "final"})
    assert head.status_code == 200 and head.content == b""


def test_only_the_segments_that_occur_are_named(server: RunningLabelServer) -> None:
    """3D Slicer gives the first name to the first value that occurs, so a name too many would rename a segment."""
    array = np.zeros(SHAPE, np.uint8)
    array[0] = 2
    from semiseg.volumes.nifti import write_nifti
    from tests.datasets import AFFINE

    path = server.datastore.state.parent / "high.nii.gz"
    write_nifti(path, array, AFFINE)
    assert server.save("s5", 0, tag="original", content=path.read_bytes()).status_code == 200
    info = server.get("/datastore/label/info", params={"label": "s5", "tag": "original"}).json()
    assert info["params"]["label_names"] == {"high": 2} and info["state"] == "draft"


def test_the_split_grows_and_training_scans_are_offered_until_they_are_done(server: RunningLabelServer) -> None:
    offered = [server.http.post("/activelearning/first", json={"client_id": "anna"}).json() for _ in range(4)]
    assert [one["id"] for one in offered] == ["s4", "s5", "s6", "s4"]
    for image in ("s4", "s6"):
        assert server.save(image, 1).status_code == 200
    assert server.http.post("/activelearning/first").json()["id"] == "s5"
    assert server.save("s5", 1).status_code == 200
    assert server.http.post("/activelearning/random", json={}).json() == {}  # 3D Slicer: no more images
    assert server.info()["datastore"]["completed"] == server.info()["datastore"]["total"] == 5
    split = read_split(load_dataset(server.datastore.dataset.folder), server.datastore.state / "split.json")
    assert split.labelled == ("s3", "s4", "s5", "s6") or set(split.labelled) == {"s3", "s4", "s5", "s6"}
    assert split.test == ("s0",) and split.development == ("s1",) and split.validation == ("s2",)


def test_scans_are_offered_as_suggested_and_the_suggestions_may_be_written_anew(tmp_path: Path) -> None:
    folder = tmp_path / "next"
    folder.mkdir()
    table = folder / "suggestions.csv"
    table.write_text("rank,scan,nearest\n1,s6,s4\n2,s0,s4\n,s4,s6\n", encoding="utf-8")  # s0 is a test scan

    def offered(server: RunningLabelServer) -> str:
        return str(server.http.post("/activelearning/suggested", json={"client_id": "anna"}).json()["id"])

    with label_server(write_labelled_dataset(tmp_path / "data"), suggestions=folder) as server:
        assert set(server.info()["strategies"]) == {"random", "first", "suggested"}
        assert offered(server) == "s6"
        table.write_text("rank,scan,disagreement\n2,s6,0.1\n1,s5,0.3\n", encoding="utf-8")
        assert [offered(server) for _ in range(2)] == ["s5", "s4"]
        table.write_text("scan\ns5\n", encoding="utf-8")
        refused = server.http.post("/activelearning/suggested", json={})
        assert refused.status_code == 422 and "is not a table that `semiseg suggest` wrote" in refused.text
    table.unlink()
    with (
        pytest.raises(InputError, match="is not a table that `semiseg suggest`"),
        label_server(write_labelled_dataset(tmp_path / "other"), suggestions=folder),
    ):
        pass


def test_an_offered_image_is_opened_where_it_lies_or_downloaded_whole(server: RunningLabelServer) -> None:
    offered = server.http.post("/activelearning/first", json={"client_id": "anna"}).json()
    content = Path(offered["path"]).read_bytes()  # the client runs on this machine
    assert offered["checksum"] == f"SHA256:{hashlib.sha256(content).hexdigest()}"
    answer = server.get("/datastore/image", params={"image": offered["id"]})
    assert answer.content == content and answer.headers["content-disposition"].endswith('"s4.nii.gz"')
    there = {"image": "s4", "check_sum": offered["checksum"]}
    assert server.http.head("/datastore/image", params=there).status_code == 200
    assert server.http.head("/datastore/image", params={**there, "check_sum": "0" * 64}).status_code == 404
    assert server.get("/datastore/image/info", params={"image": "s4"}).json()["name"] == "s4.nii.gz"
    behind = server.http.post("/activelearning/first", headers={"X-Forwarded-For": "10.0.0.1"}).json()
    assert behind["path"] == behind["name"]  # a client that came through a proxy learns no path of this machine


def test_labels_that_are_closed_cannot_be_downloaded(server: RunningLabelServer) -> None:
    for image in ("s0", "s1", "s4"):
        answer = server.get("/datastore/label", params={"label": image, "tag": "final"})
        assert answer.status_code == 404 and answer.json()["error"] == "The image has no label with this tag."
    pairs = server.get("/datastore/", params={"output": "train"}).json()
    assert [Path(pair["image"]).name for pair in pairs] == ["s3.nii.gz", "s2.nii.gz"]


def test_a_deleted_label_is_withdrawn_and_kept(server: RunningLabelServer) -> None:
    server.save("s5", 50)
    assert server.http.delete("/datastore/label", params={"id": "s5", "tag": "final"}).json() == {}
    assert server.get("/datastore/label", params={"label": "s5", "tag": "final"}).status_code == 404
    assert server.http.delete("/datastore/label", params={"id": "s5", "tag": "final"}).status_code == 404
    assert [one.kind for one in server.datastore.store.history("s5")] == ["label", "withdrawal"]
    assert server.http.delete("/datastore/label", params={"id": "s3", "tag": "final"}).status_code == 404


def test_a_reviewer_adds_notes_and_versions(server: RunningLabelServer) -> None:
    server.save("s5", 50)
    meta = {"segmentationMeta": {"status": "approved", "level": "easy"}}
    where = {"label": "s5", "tag": "final"}
    answer = server.http.put("/datastore/updatelabelinfo", params=where, data={"params": json.dumps(meta)})
    assert answer.status_code == 200
    assert server.http.put("/datastore/label/info", params=where, data={"info": json.dumps({"more": 1})}).is_success
    info = server.get("/datastore/label/info", params=where).json()
    assert info["segmentationMeta"]["status"] == "approved" and info["more"] == 1 and info["version"] == 1
    assert server.save("s5", 51, tag="version_1", params=meta).status_code == 200
    tags = server.get("/datastore/", params={"output": "all"}).json()["objects"]["s5"]["labels"]
    assert list(tags) == ["final", "version_1", "original"]


@pytest.mark.parametrize(
    ("query", "params", "content", "status", "words"),
    [
        ({"image": "nobody"}, {}, None, 404, "no image with this id"),
        ({"image": "s5", "tag": "a/b"}, {}, None, 422, "tag"),
        ({}, {}, None, 400, "?image="),
        ({"image": "s5"}, {"label_info": "x"}, None, 422, "label_info"),
        ({"image": "s5"}, {}, b"no volume", 422, "format of the label is not supported"),
    ],
)
def test_a_label_that_cannot_be_kept_is_refused_with_a_sentence(
    server: RunningLabelServer, query, params, content, status, words
) -> None:
    body = content if content is not None else server.label_file(1).read_bytes()
    form = {"params": json.dumps(params)}
    answer = server.http.put("/datastore/label", params=query, data=form, files={"label": ("label.nii.gz", body)})
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"] and answer.json()["detail"] == answer.json()["error"]
    assert str(server.datastore.state.parent) not in answer.text
    assert server.datastore.store.images() == []


def test_images_are_neither_added_nor_deleted(server: RunningLabelServer) -> None:
    for path in ("/datastore/", "/datastore/image"):
        answer = server.http.put(path, params={"image": "x"}, files={"file": ("x.nii.gz", b"x" * 3_000_000)})
        assert answer.status_code == 403 and "collect" in answer.json()["error"]
        assert server.http.delete(path, params={"id": "s5"}).status_code == 403


def test_two_annotators_at_once_both_get_a_version(server: RunningLabelServer) -> None:
    answers: list[int] = []

    def annotate(who: str, seeds: range) -> None:
        for seed in seeds:
            answers.append(server.save("s5", seed, params={"client_id": who}).json()["version"])

    for seed in range(16):
        server.label_file(seed)
    threads = [
        threading.Thread(target=annotate, args=("anna", range(8))),
        threading.Thread(target=annotate, args=("ben", range(8, 16))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == list(range(1, 17)) and server.datastore.store.check() == []
    assert {one.who for one in server.datastore.store.history("s5")} == {"anna", "ben"}


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("text/plain", b"x", 415),
        ("multipart/form-data; boundary=b", b"--b\r\nno header\r\n", 400),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="label"; filename="l"\r\n\r\nx',
            400,
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="params"\r\n\r\n[1]\r\n--b--\r\n',
            400,
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="params"\r\n\r\n\xff\r\n--b--\r\n',
            400,
        ),
    ],
)
def test_a_malformed_form_is_refused(server: RunningLabelServer, content_type, body, status) -> None:
    answer = server.http.put("/datastore/label?image=s5", content=body, headers={"Content-Type": content_type})
    assert answer.status_code == status and len(answer.json()["error"]) > 10


def test_strange_addresses_and_methods_get_a_sentence(server: RunningLabelServer) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404), ("POST", "/info/", 405), ("GET", "/datastore/?output=x", 400),
        ("POST", "/activelearning/epistemic", 404), ("GET", "/train/", 404), ("GET", "/session/x", 404),
        ("POST", "/infer/none?image=s5", 415), ("GET", "/datastore/label/info?label=s5&tag=final", 404),
    ):  # fmt: skip
        answer = server.http.request(method, path)
        assert answer.status_code == status, (path, answer.text)
        assert answer.json()["error"].endswith((".", "...")), path


def test_a_restarted_server_knows_all_labels(tmp_path: Path) -> None:
    data = write_labelled_dataset(tmp_path / "data")
    with label_server(data) as first:
        first.save("s5", 50)
        listed = first.get("/datastore/", params={"output": "all"}).json()
    with label_server(data) as second:
        assert second.get("/datastore/", params={"output": "all"}).json() == listed
