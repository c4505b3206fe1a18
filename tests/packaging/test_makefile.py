"""The commands of a new machine: what `make` and `python -m deploy.tasks` do before anything is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.environment import _is_one_of, unsupported_reason
from deploy.tasks import TARGETS
from tests.packaging.environments import REPOSITORY

Run = Callable[..., subprocess.CompletedProcess[str]]
NEEDED = ("Makefile", "pyproject.toml", "constraints.txt", "deploy/tasks.py", "deploy/environment.py")
# Set by a make that runs this test, or by a machine; what is tested starts without them.
LEFT_OUT = (
    "MAKEFLAGS",
    "MAKELEVEL",
    "MFLAGS",
    "MAKEOVERRIDES",
    "PYTHON",
    "RUNTIME",
    "TORCH_INDEX",
    "OUT",
    "JOBS",
    "ARGS",
)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder whose name has a blank, with nothing installed there."""
    folder = tmp_path / "a clone"
    for name in NEEDED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    return folder


def _run(folder: Path, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=540,
    )


@pytest.fixture(scope="module")
def empty_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with pip and nothing else."""
    folder = tmp_path_factory.mktemp("empty") / ".venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder


@pytest.fixture
def environment(empty_environment: Path, clone: Path) -> Path:
    """The same, as the clone's .venv."""
    return Path(shutil.copytree(empty_environment, clone / ".venv", symlinks=True))


@pytest.fixture
def make(require_program: Callable[[str], str], clone: Path) -> Run:
    """Runs the Makefile."""
    program = require_program("make")
    return lambda *words, **variables: _run(clone, program, *words, **variables)


@pytest.fixture
def task(clone: Path) -> Run:
    """Runs the tasks as a person without make does."""
    return lambda *words, **variables: _run(clone, sys.executable, "-m", "deploy.tasks", *words, **variables)


@pytest.fixture(params=["make", "task"])
def plan(request: pytest.FixtureRequest) -> Callable[..., str]:
    """What a target would run, by make and by the command that needs no make; options are make's variables."""
    run: Run = request.getfixturevalue(request.param)

    def planned(target: str, **options: str) -> str:
        if request.param == "make":
            answer = run("--dry-run", target, *(f"{name}={value}" for name, value in options.items()))
        else:
            words = [word for name, value in options.items() for word in (f"--{name.lower().replace('_', '-')}", value)]
            answer = run(target, "--dry-run", *words)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    return planned


def stand_in(folder: Path, name: str, script: str) -> None:
    """A program ``name`` in ``folder`` that a shell runs."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_make_alone_says_what_can_be_made(make: Run) -> None:
    answer = make()
    assert answer.returncode == 0, answer.stderr
    for target in TARGETS:
        assert f"  {target} " in answer.stdout
    for variable in ("PYTHON=", "RUNTIME=", "TORCH_INDEX=", "OUT=", "JOBS=", "ARGS="):
        assert variable in answer.stdout


def test_make_knows_the_targets_of_the_tasks_and_no_other() -> None:
    (line,) = [line for line in (REPOSITORY / "Makefile").read_text().splitlines() if line.startswith("TARGETS :=")]
    assert line.split()[2:] == list(TARGETS)


def test_make_hands_its_targets_to_the_tasks(make: Run) -> None:
    targets = ("test-all", "clean")
    answer = make("--dry-run", *targets)
    assert answer.returncode == 0, answer.stderr
    for target in targets:
        assert f"-m deploy.tasks {target} " in answer.stdout


def test_a_machine_without_a_fitting_python_is_told_so(make: Run) -> None:
    answer = make("install", "PYTHON=/bin/false")
    assert answer.returncode == 2
    assert "semiseg needs Python 3.11 or newer" in answer.stderr
    assert "python3-venv" in answer.stderr


def test_a_python_that_is_named_and_does_not_fit_is_refused_without_make(task: Run) -> None:
    answer = task("install", "--python", "/bin/false")
    assert answer.returncode == 2
    assert "/bin/false is not one: it does not run" in answer.stderr


def test_an_older_python_is_told_so_in_a_sentence(clone: Path) -> None:
    """The syntax of the file is checked, too, where this machine has an older Python."""
    older = [Path(found) for name in ("python3.10", "python3.9", "python3.8") if (found := shutil.which(name))]
    older += sorted(Path.home().glob(".pyenv/versions/3.[6-9].*/bin/python"))
    working = [python for python in older if _run(clone, python, "-c", "").returncode == 0]
    if not working:
        pytest.skip("there is no Python older than 3.11 on this machine")
    for python in working:
        answer = _run(clone, python, "-m", "deploy.tasks", "demo")
        assert answer.returncode == 2
        assert answer.stderr.startswith("semiseg needs Python 3.11 or newer, and this is 3."), answer.stderr


def test_the_newest_python_that_works_is_taken(make: Run, clone: Path) -> None:
    """A version manager's stand-in fails, and a Debian without its venv package cannot import ensurepip."""
    programs = clone / "programs"
    stand_in(programs, "python3.14", "echo 'pyenv: python3.14: command not found' >&2; exit 127")
    lacking = "import sys; sys.modules['ensurepip'] = None; import runpy; sys.argv = sys.argv[2:]"
    run_lacking = f"{lacking}; runpy.run_module('deploy.tasks', run_name='__main__', alter_sys=False)"
    stand_in(programs, "python3.13", f'exec \'{sys.executable}\' -c "{run_lacking}" "$@"')
    for name in ("python3.12", "python3.11"):
        stand_in(programs, name, f"[ $3 = fits ] || echo 'I am {name}'; exec '{sys.executable}' \"$@\"")
    answer = make("--dry-run", "install", PATH=f"{programs}:/usr/bin:/bin")
    assert answer.returncode == 0, answer.stderr
    assert "I am python3.12" in answer.stdout
    refused = make("install", "PYTHON=python3.13", PATH=f"{programs}:/usr/bin:/bin")
    assert "lacks the venv module (on Debian and Ubuntu: python3-venv)" in refused.stderr


