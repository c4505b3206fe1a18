"""The head of an answer stays small, however much there is to say; the body says all of it."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from semiseg.bundle.bundle import MODEL, write_bundle
from semiseg.client import Client
from semiseg.outputs.formats import RESULTS_MEDIA_TYPE
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.segmentation import Segment
from semiseg.volumes.volume import Volume
from server.http.result_headers import (
    MAX_HEADER_BYTES,
    MILLILITRES_HEADER,
    MODEL_HEADER,
    REMARKS_HEADER,
    SHORTENED_HEADER,
    limit_header_sizes,
)
from tests.bundles import make_threshold_bundle, scan_array
from tests.server.harness import running_server

HEAD_BYTES = 4096  # of the whole head of an answer, behind a default nginx
AFFINE = np.diag([-1.5, -1.5, 3.0, 1.0])


def many_segments(folder: Path, count: int = 14) -> Path:
    """A bundle whose model knows so many segments, of which it finds two; none has a code."""
    plain = make_threshold_bundle(folder / "plain")
    names = [f"a structure with a rather long name, number {number} ÄÖÜ" for number in range(1, count + 1)]
    segments = tuple(
        Segment(name=name, label=label, colour=(10 * label, 60, 60)) for label, name in enumerate(names, start=1)
    )
    manifest = plain.manifest.model_copy(update={"segments": segments, "name": "Ä" * 64})

    def fill(scratch: Path):
        (scratch / MODEL).write_bytes(_wide_graph((plain.folder / MODEL).read_bytes(), count - 2))
        return manifest

    return write_bundle(folder / "many", fill).folder


def _wide_graph(model: bytes, more: int) -> bytes:
    """The same graph with logits for more segments, which are never the largest."""
    import onnx
    from onnx import helper, numpy_helper

    graph = onnx.load_model_from_string(model)
    (out,) = graph.graph.output
    name, inner = out.name, f"{out.name}_few"
    for node in graph.graph.node:
        node.output[:] = [inner if one == name else one for one in node.output]
        node.input[:] = [inner if one == name else one for one in node.input]
    pads = np.array([0, 0, 0, 0, 0, 0, more, 0, 0, 0])  # behind the last channel
    graph.graph.initializer.append(numpy_helper.from_array(pads, "wide_pads"))
    graph.graph.initializer.append(numpy_helper.from_array(np.array(-1e4, np.float32), "wide_value"))
    graph.graph.node.append(helper.make_node("Pad", [inner, "wide_pads", "wide_value"], [name]))
    out.type.tensor_type.shape.dim[1].dim_value += more
    return graph.SerializeToString()


def head_bytes(answer) -> int:
    return len(b"HTTP/1.1 200 OK\r\n\r\n") + sum(len(name) + len(value) + 4 for name, value in answer.headers.raw)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series")
    write_dicom_series(folder, Volume(scan_array((16, 14, 9), 3), AFFINE))
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("many")
    with running_server(many_segments(folder), folder / "p", "--state", str(folder / "s")) as server:
        yield server


def test_head_of_an_answer_stays_below_what_a_default_proxy_takes(server, series):
    files = sorted(series.iterdir())
    for kind in ("seg", "nifti", "json", "seg,sr"):
        answer = server.segment(*files, fields={"output_format": kind})
        assert answer.status_code == 200, answer.text
        assert head_bytes(answer) < HEAD_BYTES
        assert json.loads(answer.headers[SHORTENED_HEADER]) == [MILLILITRES_HEADER, REMARKS_HEADER]
        assert json.loads(answer.headers[MILLILITRES_HEADER]) == {}  # a part could be taken for the whole
        assert ["uncoded_segments", ""] in json.loads(answer.headers[REMARKS_HEADER])
        assert len(json.loads(answer.headers[MODEL_HEADER])["sha256"]) == 64


def test_client_reads_from_the_body_what_the_headers_leave_out(server, series):
    report = server.segment(*sorted(series.iterdir()), fields={"output_format": "json"}).json()
    millilitres = {segment["name"]: segment["ml"] for segment in report["segments"]}
    remarks = tuple((remark["code"], remark["text"]) for remark in report["remarks"])
    assert len(millilitres) == 14 and any(len(text) > MAX_HEADER_BYTES for _, text in remarks)
    with Client(server.url) as client:
        for kind in (None, "seg", "nifti", "json", "overlay", "viewer-bundle"):
            answer = client.ask(series, kind)
            assert (answer.millilitres, answer.remarks) == (millilitres, remarks), kind
            assert answer.model["name"] == "Ä" * 64 and answer.seconds["upload"] > 0
        seg = pydicom.dcmread(io.BytesIO(client.ask(series).body))
        assert seg.Modality == "SEG" and remarks[0][1] in seg.ImageComments
        assert client.segment(series, "json")["segments"] == report["segments"]
        several = client.ask_forms(series, ("seg", "overlay"))
        assert list(several.files) == ["seg", "overlay"] and len(several.files["overlay"]) > 1
        assert (several.millilitres, several.remarks) == (millilitres, remarks)
        job = client.wait(client.submit(series, "seg").id)
        result = client.result(job.id)
        assert (result.millilitres, result.remarks) == (millilitres, remarks)
        assert result.media_type == "application/dicom"
        document = server.get(f"/jobs/{job.id}").json()
        assert (document["millilitres"], document["remarks"]) == (millilitres, report["remarks"])


def test_report_comes_beside_any_form_to_whoever_asks_for_it(server):
    scan = nib.Nifti1Image(scan_array((12, 10, 8)), np.eye(4)).to_bytes()
    for fields, folders in (
        ({}, {"nifti", "json"}),
        ({"output_format": "json"}, {"json"}),
        ({"output_format": "nrrd"}, {"nrrd", "json"}),
    ):
        answer = server.segment(scan, fields=fields, headers={"Accept": f"{RESULTS_MEDIA_TYPE}, */*"})
        assert answer.headers["content-type"] == RESULTS_MEDIA_TYPE
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert {name.partition("/")[0] for name in archive.namelist()} == folders
            assert json.loads(archive.read("json/segmentation.json"))["segments"]


def test_result_that_version_0_1_kept_with_long_headers_is_answered_with_short_ones(server, series):
    import contextlib
    import sqlite3

    with Client(server.url) as client:
        job = client.wait(client.submit(series, "seg").id).id
        whole = client.result(job)
    long = {MILLILITRES_HEADER: json.dumps(whole.millilitres), REMARKS_HEADER: json.dumps(whole.remarks)}
    with contextlib.closing(sqlite3.connect(server.state / "jobs.sqlite3")) as database, database:
        (kept,) = database.execute("SELECT result FROM jobs WHERE id = ?", (job,)).fetchone()
        result = json.loads(kept)
        result["headers"] = {n: v for n, v in result["headers"].items() if n != SHORTENED_HEADER} | long
        del result["millilitres"], result["remarks"]
        database.execute("UPDATE jobs SET result = ? WHERE id = ?", (json.dumps(result), job))
    answer = server.get(f"/jobs/{job}/result")
    assert answer.status_code == 200 and head_bytes(answer) < HEAD_BYTES
    with Client(server.url) as client:
        again = client.result(job)
    assert (again.millilitres, again.remarks) == (whole.millilitres, whole.remarks)


def test_short_headers_stay_as_they_are():
    headers = {MILLILITRES_HEADER: '{"low": 1.0}', REMARKS_HEADER: '[["a", "b"]]', "Server-Timing": "upload;dur=1"}
    assert limit_header_sizes(headers) == headers | {SHORTENED_HEADER: "[]"}
    long = headers | {REMARKS_HEADER: json.dumps([[f"code_{k}", "x" * 100] for k in range(500)])}
    assert len(limit_header_sizes(long)[REMARKS_HEADER]) <= MAX_HEADER_BYTES
    assert limit_header_sizes(limit_header_sizes(long)) == limit_header_sizes(long)
