"""The project's virtual environment .venv: which Python may make it, and what is installed into it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".venv"
PROGRAMS = FOLDER / ("Scripts" if os.name == "nt" else "bin")
PYTHON = PROGRAMS / ("python.exe" if os.name == "nt" else "python")
INPUTS = ("pyproject.toml", "constraints.txt")
MIN_PYTHON = (3, 11)
# Each build of ONNX Runtime: the extra that brings it. The two share files, so an environment holds one of them.
RUNTIMES = {"cpu": ("serve", "onnxruntime"), "gpu": ("gpu", "onnxruntime-gpu")}
# From a version of Python on, packages that are installed without what they ask for, and what of that is then left out:
# highdicom asks for pyjpegls and never imports it, and pyjpegls has no wheel there (python-gdcm decodes JPEG-LS).
WITHOUT_DEPENDENCIES = {(3, 14): ("highdicom", "pyjpegls")}

HOW_TO_GET_PYTHON = (
    "On Debian and Ubuntu: apt install python3 python3-venv; on macOS: brew install python, or the installer of "
    "python.org; on Windows: the installer of python.org."
)


class TaskError(Exception):
    """Something that the person at the keyboard can mend; the message says how."""


@dataclass(frozen=True)
class CommandRunner:
    """Runs commands in the project's folder, or only shows them.

    Attributes:
        dry: True if commands are printed and not run.
    """

    dry: bool = False

    def run(self, *command: str | Path, variables: Mapping[str, str] | None = None, folder: Path = ROOT) -> None:
        """Run ``command`` with ``variables`` added to the environment.

        Raises:
            subprocess.CalledProcessError: The command failed.
            TaskError: There is no such program.
        """
        words = [str(word) for word in command]
        if self.dry:
            print(" ".join([*(f"{name}={value}" for name, value in (variables or {}).items()), shlex.join(words)]))
            return
        sys.stdout.flush()
        try:
            subprocess.run(words, cwd=folder, env={**os.environ, **(variables or {})}, check=True)
        except FileNotFoundError:
            raise TaskError(f"{words[0]} is not here.") from None

    def remove(self, *paths: Path) -> None:
        """Remove files and folders that may be there."""
        for path in paths:
            if self.dry:
                print(f"remove {path.relative_to(ROOT).as_posix()}")
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def unsupported_reason(named: bool = False) -> str | None:
    """Why the Python that runs this cannot make the environment; None where it can.

    Args:
        named: True if a person chose this Python. A free-threaded build is taken only then, because packages lack
            wheels for it.
    """
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < MIN_PYTHON:
        return f"Python {version} is older than {MIN_PYTHON[0]}.{MIN_PYTHON[1]}"
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return f"Python {version} lacks the venv module (on Debian and Ubuntu: python3-venv)"
    if not named and sysconfig.get_config_var("Py_GIL_DISABLED"):
        return f"Python {version} is a free-threaded build"
    return None


def make_environment(commands: CommandRunner, python: str | None = None) -> None:
    """Make .venv, unless it is there and works.

    Args:
        commands: Runs what is needed.
        python: The Python to make it with; a .venv of another version is replaced. By default the Python that runs
            this, and a .venv of any version that fits is kept.

    Raises:
        TaskError: The Python does not fit.
    """
    wanted = None
    if python is not None:
        wanted = _version(python)
        reason = _unsupported_reason_of(python) if wanted else "it does not run"
    else:
        reason = unsupported_reason()
    present = _version(PYTHON, "import pip")
    if present is not None and present >= MIN_PYTHON and wanted in (None, present):
        return
    if reason:
        name = python or sys.executable
        needed = f"semiseg needs Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or newer with its venv module"
        raise TaskError(f"{needed}, and {name} is not one: {reason}. {HOW_TO_GET_PYTHON}")
    # A Python inside the environment that is about to be replaced stands on another one.
    maker = python or (getattr(sys, "_base_executable", None) if sys.prefix != sys.base_prefix else None)
    version = wanted or sys.version_info[:2]
    print(f"Making .venv with Python {version[0]}.{version[1]}")
    commands.remove(FOLDER)
    commands.run(maker or sys.executable, "-m", "venv", FOLDER)


def install(commands: CommandRunner, *, runtime: str, torch_index: str, tools: bool) -> None:
    """Install semiseg into .venv, editable, unless nothing has changed since that was done.

    Args:
        commands: Runs what is needed.
        runtime: Build of ONNX Runtime: ``cpu`` or ``gpu``.
        torch_index: Address of an extra package index to take torch from; empty for none.
        tools: True if the tools of tests and checks are needed, too.

    Raises:
        TaskError: The installed packages do not fit together.
    """
    # Two stamps, so that the demo does not wait for the test tools and the tests do not install the rest twice.
    stamps = [FOLDER / f".installed-{runtime}", *([FOLDER / f".installed-{runtime}-dev"] if tools else [])]
    if _is_fresh(stamps[-1]):
        return
    others = [package for name, (_, package) in RUNTIMES.items() if name != runtime]
    if any(_has(package) for package in others):
        commands.remove(*(FOLDER / f".installed-{name}{end}" for name in RUNTIMES for end in ("", "-dev")))
        commands.run(PYTHON, "-m", "pip", "uninstall", "--yes", "-qq", *(package for _, package in RUNTIMES.values()))
    extras = ["train", "export", RUNTIMES[runtime][0], "gateway", *(["ray", "dev"] if tools else [])]
    what = f".[{','.join(extras)}]"
    print(f"Installing '{what}' into .venv (a few minutes the first time)")
    left_out = pip_install(commands, PYTHON, "-e", what, torch_index=torch_index)
    if not commands.dry:
        _check(left_out)
        for stamp in stamps:
            stamp.touch()


def pip_install(commands: CommandRunner, python: Path, *what: str, torch_index: str, folder: Path = ROOT) -> set[str]:
    """Install ``what`` in the tested versions, and packages of ``WITHOUT_DEPENDENCIES`` for this Python on their own.

    pip starts in ``folder``: in a clone it takes the metadata that an editable installation left there for installed.

    Returns:
        The complaints that pip has of that, and that may be.
    """
    pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt")]
    commands.run(*pip, *(["--extra-index-url", torch_index] if torch_index else []), *what, folder=folder)
    left_out = set()
    for least, (package, unused) in WITHOUT_DEPENDENCIES.items():
        if (_version(python) or sys.version_info[:2]) >= least:
            commands.run(*pip, "--no-deps", package, folder=folder)
            left_out.add(f"{package} requires {unused}, which is not installed")
    return left_out


def _check(left_out: set[str]) -> None:
    """Let pip say whether the packages fit together; ``left_out`` are complaints that may be."""
    answer = subprocess.run([str(PYTHON), "-m", "pip", "check"], capture_output=True, text=True, check=False)
    wrong = [line for line in answer.stdout.splitlines() if not _is_one_of(line, left_out)]
    if answer.returncode and (wrong or not answer.stdout):
        raise TaskError("\n".join(["The packages in .venv do not fit together:", *wrong, answer.stderr]))


def _is_one_of(complaint: str, left_out: set[str]) -> bool:
    """Whether pip's line is one of the complaints, whatever the package's version: `highdicom 0.28.2 requires ...`."""
    name, _, rest = complaint.partition(" ")
    return f"{name} {rest.partition(' ')[2]}".rstrip(".") in left_out


def _is_fresh(stamp: Path) -> bool:
    """Whether ``stamp`` is younger than what decides what is installed."""
    return stamp.exists() and all(stamp.stat().st_mtime >= (ROOT / name).stat().st_mtime for name in INPUTS)


def _has(package: str) -> bool:
    command = [str(PYTHON), "-m", "pip", "show", "--quiet", package]
    return PYTHON.exists() and subprocess.run(command, capture_output=True, check=False).returncode == 0


def _version(python: str | Path, first: str = "") -> tuple[int, int] | None:
    """Major and minor version of an interpreter that runs and can do ``first``; None where it does not."""
    ask = f"{first}\nimport sys\nprint(sys.version_info[0], sys.version_info[1])"
    try:
        answer = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True).stdout.split()
        return int(answer[0]), int(answer[1])
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return None


def _unsupported_reason_of(python: str) -> str | None:
    """See :func:`unsupported_reason`, of another interpreter, which was named."""
    command = [python, "-m", "deploy.tasks", "fits", "--named"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return None if answer.returncode == 0 else answer.stdout.strip() or "it does not run"
