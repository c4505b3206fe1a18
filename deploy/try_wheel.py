"""Use the wheel of dist/ as a new user does, in an empty environment outside the tree: `python -m deploy.try_wheel`.

Installs it with the extras train, export and serve, then runs the demo, `semiseg predict` and `semiseg serve`. Needs a
wheel from `python -m deploy.tasks wheel` and some minutes; TORCH_INDEX names an extra package index, as for the tasks.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from deploy.environment import PROGRAMS, PYTHON, ROOT, CommandRunner, pip_install


def main() -> None:
    """Install and use the wheel; a command that fails ends this with its exit code."""
    wheels = sorted((ROOT / "dist").glob("semiseg-*.whl"))
    if len(wheels) != 1:
        sys.exit(f"dist holds {len(wheels)} wheels of semiseg and should hold one: python -m deploy.tasks wheel")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        try:
            _use(_install(wheels[0], Path(name)), Path(name))
        except subprocess.CalledProcessError as error:
            sys.exit(error.returncode if error.returncode > 0 else 1)


def _install(wheel: Path, folder: Path) -> Path:
    """The folder of programs of a new environment with the wheel in it."""
    programs = folder / "environment" / PROGRAMS.name
    commands = CommandRunner()
    commands.run(sys.executable, "-m", "venv", folder / "environment", folder=folder)
    index = os.environ.get("TORCH_INDEX", "")
    what = f"{wheel}[train,export,serve]"
    pip_install(commands, programs / PYTHON.name, what, torch_index=index, folder=folder)
    return programs


def _use(programs: Path, folder: Path) -> None:
    """Demo, predict and serve, from a folder that is no clone."""
    commands = CommandRunner()
    semiseg, bundle = programs / "semiseg", folder / "demo" / "bundle"
    commands.run(semiseg, "demo", "--out", folder / "demo", "--updates", "16", folder=folder)
    commands.run(semiseg, "predict", bundle, folder / "demo" / "dicom.zip", "--out", folder / "seg.dcm", folder=folder)
    scan = next((folder / "demo" / "data").rglob("*.nii.gz"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([semiseg, "serve", bundle, "--port", str(port)], cwd=folder)
    try:
        ask = [programs / PYTHON.name, ROOT / "deploy" / "ask_server.py", f"http://127.0.0.1:{port}"]
        commands.run(*ask, scan, folder / "mask.nii.gz", folder=folder)
    finally:
        server.terminate()
        server.wait(60)


if __name__ == "__main__":
    main()
