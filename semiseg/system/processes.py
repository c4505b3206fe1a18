"""Processes that outlive the one that started them, and how a process is known again by its number."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from semiseg.system.boot_clock import boot_id

_PROC = Path("/proc")


def start_detached(
    command: Sequence[str], output: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a process that goes on when this one ends and is not stopped by this terminal's Ctrl+C.

    Args:
        command: Program and arguments.
        output: File to which the process writes its standard output and error; continued if it exists.
        environment: Environment; this process's own by default.
    """
    # Windows has no sessions, ignores start_new_session, and keeps Ctrl+C within a group of processes.
    flags = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
    with output.open("ab") as file:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=dict(environment if environment is not None else os.environ),
            start_new_session=True,
            creationflags=flags,
        )


def process_start_id(pid: int) -> str:
    """When a process was started, so that another one that gets its number later is told apart.

    Returns:
        The start of the machine and the clock ticks since then; empty where the system does not tell (macOS, Windows),
        or where there is no such process.
    """
    try:
        fields = (_PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if len(fields) < 20 or fields[0] in "ZX" else f"{boot_id()} {fields[19]}"


def supports_start_ids() -> bool:
    """Whether :func:`process_start_id` works on this system."""
    return bool(process_start_id(os.getpid()))


def stop_process(pid: int, birth: str) -> bool:
    """Ask a process to end, if it still is the one that was started at ``birth``.

    Returns:
        True if there was such a process.
    """
    import signal

    if not birth or process_start_id(pid) != birth:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    return True
