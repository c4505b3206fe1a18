"""`semiseg doctor` tells what is there, tries a bundle out, and names what is wrong with it."""

from __future__ import annotations

import os
import subprocess

from semiseg.bundle.bundle import MODEL
from semiseg.inference.engine_selection import choose_engine
from tests.bundles import make_threshold_bundle
from tests.fork_server import run_semiseg


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_semiseg("doctor", *arguments, environ={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_sound_bundle_is_tried_out_and_named(tmp_path):
    bundle = make_threshold_bundle(tmp_path / "bundle")
    answer = doctor(str(bundle.folder))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found = choose_engine(bundle)
    taken, left = found.selected, [one for one in found.candidates if one.open is None]
    assert (
        bundle.sha256[:12] in answer.stdout
        and f"runs fp32 on {taken.engine_and_device}: {taken.reason}" in answer.stdout
    )
    assert all(f"not fp32 on {one.engine_and_device}: {one.reason}" in answer.stdout for one in left)
    assert "no trouble found" in answer.stdout


def test_an_altered_bundle_is_trouble_and_exit_code_1(tmp_path):
    bundle = make_threshold_bundle(tmp_path / "bundle")
    (bundle.folder / MODEL).write_bytes(b"something else")
    answer = doctor(str(bundle.folder))
    assert answer.returncode == 1
    assert "altered" in answer.stdout and "Traceback" not in answer.stdout + answer.stderr
    assert "no trouble" not in answer.stdout


def test_a_machine_without_a_bundle_is_described(tmp_path):
    answer = doctor()
    assert answer.returncode == 0, answer.stdout
    for word in ("cores", "GB free", "GPU driver", "onnxruntime", "torch"):
        assert word in answer.stdout
