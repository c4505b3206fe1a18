"""Another user: not root, and owner of nothing but a copy of the tree, a home and a folder for temporary files."""

from __future__ import annotations

import os
import shlex
import stat
import sys
from pathlib import Path

from tests.conditions.condition import (
    Launcher,
    UnavailableError,
    copy_environ,
    copy_tree,
    find_program,
    python_executable,
)

NOBODY_ID = "65534"


def other_user(folder: Path) -> Launcher:
    """How to start as nobody; as we are where we are not root.

    Raises:
        NotHereError: This machine does not permit it, or the user cannot start our interpreter.
    """
    if os.geteuid() != 0:
        return Launcher()
    tree, home, temporary, held = (folder / name for name in ("tree", "home", "temporary", "held"))
    for path in (copy_tree(tree), home, temporary, held):
        path.mkdir(exist_ok=True)
    for path in (tree, home, temporary, *tree.rglob("*")):
        os.chown(path, int(NOBODY_ID), int(NOBODY_ID))
    user = (find_program("setpriv"), f"--reuid={NOBODY_ID}", f"--regid={NOBODY_ID}", "--clear-groups")
    before = (*mount_command(_needed(), held), *user)
    told = {"HOME": str(home), "TMPDIR": str(temporary), "USER": "nobody", "LOGNAME": "nobody"}
    # What only root may do (a small file system of its own) skips.
    start = Launcher(before, {**copy_environ(tree), **told, "SEMISEG_TESTS_NEED_ALL": None}, tree)
    child = (
        "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', 'import pytest, numpy']).returncode)"
    )
    code, words = start.run_captured(python_executable(), "-c", child)
    if code != 0:
        raise UnavailableError(f"another user cannot start {python_executable()}: {words.splitlines()[-1:]}")
    return start


def _needed() -> list[Path]:
    """What the user has to read besides the copy: the interpreter, its packages, the real scans."""
    named = [sys.base_prefix, sys.prefix, *sys.path, os.environ.get("SEMISEG_DATA", "")]
    return [path for path in dict.fromkeys(Path(name) for name in named if name) if path.is_dir()]


def mount_command(needed: list[Path], held: Path) -> tuple[str, ...]:
    """What makes folders readable that lie in somebody's closed folder, such as an interpreter in root's home.

    Nothing is changed on the disk: in a mount namespace of its own, the process finds an empty folder instead of the
    closed one, and in it the folders that it needs. ``held`` is an empty folder to keep hold of these meanwhile.
    """
    closed = {path: place for path in needed if (place := find_closed_folder(path)) is not None}
    # A folder within another one comes along with it.
    wanted = [path for path in closed if not any(other in path.parents for other in closed)]
    if not wanted:
        return ()
    script = []
    for number, path in enumerate(wanted):
        (held / str(number)).mkdir()
        script.append(f"mount --rbind {shlex.quote(str(path))} {shlex.quote(str(held / str(number)))}")
    for place in dict.fromkeys(closed[path] for path in wanted):
        script.append(f"mount -t tmpfs -o mode=755 none {shlex.quote(str(place))}")
    for number, path in enumerate(wanted):
        quoted = shlex.quote(str(path))
        script.append(f"mkdir -p {quoted} && mount --rbind {shlex.quote(str(held / str(number)))} {quoted}")
    return (find_program("unshare"), "--mount", "/bin/sh", "-e", "-c", "\n".join([*script, 'exec "$@"']), "sh")


def find_closed_folder(path: Path) -> Path | None:
    """The highest folder above ``path``, or itself, that others may not enter; None where they reach it."""
    for place in (*reversed(path.absolute().parents), path.absolute()):
        if not place.stat().st_mode & stat.S_IXOTH:
            return place
    return None
