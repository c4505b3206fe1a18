"""Environments with one extra and nothing else, each made once however many processes test with it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.environments import Environment, copy_source, pip


@pytest.fixture(scope="session")
def package_index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where pip cannot fetch what every installation fetches first, the build backend."""
    folder = tmp_path_factory.mktemp("index")
    answer = pip(
        "download", "--quiet", "--no-deps", "--retries", "1", "--timeout", "15", "-d", folder, "setuptools>=77"
    )
    if answer.returncode != 0:
        pytest.skip(f"pip reaches no package index: {answer.stderr.strip().splitlines()[-1]}")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of what is installed."""
    return copy_source(tmp_path_factory.mktemp("source") / "semiseg")


@pytest.fixture(scope="session")
def serve_environment(package_index: None, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """`pip install -c constraints.txt '.[serve]'` in an empty environment."""
    return _made_once("serve", source, tmp_path_factory)


@pytest.fixture(scope="session")
def gateway_environment(package_index: None, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """`pip install -c constraints.txt '.[gateway]'` in an empty environment."""
    return _made_once("gateway", source, tmp_path_factory)


def _made_once(extra: str, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The environment of an extra; pytest-xdist's workers share one."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    environment = Environment(shared / f"{extra}-environment")
    made = shared / f"{extra}-environment.made"
    with (shared / f"{extra}-environment.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment.folder)], check=True)
            answer = pip(
                "install", "-q", "-c", source / "constraints.txt", f"{source}[{extra}]", python=environment.python
            )
            assert answer.returncode == 0, answer.stderr
            made.touch()
    return environment
