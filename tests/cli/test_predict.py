"""`semiseg predict`: the same mask from a bundle and from a server, in each form, and sentences for wrong use."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest

from cli.app import main
from semiseg.client import Client
from semiseg.errors import InputError, SemisegError
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.dicom_series import read_series
from semiseg.volumes.read_options import ReadOptions
from semiseg.volumes.volume import Volume
from tests.bundles import expected_mask, make_threshold_bundle, scan_array
from tests.polling import wait_until
from tests.ports import free_port
from tests.server.harness import RunningServer, running_server

SHAPE = (20, 14, 11)
AFFINE = np.array([[-0.8, 0.0, 0.0, 40.0], [0.0, -0.9, 0.0, 30.0], [0.0, 0.0, 2.5, -15.0], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    bundle = make_threshold_bundle(folder / "bundle")
    with running_server(bundle.folder, folder / "process", "--max-upload-mb", "1") as server:
        yield server


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_threshold_bundle(tmp_path_factory.mktemp("bundle") / "bundle").folder


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    nib.save(nib.Nifti1Image(scan_array(SHAPE), AFFINE), path)
    return path


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series")
    write_dicom_series(folder / "deep", Volume(scan_array(SHAPE), AFFINE))
    return folder


@dataclass
class Run:
    """How the command ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def predict(*arguments: object) -> Run:
    """Run the command in this process: importing NumPy and pydicom forty times over would take the longest."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), pytest.raises(SystemExit) as end:
        main(["predict", *map(str, arguments)])
    return Run(int(end.value.code or 0), out.getvalue(), error.getvalue())


def assert_right_mask(path: Path) -> None:
    mask = nib.load(path)
    assert mask.shape == SHAPE
    assert np.allclose(mask.affine, AFFINE, atol=1e-4)
    assert np.array_equal(np.asanyarray(mask.dataobj), expected_mask(scan_array(SHAPE)))


def assert_one_sentence(run: Run, code: int) -> str:
    assert run.returncode == code, run.stderr
    assert run.stderr.startswith("semiseg: ") and run.stderr.count("\n") == 1, run.stderr
    return run.stderr


def models(bundle: Path, server: RunningServer) -> dict[str, list[object]]:
    return {"bundle": [bundle], "server": ["--server", server.url]}


@pytest.mark.parametrize("who", ["bundle", "server"])
@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.nii"])
def test_nifti_scan_gives_a_mask_on_its_grid(bundle, server, scan, tmp_path, who, name):
    run = predict(*models(bundle, server)[who], scan, "--out", tmp_path / name)
    assert run.returncode == 0, run.stderr
    assert_right_mask(tmp_path / name)
    assert ((tmp_path / name).read_bytes()[:2] == b"\x1f\x8b") == name.endswith(".gz")
    ml = np.count_nonzero(expected_mask(scan_array(SHAPE)) == 1) * 0.8 * 0.9 * 2.5 / 1000
    assert f"{ml:.3f}" in run.stdout
    assert " s" in run.stdout and "RESEARCH USE ONLY" in run.stdout


def test_command_works_as_a_process_of_its_own(bundle, scan, tmp_path):
    command = [sys.executable, "-m", "cli.app", "predict", str(bundle), str(scan), "--out", str(tmp_path / "mask.nii")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert_right_mask(tmp_path / "mask.nii")


@pytest.mark.parametrize("who", ["bundle", "server"])
def test_folder_of_dicom_files_gives_a_seg_that_refers_to_it(bundle, server, series, tmp_path, who):
    run = predict(*models(bundle, server)[who], series, "--out", tmp_path / "mask.dcm")
    assert run.returncode == 0, run.stderr
    seg = pydicom.dcmread(tmp_path / "mask.dcm")
    referenced = {
        i.ReferencedSOPInstanceUID for s in seg.ReferencedSeriesSequence for i in s.ReferencedInstanceSequence
    }
    assert referenced == {pydicom.dcmread(f).SOPInstanceUID for f in series.rglob("*.dcm")}


@pytest.mark.parametrize("who", ["bundle", "server"])
def test_what_was_corrected_is_printed_or_refused_when_strict(bundle, server, series, tmp_path, who):
    shutil.copytree(series, tmp_path / "series")
    read_series(sorted((tmp_path / "series").rglob("*.dcm"))).slices[4].path.unlink()
    asked = (*models(bundle, server)[who], tmp_path / "series", "--out", tmp_path / "mask.nii.gz")
    run = predict(*asked)
    assert run.returncode == 0, run.stderr
    assert "note: 1 slice(s) are missing: between slices" in run.stdout
    (tmp_path / "mask.nii.gz").unlink()
    assert "1 slice(s) are missing" in assert_one_sentence(predict(*asked, "--strict"), 2)
    assert not (tmp_path / "mask.nii.gz").exists()


@pytest.mark.parametrize("who", ["bundle", "server"])
def test_the_form_of_the_answer_can_be_named(bundle, server, series, tmp_path, who):
    model = models(bundle, server)[who]
    run = predict(*model, series, "--out", tmp_path / "mask.dcm", "--output-format", "rtstruct")
    assert run.returncode == 0, run.stderr
    assert pydicom.dcmread(tmp_path / "mask.dcm").Modality == "RTSTRUCT"
    wrong = predict(*model, series, "--out", tmp_path / "mask.nii", "--output-format", "rtstruct")
    assert "a file of the format rtstruct is named .dcm" in assert_one_sentence(wrong, 2)
    assert "none of these" in assert_one_sentence(predict(*model, series, "--out", "m.dcm", "--answer", "stl"), 2)


@pytest.mark.parametrize("who", ["bundle", "server"])
def test_probabilities_are_answered_when_asked_for(bundle, server, series, tmp_path, who):
    for name in ("seg", "seg-fractional"):
        asked = (series, "--out", tmp_path / f"{name}.dcm", "--output-format", name)
        run = predict(*models(bundle, server)[who], *asked)
        assert run.returncode == 0, run.stderr
    binary, fractional = (hd.seg.segread(tmp_path / f"{name}.dcm") for name in ("seg", "seg-fractional"))
    uids = [pydicom.dcmread(file).SOPInstanceUID for file in sorted(series.rglob("*.dcm"))]
    masks, shares = (
        one.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True) for one in (binary, fractional)
    )
    np.testing.assert_array_equal(shares > 0.5, masks != 0)  # of two segments, so the likelier has more than half
    assert masks.any() and np.isin(np.unique(shares), (0, 1)).sum() == 2


def test_one_label_map_of_regions_is_refused_before_anything_is_computed(scan, series, tmp_path):
    regions = make_threshold_bundle(tmp_path / "regions", activation="sigmoid").folder
    asked = (regions, scan, "--out", tmp_path / "mask.nii")
    sentence = assert_one_sentence(predict(*asked, "--output-format", "nifti-labelmap"), 2)
    assert sentence.startswith("semiseg: low, high may overlap other regions")
    refused = predict(regions, series, "--out", tmp_path / "mask.dcm", "--output-format", "seg-labelmap")
    assert "cannot be a label map in DICOM" in assert_one_sentence(refused, 2)
    assert predict(*asked).returncode == 0
    assert nib.load(tmp_path / "mask.nii").shape == (*nib.load(scan).shape, 2)


def test_channels_are_given_by_name(scan, tmp_path):
    model = make_threshold_bundle(tmp_path / "two", channels=("T1", "FLAIR")).folder
    asked = ("--channel", f"FLAIR={scan}", "--channel", f"T1={scan}", "--out", tmp_path / "mask.nii")
    run = predict(model, *asked)
    assert run.returncode == 0, run.stderr
    assert_right_mask(tmp_path / "mask.nii")
    assert "missing: FLAIR" in assert_one_sentence(predict(model, *asked[2:]), 2)
    assert "Name a model and a scan: semiseg predict BUNDLE --out" in assert_one_sentence(
        predict(model, scan, *asked), 2
    )
    assert "NAME=PATH" in assert_one_sentence(predict(model, "--channel", scan, "--out", tmp_path / "mask.nii"), 2)


@pytest.mark.parametrize("who", ["bundle", "server"])
def test_zip_of_dicom_files_gives_nifti_if_the_suffix_says_so(bundle, server, series, tmp_path, who):
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for file in series.rglob("*.dcm"):
            archive.write(file, file.name)
    run = predict(*models(bundle, server)[who], tmp_path / "study.zip", "--out", tmp_path / "mask.nii.gz")
    assert run.returncode == 0, run.stderr
    assert_right_mask(tmp_path / "mask.nii.gz")


def test_bundle_and_server_report_the_same_in_json(bundle, server, scan, tmp_path):
    reports = []
    for who, model in models(bundle, server).items():
        run = predict(*model, scan, "--out", tmp_path / f"{who}.json")
        assert run.returncode == 0, run.stderr
        report = json.loads((tmp_path / f"{who}.json").read_text())
        assert report.pop("seconds")
        reports.append(report)
    assert reports[0] == reports[1]
    assert reports[0]["geometry"]["orientation"] == "LPS"


def test_tiling_can_be_chosen_and_does_not_move_the_mask(bundle, scan, tmp_path):
    out = tmp_path / "mask.nii.gz"
    run = predict(bundle, scan, "--out", out, "--overlap", "0.75", "--batch", "3", "--window", "16x16x16")
    assert run.returncode == 0, run.stderr
    assert_right_mask(out)


def test_unknown_suffix_is_refused_before_anything_is_read(tmp_path):
    sentence = assert_one_sentence(predict("none", "none.nii", "--out", tmp_path / "mask.stl"), 2)
    assert ".nii.gz" in sentence


def test_missing_scan_is_one_sentence(bundle, server, tmp_path):
    for model in models(bundle, server).values():
        assert "nowhere.nii" in assert_one_sentence(
            predict(*model, tmp_path / "nowhere.nii", "--out", tmp_path / "m.nii"), 2
        )


def test_missing_folder_for_the_answer_is_one_sentence(bundle, scan, tmp_path):
    assert "no folder" in assert_one_sentence(predict(bundle, scan, "--out", tmp_path / "no" / "mask.nii"), 2)


def test_seg_of_a_nifti_scan_is_refused(bundle, server, scan, tmp_path):
    for model in models(bundle, server).values():
        assert "DICOM" in assert_one_sentence(predict(*model, scan, "--out", tmp_path / "mask.dcm"), 2)
        assert not (tmp_path / "mask.dcm").exists()


def test_model_beside_a_server_is_refused(bundle, server, scan, tmp_path):
    run = predict(bundle, scan, "--server", server.url, "--out", tmp_path / "mask.nii")
    assert "--server" in assert_one_sentence(run, 2)
    assert "BUNDLE" in assert_one_sentence(predict(scan, "--out", tmp_path / "mask.nii"), 2)


@pytest.mark.parametrize("window", ["16", "axbxc", "16x16x-1", "17x16x16"])
def test_impossible_window_is_one_sentence(bundle, scan, tmp_path, window):
    assert_one_sentence(predict(bundle, scan, "--window", window, "--out", tmp_path / "mask.nii"), 2)


def test_server_that_is_not_there_is_one_sentence(scan, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        run = predict(scan, "--server", url, "--out", tmp_path / "mask.nii")
    assert url in assert_one_sentence(run, 1)
    assert not Client(url).ready()


def test_servers_refusal_is_the_commands_sentence(server, tmp_path):
    (tmp_path / "large.nii").write_bytes(bytes(3 * 2**20))
    run = predict(tmp_path / "large.nii", "--server", server.url, "--out", tmp_path / "mask.nii")
    assert "1 MB" in assert_one_sentence(run, 2)


def test_client_answers_in_each_form(server, scan, series):
    with Client(server.url) as client:
        assert client.ready()
        assert client.segment(scan)[:2] == b"\x1f\x8b"
        assert client.segment(scan, "json")["segments"][0]["name"] == "low"
        assert client.segment(series)[128:132] == b"DICM"
        assert client.segment(sorted(series.rglob("*.dcm")), "nifti")[:2] == b"\x1f\x8b"
        answer = client.ask(scan)
        assert answer.model["name"] == "threshold"
        assert set(answer.seconds) >= {"upload", "reading", "network", "writing"}
        with pytest.raises(InputError, match=r"1\.2\.3"):
            client.segment(series, options=ReadOptions(series="1.2.3"))


def test_client_tells_an_address_from_none():
    for url in ("localhost:3000", "", "ftp://host", "http://"):
        with pytest.raises(InputError, match="address"):
            Client(url)


def test_client_recognises_that_another_program_answers(scan, tmp_path):
    (tmp_path / "index.html").write_text("hello")
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as other:
        try:
            wait_until(lambda: _listens(port))
            with (
                Client(f"http://127.0.0.1:{port}") as client,
                pytest.raises(SemisegError, match="not a semiseg server"),
            ):
                client.segment(scan)
        finally:
            other.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
