"""The distributions of semiseg, and environments with one extra and nothing else, each made once for all processes."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import skip_or_fail
from tests.packaging.environments import REPOSITORY, Environment, copy_source, pip


@dataclass(frozen=True)
class Distributions:
    """What a release consists of.

    Attributes:
        sdist: the source distribution.
        wheel: the wheel, built from ``sdist``.
        direct: a wheel that was built from the source itself.
    """

    sdist: Path
    wheel: Path
    direct: Path


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
    """A clean copy of what is built, with the page's viewer if this checkout or a package index has it."""

    def make(folder: Path) -> None:
        copy_source(folder)
        if not (folder / "server/http/page/niivue.js").exists():
            subprocess.run([sys.executable, "-m", "deploy.viewer"], cwd=folder, capture_output=True, timeout=120)

    return _made_once("source", make, tmp_path_factory)


@pytest.fixture(scope="session")
def distributions(package_index: None, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """The source distribution and the wheels, built by `python -m build`."""

    def make(folder: Path) -> None:
        builder = Environment(folder / "builder")
        subprocess.run([sys.executable, "-m", "venv", str(builder.folder)], check=True)
        answer = pip("install", "-q", "build", "setuptools>=77", python=builder.python)
        assert answer.returncode == 0, answer.stderr
        for options, out in (([], "released"), (["--wheel"], "direct")):
            command = [builder.python, "-m", "build", "--no-isolation", *options, "--outdir", folder / out, source]
            answer = builder.run(*command)
            assert answer.returncode == 0, answer.stdout + answer.stderr

    folder = _made_once("distributions", make, tmp_path_factory)
    (sdist,), (wheel,) = (folder / "released").glob("*.tar.gz"), (folder / "released").glob("*.whl")
    return Distributions(sdist, wheel, *(folder / "direct").glob("*.whl"))


@pytest.fixture(scope="session")
def has_viewer(source: Path) -> None:
    """Skips where the distributions were built without the page's viewer."""
    if not (source / "server/http/page/niivue.js").exists():
        skip_or_fail("the page's viewer is not here and could not be brought; `python -m deploy.viewer` says why")


@pytest.fixture(scope="session")
def serve_environment(distributions: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """`pip install -c constraints.txt 'WHEEL[serve]'` in an empty environment."""
    return _installed("serve", distributions.wheel, tmp_path_factory)


@pytest.fixture(scope="session")
def gateway_environment(distributions: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """`pip install -c constraints.txt 'WHEEL[gateway]'` in an empty environment."""
    return _installed("gateway", distributions.wheel, tmp_path_factory)


def _installed(extra: str, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the wheel and one extra."""

    def make(folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        constraints = REPOSITORY / "constraints.txt"
        answer = pip("install", "-q", "-c", constraints, f"{wheel}[{extra}]", python=Environment(folder).python)
        assert answer.returncode == 0, answer.stderr

    return Environment(_made_once(f"{extra}-environment", make, tmp_path_factory))


def _made_once(name: str, make: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``make`` filled; pytest-xdist's workers share one."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder, made = shared / name, shared / f"{name}.made"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            make(folder)
            made.touch()
    return folder
