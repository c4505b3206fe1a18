"""The signals by which a process is told to stop."""

from __future__ import annotations

import signal

# SIGTERM comes from a supervisor (systemd, a container engine), SIGINT from the terminal's Ctrl+C. Windows has no
# supervisor that sends SIGTERM; there SIGBREAK is what a parent process can send.
STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGBREAK") if hasattr(signal, name)
)
