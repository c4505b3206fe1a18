"""The two commands of a new machine: what `make` does before anything is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def make(needs_program: Callable[[str], str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the Makefile in a folder whose name has a space, with nothing installed there."""
    program = needs_program("make")
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, folder / name)
    # A make that runs this test hands its variables down; the one under test starts without them.
    environment = {
        k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES")
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
        )

    return run


def test_make_alone_says_what_can_be_made(make: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    answer = make()
    assert answer.returncode == 0, answer.stderr
    for target in ("demo", "test", "check", "install", "clean"):
        assert f"make {target} " in answer.stdout
    for variable in ("PYTHON=", "RUNTIME=", "TORCH_INDEX="):
        assert variable in answer.stdout


def test_a_machine_without_a_fitting_python_is_told_so(
    make: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    answer = make("install", "PYTHON=/bin/false")
    assert answer.returncode == 2
    assert "semiseg needs Python 3.11 or 3.12" in answer.stderr


def test_an_unknown_runtime_is_refused(make: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    answer = make("install", "RUNTIME=tpu")
    assert answer.returncode == 2
    assert "RUNTIME=cpu or RUNTIME=gpu" in answer.stderr


@pytest.mark.parametrize(("runtime", "extra", "other"), [("cpu", "serve", "gpu"), ("gpu", "gpu", "serve")])
def test_one_variable_chooses_the_one_runtime(
    make: Callable[..., subprocess.CompletedProcess[str]], runtime: str, extra: str, other: str
) -> None:
    planned = make("--dry-run", "install", f"RUNTIME={runtime}").stdout
    assert f".[train,export,{extra},gateway,ray,dev]" in planned
    assert f",{other}," not in planned


def test_no_package_index_for_torch_is_named_unless_asked_for(
    make: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    assert "--extra-index-url" not in make("--dry-run", "install").stdout
    asked = make("--dry-run", "install", "TORCH_INDEX=https://packages.example/cpu").stdout
    assert "--extra-index-url 'https://packages.example/cpu'" in asked


def test_the_demo_does_not_wait_for_the_test_tools(make: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    planned = make("--dry-run", "demo").stdout
    assert ".[train,export,serve,gateway]" in planned
    assert "dev]" not in planned
