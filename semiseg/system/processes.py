"""Detached processes, and the identification of a process by its PID and start time."""

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
    """Start a process that continues when this one ends, and that this terminal's Ctrl+C does not stop.

    Args:
        command: Program and arguments.
        output: File to which the process appends its standard output and error.
        environment: Environment; this process's own by default.
    """
    # Windows has no sessions and ignores start_new_session; it sends Ctrl+C to the processes of one group.
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
    """Return an identifier of a process's start, which differs for a later process with the same PID.

    Returns:
        The boot ID of the machine and the clock ticks between boot and start; empty if the system does not report them
        (macOS, Windows), or if there is no such process.
    """
    try:
        fields = (_PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if len(fields) < 20 or fields[0] in "ZX" else f"{boot_id()} {fields[19]}"


def supports_start_ids() -> bool:
    """Return True if :func:`process_start_id` works on this system."""
    return bool(process_start_id(os.getpid()))


def stop_process(pid: int, birth: str) -> bool:
    """Send SIGTERM to a process if its :func:`process_start_id` is still ``birth``.

    Returns:
        True if the process existed.
    """
    import signal

    if not birth or process_start_id(pid) != birth:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    return True
