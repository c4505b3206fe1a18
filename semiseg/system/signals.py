"""Signals that ask a process to stop."""

from __future__ import annotations

import signal

# A supervisor (systemd, a container engine) sends SIGTERM, and the terminal's Ctrl+C sends SIGINT. On Windows no
# supervisor sends SIGTERM; a parent process can send SIGBREAK there.
STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGBREAK") if hasattr(signal, name)
)
