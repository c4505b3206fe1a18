"""Many scans: each once, whatever stops in between; on this machine or on a cluster of it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest

from semiseg.errors import InputError
from semiseg.predicting.ray_cluster import segment_on_cluster
from semiseg.predicting.scan_list import RESULTS_FILE, ResultLog, read_scan_list
from tests.bundles import expected_mask, make_threshold_bundle, scan_array
from tests.conftest import require_package

SHAPE = (24, 20, 18)


@pytest.fixture
def scans(tmp_path: Path) -> list[Path]:
    """Five scans, one of which is none, and their list."""
    paths = [tmp_path / "scans" / f"scan{k}.nii.gz" for k in range(5)]
    paths[0].parent.mkdir()
    for k, path in enumerate(paths):
        nib.save(nib.Nifti1Image(scan_array(SHAPE, seed=k), np.eye(4)), path)
    paths[3].write_bytes(b"no scan")
    (tmp_path / "list").write_text("# five scans\n" + "".join(f"scans/{path.name}\n" for path in paths))
    return paths


def predict(bundle: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli.app", "predict", bundle, "--input-list", folder / "list"]
    command += ["--out", folder / "out", *options]
    # Ray's workers give way to every other process by default, so on a busy machine they would hardly ever run.
    environ = {**os.environ, "RAY_worker_niceness": "0"}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=400, env=environ)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / RESULTS_FILE).read_text().splitlines()]


def assert_right(folder: Path, scans: list[Path]) -> None:
    for number, scan in enumerate(scans, start=1):
        out = folder / "out" / f"{number:05d}-{scan.name.split('.')[0]}.nii.gz"
        if number != 4:
            np.testing.assert_array_equal(nib.load(out).dataobj, expected_mask(np.asarray(nib.load(scan).dataobj)))
        else:
            assert not out.exists()


def test_each_scan_of_a_list_is_done_once_and_a_bad_one_stops_nobody(scans: list[Path], tmp_path: Path) -> None:
    bundle = make_threshold_bundle(tmp_path / "bundle").folder
    first = predict(bundle, tmp_path)
    assert first.returncode == 1
    assert "4 of 5 scans are done, 1 failed" in first.stdout and "scan3.nii.gz" in first.stderr
    assert_right(tmp_path, scans)
    assert [one["state"] for one in lines(tmp_path)] == ["done", "done", "done", "failed", "done"]
    nib.save(nib.Nifti1Image(scan_array(SHAPE, seed=3), np.eye(4)), scans[3])
    (tmp_path / "out" / "00002-scan1.nii.gz").unlink()
    again = predict(bundle, tmp_path)
    assert again.returncode == 0, again.stderr
    assert [Path(one["scan"]).name for one in lines(tmp_path)[5:]] == ["scan1.nii.gz", "scan3.nii.gz"]
    other = make_threshold_bundle(tmp_path / "other", at_full_intensity="nan").folder
    assert predict(other, tmp_path).returncode == 0
    assert len(lines(tmp_path)) == 12  # another model: all of them


def test_cluster_without_ray_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="needs Ray, which is missing: install the `ray` extra"):
        next(segment_on_cluster(lambda: None, [], address=None, workers=None, threads=1))


def test_cluster_whose_two_workers_are_killed_makes_others_that_do_the_rest(tmp_path: Path) -> None:
    require_package("ray")
    paths = [tmp_path / f"scan{k}.nii.gz" for k in range(8)]
    for k, path in enumerate(paths):  # the last two take so long that both workers are killed before the end
        shape = (48, 48, 32) if k < 6 else (96, 96, 64)
        nib.save(nib.Nifti1Image(scan_array(shape, seed=k), np.eye(4)), path)
    (tmp_path / "list").write_text("".join(f"{path.name}\n" for path in paths))
    bundle = make_threshold_bundle(tmp_path / "bundle", work=4).folder
    killed: list[int] = []

    def kill_all() -> None:
        until = time.monotonic() + 120
        while not killed and time.monotonic() < until:
            if (tmp_path / "out" / RESULTS_FILE).exists() and lines(tmp_path):
                for process in psutil.Process().children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        if "ray::_Worker" in process.name() or "ray::_Worker" in " ".join(process.cmdline()):
                            process.kill()
                            killed.append(process.pid)
            time.sleep(0.05)

    killer = threading.Thread(target=kill_all)
    killer.start()
    answer = predict(bundle, tmp_path, "--cluster", "local", "--workers", "2")
    killer.join()
    assert answer.returncode == 0, answer.stderr
    assert killed, "no worker was found to kill"
    assert sorted(Path(one["scan"]).name for one in lines(tmp_path)) == sorted(path.name for path in paths)
    assert {one["worker"] for one in lines(tmp_path)} - set(killed)  # the first line was of one that was killed
    assert lines(tmp_path)[0]["worker"] in killed
    for number, path in enumerate(paths, start=1):
        mask = nib.load(tmp_path / "out" / f"{number:05d}-{path.name.split('.')[0]}.nii.gz")
        np.testing.assert_array_equal(mask.dataobj, expected_mask(np.asarray(nib.load(path).dataobj)))


def test_line_that_was_cut_off_is_taken_away_and_one_of_somebody_else_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / RESULTS_FILE
    file.write_text('{"scan": "a", "state": "failed"}\n{"scan": "b", "sta')
    ResultLog(tmp_path / "out").add({"scan": "c", "state": "failed"})
    assert [json.loads(line)["scan"] for line in file.read_text().splitlines()] == ["a", "c"]
    file.write_text("nonsense\n")
    with pytest.raises(InputError, match="line 1: this is not a result of semiseg"):
        ResultLog(tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "words"), [("", "names no scan"), ("a\nb\na\n", "twice"), (None, "cannot be read")]
)
def test_list_that_cannot_be_meant_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "list").write_text(content)
    with pytest.raises(InputError, match=words):
        read_scan_list(tmp_path / "list", tmp_path, "nifti")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--server", "http://a"], "neither a server"),
        (["--output-format", "none"], "output format can be nifti"),
        (["--strict"], "one scan"),
    ],
)
def test_options_that_do_not_go_with_a_list_are_refused(
    scans: list[Path], tmp_path: Path, options: list[str], words: str
) -> None:
    bundle = make_threshold_bundle(tmp_path / "bundle").folder
    answer = predict(bundle, tmp_path, *options)
    assert answer.returncode == 2 and words in answer.stderr, answer.stderr
