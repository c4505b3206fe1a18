"""Whatever is sent, the answer is a status and one sentence that names no file of the server, and nothing stays."""

from __future__ import annotations

import gzip
import io
import re
import struct
import zipfile
from collections.abc import Iterator

import nibabel as nib
import numpy as np
import pytest

from tests.bundles import make_threshold_bundle, scan_array
from tests.server.harness import RunningServer, running_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    bundle = make_threshold_bundle(folder / "bundle", at_full_intensity="nan")
    with running_server(bundle.folder, folder / "process") as server:
        yield server
        assert server.leftovers() == []


def nifti(values: np.ndarray | None = None) -> bytes:
    return nib.Nifti1Image(scan_array((12, 10, 8)) if values is None else values, np.eye(4)).to_bytes()


def packed(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def with_bytes(original: bytes, offset: int, new: bytes) -> bytes:
    return original[:offset] + new + original[offset + len(new) :]


def zip_with_link() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        link = zipfile.ZipInfo("scan.nii")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    return out.getvalue()


NOT_A_SCAN = {
    "empty": b"",
    "text": b"Dear colleague, please find the scan enclosed.\n" * 20,
    "random": np.random.default_rng(0).bytes(5000),
    "gzip of text": gzip.compress(b"nothing to see here" * 100),
    "half a gzip header": b"\x1f\x8b\x08",
    "png": b"\x89PNG\r\n\x1a\n" + bytes(400),
    "one half of a pair": with_bytes(nifti(), 344, b"ni1\0"),
}
NOT_A_VOLUME = {
    "truncated nifti": nifti()[:-100],
    "truncated gzip": gzip.compress(nifti())[:-200],
    "header that declares terabytes": with_bytes(nifti(), 40, struct.pack("<4h", 3, 32000, 32000, 32000)),
    "gzip bomb": gzip.compress(with_bytes(nifti(), 40, struct.pack("<4h", 3, 2000, 2000, 2000)) + bytes(2**20)),
    "negative shape": with_bytes(nifti(), 40, struct.pack("<4h", 3, -5, 10, 8)),
    "not a number": nifti(np.full((6, 6, 6), np.nan, np.float32)),
    "complex voxels": nifti(np.ones((6, 6, 6), np.complex64)),
    "two volumes": nifti(np.ones((6, 6, 6, 2), np.float32)),
    "one slice of two axes": nifti(np.ones((6, 6), np.float32)),
    "affine without volume": with_bytes(nifti(), 280, bytes(48)),
    "zip of text": packed({"readme.txt": b"hello"}),
    "empty zip": packed({}),
    "truncated zip": packed({"scan.nii": nifti()})[:-40],
    "zip bomb": packed({"scan.nii": bytes(200 * 2**20)}),
    "zip in a zip": packed({"inner.zip": packed({"scan.nii": nifti()})}),
    "link in a zip": zip_with_link(),
    "two scans in a zip": packed({"a.nii": nifti(), "b.nii": nifti()}),
    "dicom header only": bytes(128) + b"DICM" + bytes(64),
}


def assert_one_sentence(server: RunningServer, answer: object, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert set(document) == {"error"}
    sentence = document["error"]
    assert re.match(r"[A-Z]", sentence) and sentence.endswith(".") and "\n" not in sentence, sentence
    for inside in ("Traceback", str(server.temporary), "semiseg-", "scan-0", "site-packages", ".py"):
        assert inside not in sentence, sentence
    return sentence


@pytest.mark.parametrize("name", NOT_A_SCAN)
def test_what_is_no_scan_is_refused_as_such(server, name):
    """SRV-02."""
    assert_one_sentence(server, server.segment(NOT_A_SCAN[name]), 415)


@pytest.mark.parametrize("name", NOT_A_VOLUME)
def test_scan_that_is_no_volume_is_refused_with_the_reason(server, name):
    assert_one_sentence(server, server.segment(NOT_A_VOLUME[name]), 422)


def test_member_names_of_a_zip_lead_nowhere(server):
    answer = server.segment(packed({"../../../../escaped.nii": nifti()}))
    assert answer.status_code == 200, answer.text
    assert not list(server.temporary.parent.rglob("*escaped*"))


def test_two_nifti_files_are_refused(server):
    assert "2 NIfTI files" in assert_one_sentence(server, server.segment(nifti(), nifti()), 422)


def test_sentence_about_one_of_several_files_says_which(server):
    sentence = assert_one_sentence(server, server.segment(b"text", nifti()[:-100]), 422)
    assert "ile 2 of the upload" in sentence


def test_form_without_a_file_is_refused(server):
    answer = server.http.post(f"{server.url}/segment", files={"series": (None, "1.2.3")})
    assert "`scan`" in assert_one_sentence(server, answer, 400)


def test_text_in_the_place_of_a_file_is_refused(server):
    answer = server.http.post(f"{server.url}/segment", files={"scan": (None, "path/to/scan.nii")})
    assert_one_sentence(server, answer, 400)


def test_file_in_an_unknown_field_is_refused(server):
    answer = server.http.post(f"{server.url}/segment", files={"image": ("scan.nii", nifti())})
    assert "`scan`" in assert_one_sentence(server, answer, 400)


def test_field_given_twice_is_refused(server):
    parts = [("scan", ("a", nifti())), ("output_format", (None, "json")), ("output_format", (None, "nifti"))]
    assert_one_sentence(server, server.http.post(f"{server.url}/segment", files=parts), 400)


def test_former_name_of_a_field_is_understood_but_not_beside_the_present_one(server):
    assert server.segment(nifti(), fields={"answer": "json"}).json()["segments"]
    both = server.segment(nifti(), fields={"answer": "json", "output_format": "json"})
    assert "given twice" in assert_one_sentence(server, both, 400)


def test_endless_text_field_is_refused(server):
    assert_one_sentence(server, server.segment(nifti(), fields={"series": "1." * 100_000}), 400)


def test_unknown_answer_is_refused(server):
    assert "nifti" in assert_one_sentence(server, server.segment(nifti(), fields={"output_format": "stl"}), 400)


def test_seg_of_a_nifti_file_is_refused(server):
    assert "DICOM" in assert_one_sentence(server, server.segment(nifti(), fields={"output_format": "seg"}), 400)


def test_bare_file_without_a_form_is_refused(server):
    answer = server.http.post(f"{server.url}/segment", content=nifti())
    assert "multipart" in assert_one_sentence(server, answer, 415)


@pytest.mark.parametrize("boundary", ["", "x" * 500])
def test_form_without_a_usable_boundary_is_refused(server, boundary):
    kind = f"multipart/form-data; boundary={boundary}"
    answer = server.http.post(f"{server.url}/segment", content=b"--x\r\n", headers={"content-type": kind})
    assert_one_sentence(server, answer, 400)


@pytest.mark.parametrize("cut", [20, 60, 150, -4, -30])
def test_form_that_ends_early_is_refused(server, cut):
    form = (
        b'--b\r\nContent-Disposition: form-data; name="scan"; filename="s"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" + nifti() + b"\r\n--b--\r\n"
    )
    kind = {"content-type": "multipart/form-data; boundary=b"}
    assert server.http.post(f"{server.url}/segment", content=form, headers=kind).status_code == 200
    assert_one_sentence(server, server.http.post(f"{server.url}/segment", content=form[:cut], headers=kind), 400)


@pytest.mark.parametrize(
    "form",
    [
        b"garbage",
        b"--b\r\n\r\nno headers\r\n--b--\r\n",
        b"--b\r\nContent-Disposition: form-data\r\n\r\nnameless\r\n--b--\r\n",
        b"--b\r\nX: " + b"y" * 200_000 + b"\r\n\r\nlong header\r\n--b--\r\n",
        b"--b\r\n" + b"X: y\r\n" * 20_000 + b"\r\nmany headers\r\n--b--\r\n",
        b"--b--\r\n",
        b"",
    ],
)
def test_malformed_form_is_refused(server, form):
    kind = {"content-type": "multipart/form-data; boundary=b"}
    assert_one_sentence(server, server.http.post(f"{server.url}/segment", content=form, headers=kind), 400)


def test_failure_of_the_network_is_one_sentence_with_a_reference_into_the_log(server):
    values = scan_array((12, 10, 8))
    values[3, 3, 3] = 1000
    sentence = assert_one_sentence(server, server.segment(nifti(values)), 500)
    reference = re.search(r"reference ([0-9a-f]+)", sentence)
    assert reference and reference[1] in server.output


def test_wrong_method_and_wrong_place_are_client_errors(server):
    assert server.get("/segment").status_code == 405
    assert server.http.post(f"{server.url}/nowhere").status_code == 404


def test_scan_with_too_few_channels_is_refused(tmp_path):
    bundle = make_threshold_bundle(tmp_path / "bundle", channels=("T1", "T2"))
    with running_server(bundle.folder, tmp_path / "process") as server:
        assert "T1, T2" in assert_one_sentence(server, server.segment(nifti()), 422)
        values = scan_array((12, 10, 8))
        both = np.stack([values, values[::-1]], axis=-1)
        assert server.segment(nifti(both)).status_code == 200


def test_server_works_on_after_all_this(server):
    """SRV-02."""
    assert server.get("/readyz").status_code == 200
    assert server.segment(nifti()).status_code == 200
    assert server.leftovers() == []
