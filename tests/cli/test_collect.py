"""`semiseg collect` as a user types it: from DICOM to a dataset that `semiseg data check` accepts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from semiseg.dataset import load_dataset
from semiseg.volumes.nifti import read_labels, read_nifti
from tests.collection.clinical_data import write_labels_as_rtstruct, write_labels_as_seg, write_scan
from tests.command_line import run_semiseg


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for seed, write in enumerate((write_labels_as_seg, write_labels_as_rtstruct), 1):
        series, labels = write_scan(tmp_path / f"src/{seed}/images", seed)
        write(tmp_path / f"src/{seed}/label.dcm", series, labels)
    write_scan(tmp_path / "src/3", 3)
    return tmp_path / "src"


def test_the_whole_way_from_dicom_to_a_checked_and_split_dataset(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    assert run_semiseg("collect", source, "--out", data) == 0
    said = capsys.readouterr().out
    assert f"{data}: 2 labelled and 1 unlabelled scans collected." in said
    assert str(tmp_path / "data-mapping.csv") in said and str(tmp_path / "data-report.csv") in said
    assert said.rstrip().endswith(f"Next: semiseg data check {data}")
    assert run_semiseg("data", "check", data) == 0
    assert "All 2 labels were opened." in capsys.readouterr().out
    assert run_semiseg("data", "split", data, "--test", "1", "--labelled", "1") == 0


def test_options_choose_structures_scans_and_who_wins(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.csv").write_text("scan,label\n1,1/label.dcm\n")
    arguments = ["--labels", "liver=2, Kidneys = 1", "--overlap", "later", "--series", "phan*", "--modality", "MR"]
    arguments += ["--matches", str(tmp_path / "m.csv"), "--mapping", str(tmp_path / "who.csv")]
    assert run_semiseg("collect", source, "--out", tmp_path / "data", *arguments) == 0
    assert [(s.label, s.name) for s in load_dataset(tmp_path / "data").segments] == [(1, "Kidneys"), (2, "liver")]
    assert (tmp_path / "who.csv").is_file()
    assert "Structures left out: 2" in capsys.readouterr().out
    assert run_semiseg("collect", source, "--out", tmp_path / "data", "--mapping", tmp_path / "who.csv", "--add") == 0
    assert "0 labelled and 0 unlabelled scans collected, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--labels", "liver"], "--labels must be NAME=1,OTHER=2"),
        (["--labels", "liver=1,LIVER=2"], "names 'LIVER' twice"),
        (["--channels", "T1"], "--channels is written NAME=PATTERN"),
        (["--add"], "--add cannot extend it"),
        (["--matches", "none.csv"], "none.csv cannot be read"),
    ],
)
def test_wrong_use_is_one_sentence_and_writes_nothing(
    arguments: list[str], sentence: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_semiseg("collect", source, "--out", tmp_path / "data", *arguments) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said and len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


TERMINATED = """
import importlib, os, signal, sys
from pathlib import Path
from cli.app import main
collecting = importlib.import_module("semiseg.collection.collect")
write = collecting.write_nifti
def write_and_terminate(path: Path, *arguments: object) -> None:
    if any(path.parent.iterdir()):  # the second scan
        assert len(list(path.parent.iterdir())) == 1
        os.kill(os.getpid(), signal.SIGTERM)
    write(path, *arguments)
collecting.write_nifti = write_and_terminate
main(sys.argv[1:])
"""


def test_a_terminated_run_leaves_nothing_behind(tmp_path: Path) -> None:
    for seed in range(1, 4):
        write_scan(tmp_path / f"src/{seed}", seed)
    command = [sys.executable, "-c", TERMINATED, "collect", str(tmp_path / "src"), "--out", str(tmp_path / "data")]
    run = subprocess.run([*command, "--labels", "liver=1"], cwd=Path(__file__).parents[2], env=os.environ)
    assert run.returncode == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_real_series_and_their_label_become_a_dataset(
    semiseg_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = semiseg_data / "dicom"
    (tmp_path / "m.csv").write_text("scan,label\nct_body_siemens_j2k,ct_body_siemens_j2k_seg.nii.gz\n")
    arguments = ["--modality", "CT", "--matches", str(tmp_path / "m.csv"), "--labels", "liver=5"]
    assert run_semiseg("collect", source, "--out", tmp_path / "data", *arguments) == 0
    said = capsys.readouterr().out
    assert "1 labelled and 2 unlabelled scans collected" in said
    assert "tilted by 18.5 degrees" in said
    assert run_semiseg("data", "check", tmp_path / "data") == 0
    (case,) = [c for c in load_dataset(tmp_path / "data").cases.values() if c.label]
    assert case.label is not None
    liver = read_nifti(case.image).array[read_labels(case.label).array == 5]
    assert 80 < np.median(liver) < 120  # HU: the label lies on the liver and nowhere else


def test_a_real_seg_and_a_folder_of_odd_files_are_survived(
    semiseg_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--labels", "liver=1", "--modality", "CT", "--modality", "MR"]
    assert run_semiseg("collect", semiseg_data / "dicom_odd", "--out", tmp_path / "data", *arguments) == 0
    assert "1 labelled and" in capsys.readouterr().out
    assert run_semiseg("data", "check", tmp_path / "data") == 0