def test_a_free_threaded_python_is_taken_only_when_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: 1 if name == "Py_GIL_DISABLED" else None)
    assert "free-threaded" in str(unsupported_reason())
    assert unsupported_reason(named=True) is None


def test_an_environment_that_is_there_is_kept_and_a_broken_one_is_made_again(task: Run, environment: Path) -> None:
    assert "-m venv" not in task("install", "--dry-run").stdout
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    python.unlink()
    assert "-m venv" in task("install", "--dry-run").stdout


def test_what_is_installed_is_installed_again_when_the_project_file_changes(
    task: Run, clone: Path, environment: Path
) -> None:
    for stamp in (".installed-cpu", ".installed-cpu-dev"):
        (environment / stamp).touch()
    for name in ("pyproject.toml", "constraints.txt"):
        os.utime(clone / name, (1, 1))
    assert "pip install" not in task("install", "--dry-run").stdout
    later = (environment / ".installed-cpu-dev").stat().st_mtime + 10
    for name in ("pyproject.toml", "constraints.txt"):
        os.utime(clone / name, (later, later))
        assert "pip install" in task("install", "--dry-run").stdout
        os.utime(clone / name, (1, 1))


@pytest.mark.parametrize(("runtime", "other"), [("cpu", "onnxruntime_gpu"), ("gpu", "onnxruntime")])
def test_the_other_runtime_is_removed_first(task: Run, environment: Path, runtime: str, other: str) -> None:
    (packages,) = environment.glob("Lib/site-packages" if os.name == "nt" else "lib/python*/site-packages")
    about = packages / f"{other}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {other.replace('_', '-')}\nVersion: 1.0\n")
    planned = task("install", "--runtime", runtime, "--dry-run").stdout
    assert "pip uninstall --yes -qq onnxruntime onnxruntime-gpu" in planned
    assert planned.index("pip uninstall") < planned.index("pip install")


@pytest.mark.parametrize("run", ["make", "task"])
def test_an_unknown_runtime_is_refused(request: pytest.FixtureRequest, run: str) -> None:
    words = ["RUNTIME=tpu"] if run == "make" else ["--runtime", "tpu"]
    answer = request.getfixturevalue(run)("install", *words)
    assert answer.returncode == 2
    assert "RUNTIME=cpu or RUNTIME=gpu" in answer.stderr


@pytest.mark.parametrize(("runtime", "extra", "other"), [("cpu", "serve", "gpu"), ("gpu", "gpu", "serve")])
def test_one_variable_chooses_the_one_runtime(plan: Callable[..., str], runtime: str, extra: str, other: str) -> None:
    planned = plan("install", RUNTIME=runtime)
    assert f".[train,export,{extra},gateway,ray,dev]" in planned
    assert f",{other}," not in planned


def test_no_package_index_for_torch_is_named_unless_asked_for(plan: Callable[..., str]) -> None:
    assert "--extra-index-url" not in plan("install")
    asked = plan("install", TORCH_INDEX="https://packages.example/cpu")
    assert "--extra-index-url https://packages.example/cpu" in asked


def test_the_demo_does_not_wait_for_the_test_tools(plan: Callable[..., str]) -> None:
    planned = plan("demo", OUT="a folder")
    assert ".[train,export,serve,gateway]" in planned
    assert "dev]" not in planned
    assert "demo --out 'a folder'" in planned


def test_arguments_reach_the_program_as_they_were_written(make: Run, task: Run) -> None:
    assert "-k 'one or two'" in make("--dry-run", "test", "ARGS=-k 'one or two'").stdout.splitlines()[-1]
    assert "-k 'one or two'" in task("test", "--dry-run", "--", "-k", "one or two").stdout.splitlines()[-1]


def test_the_quick_part_is_made_of_tests_that_exist(task: Run) -> None:
    (line,) = [line for line in task("test", "--quick", "--dry-run").stdout.splitlines() if " pytest " in line]
    named = [word for word in line.split() if word.startswith("tests/")]
    assert named
    for name in named:
        assert (REPOSITORY / name).exists(), name


def test_a_package_whose_dependency_has_no_wheel_is_installed_without_it(task: Run, clone: Path) -> None:
    """On a Python of which environment.WITHOUT_DEPENDENCIES says so; pip's complaint about it alone is passed over."""
    assert "--no-deps" not in task("install", "--dry-run").stdout or sys.version_info >= (3, 14)
    source = clone / "deploy" / "environment.py"
    # Of another size, since Python takes a compiled file of the same second and size for the present one.
    source.write_text(
        source.read_text().replace("WITHOUT_DEPENDENCIES = {(3, 14)", "WITHOUT_DEPENDENCIES = {  (3, 11)")
    )
    planned = task("install", "--dry-run").stdout
    assert planned.index("-e '.[train") < planned.index("--no-deps highdicom")


def test_only_the_expected_complaint_of_pip_is_passed_over() -> None:
    expected = {"highdicom requires pyjpegls, which is not installed"}
    assert _is_one_of("highdicom 0.28.2 requires pyjpegls, which is not installed.", expected)
    assert not _is_one_of("highdicom 0.28.2 requires pydicom, which is not installed.", expected)
    assert not _is_one_of("bentoml 1.4.39 has requirement cattrs<23.2.0, but you have cattrs 26.", expected)
