"""Processes of semiseg that tests start, listen to and stop."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence

from tests.fork_server import COMMAND, start_semiseg

START_SECONDS = 180.0  # far beyond what it takes: a machine may be busy
STOP_SECONDS = 90.0


class RunningProcess:
    """A command of semiseg in a process of its own, and every line that it printed.

    ``before`` is a program and its options that starts the command; an interpreter is started then.
    """

    def __init__(self, arguments: Sequence[str], environ: Mapping[str, str], before: Sequence[str] = ()) -> None:
        self.lines: list[str] = []
        environ = {**environ, "PYTHONUNBUFFERED": "1"}
        self.process = (
            subprocess.Popen(
                [*before, *COMMAND, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environ,
            )
            if before
            else start_semiseg(arguments, environ)
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def on_line(self, line: str) -> None:
        """It printed a line."""

    def on_exit(self) -> None:
        """It will print nothing more."""

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and wait; the exit code."""
        return self._end(lambda: self.process.send_signal(number))

    def kill(self) -> int:
        """End it without a chance to tidy up, and wait; the exit code."""
        return self._end(self.process.kill)

    def _end(self, end: Callable[[], None]) -> int:
        if self.process.poll() is None:
            end()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(10)
        return self.process.returncode

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self.lines.append(line)
                self.on_line(line)
        self.on_exit()
