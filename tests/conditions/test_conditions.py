"""The conditions are what they say they are, and a test that fails under one of them is reported."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path

import pytest

from tests.conditions import __main__ as command
from tests.conditions import optional_dependencies, process_environment
from tests.conditions.catalogue import CORE_TESTS, catalogue, select_for_day
from tests.conditions.condition import TREE, Condition, Launcher, UnavailableError, sitecustomize_environ
from tests.conditions.dates import DAY, launcher_at, next_change
from tests.conditions.other_user import find_closed_folder
from tests.conditions.pairwise import pairwise
from tests.conditions.runner import run
from tests.conftest import skip_or_fail

TEST = "import os\n\ndef test_of_the_day():\n    assert os.environ['SEMISEG_TEST_OF_CONDITIONS'] == 'right'\n"


def set_to(value: str) -> Condition:
    return Condition(
        f"is-{value}", f"set to {value}", lambda folder: Launcher(environ={"SEMISEG_TEST_OF_CONDITIONS": value})
    )


def made(make: Callable[[Path], Launcher], folder: Path) -> Launcher:
    try:
        return make(folder)
    except UnavailableError as error:
        skip_or_fail(str(error))


def said(start: Launcher, *program: str) -> str:
    code, words = start.run_captured(*program)
    assert code == 0, words
    return words


@pytest.fixture
def suite(tmp_path: Path) -> list[str]:
    """A suite of one test, which passes where the condition is the right one."""
    (tmp_path / "test_one.py").write_text(TEST)
    return ["-q", "--rootdir", str(tmp_path), "-c", os.devnull, str(tmp_path)]


@pytest.mark.parametrize("count", [2, 3, 7, 16])
def test_every_two_things_are_seen_both_there_both_absent_and_each_without_the_other(count: int) -> None:
    names = [f"thing{k}" for k in range(count)]
    rows = pairwise(names)
    for a, b in combinations(names, 2):
        assert {(row[a], row[b]) for row in rows} == {(True, True), (True, False), (False, True), (False, False)}
    assert len(rows) <= 14, "one by one they would be more"
    assert rows == pairwise(names)


def test_a_condition_under_which_a_test_fails_is_a_failure_and_says_which(
    suite: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run_all([set_to("right")], suite) == 0
    assert "1 passed    0 failed" in capsys.readouterr().out
    assert command.run_all([set_to("wrong"), set_to("right")], suite) == 1
    shown = capsys.readouterr().out
    assert "is-wrong                 0 passed    1 failed" in shown and "test_one.py::test_of_the_day" in shown
    assert "is-right                 1 passed    0 failed" in shown, "the next condition is tried all the same"


def test_a_suite_that_does_not_start_or_holds_no_test_is_a_failure(suite: list[str], tmp_path: Path) -> None:
    assert run(set_to("right"), [*suite, "-k", "no_such_test"]).is_failure
    (tmp_path / "test_one.py").write_text("import a_module_that_nobody_has\n")
    assert run(set_to("right"), suite).is_failure


def test_a_condition_that_this_machine_cannot_make_is_no_failure_and_gives_its_reason(suite: list[str]) -> None:
    def refuse(folder: Path) -> Launcher:
        raise UnavailableError("there is no such thing")

    outcome = run(Condition("none", "nothing", refuse), suite)
    assert not outcome.is_failure and str(outcome).endswith("not here: there is no such thing")


def test_names_are_unique_and_one_that_is_unknown_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    names = [condition.name for condition in catalogue()]
    assert len(set(names)) == len(names) > 20
    assert command.main(["no-such-condition"]) == 2
    assert "There is no condition 'no-such-condition'" in capsys.readouterr().err
    assert command.main(["--list", "umask-077"]) == 0
    assert capsys.readouterr().out.startswith("umask-077")


def test_every_condition_has_its_day_before_one_comes_again() -> None:
    conditions = catalogue()
    days = -(-len(conditions) // 3)
    seen = [c.name for day in range(100, 100 + days) for c in select_for_day(conditions, 3, day)]
    assert set(seen) == {condition.name for condition in conditions} and len(seen) == 3 * days
    assert [path for path in CORE_TESTS if not (TREE / path).exists()] == []


def test_a_program_is_hidden_and_its_neighbours_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "bin"
    place.mkdir()
    for name in ("thing", "neighbour"):
        (place / name).write_text(f"#!/bin/sh\necho {name}\n")
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(place), os.environ["PATH"]]))
    monkeypatch.setattr(optional_dependencies, "PROGRAMS", {"a package": ("thing",)})
    assert "a package" in optional_dependencies.present()
    start = optional_dependencies.launcher_without(["a package"], tmp_path)
    assert said(start, "/bin/sh", "-c", "command -v thing || neighbour") == "neighbour"


def test_a_package_is_hidden_as_if_it_were_not_installed() -> None:
    code = """
