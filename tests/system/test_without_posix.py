"""semiseg on an interpreter without the names that only POSIX has; tests/without_posix/run.py runs the suite so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.bundles import expected_mask, make_threshold_bundle, scan_array
from tests.polling import wait_until
from tests.server.harness import running_server
from tests.without_posix.run import environment

ROOT = Path(__file__).parents[2]
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
LOOK = """
import json, sys
ROOT, found = sys.argv[1], {}
for name in json.loads(sys.argv[2]):
    module, dot, attribute = name.rpartition(".")
    code = f"import {module}; {module}.{attribute}" if dot else f"import {name}"
    for who, file in (("ours", f"{ROOT}/semiseg/volumes/somewhere.py"), ("others", "/elsewhere/package.py")):
        try:
            exec(compile(code, file, "exec"), {"__file__": file})
            found[f"{name} {who}"] = True
        except (ImportError, AttributeError):
            found[f"{name} {who}"] = False
print(json.dumps(found))
"""
FILES = """
import mmap, os, sys
from pathlib import Path
import semiseg.system.durable_files as ours
folder = Path(sys.argv[1])
def refused(act, *arguments):
    try:
        exec(compile("act(*arguments)", ours.__file__, "exec"), {"act": act, "arguments": arguments})
    except OSError as error:
        return type(error).__name__, getattr(error, "winerror", None)
one, two = folder / "one", folder / "two"
one.write_bytes(b"x" * 5000), two.write_bytes(b"x")
print(refused(os.open, str(folder), os.O_RDONLY), refused(open, "/proc/self/status"))
with one.open("rb") as stream:
    print(refused(one.unlink), refused(two.replace, one), refused(folder.rename, folder.with_name("new")))
    mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
print(refused(one.unlink))
mapped.close()
print(refused(two.replace, one), refused(one.unlink))
"""


@pytest.fixture(scope="module")
def names() -> list[str]:
    """What the lint forbids."""
    tomllib = pytest.importorskip("tomllib")
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    return sorted(tool["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"])


def without_posix(*arguments: str, seconds: float = 600) -> str:
    run = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=seconds,
        check=False,
        env={**environment(), "PYTHONUTF8": "1"},
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_what_the_lint_forbids_is_what_the_interpreter_lacks_for_our_code_alone(names: list[str]) -> None:
    found = json.loads(without_posix("-c", LOOK, str(ROOT), json.dumps(names)))
    plain = subprocess.run(
        [sys.executable, "-S", "-c", LOOK, str(ROOT), json.dumps(names)], capture_output=True, check=True, cwd=ROOT
    )
    there = {key: value for key, value in json.loads(plain.stdout).items() if key.endswith("others")}
    assert {key for key, value in found.items() if key.endswith("ours") and value} == set()
    if "PYTHONPATH" not in os.environ:  # else this very interpreter may lack them
        assert {key: value for key, value in found.items() if key.endswith("others")} == there


def test_the_lint_finds_every_one_of_these_names(names: list[str]) -> None:
    pytest.importorskip("ruff")
    modules = sorted({name.partition(".")[0] for name in names})
    code = "".join(f"import {module}\n" for module in modules) + "".join(f"{name}\n" for name in names if "." in name)
    command = [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--output-format", "json"]
    run = subprocess.run(
        [*command, "--stdin-filename", str(ROOT / "semiseg" / "volumes" / "x.py"), "-"],
        input=code.encode(),
        capture_output=True,
        check=False,
        cwd=ROOT,
    )
    messages = " ".join(one["message"] for one in json.loads(run.stdout))
    assert [name for name in names if f"`{name}`" not in messages] == []


def test_files_behave_as_on_windows(tmp_path: Path) -> None:
    """An open or mapped file is neither deleted nor replaced, and its folder not renamed; no folder is opened."""
    (tmp_path / "in").mkdir()
    lines = without_posix("-c", FILES, str(tmp_path / "in")).splitlines()
    denied = "('PermissionError', 32)"
    assert lines[0] == "('PermissionError', None) ('FileNotFoundError', None)"
    assert lines[1:] == [f"{denied} {denied} {denied}", denied, "None None"]


def test_from_dicom_to_an_evaluated_mask_without_posix(tmp_path: Path) -> None:
    without_posix(str(ROOT / "tests" / "without_posix" / "end_to_end.py"), str(tmp_path))
    scores = json.loads((tmp_path / "evaluation" / "scores.json").read_text(encoding="utf-8"))
    assert {row["n"] for row in scores["summary"]} == {2}
    assert (tmp_path / "mask.dcm").is_file() and (tmp_path / "collected" / "dataset.json").is_file()
    assert len([line for line in (tmp_path / "many" / "results.jsonl").read_text().splitlines() if "done" in line]) == 2
    listed = json.loads((tmp_path / "collected" / "dataset.json").read_text(encoding="utf-8"))["training"]
    assert all(entry["image"].startswith("./imagesTr/") for entry in listed)
    left = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    assert [name for name in left if not fits_windows(name)] == []


def fits_windows(name: str) -> bool:
    """Whether NTFS and the Windows API take every part of a path, with 100 characters left for the folder above it."""
    parts = name.split("/")
    return len(name) <= 160 and all(
        not set('<>:"\\|?*').intersection(part)
        and min(part) >= " "
        and part[-1] not in ". "
        and part.partition(".")[0].lower() not in RESERVED
        for part in parts
    )


def test_names_that_windows_does_not_take_are_told_apart() -> None:
    assert fits_windows("run/tensorboard/events.out.tfevents.1")
    for name in ("a:b", "a/b.", "a /b", "x/Con.nii.gz", "lpt1", 'a"b', "a\\b", "x" * 161, "a\tb"):
        assert not fits_windows(name), name


def test_server_answers_a_request_and_a_job_and_stops_without_posix(tmp_path: Path) -> None:
    bundle = make_threshold_bundle(tmp_path / "bundle").folder
    array = scan_array((12, 10, 8))
    scan = nib.Nifti1Image(array, np.eye(4)).to_bytes()
    path = {"PYTHONPATH": environment()["PYTHONPATH"]}
    with running_server(bundle, tmp_path / "server", "--state", str(tmp_path / "state"), environ=path) as server:
        answer = server.segment(scan, fields={"answer": "json"}).json()
        voxels = {segment["name"]: round(segment["ml"] * 1000) for segment in answer["segments"]}
        labels = expected_mask(array)
        assert voxels == {"low": int(np.sum(labels == 1)), "high": int(np.sum(labels == 2))}
        job = server.http.post(f"{server.url}/jobs", files={"scan": scan}, data={"answer": "nifti"}).json()["id"]
        wait_until(lambda: server.get(f"/jobs/{job}").json()["state"] == "done")
        assert server.get(f"/jobs/{job}/result").status_code == 200
    assert server.process.returncode == 0, server.output
    with running_server(bundle, tmp_path / "again", "--state", str(tmp_path / "state"), environ=path) as server:
        assert server.get(f"/jobs/{job}").json()["state"] == "done"  # the folder was let go of
