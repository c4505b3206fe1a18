"""A condition: something that differs from machine to machine or from day to day, and how the suite starts under it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

TREE = Path(__file__).resolve().parents[2]
INTERPRETER = Path(__file__).parent / "interpreter"
"""The folder of the sitecustomize.py that changes the Python of a condition."""


class UnavailableError(Exception):
    """This machine cannot make the condition; the message is the reason."""


@dataclass(frozen=True)
class Launcher:
    """How a process starts under a condition.

    Attributes:
        before: Command and arguments that are put before the command.
        environ: Environment variables to set; those that are None are removed.
        tree: Folder of the source tree to start in.
    """

    before: tuple[str, ...] = ()
    environ: Mapping[str, str | None] = field(default_factory=dict)
    tree: Path = TREE

    def run(self, command: list[str], output: Path, beside: Mapping[str, str] = MappingProxyType({})) -> int:
        """Run a command, wait for it, and return its exit code.

        Args:
            command: Program and arguments.
            output: File for what it prints; standard error goes there, too.
            beside: Further environment variables, where the condition says nothing of them.
        """
        environ = {**os.environ, **beside}
        for name, value in self.environ.items():
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value
        with output.open("wb") as file:
            return subprocess.run(
                [*self.before, *command],
                cwd=self.tree,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            ).returncode

    def run_captured(self, *command: str) -> tuple[int, str]:
        """Run a short command; its exit code and what it prints."""
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "output"
            code = self.run(list(command), output)
            return code, output.read_text(encoding="utf-8", errors="replace").strip()


@dataclass(frozen=True)
class Condition:
    """A named condition.

    Attributes:
        name: Name on the command line.
        description: What differs, as a phrase for people.
        make: Function of an empty folder that the condition may fill; it returns how to start, or raises
            :class:`NotHereError`.
    """

    name: str
    description: str
    make: Callable[[Path], Launcher]


def find_program(name: str) -> str:
    """The path of a program that a condition cannot be made without.

    Raises:
        NotHereError: It is not installed.
    """
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
    if found is None:
        raise UnavailableError(f"the program {name} is not installed")
    return found


def sitecustomize_environ(**environ: str | None) -> dict[str, str | None]:
    """Environment variables with which every Python process reads our sitecustomize.py."""
    rest = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(INTERPRETER), *([rest] if rest else [])]), **environ}


def copy_tree(target: Path, *, without: tuple[str, ...] = ()) -> Path:
    """A copy of the files that git knows or does not ignore, and of the page's viewer where it was brought.

    Raises:
        NotHereError: There is no git to ask.
    """
    listed = subprocess.run(
        [find_program("git"), "-C", str(TREE), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if listed.returncode != 0:
        raise UnavailableError(f"git does not list the source tree: {listed.stderr.strip()}")
    for name in {*listed.stdout.split("\0"), "server/http/page/niivue.js"} - {"", *without}:
        if (TREE / name).is_file():  # a file that was deleted and not committed is still listed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(TREE / name, target / name)
    return target


def copy_environ(tree: Path) -> dict[str, str | None]:
    """Environment variables with which scripts of this environment import a copy and not the tree it was made from."""
    return {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}


def python_executable() -> str:
    """The interpreter that runs the suite."""
    return sys.executable
