"""Segmentation for annotators: the forms of answer that clients ask for, and drafts that are kept."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from semiseg.errors import InputError
from semiseg.volumes.nifti import read_labels, write_nifti
from semiseg.volumes.seg_nrrd import read_seg_nrrd
from server.http.limits import Limits
from server.labelling.model_history import ModelHistory
from tests.bundles import expected_mask, make_threshold_bundle, scan_without_air
from tests.datasets import AFFINE, random_image, write_dataset
from tests.polling import wait_until
from tests.server.labelling.datasets import write_labelled_dataset
from tests.server.labelling.harness import RunningLabelServer, label_server, parse_multipart


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_threshold_bundle(tmp_path_factory.mktemp("bundle") / "b").folder


@pytest.fixture
def server(tmp_path: Path, bundle: Path) -> Iterator[RunningLabelServer]:
    with label_server(write_labelled_dataset(tmp_path / "data"), bundle=bundle) as running:
        yield running


def read(content: bytes, folder: Path) -> np.ndarray:
    (folder / "answer").write_bytes(content)
    return read_labels(folder / "answer").array


def test_the_model_is_listed_as_clients_read_it(server: RunningLabelServer) -> None:
    (name, model), *more = server.info()["models"].items()
    assert name == "threshold" and not more
    assert model["type"] == "segmentation" and model["dimension"] == 3 and model["config"] == {}
    assert model["labels"] == {"low": 1, "high": 2} and "SHA-256" in model["description"]


def test_slicer_gets_parameters_and_a_file_in_one_form(server: RunningLabelServer, tmp_path: Path) -> None:
    answer = server.infer(params={"result_extension": ".nrrd", "result_dtype": "uint8"}, image="s5")
    fields, files = parse_multipart(answer)
    assert list(fields) == ["params"] and list(files) == ["s5.nrrd"]
    params = json.loads(fields["params"])
    assert params["label_names"] == {"low": 1, "high": 2} and params["model"] == "threshold" and params["version"] == 1
    assert np.array_equal(read(files["s5.nrrd"], tmp_path), expected_mask(random_image(5)))
    all_of_it = server.infer(params={"result_extension": ".nrrd"}, image="s5", output="all")
    assert parse_multipart(all_of_it)[1] == files


def test_ohif_gets_an_uncompressed_file_alone(server: RunningLabelServer, tmp_path: Path) -> None:
    params = {"result_extension": ".nrrd", "result_compress": False, "restore_label_idx": False}
    answer = server.infer(params=params, image="s5", output="image")
    assert b"\nencoding: raw\n" in answer.content
    assert np.array_equal(read(answer.content, tmp_path), expected_mask(random_image(5)))
    assert json.loads(answer.headers["x-semiseg-model"])["name"] == "threshold"


@pytest.mark.parametrize("extension", [".nii.gz", ".nii", ".nrrd", ".seg.nrrd"])
def test_every_extension_is_answered_in_its_format(server: RunningLabelServer, tmp_path: Path, extension: str) -> None:
    answer = server.infer(params={"result_extension": extension}, image="s5", output="image")
    assert answer.headers["content-disposition"] == f'attachment; filename="s5{extension}"'
    if extension == ".seg.nrrd":
        (tmp_path / "answer").write_bytes(answer.content)
        stored, segments = read_seg_nrrd(tmp_path / "answer")
        assert [one.name for one in segments] == ["low", "high"]
        assert np.array_equal(stored.array[..., 0], expected_mask(random_image(5)))
    else:
        assert np.array_equal(read(answer.content, tmp_path), expected_mask(random_image(5)))


def test_scripts_may_ask_for_the_parameters_alone(server: RunningLabelServer) -> None:
    assert server.infer(image="s5", output="json").json()["label_names"] == {"low": 1, "high": 2}


def test_what_the_model_makes_is_kept_as_one_draft(server: RunningLabelServer) -> None:
    for who in ("anna", "ben"):
        assert server.infer(params={"client_id": who}, image="s5").status_code == 200
    (draft,) = server.datastore.store.history("s5")
    assert draft.state == "draft" and draft.tag == "original" and draft.model == "threshold" and draft.model_sha256
    assert draft.voxels == {
        "low": int((expected_mask(random_image(5)) == 1).sum()),
        "high": int((expected_mask(random_image(5)) == 2).sum()),
    }
    assert server.datastore.split().labelled == ("s3",)
    # 3D Slicer shows it when the image is offered the next time.
    assert server.get("/datastore/label", params={"label": "s5", "tag": "original"}).status_code == 200
    assert server.infer(params={"save_label": False}, image="s6").status_code == 200
    assert server.datastore.store.history("s6") == ()


def test_a_correction_says_from_which_model_it_came(server: RunningLabelServer) -> None:
    server.infer(image="s5")
    server.save("s5", 50, params={"model": "threshold"})
    draft, final = server.datastore.store.history("s5")
    assert (draft.state, final.state, final.model, final.model_sha256) == ("draft", "final", "threshold", "")


def test_images_of_a_session_or_of_the_request_are_segmented_and_not_kept(
    server: RunningLabelServer, tmp_path: Path
) -> None:
    write_nifti(tmp_path / "own.nii.gz", random_image(77), AFFINE)
    content = (tmp_path / "own.nii.gz").read_bytes()
    made = server.http.put("/session/", files={"files": ("C:\\scans\\own.nii.gz", content)}, data={"client_id": "anna"})
    session = made.json()
    assert session["session_info"]["name"] == session["session_id"] and session["session_info"]["expiry"] == 3600
    assert server.get(f"/session/{session['session_id']}").json()["image"] == "00000-own.nii.gz"
    assert server.get(f"/session/{session['session_id']}", params={"image": "true"}).content == content
    answer = server.infer(image="own", session_id=session["session_id"], output="image")
    assert np.array_equal(read(answer.content, tmp_path), expected_mask(random_image(77)))

    form = {"params": (None, "{}"), "file": ("own.nii.gz", content)}
    answer = server.http.post("/infer/threshold", params={"output": "image", "image": "own"}, files=form)
    assert np.array_equal(read(answer.content, tmp_path), expected_mask(random_image(77)))

    assert server.http.delete(f"/session/{session['session_id']}").json()["name"] == session["session_id"]
    assert server.get(f"/session/{session['session_id']}").status_code == 404
    assert server.infer(image="own", session_id=session["session_id"]).status_code == 404
    assert list((server.datastore.state / "sessions").iterdir()) == [] and server.datastore.store.images() == []


@pytest.mark.parametrize(
    ("model", "query", "params", "status", "words"),
    [
        ("other", {"image": "s5"}, {}, 404, "The model is called threshold"),
        ("threshold", {"image": "nobody"}, {}, 404, "no image with this id"),
        ("threshold", {}, {}, 400, "?image=ID"),
        ("threshold", {"image": "s5", "output": "dicom_seg"}, {}, 400, "not DICOM series"),
        ("threshold", {"image": "s5", "output": "x"}, {}, 400, "`output`"),
        ("threshold", {"image": "s5"}, {"result_extension": ".png"}, 400, "`result_extension`"),
    ],
)
def test_what_cannot_be_segmented_is_refused(server: RunningLabelServer, model, query, params, status, words) -> None:
    answer = server.infer(model, params, **query)
    assert answer.status_code == status and words in answer.json()["error"]


def test_an_image_that_cannot_be_read_is_named_without_the_servers_folders(server: RunningLabelServer) -> None:
    server.datastore.dataset.cases["s6"].image.write_bytes(b"damaged")
    answer = server.infer(image="s6")
    assert answer.status_code == 422 and str(server.datastore.dataset.folder) not in answer.text


def test_the_values_of_the_dataset_need_not_be_those_of_the_model(tmp_path: Path, bundle: Path) -> None:
    names = {"labels": {"0": "background", "3": "high", "7": "low"}}
    write_dataset(tmp_path / "data", 0, 2, document=names)
    with label_server(tmp_path / "data", bundle=bundle) as server:
        assert server.info()["labels"] == ["high", "low"]
        assert server.info()["models"]["threshold"]["labels"] == {"high": 3, "low": 7}
        answer = server.infer(image="s0", output="image")
        assert np.array_equal(read(answer.content, tmp_path), np.array([0, 7, 3])[expected_mask(random_image(0))])


def test_a_bundle_for_other_labels_or_channels_is_refused_at_the_start(tmp_path: Path, bundle: Path) -> None:
    write_dataset(tmp_path / "data", 0, 2, document={"labels": {"0": "background", "1": "low"}})
    with (
        pytest.raises(InputError, match="segments 'high', but the dataset has only low"),
        label_server(tmp_path / "data", bundle=bundle),
    ):
        pass
    write_dataset(tmp_path / "two" / "data", 0, 2, document={"modality": {"0": "T1", "1": "T2"}})
    with pytest.raises(InputError, match="takes 1 channel"), label_server(tmp_path / "two" / "data", bundle=bundle):
        pass


def test_a_client_that_goes_away_leaves_nothing_behind(tmp_path: Path) -> None:
    bundle = make_threshold_bundle(tmp_path / "slow", window=(32, 32, 32), work=3).folder
    write_dataset(tmp_path / "data", 0, 1)
    write_nifti(tmp_path / "data" / "imagesTr" / "s0.nii.gz", scan_without_air((128, 128, 128)), AFFINE)
    with label_server(tmp_path / "data", bundle=bundle, limits=Limits(disk_bytes=0, parallel=1, waiting=1)) as server:
        address = urlsplit(server.url)
        body = b'--b\r\nContent-Disposition: form-data; name="params"\r\n\r\n{}\r\n--b--\r\n'
        head = f"POST /infer/threshold?image=s0 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
            connection.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=b\r\n\r\n" + body)
            scratch = tmp_path / "scratch"
            wait_until(lambda: list(scratch.iterdir()))
        wait_until(lambda: not list(scratch.iterdir()))
        assert server.datastore.store.images() == []


def test_a_new_model_is_used_at_once_and_one_that_cannot_be_opened_never(tmp_path: Path, bundle: Path) -> None:
    write_dataset(tmp_path / "data", 0, 2)
    with label_server(tmp_path / "data", bundle=bundle) as server:
        history = ModelHistory(server.datastore.state)
        (server.datastore.state / "broken").mkdir()
        history.add("broken", sha256="", round="", who="anna", why="")
        assert list(server.info()["models"]) == ["threshold"] and server.infer(image="s0").status_code == 200
        make_threshold_bundle(server.datastore.state / "new", name="new")
        history.add("new", sha256="", round="", who="anna", why="")
        assert list(server.info()["models"]) == ["new"]
        assert server.infer("new", image="s0").status_code == 200 and server.infer(image="s0").status_code == 404
        history.roll_back("anna", 0)
        assert list(server.info()["models"]) == ["threshold"]
