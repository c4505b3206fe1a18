"""The description of the interface compared with what the server really does, answer by answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest

from semiseg.outputs.formats import RESULTS_MEDIA_TYPE
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.volume import Volume
from tests.bundles import make_threshold_bundle, scan_array, scan_without_air
from tests.polling import wait_until
from tests.server.harness import RunningServer, busy_server, running_server, send_raw


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    return make_threshold_bundle(folder, work=4, window=(32, 32, 32), at_full_intensity="nan").folder


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    options = ("--max-upload-mb", "4", "--idle-timeout", "1", "--parallel", "1", "--waiting", "0")
    with running_server(bundle, tmp_path_factory.mktemp("server"), *options) as server:
        yield server


@pytest.fixture(scope="module")
def impatient_server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(bundle, tmp_path_factory.mktemp("impatient"), "--timeout", "1") as server:
        yield server


@pytest.fixture(scope="module")
def document(server: RunningServer) -> dict[str, Any]:
    document: dict[str, Any] = server.get("/docs.json").json()
    return document


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    return write_dicom_series(tmp_path_factory.mktemp("series"), Volume(scan_array((9, 8, 4)), affine))


def nifti(values: np.ndarray | None = None) -> bytes:
    return nib.Nifti1Image(scan_array((12, 10, 8)) if values is None else values, np.eye(4)).to_bytes()


def standing_still(server: RunningServer) -> httpx.Response:
    with send_raw(server, "Content-Length: 999", b"--b") as connection:
        received = connection.makefile("rb").read()
    head, _, body = received.partition(b"\r\n\r\n")
    kind = next(line.split(b": ")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-type"))
    return httpx.Response(int(head.split()[1]), headers={"content-type": kind.decode()}, content=body)


def while_busy(server: RunningServer) -> httpx.Response:
    with busy_server(server, many()):
        answer = server.segment(nifti())
    wait_until_idle(server)
    return answer


def too_long(server: RunningServer) -> httpx.Response:
    answer = server.segment(many())
    wait_until_idle(server)
    return answer


def wait_until_idle(server: RunningServer) -> None:
    wait_until(lambda: server.segment(nifti()).status_code != 503)


def many() -> bytes:
    return nifti(scan_without_air((150, 150, 150)))


def full_intensity() -> bytes:
    values = scan_array((12, 10, 8))
    values[0, 0, 0] = 1000
    return nifti(values)


CAUSES: dict[str, Callable[[RunningServer], httpx.Response]] = {
    "200": lambda s: s.segment(nifti()),
    "400": lambda s: s.segment(nifti(), fields={"output_format": "png"}),
    "408": standing_still,
    "413": lambda s: s.segment(bytes(5 * 2**20)),
    "415": lambda s: s.segment(b"text"),
    "422": lambda s: s.segment(nifti()[:-1]),
    "500": lambda s: s.segment(full_intensity()),
    "503": while_busy,
    "504": too_long,
}


ELSEWHERE = {"401", "403", "429", "507"}  # of servers that are started otherwise: test_guard.py


def test_every_answer_that_is_described_has_a_test(document):
    assert set(document["paths"]["/segment"]["post"]["responses"]) == set(CAUSES) | ELSEWHERE


@pytest.mark.parametrize("status", CAUSES)
def test_server_gives_the_answer_that_is_described(server, impatient_server, document, status):
    """SRV-08."""
    answer = CAUSES[status](impatient_server if status == "504" else server)
    assert answer.status_code == int(status), answer.text
    described = document["paths"]["/segment"]["post"]["responses"][status]["content"]
    kind = answer.headers["content-type"].split(";")[0]
    assert kind in described
    if kind == "application/json":
        assert_valid(answer.json(), described[kind]["schema"], document)


def test_every_form_of_answer_that_is_described_can_be_had(server, document, series):
    operation = document["paths"]["/segment"]["post"]
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    media = set()
    for kind in form["output_format"]["anyOf"][0]["enum"]:
        answer = server.segment(*series, fields={"output_format": kind})
        assert answer.status_code == 200, answer.text
        media.add(answer.headers["content-type"].split(";")[0])
        assert set(operation["responses"]["200"]["headers"]) <= {_title(name) for name in answer.headers}
        ours = {_title(n) for n in answer.headers if n.startswith("x-semiseg-")}
        undescribed = ours - set(operation["responses"]["200"]["headers"])
        assert not undescribed
    packed = server.segment(*series, headers={"Accept": RESULTS_MEDIA_TYPE})
    media.add(packed.headers["content-type"])
    assert media == set(operation["responses"]["200"]["content"])


def test_json_answer_fits_its_schema(server, document, series):
    schema = document["paths"]["/segment"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    answer = server.segment(*series, fields={"output_format": "json"}).json()
    assert_valid(answer, schema, document)
    with pytest.raises(AssertionError):
        assert_valid({**answer, "segments": "none"}, schema, document)  # the check itself can fail


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("application/json", "application/json"),
        ("text/html, application/dicom;q=0.9, */*", "application/dicom"),
        ("application/gzip", "application/gzip"),
        ("*/*", "application/dicom"),
        ("text/html", "application/dicom"),
    ],
)
def test_accept_header_decides_as_described(server, series, accept, expected):
    assert server.segment(*series, headers={"accept": accept}).headers["content-type"] == expected


def test_field_names_the_answer_before_the_accept_header(server):
    answer = server.segment(nifti(), fields={"output_format": "json"}, headers={"accept": "application/gzip"})
    assert answer.headers["content-type"] == "application/json"


def test_fields_that_are_described_are_those_that_are_taken(server, document):
    form = document["paths"]["/segment"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    fields = {"scan", "channel:image", "model", "output_format", "series", "strict", "aligned", "full"}
    assert set(form["properties"]) == fields
    assert form["oneOf"] == [{"required": ["scan"]}, {"required": ["channel:image"]}]
    assert form["additionalProperties"] is False
    assert server.segment(nifti(), fields={"other": "1"}).status_code == 400
    assert "4 MB" in form["properties"]["scan"]["description"]


def test_other_paths_that_are_described_answer(server, document):
    for path in set(document["paths"]) - {"/segment"}:
        answer = server.get(path)
        assert answer.status_code == 200
        described = document["paths"][path]["get"]["responses"]["200"]
        for media in described.get("content", {}).values():
            assert_valid(answer.json(), media["schema"], document)


def test_page_loads_nothing_from_elsewhere(server):
    page = server.get("/").text
    assert "RESEARCH USE ONLY" in page
    assert "http://" not in page and "https://" not in page and 'src="//' not in page
    for part in re.findall(r'(?:href|src)="(page/[^"]+)"', page):
        assert server.get(f"/{part}").status_code == 200, part


def _title(name: str) -> str:
    return "-".join(word.capitalize() for word in name.split("-"))


def assert_valid(value: Any, schema: dict[str, Any], document: dict[str, Any]) -> None:
    """The part of JSON Schema that the document uses."""
    if "$ref" in schema:
        target: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        return assert_valid(value, target, document)
    if "anyOf" in schema:
        (option,) = [part for part in schema["anyOf"] if (part.get("type") == "null") == (value is None)]
        return assert_valid(value, option, document)
    if "type" in schema:
        assert _type_of(value) == schema["type"] or (schema["type"] == "number" and _type_of(value) == "integer"), (
            value,
            schema,
        )
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        assert set(schema.get("required", [])) <= set(value)
        for key, item in value.items():
            extra = schema.get("additionalProperties", True)
            assert key in properties or extra is not False, key
            assert_valid(item, properties.get(key, extra if isinstance(extra, dict) else {}), document)
    if isinstance(value, list):
        each = schema.get("prefixItems") or [schema.get("items", {})] * len(value)
        assert len(value) == len(each)
        for item, part in zip(value, each, strict=True):
            assert_valid(item, part, document)
    if isinstance(value, str):
        assert len(value) >= schema.get("minLength", 0)
    return None


def _type_of(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}
    return names.get(type(value), "null")
