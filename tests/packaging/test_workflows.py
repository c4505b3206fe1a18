"""Hosted CI and the forms of issues: they cannot run here, so they are held to their schemas and to the tasks."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.tasks import TARGETS, parse
from semiseg.features import PYTHONS, SYSTEMS
from tests.conditions.__main__ import PAIRS, is_pair
from tests.conditions.catalogue import catalogue
from tests.conftest import skip_or_fail
from tests.packaging.environments import REPOSITORY

GITHUB = REPOSITORY / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(set((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) - {GITHUB / "ISSUE_TEMPLATE" / "config.yml"})
CLASSIFIERS: list[str] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "classifiers"
]
# What is no task, because it happens before a Python is there or needs the runner's own programs.
OTHERS = (
    r"apt-get update -q",
    r"apt-get install -q -y --no-install-recommends ca-certificates git make python3 python3-venv",
    r'git config --system --add safe\.directory "\*"',
    r"sudo apt-get update -q",
    r"sudo apt-get install -q -y debootstrap debian-archive-keyring",
    r"sudo --preserve-env=TORCH_INDEX deploy/try_pythons\.sh --quick (trixie|forky)",
    r"deploy/ci-packages\.sh",
    r"python -m deploy\.try_wheel",
    r"docker build --target (serve|gateway|train) --build-arg TORCH_INDEX -t semiseg-(serve|gateway|train) \.",
)


def read(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    found["on"] = found.pop(True, None)  # YAML 1.1 reads the key `on` as a truth value
    return dict(found)


def jobs() -> list[tuple[str, dict[str, Any]]]:
    return [(f"{path.name}: {name}", job) for path in WORKFLOWS for name, job in read(path)["jobs"].items()]


def commands() -> list[str]:
    """Every line that a step runs, once for each value of the job's matrix that it names."""
    found = []
    for _, job in jobs():
        matrix = job.get("strategy", {}).get("matrix", {})
        for step in job["steps"]:
            for line in step.get("run", "").splitlines():
                names = set(re.findall(r"\$\{\{ matrix\.(\w+) \}\}", line))
                assert len(names) < 2, f"{line}: this test fills in one name"
                name = next(iter(names), "")
                values = matrix[name] if name else [""]
                found += [line.strip().replace(f"${{{{ matrix.{name} }}}}", value) for value in values]
    return found


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("vendor.github-workflows", WORKFLOWS),
        ("vendor.github-issue-forms", FORMS),
        ("vendor.github-issue-config", [GITHUB / "ISSUE_TEMPLATE" / "config.yml"]),
    ],
)
def test_the_files_are_what_the_schemas_allow(schema: str, files: list[Path]) -> None:
    if find_spec("check_jsonschema") is None:
        skip_or_fail("check-jsonschema is not installed (it is in the `dev` extra)")
    assert files
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, files)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_every_command_is_a_task_or_on_the_list() -> None:
    assert "python -m deploy.tasks test --quick" in commands()
    for command in commands():
        if command.startswith("python -m deploy.tasks "):
            assert parse(command.split()[3:]).target in TARGETS
        elif command.startswith("make "):
            target, *variables = shlex.split(command.removeprefix("make "))
            assert target in TARGETS
            assert all(variable.startswith("ARGS=") for variable in variables)
        else:
            assert any(re.fullmatch(pattern, command) for pattern in OTHERS), f"{command} is no task"


def test_every_entry_of_the_list_is_used() -> None:
    for pattern in OTHERS:
        assert any(re.fullmatch(pattern, command) for command in commands()), f"{pattern} is on the list for nothing"


def test_all_conditions_are_tried_every_week() -> None:
    """By their names, each part in a job of its own."""
    parts = [command.partition("ARGS=")[2] for command in commands() if command.startswith("make conditions ")]
    tried = [name for part in parts for name in part.strip("'").split() if "--rotate" not in part]
    assert sorted(tried) == sorted({PAIRS if is_pair(one.name) else one.name for one in catalogue()})


def test_scripts_that_are_run_exist() -> None:
    for name in ("deploy/ci-packages.sh", "deploy/try_pythons.sh", "deploy/try_wheel.py"):
        assert (REPOSITORY / name).is_file()


def test_the_quick_part_runs_on_the_pythons_and_systems_that_package_and_readme_name() -> None:
    matrix = read(GITHUB / "workflows" / "ci.yml")["jobs"]["quick"]["strategy"]["matrix"]
    assert matrix["python"] == [one.split(" :: ")[-1] for one in CLASSIFIERS if "Python :: 3." in one]
    named = {"ubuntu-latest": "POSIX :: Linux", "macos-latest": "MacOS", "windows-latest": "Microsoft :: Windows"}
    systems = {one.removeprefix("Operating System :: ") for one in CLASSIFIERS if one.startswith("Operating System")}
    assert {named[one] for one in matrix["system"]} == systems
    assert matrix["python"] == list(PYTHONS)
    assert len(systems) == len(SYSTEMS)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_read_the_code_and_nothing_else(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "concurrency" in workflow
    assert "secrets." not in path.read_text(encoding="utf-8")
    # What a stranger's pull request may decide (titles, branch names) must not reach a shell.
    assert not [line for line in commands() if "${{" in line]


@pytest.mark.parametrize(("name", "job"), jobs(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_job_ends_and_uses_pinned_actions_of_one_owner(name: str, job: dict[str, Any]) -> None:
    assert 0 < job["timeout-minutes"] <= 360, name
    for step in job["steps"]:
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]), step["uses"]
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_a_form_that_asks_for_files_or_logs_warns_of_patient_data(path: Path) -> None:
    form = read(path)
    ids = [part["id"] for part in form["body"] if "id" in part]
    assert len(ids) == len(set(ids))
    asks_for_output = any(part.get("attributes", {}).get("render") for part in form["body"])
    if asks_for_output:
        (confirmed,) = [part for part in form["body"] if part["type"] == "checkboxes"]
        assert confirmed["attributes"]["options"][0]["required"] is True
        assert "patient" in form["body"][0]["attributes"]["value"]
