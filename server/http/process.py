"""Preparation of a server process: private files in one folder, no telemetry, and a locked state folder."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from semiseg.system.file_locks import exclusive_lock
from semiseg.system.file_owners import set_private_umask
from semiseg.system.memory import limit_malloc_arenas
from server.http.job_store import JobStore
from server.http.scratch import scratch_folder


@contextlib.contextmanager
def prepare_process(state: Path | None, scratch: Path | None) -> Iterator[tuple[Path, JobStore | None]]:
    """Prepare this process to serve during the block; call this before an inference library is imported.

    Args:
        state: State folder of /jobs; None turns jobs off.
        scratch: Parent of the folder for uploads if there is no ``state``; None is the system's temporary folder.

    Yields:
        Folder for all files that the process writes, and the job store (None without ``state``).

    Raises:
        InputError, QueueError: A folder cannot be used, or another process uses it.
    """
    limit_malloc_arenas()
    set_private_umask()  # other users of this machine must not read scans and masks
    with contextlib.ExitStack() as stack:
        job_store = None
        if state is not None:
            stack.enter_context(exclusive_lock(state))
            job_store = JobStore.open(state)
            folder = job_store.work
        else:
            folder = stack.enter_context(scratch_folder(scratch))
        _keep_everything_in(folder)
        yield folder, job_store


def _keep_everything_in(folder: Path) -> None:
    """Set the folder for all written files and turn off telemetry; the libraries read these settings at import."""
    tempfile.tempdir = str(folder)
    os.environ.setdefault("BENTOML_HOME", str(folder / "bentoml"))
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    # Otherwise ONNX Runtime's Linux builds send telemetry to Microsoft and store a device id in the home folder; its
    # function disable_telemetry_events() can only be called too late for that.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
