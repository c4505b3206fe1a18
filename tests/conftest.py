"""What tests may ask for: the real data, and programs that are not Python packages."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

HERE = Path(__file__).parent

# The same examples in every run: a test that fails here fails for everybody. `make test-all` looks for new ones. No
# example has a deadline: how long it takes depends on what else the machine does.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("new", print_blob=True, deadline=None)
settings.load_profile("same")


# Tests that mostly wait, for servers, archives and delays, run beside tests that compute.
WAITING = {"cli", "docs", "gateway", "packaging", "predicting", "releases", "server", "system"}
# Each of these takes a minute or more. One that began last would keep a single process busy.
LONGEST = (
    "trainer/test_kill_and_resume.py",
    "server/test_jobs.py",
    "trainer/test_parallel.py",
    "server/test_page.py",
    "server/labelling/test_page.py",
    "server/labelling/test_training.py",
    "gateway/test_worklist_faults.py",
    "trainer/test_every_method.py",
    "gateway/test_operations.py",
    "gateway/test_faults.py",
    "trainer/test_atlas.py",
    "server/test_guard.py",
    "server/test_lifecycle.py",
    "server/test_exhaustion.py",
    "gateway/test_inference_client.py",
    "system/test_without_posix.py",
    "packaging/test_wheel.py",
    "exporter/test_graph.py",
    "cli/test_demo.py",
    "cli/test_compare.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the files for several processes: the longest first, then those that wait and that compute by turns."""
    if not hasattr(config, "workerinput"):
        return
    files = list(dict.fromkeys(item.path for item in items))
    names = {file: file.relative_to(HERE).as_posix() for file in files if file.is_relative_to(HERE)}
    kinds: dict[bool, list[Path]] = {True: [], False: []}
    for file in files:
        kinds[names.get(file, "").split("/")[0] in WAITING].append(file)
    places = {file: (k + 0.5) / len(kind) for kind in kinds.values() for k, file in enumerate(kind)}
    places |= {file: LONGEST.index(name) - len(LONGEST) for file, name in names.items() if name in LONGEST}
    items.sort(key=lambda item: places[item.path])


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test with ``reason``; fail it where everything was promised to be there (``SEMISEG_TESTS_NEED_ALL``)."""
    if os.environ.get("SEMISEG_TESTS_NEED_ALL"):
        pytest.fail(f"SEMISEG_TESTS_NEED_ALL is set, and yet: {reason}", pytrace=False)
    pytest.skip(reason)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "package(name): needs an optional Python package; skips without it")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("package"):
        require_package(*mark.args)


def require_package(name: str) -> None:
    """Skip the test where a Python package is not installed that semiseg can do without."""
    if importlib.util.find_spec(name) is None:
        skip_or_fail(f"the package {name} is not installed")


@pytest.fixture(scope="session")
def semiseg_data() -> Path:
    """The folder of real scans that ``SEMISEG_DATA`` names; there is no default."""
    named = os.environ.get("SEMISEG_DATA")
    if not named:
        skip_or_fail("SEMISEG_DATA is unset: no folder of real scans to test with")
    folder = Path(named)
    if not folder.is_dir():
        pytest.fail(f"SEMISEG_DATA names {folder}, which is not a folder.", pytrace=False)
    return folder


@pytest.fixture(scope="session")
def require_program() -> Callable[[str], str]:
    """``require_program("dciodvfy")`` returns the program's path, or skips the test with the reason."""

    # tests/conditions takes programs away, also those in folders that no PATH names.
    without = os.environ.get("SEMISEG_TESTS_WITHOUT", "").split(",")

    def find(name: str) -> str:
        path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
        if path is None or name in without:
            skip_or_fail(f"the program {name} is not installed (deploy/ci-packages.sh installs it on Debian)")
        return path

    return find
