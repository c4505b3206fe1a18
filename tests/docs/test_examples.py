"""The changes that CONTRIBUTING.md shows can be made to this very tree, and do what they say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs.generators.document import REPOSITORY
from tests.packaging.environments import SHIPPED_PACKAGES

PROOFS = {
    "method": [
        "tests/trainer/test_entropy.py",
        "tests/trainer/test_any_method.py",
        "tests/docs/test_method_examples.py",
    ],
    "student": ["tests/trainer/test_students.py"],
    "engine": ["tests/engines/test_engines.py", "tests/inference/test_engine_selection.py"],
    "output": ["tests/outputs/test_report.py"],
    "reader": ["tests/volumes/test_npz.py", "tests/volumes/test_formats.py"],
}
METHOD = "(entropy and (unet or written or certain or settings)) or each_method_has"
NAMES = {"method": METHOD, "student": "attention", "engine": "reference or loads"}


@pytest.mark.parametrize("name", PROOFS)
def test_example_applies_and_its_tests_pass(name: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for part in (*SHIPPED_PACKAGES, "deploy", "tests", "docs", "examples", "pyproject.toml", "README.md"):
        source = REPOSITORY / part
        if source.is_dir():
            shutil.copytree(source, tree / part, ignore=shutil.ignore_patterns("__pycache__", "results", "releases"))
        else:
            shutil.copy(source, tree / part)
    diff = REPOSITORY / "docs" / "examples" / f"{name}.diff"
    applied = subprocess.run(["git", "apply", str(diff)], cwd=tree, capture_output=True, text=True)
    assert applied.returncode == 0, applied.stderr
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    linted = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=tree, env=environment, capture_output=True
    )
    assert linted.returncode == 0, linted.stdout.decode()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *PROOFS[name], "-k", NAMES.get(name, "")]
    tested = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=540)
    assert tested.returncode == 0, tested.stdout[-3000:] + tested.stderr[-1000:]
    assert str(tree) in _where(tree, environment), "the tests ran on another tree"


def _where(tree: Path, environment: dict[str, str]) -> str:
    command = [sys.executable, "-c", "import semiseg.errors as e; print(e.__file__)"]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True).stdout
