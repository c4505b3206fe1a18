"""A bundle with a coarse pass: what is told of it, and how it is turned off, in every way to a prediction."""

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
from semiseg.bundle.coarse import Coarse, CoarseProof
from semiseg.bundle.variant import Variant
from tests.bundles import expected, make_threshold_bundle
from tests.server.running import RunningServer, running

PROOF = CoarseProof(
    precision="fp32", engine="onnxruntime", scans=4, skipping=4, mean_dice=1, least_dice=1, lost=0, factor=2.5
)
COARSE = Coarse(kind="coarse_grid", downsampling=(2, 2, 2), threshold=0.1, margin=2.0, proofs=(PROOF,))
PLANNED = 8 * 7 * 6
SKIPPED = "The coarse pass found background in all other windows."
ASKED = "A full pass was asked for."


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_threshold_bundle(tmp_path_factory.mktemp("model") / "bundle", window=(8, 8, 8), coarse=COARSE).folder


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    with running(bundle, folder / "process", "--state", str(folder / "state")) as server:
        yield server


@pytest.fixture(scope="module")
def array() -> np.ndarray:
    scan = np.random.default_rng(0).integers(0, 100, (36, 32, 28), dtype=np.int16)
    scan[20:28, 18:26, 16:22] += 500
    return scan


@pytest.fixture(scope="module")
def scan(array: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 1.5, 1.0])), path)
    return path


def predict(bundle: Path, scan: Path, out: Path, *options: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(["predict", str(bundle), str(scan), "--out", str(out), "--threads", "1", *options])
    assert not left.value.code


def test_python_skips_windows_and_tells_it_and_full_runs_them_all(bundle: Path, scan: Path, array: np.ndarray) -> None:
    """INF-08."""
    model = semiseg.load_model(bundle, threads=1)
    found, full = model.predict(scan), model.predict(scan, full=True)
    np.testing.assert_array_equal(found.array, expected(array))
    np.testing.assert_array_equal(full.array, expected(array))
    counts = found.report.window_counts
    assert counts is not None and counts.planned == PLANNED and 0 < counts.run < PLANNED / 2
    assert (counts.reason, counts.coarse) == (SKIPPED, 3 * 2 * 2)
    assert found.report.windows == counts.run + counts.coarse
    told = full.report.window_counts
    assert told is not None and (told.planned, told.run, told.coarse, told.reason) == (PLANNED, PLANNED, 0, ASKED)


def test_the_command_says_how_many_windows_were_run(
    bundle: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, sentence in (((), SKIPPED), (("--full",), ASKED)):
        predict(bundle, scan, tmp_path / "report.json", *options)
        assert re.search(rf"\d+ of {PLANNED} windows were run.* {re.escape(sentence)}", capsys.readouterr().out)
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
                "--answer",
                "json",
                "--full",
                "--threads",
                "1",
            ]
        )
    assert not left.value.code
    (report,) = (tmp_path / "out").glob("*.json")
    assert json.loads(report.read_text())["window_counts"]["reason"] == ASKED


def test_the_form_field_full_runs_every_window(server: RunningServer, scan: Path) -> None:
    reports = {full: server.segment(scan, fields={"answer": "json", "full": full}).json() for full in ("false", "true")}
    assert reports["false"]["window_counts"]["reason"] == SKIPPED
    assert reports["true"]["window_counts"] == {"planned": PLANNED, "run": PLANNED, "coarse": 0, "reason": ASKED}
    assert reports["false"]["segments"] == reports["true"]["segments"]
    refused = server.segment(scan, fields={"full": "yes"})
    assert (refused.status_code, refused.json()["error"]) == (400, "The field `full` is true or false.")


def test_the_servers_log_says_how_many_windows_were_run(server: RunningServer, scan: Path) -> None:
    server.segment(scan)
    assert any("windows were run" in line and SKIPPED in line for line in server.output.splitlines())


@pytest.mark.parametrize("full", [False, True])
def test_a_client_and_a_job_ask_for_a_full_pass(server: RunningServer, scan: Path, full: bool) -> None:
    with semiseg.Client(server.url) as client:
        answered = client.segment(scan, "json", full=full)
        job = client.submit(scan, "json", full=full)
        client.wait(job.id)
        for report in (answered, json.loads(client.result(job.id).body)):
            assert isinstance(report, dict)
            assert report["window_counts"]["reason"] == (ASKED if full else SKIPPED)


def test_a_server_can_be_told_to_run_every_window(bundle: Path, scan: Path, tmp_path: Path) -> None:
    with running(bundle, tmp_path / "process", "--full") as server:
        counts = server.segment(scan, fields={"answer": "json"}).json()["window_counts"]
    assert (counts["run"], counts["reason"]) == (PLANNED, ASKED)


def test_doctor_names_the_coarse_pass_and_its_proof(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", str(bundle)])
    told = capsys.readouterr().out
    assert "coarse pass: windows without overlap on a grid coarser by 2x2x2, probability above 0.1, margin 2 mm" in told
    assert "coarse pass in fp32 on onnxruntime: proved on 4 scans" in told and "2.5 times fewer windows" in told
    assert "coarse pass used here" in told


def test_doctor_says_that_a_model_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", str(make_threshold_bundle(tmp_path / "bundle").folder)])
    assert "no coarse pass: every window is run" in capsys.readouterr().out


def test_a_coarse_pass_is_used_in_the_precisions_in_which_it_was_proved_only(bundle: Path, scan: Path) -> None:
    opened = semiseg.open_bundle(bundle)
    variants = tuple(Variant(precision=p, file="model.onnx") for p in ("fp32", "int8"))
    manifest = opened.manifest.model_copy(update={"variants": variants})
    engine = semiseg.choose_engine(opened, threads=1).engine
    assert semiseg.Segmenter(manifest, engine, precision="fp32").coarse is not None
    for precision in ("int8", None):  # without a word of it, all graphs of the bundle are meant
        assert semiseg.Segmenter(manifest, engine, precision=precision).why_full == (
            "The coarse pass was not proved in int8."
        )
