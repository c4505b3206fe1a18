"""Virtual environments that tests make, and the source as a user would get it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED_PACKAGES = ("semiseg", "trainer", "exporter", "server", "cli")
SHIPPED_FILES = (
    "pyproject.toml", "constraints.txt", "MANIFEST.in", "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff",
    "INTENDED_USE.md", "SECURITY.md", "deploy/viewer.py",
)  # fmt: skip


@dataclass(frozen=True)
class Environment:
    """A virtual environment into which semiseg was installed as a user would: from a wheel, not editable."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def semiseg(self) -> Path:
        return self.folder / "bin" / "semiseg"

    @property
    def packages(self) -> Path:
        (folder,) = self.folder.glob("lib/python3.*/site-packages")
        return folder

    def variables(self, home: Path) -> dict[str, str]:
        """What a process of this environment starts with: nothing of the calling environment."""
        path = f"{self.folder / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        return {"PATH": path, "HOME": str(home), "TMPDIR": str(home), "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"}

    def run(
        self, *command: str | Path, home: Path | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run ``command`` in ``home``, outside the repository."""
        home = home or self.folder
        return subprocess.run(
            list(map(str, command)), cwd=home, env=self.variables(home), capture_output=True, text=True, timeout=timeout
        )


def copy_source(target: Path) -> Path:
    """The source as a user gets it, away from this checkout's build leftovers (setuptools would reuse them)."""
    target.mkdir(parents=True)
    for name in SHIPPED_PACKAGES:
        shutil.copytree(REPOSITORY / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in SHIPPED_FILES:
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, target / name)
    return target


def make_minimal_environment(folder: Path, packages: Iterable[Path]) -> Environment:
    """An environment that uses the installed packages of other environments and has neither pip nor semiseg."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    environment = Environment(folder)
    (environment.packages / "others.pth").write_text("".join(f"{one}\n" for one in packages), encoding="utf-8")
    return environment


def install_without_dependencies(distribution: Path, environment: Environment) -> None:
    """Install a wheel or a source distribution, and nothing that it needs, as the last one."""
    answer = pip("--python", environment.python, "install", "-q", "--no-deps", "--force-reinstall", distribution)
    assert answer.returncode == 0, answer.stderr


def pip(*arguments: str | Path, python: Path | str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Run pip of the environment of ``python``, by default of the one that runs the tests.

    It compiles nothing: the tests import a small part of what is installed, and Python compiles that.
    """
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    if "install" in arguments:
        command.append("--no-compile")
    return subprocess.run(command, capture_output=True, text=True, timeout=540)


LICENCES = """
from importlib import metadata
for package in metadata.distributions():
    about = package.metadata
    stated = [about.get("License-Expression"), *(about.get_all("Classifier") or [])]
    stated = [line for line in stated if line and (line.startswith("License") or "::" not in line)]
    brief = about.get("License") or ""
    print(package.name, "|", *stated, brief if len(brief) < 80 else "")
"""


def assert_no_gpl(environment: Environment, *, at_least: int) -> None:
    """None of the packages states a licence that would bind what is shipped; there are more than ``at_least``."""
    answer = environment.run(environment.python, "-c", LICENCES)
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert len(lines) > at_least
    # "or": a licence that may be chosen; "Lesser"/LGPL: linking is allowed.
    strong = re.compile(r"(?<!L)\bA?GPL|(?<!Lesser )General Public License")
    assert [line for line in lines if strong.search(line) and " or " not in line.lower()] == []
