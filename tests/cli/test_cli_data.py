"""`semiseg data` says what is wrong in sentences, and its exit code says whether to go on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from semiseg.dataset import load_dataset, make_split
from tests.command_line import run_semiseg
from tests.datasets import SHAPE, random_image, random_labels, write_dataset, write_json, write_scan

SPLIT = {"test": ["s0"], "labelled": {"1": ["s2"], "2": ["s2", "s3"]}}


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_sound_dataset_exits_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path, labelled=4)
    assert run_semiseg("data", "check", tmp_path) == 0
    said = words(capsys.readouterr().out)
    assert "Noise: 4 scans, channels image; 1 low, 2 high. All 4 labels were opened." in said
    assert "Nothing wrong was found." in said


def test_errors_are_grouped_and_exit_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path, labelled=4)
    write_scan(tmp_path, "s1", random_image(1), random_labels(1)[:-1])
    write_scan(tmp_path, "s2", random_image(0), np.zeros(SHAPE, np.uint8))
    assert run_semiseg("data", "check", tmp_path) == 1
    said = words(capsys.readouterr().out)
    assert said.index("Grids of image and label") < said.index("Label values") < said.index("Scans that occur twice")
    assert "error s1: " in said and "warning s2: " in said and "2 error(s), 1 warning(s)." in said


def test_warnings_alone_exit_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path, labelled=2, described=False)
    assert run_semiseg("data", "check", tmp_path) == 0
    assert "0 error(s), 1 warning(s)." in capsys.readouterr().out


def test_labels_outside_the_split_stay_closed_unless_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path, labelled=4, split=SPLIT)
    (tmp_path / "labelsTr/s3.nii.gz").write_bytes(b"garbage")
    assert run_semiseg("data", "check", tmp_path, "--labelled", "1") == 0
    assert "The labels of 2 scans stayed closed" in words(capsys.readouterr().out)
    assert run_semiseg("data", "check", tmp_path) == 1  # the largest budget opens s3
    assert run_semiseg("data", "check", tmp_path, "--labelled", "1", "--all-labels") == 1


def test_wrong_use_is_one_sentence_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path, labelled=4, split={**SPLIT, "labelled": {"1": ["s0"]}})
    assert run_semiseg("data", "check", tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("semiseg: ") and "'s0' cannot be in both test and labelled '1'" in error
    assert "Traceback" not in error and len(error.splitlines()) == 1
    assert run_semiseg("data", "check", tmp_path / "nowhere") == 2
    assert run_semiseg("data", "check", tmp_path, "--split", write_json(tmp_path / "x.json", {})) == 2


def test_square_brackets_in_names_are_printed_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path, labelled=2, document={"name": "Noise [red]x[/bold]"})
    write_scan(tmp_path, "s1", random_image(0), random_labels(1))
    assert run_semiseg("data", "check", tmp_path) == 1
    assert "Noise [red]x[/bold]: 2 scans" in capsys.readouterr().out


def test_a_split_is_drawn_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_dataset(tmp_path, labelled=6, without_label=2)
    arguments = ("data", "split", tmp_path, "--test", "2", "--labelled", "1", "--labelled", "2", "--development", "1")
    assert run_semiseg(*arguments) == 0
    assert "2 test, 1 development, 5 for training, of which 1, 2 labelled" in words(capsys.readouterr().out)
    first = json.loads((tmp_path / "split.json").read_text())
    assert len(make_split(load_dataset(tmp_path), None, 2).unlabelled) == 3
    assert run_semiseg(*arguments) == 2
    assert "already exists" in capsys.readouterr().err
    assert run_semiseg(*arguments, "--out", tmp_path / "again.json") == 0
    assert json.loads((tmp_path / "again.json").read_text()) == first
    assert run_semiseg("data", "split", tmp_path, "--test", "9", "--labelled", "1") == 2
    assert dataset.folder == tmp_path
