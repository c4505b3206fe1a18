"""Processes of `semiseg` forked from one that has imported the libraries: importing them takes longer than most tests.

Each test process has a fork server of its own (:mod:`multiprocessing`), started with the first command. The commands
are processes like any other, with their own environment, folder, signals and exit codes; only the libraries are in
memory already. A command whose environment changes what the interpreter or a library does at its start gets a new
interpreter. So does every command with SEMISEG_TESTS_FORK=0, and on other systems than Linux.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing import reduction
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any, NoReturn

COMMAND = (sys.executable, "-m", "cli.app")
# Variables that the libraries and the interpreter read while they start.
EARLY = (
    "LD_",
    "LC_",
    "LANG",
    "TZ",
    "PYTHON",
    "OMP_",
    "MKL_",
    "ONEDNN_",
    "ATEN_",
    "FAKETIME",
    "PROMETHEUS_",
    "BENTOML_",
)
LATE = {"PYTHONUNBUFFERED"}

_alive: weakref.WeakSet[ForkedProcess] = weakref.WeakSet()


def can_fork(environ: Mapping[str, str]) -> bool:
    """Return True if a command with this environment may be forked: the fork server has that of the tests."""
    # Libraries of macOS do not survive a fork, and Windows has none.
    if os.environ.get("SEMISEG_TESTS_FORK") == "0" or sys.platform != "linux":
        return False
    every = {*environ, *os.environ} - LATE
    return all(environ.get(name) == os.environ.get(name) for name in every if name.startswith(EARLY))


def start_semiseg(
    arguments: Sequence[str],
    environ: Mapping[str, str] | None = None,
    *,
    cwd: Path | None = None,
    separate: bool = False,
) -> subprocess.Popen[str] | ForkedProcess:
    """Start a command of semiseg.

    Args:
        arguments: Command and options.
        environ: Complete environment; that of this process by default.
        cwd: Working directory; that of this process by default.
        separate: True for a pipe of its own for the standard error; by default it is part of the output.
    """
    environ = dict(os.environ if environ is None else environ)
    if can_fork(environ):
        return ForkedProcess(arguments, environ, cwd, separate=separate)
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if separate else subprocess.STDOUT,
        text=True,
        env=environ,
        cwd=cwd,
    )


def run_semiseg(
    *arguments: str | Path,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 280.0,
) -> subprocess.CompletedProcess[str]:
    """Run a command of semiseg to its end; ``timeout`` in seconds."""
    words = [str(word) for word in arguments]
    process = start_semiseg(words, environ, cwd=cwd, separate=True)
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return subprocess.CompletedProcess([*COMMAND, *words], process.returncode, out, err)


class ForkingSubprocess:
    """Stands in a module for :mod:`subprocess`, where that module starts commands of semiseg with ``run``."""

    Popen, PIPE = subprocess.Popen, subprocess.PIPE

    @staticmethod
    def run(
        command: Sequence[str], *, env: Mapping[str, str] | None = None, **_: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run the command, whose output and errors are captured."""
        assert command[:3] == [sys.executable, "-m", "semiseg"], command
        return run_semiseg(*command[3:], environ=env)


class ForkedProcess:
    """A command that was forked; it has the members of :class:`subprocess.Popen` that tests use.

    Attributes:
        stdout: Standard output.
        stderr: Standard error; None if it is part of the output.
    """

    def __init__(
        self, arguments: Sequence[str], environ: Mapping[str, str], cwd: Path | None, *, separate: bool
    ) -> None:
        out, to_out = os.pipe()
        err, to_err = os.pipe() if separate else (None, to_out)
        self.stdout: IO[str] = os.fdopen(out, encoding="utf-8", errors="replace")
        self.stderr = None if err is None else os.fdopen(err, encoding="utf-8", errors="replace")
        folder = str(cwd or Path.cwd())
        given = (list(arguments), dict(environ), folder, _Descriptor(to_out), _Descriptor(to_err))
        self._process: BaseProcess = _context().Process(target=_serve, args=given)  # type: ignore[attr-defined]
        try:
            self._process.start()
        finally:
            for descriptor in {to_out, to_err}:
                os.close(descriptor)
        self._lock = threading.Lock()
        _alive.add(self)

    @property
    def pid(self) -> int:
        """Its process ID."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int:
        """Its exit code, or the negative number of the signal that ended it; it has to have ended."""
        code = self.poll()
        assert code is not None, "it still runs"
        return code

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        with self._lock:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit code.

        Raises:
            subprocess.TimeoutExpired: It did not end in ``timeout`` seconds.
        """
        multiprocessing.connection.wait([self._process.sentinel], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(COMMAND, timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        self._process.terminate()

    def kill(self) -> None:
        """End it without a chance to tidy up (SIGKILL)."""
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end and return all that it wrote to its standard output and error.

        Raises:
            subprocess.TimeoutExpired: It did not end in ``timeout`` seconds.
        """
        written = ["", ""]

        def read(number: int, stream: IO[str]) -> None:
            with stream:
                written[number] = stream.read()

        streams = [self.stdout, *([] if self.stderr is None else [self.stderr])]
        readers = [threading.Thread(target=read, args=pair, daemon=True) for pair in enumerate(streams)]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        return written[0], written[1]


class _Descriptor:
    """A file descriptor that is handed to a process while it is started."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.number),)


def _received(duplicate: Any) -> int:
    number: int = duplicate.detach()
    return number


def _context() -> BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fork_preload"])
    return context


@atexit.register
def _kill_the_rest() -> None:
    """End what a failed test left, which the end of this process would wait for."""
    for process in list(_alive):
        process.kill()


def _serve(arguments: list[str], environ: dict[str, str], folder: str, out: int, err: int) -> NoReturn:
    """Become the command, in the process that was forked."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    for stream, descriptor in ((1, out), (2, err)):
        os.dup2(descriptor, stream)
    for descriptor in {out, err}:
        os.close(descriptor)
    sys.stdout = _text_stream(1, "strict")
    sys.stderr = _text_stream(2, "backslashreplace")
    sys.argv = ["semiseg", *arguments]
    tempfile.tempdir = None  # it was found in the environment of the fork server
    code = _ended(arguments)
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _text_stream(descriptor: int, errors: str) -> IO[str]:
    return os.fdopen(descriptor, "w", encoding="utf-8", errors=errors, buffering=1, closefd=False)


def _ended(arguments: list[str]) -> int:
    from cli.app import main

    try:
        main(arguments)
    except SystemExit as left:
        if left.code is None or isinstance(left.code, int):
            return left.code or 0
        sys.stderr.write(f"{left.code}\n")
        return 1
    except BaseException:  # noqa: BLE001 - as an interpreter ends
        traceback.print_exc()
        return 1
    return 0
