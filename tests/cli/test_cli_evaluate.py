"""`semiseg evaluate` judges a real bundle on scans whose right answer is known."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from semiseg.dataset import Dataset
from semiseg.inference.window_passes import ScanRun, WindowPasses
from semiseg.volumes.nifti import read_labels
from tests.bundles import expected_mask, make_threshold_bundle
from tests.command_line import run_semiseg
from tests.datasets import random_image, write_dataset, write_json, write_scan

IDS = ("s0", "s1", "s2")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_threshold_bundle(tmp_path / "bundle").folder


def thresholded(folder: Path, split: Mapping[str, Any] | None = None, *, described: bool = True) -> Dataset:
    """Scans whose outlines are what the threshold bundle finds."""
    dataset = write_dataset(folder, labelled=4, described=described, split=split)
    for k in range(4):
        write_scan(folder, f"s{k}", random_image(k), expected_mask(random_image(k)))
    return dataset


def test_a_bundle_is_judged_on_the_test_scans_and_everything_is_written(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    thresholded(data, {"test": list(IDS), "labelled": ["s3"]})
    assert run_semiseg("evaluate", bundle, "--data", data, "--out", out, "--save-masks") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "threshold on Noise, 3 test scans" in said and "1.000" in said and "Not validated" in said
    scores = json.loads((out / "scores.json").read_text())
    assert {(r["case"], r["score"]["dice"]) for r in scores["rows"]} == {(i, 1.0) for i in IDS}
    assert len((out / "scores.csv").read_text().splitlines()) == 1 + 3 * 2
    for picture in ("dice.png", "hd95.png"):
        with Image.open(out / picture) as read:
            assert read.width == 1200
    np.testing.assert_array_equal(read_labels(out / "masks/s2.nii.gz").array, expected_mask(random_image(2)))


def test_a_scan_that_fails_exits_with_1_and_leaves_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    thresholded(data, {"test": list(IDS), "labelled": ["s3"]})
    (data / "imagesTr/s1.nii.gz").write_bytes(b"garbage")
    bundle = make_threshold_bundle(tmp_path / "bundle").folder
    assert run_semiseg("evaluate", bundle, "--data", data, "--out", out) == 1
    said = capsys.readouterr().out
    assert "failed: s1: " in said and "1.000 ± 0.000" in said
    dice = json.loads((out / "scores.json").read_text())["summary"][0]
    assert (dice["mean"], dice["n"], dice["missing"]) == (1.0, 2, 1)
    assert len((out / "scores.csv").read_text().splitlines()) == 1 + 3 * 2


def test_a_folder_without_names_or_split_is_judged_on_all_its_scans(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thresholded(tmp_path / "data", described=False)
    assert run_semiseg("evaluate", bundle, "--data", tmp_path / "data", "--on", "all") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "4 all scans" not in said and "on data, all 4 outlined scans" in said
    assert "matched by number" in said


def test_development_scans_are_called_so(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thresholded(tmp_path / "data", {"test": ["s0"], "labelled": ["s1"], "development": ["s2", "s3"]})
    assert run_semiseg("evaluate", bundle, "--data", tmp_path / "data", "--on", "development") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 development scans" in said and "not test scans" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--on", "all"], "not 'all'"),
        (["--on", "validation"], "names no validation scans"),
        (["--save-masks"], "--save-masks needs --out"),
        (["--window", "16"], "three whole numbers"),
        (["--overlap", "1.5"], "overlap"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    thresholded(tmp_path / "data", {"test": ["s0"], "labelled": ["s1"]})
    assert run_semiseg("evaluate", bundle, "--data", tmp_path / "data", *arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("semiseg: ") and len(error.splitlines()) == 1


def test_what_is_no_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thresholded(tmp_path / "data", {"test": ["s0"], "labelled": ["s1"]})
    assert run_semiseg("evaluate", tmp_path, "--data", tmp_path / "data") == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_model_for_other_channels_says_so_for_each_scan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thresholded(tmp_path / "data", {"test": ["s0"], "labelled": ["s1"]})
    bundle = make_threshold_bundle(tmp_path / "bundle", channels=("CT",)).folder
    assert run_semiseg("evaluate", bundle, "--data", tmp_path / "data") == 1
    assert "takes the channel(s) CT" in capsys.readouterr().out


def test_the_split_may_lie_elsewhere(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thresholded(tmp_path / "data")
    path = write_json(tmp_path / "elsewhere.json", {"test": ["s3"], "labelled": ["s1"]})
    assert run_semiseg("evaluate", bundle, "--data", tmp_path / "data", "--split", path) == 0
    assert "1 test scan" in capsys.readouterr().out


def test_overlaps_and_strides_of_each_axis_are_those_of_the_windows_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = (4, 4, 4)
    bundle = make_threshold_bundle(tmp_path / "bundle", window=window).folder
    thresholded(tmp_path / "data", {"test": ["s0"], "labelled": ["s3"]})
    shape = random_image(0).shape
    seen: list[int] = []
    before = WindowPasses.run

    def noted(self: WindowPasses, array: Any, scan: ScanRun, **options: Any) -> Any:
        found = before(self, array, scan, **options)
        seen.append(scan.timing.windows)
        return found

    monkeypatch.setattr(WindowPasses, "run", noted)
    stride = (2, window[1], 1)
    overlaps = ",".join(str(1 - step / side) for step, side in zip(stride, window, strict=True))
    for option, value in (("--stride", "x".join(map(str, stride))), ("--overlap", overlaps)):
        assert run_semiseg("evaluate", bundle, "--data", tmp_path / "data", option, value) == 0
    counts = [math.ceil((n - w) / s) + 1 for n, w, s in zip(shape, window, stride, strict=True)]
    assert seen == [math.prod(counts)] * 2


def test_figures_are_shown_where_they_are_asked_for(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thresholded(tmp_path / "data", {"test": ["s0"], "labelled": ["s3"]})
    assert run_semiseg("evaluate", bundle, "--data", tmp_path / "data", "--metrics", "f1,hd_mm") == 0
    said = capsys.readouterr().out
    assert "F1 of means" in said and "HD (mm)" in said and "Jaccard" not in said
    assert run_semiseg("evaluate", bundle, "--data", tmp_path / "data") == 0
    assert "F1" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--overlap", "0.5,0.5"), "An overlap is a number from 0 to below 1, or three"),
        (("--overlap", "1,0,0"), "An overlap is a number from 0 to below 1, or three"),
        (("--stride", "0x1x1"), "A stride is at least 1 and at most the window"),
        (("--stride", "99x1x1"), "A stride is at least 1 and at most the window"),
        (("--stride", "two"), "A stride is three whole numbers"),
        (("--stride", "1x1x1", "--overlap", "0.5"), "give one of them"),
        (("--metrics", "dice,hsd"), "There is no metric 'hsd'"),
        (("--metrics", "dice,dice"), "names a figure twice"),
    ],
)
def test_windows_and_figures_that_cannot_be_are_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    thresholded(tmp_path / "data", {"test": ["s0"], "labelled": ["s3"]})
    assert run_semiseg("evaluate", bundle, "--data", tmp_path / "data", *options) == 2
    assert words in " ".join(capsys.readouterr().err.split())
