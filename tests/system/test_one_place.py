"""Only semiseg/system asks which operating system this is, and all code passes the type checker's view of each."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("semiseg", "trainer", "exporter", "server", "cli")
# The PACS service runs on Linux alone.
FREE = ("semiseg/system/", "server/gateway/")
OF_LINUX = ("/proc", "/sys/", "/dev/", "/tmp", "/etc/", "/usr/", "/var/", "/run/")


def sources() -> list[Path]:
    found = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return [path for path in found if not path.relative_to(ROOT).as_posix().startswith(FREE)]


def is_documentation(node: ast.Constant, tree: ast.Module) -> bool:
    return any(isinstance(one, ast.Expr) and one.value is node for one in ast.walk(tree))


def test_no_path_of_linux_stands_elsewhere() -> None:
    found = []
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [
            f"{path.relative_to(ROOT).as_posix()}:{node.lineno} {node.value}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value.startswith(OF_LINUX)
            and not is_documentation(node, tree)
        ]
    assert found == []


def test_no_other_code_asks_for_the_system() -> None:
    """What is only told to people, what runs on which system, goes by platform.system()."""
    found: dict[str, list[str]] = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = f"{node.value.id}.{node.attr}"
                if name in ("sys.platform", "os.name", "os.uname"):
                    found.setdefault(path.relative_to(ROOT).as_posix(), []).append(name)
    assert found == {}


def test_every_file_that_is_opened_as_text_says_its_encoding() -> None:
    """Windows would read and write the country's code page; ruff's PLW1514 knows fewer of these calls."""
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            named = {keyword.arg for keyword in node.keywords}
            least = {"read_text": 1, "write_text": 2}.get(node.func.attr)
            if least is not None and "encoding" not in named and len(node.args) < least:
                found.append(f"{path.relative_to(ROOT).as_posix()}:{node.lineno}")
    assert found == []


@pytest.mark.long
@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_type_checker_finds_no_name_that_this_system_lacks(platform: str, tmp_path: Path) -> None:
    """The descriptions of Python's library say which names are there on which system."""
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--platform", platform, "--cache-dir", str(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert run.returncode == 0, run.stdout