import importlib.metadata, importlib.util, numpy
print(importlib.util.find_spec("nibabel"), importlib.util.find_spec("pydicom") is None)
try:
    importlib.metadata.version("nibabel")
except importlib.metadata.PackageNotFoundError:
    print("not installed", importlib.metadata.version("numpy") == numpy.__version__)
import nibabel
"""
    _, shown = Launcher(environ=sitecustomize_environ(TESTS_CONDITION_WITHOUT="nibabel")).run_captured(
        sys.executable, "-u", "-c", code
    )
    assert shown.startswith("None False\nnot installed True\n")
    assert shown.endswith("ModuleNotFoundError: No module named 'nibabel'")


def test_another_day_is_that_of_every_process_and_waiting_takes_no_longer(
    require_program: Callable[[str], str], tmp_path: Path
) -> None:
    require_program("faketime")
    code = """
import datetime, queue, subprocess, time
before = time.monotonic()
time.sleep(0.05)
try:
    queue.Queue().get(timeout=0.05)
except queue.Empty:
    assert 0.1 <= time.monotonic() - before < 60
print(datetime.date.today(), subprocess.run(["date", "+%F"], capture_output=True, text=True).stdout)
"""
    today = datetime.now().date()
    ours, others = said(launcher_at(365 * DAY, tmp_path), sys.executable, "-c", code).split()
    assert ours == others
    later = {str(today + timedelta(days=365 + k)) for k in (0, 1)}  # midnight may have passed meanwhile
    assert ours in later


def test_the_change_of_the_clocks_is_found_to_the_second() -> None:
    summer = datetime(2026, 3, 29, 1, tzinfo=UTC).timestamp()
    winter = datetime(2026, 10, 25, 1, tzinfo=UTC).timestamp()
    try:
        assert next_change("Europe/Berlin", summer - 20 * DAY) == summer
        assert next_change("Europe/Berlin", summer + 1) == winter
    except UnavailableError as error:
        skip_or_fail(str(error))
    with pytest.raises(UnavailableError, match="no time zone Nowhere/Land"):
        next_change("Nowhere/Land", summer)


def test_other_surroundings_are_there(tmp_path: Path) -> None:
    by_name = {condition.name: condition for condition in process_environment.process_environments()}

    def asked(name: str, code: str) -> str:
        (tmp_path / name).mkdir()
        return said(made(by_name[name].make, tmp_path / name), sys.executable, "-c", code)

    assert asked("umask-077", "import os; print(oct(os.umask(0)))") == "0o77"
    assert asked("zone-kiritimati", "import time; print(time.timezone)") == str(-14 * 3600)
    assert asked("locale-c", "import locale; print(locale.getencoding())") in ("ANSI_X3.4-1968", "US-ASCII")
    assert asked("locale-latin-1", "import locale; print(locale.getencoding())") == "ISO-8859-1"
    refused = "import os, pathlib\ntry: (pathlib.Path.home() / 'file').touch()\nexcept OSError: print('refused')"
    assert asked("read-only-home", refused) == "refused"
    alone = (
        "import socket\nwith socket.create_server(('127.0.0.1', 0)) as s: socket.create_connection(s.getsockname())\n"
    )
    beyond = "try: socket.create_connection(('192.0.2.1', 9), 5)\nexcept OSError as e: print(e.strerror)"
    assert asked("no-network", alone + beyond) == "Network is unreachable"


def test_the_tree_is_copied_to_a_path_with_blanks_and_umlauts_and_imported_from_there(tmp_path: Path) -> None:
    start = made(process_environment._odd_path, tmp_path)
    code = "import semiseg, tempfile; print(semiseg.__file__); print(tempfile.gettempdir())"
    ours, temporary = said(start, sys.executable, "-c", code).splitlines()
    for path in (ours, temporary):
        assert path.startswith(str(tmp_path / process_environment.ODD)) and " " in path and "ü" in path


def test_a_folder_that_others_may_not_enter_is_found_above_a_path(tmp_path: Path) -> None:
    assert find_closed_folder(Path("/")) is None
    inner = tmp_path / "closed" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    found = find_closed_folder(inner)  # pytest's own folders may be closed, too
    assert found is not None and found in (*inner.parents, inner) and not found.stat().st_mode & 0o001
