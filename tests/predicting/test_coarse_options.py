"""A bundle with a coarse pass: its description, and how it is turned off, in every interface."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import semiseg
from cli.app import main
from semiseg.bundle.fingerprint import Fingerprint
from semiseg.bundle.variant import Variant
from semiseg.volumes.volume import Volume
from tests.bundles import expected_mask, make_threshold_bundle
from tests.inference.coarse_scans import HALF, PROOF
from tests.server.harness import RunningServer, running_server

PROVED = PROOF.model_copy(update={"engine": "onnxruntime", "scans": 4, "scans_with_skips": 4, "window_ratio": 2.5})
COARSE = HALF.model_copy(update={"proofs": (PROVED,)})
AFFINE = np.diag([1.0, 1.0, 1.5, 1.0])
PLANNED = 8 * 7 * 6
SKIPPED = "The coarse pass found only background in the other windows."
REQUESTED = "A full pass was requested."


@pytest.fixture(scope="module")
def bundle(array: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "bundle"
    fingerprint = Fingerprint.collect([{"image": Volume(array.astype(np.float32), AFFINE)}], "RAS")
    return make_threshold_bundle(folder, window=(8, 8, 8), coarse_pass=COARSE, fingerprint=fingerprint).folder


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    with running_server(bundle, folder / "process", "--state", str(folder / "state")) as server:
        yield server


@pytest.fixture(scope="module")
def array() -> np.ndarray:
    scan = np.random.default_rng(0).integers(0, 100, (36, 32, 28), dtype=np.int16)
    scan[20:28, 18:26, 16:22] += 500
    return scan


@pytest.fixture(scope="module")
def scan(array: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return path


def predict(bundle: Path, scan: Path, out: Path, *options: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(["predict", str(bundle), str(scan), "--out", str(out), "--threads", "1", *options])
    assert not left.value.code


def test_python_reports_skipped_windows_and_full_runs_them_all(bundle: Path, scan: Path, array: np.ndarray) -> None:
    """INF-08."""
    model = semiseg.load_model(bundle, threads=1)
    found, full = model.predict(scan), model.predict(scan, full=True)
    np.testing.assert_array_equal(found.array, expected_mask(array))
    np.testing.assert_array_equal(full.array, expected_mask(array))
    counts = found.report.window_counts
    assert counts is not None and counts.planned == PLANNED and 0 < counts.run < PLANNED / 2
    assert (counts.reason, counts.preliminary) == (SKIPPED, 3 * 2 * 2)
    assert found.report.windows == counts.run + counts.preliminary
    told = full.report.window_counts
    assert told is not None and (told.planned, told.run, told.preliminary, told.reason) == (
        PLANNED,
        PLANNED,
        0,
        REQUESTED,
    )


def test_the_command_prints_the_number_of_windows(
    bundle: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, sentence in (((), SKIPPED), (("--full",), REQUESTED)):
        predict(bundle, scan, tmp_path / "report.json", *options)
        assert re.search(
            rf"\d+ of the {PLANNED} windows of a full pass were run.* {re.escape(sentence)}", capsys.readouterr().out
        )
        counts = json.loads((tmp_path / "report.json").read_text())["window_counts"]
        assert counts["reason"] == sentence and (counts["run"] == PLANNED) == bool(options)


def test_a_list_of_scans_can_be_run_in_full(bundle: Path, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "scans.txt").write_text(f"{scan}\n")
    with pytest.raises(SystemExit) as left:
        main(
            [
                "predict",
                str(bundle),
                "--input-list",
                str(tmp_path / "scans.txt"),
                "--out",
                str(tmp_path / "out"),
                "--output-format",
                "json",
                "--full",
                "--threads",
                "1",
            ]
        )
    assert not left.value.code
    (report,) = (tmp_path / "out").glob("*.json")
    assert json.loads(report.read_text())["window_counts"]["reason"] == REQUESTED


def test_the_form_field_full_runs_every_window(server: RunningServer, scan: Path) -> None:
    reports = {
        full: server.segment(scan, fields={"output_format": "json", "full": full}).json() for full in ("false", "true")
    }
    assert reports["false"]["window_counts"]["reason"] == SKIPPED
    assert reports["true"]["window_counts"] == {
        "planned": PLANNED,
        "run": PLANNED,
        "preliminary": 0,
        "reason": REQUESTED,
    }
    assert reports["false"]["segments"] == reports["true"]["segments"]
    refused = server.segment(scan, fields={"full": "yes"})
    assert (refused.status_code, refused.json()["error"]) == (400, "The field `full` must be true or false.")


def test_the_servers_log_states_the_number_of_windows(server: RunningServer, scan: Path) -> None:
    server.segment(scan)
    assert any("windows of a full pass were run" in line and SKIPPED in line for line in server.output.splitlines())


@pytest.mark.parametrize("full", [False, True])
def test_a_client_and_a_job_ask_for_a_full_pass(server: RunningServer, scan: Path, full: bool) -> None:
    with semiseg.Client(server.url) as client:
        answered = client.segment(scan, "json", full=full)
        job = client.submit(scan, "json", full=full)
        client.wait(job.id)
        for report in (answered, json.loads(client.result(job.id).body)):
            assert isinstance(report, dict)
            assert report["window_counts"]["reason"] == (REQUESTED if full else SKIPPED)


def test_a_server_can_be_told_to_run_every_window(bundle: Path, scan: Path, tmp_path: Path) -> None:
    with running_server(bundle, tmp_path / "process", "--full") as server:
        counts = server.segment(scan, fields={"output_format": "json"}).json()["window_counts"]
    assert (counts["run"], counts["reason"]) == (PLANNED, REQUESTED)


def test_doctor_describes_the_coarse_pass_and_its_proof(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", str(bundle)])
    told = capsys.readouterr().out
    assert "coarse pass: windows without overlap on a grid downsampled by 2x2x2, threshold 0.1" in told
    assert "margin 2 mm along each axis, segments expected in every scan: none" in told
    assert "coarse pass, fp32, on onnxruntime: proved on 4 scans" in told and "2.5 times fewer windows" in told
    assert "the coarse pass is used here" in told


def test_doctor_says_that_a_model_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", str(make_threshold_bundle(tmp_path / "bundle").folder)])
    assert "no coarse pass: all windows of every scan are run" in capsys.readouterr().out


def test_a_coarse_pass_is_used_only_in_precisions_with_a_proof(bundle: Path, scan: Path) -> None:
    opened = semiseg.open_bundle(bundle)
    variants = tuple(Variant(precision=p, file="model.onnx") for p in ("fp32", "int8"))
    manifest = opened.manifest.model_copy(update={"variants": variants})
    engine = semiseg.choose_engine(opened, threads=1).engine
    assert semiseg.Segmenter(manifest, engine, precision="fp32").coarse_pass is not None
    for precision in ("int8", None):  # without a word of it, all graphs of the bundle are meant
        assert semiseg.Segmenter(manifest, engine, precision=precision).full_pass_reason == (
            "The coarse pass was not proved in int8."
        )
