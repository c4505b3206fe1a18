"""What a process is before it serves: private files in one folder, no telemetry, and the state folder held."""

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
    """Make this process one that serves, for as long as the block lasts; before any library of the engines is imported.

    Args:
        state: the folder of /jobs; None turns them off.
        scratch: where uploads go without ``state``, in a folder of its own; None is the system's temporary folder.

    Yields:
        The folder that everything is written into, and the jobs' files.

    Raises:
        InputError, QueueError: a folder cannot be used, or another process works in it.
    """
    limit_malloc_arenas()
    set_private_umask()  # scans and masks are nobody else's on this machine
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
    """One folder for all that is written, and no telemetry; the libraries read this when they are imported."""
    tempfile.tempdir = str(folder)
    os.environ.setdefault("BENTOML_HOME", str(folder / "bentoml"))
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    # Otherwise ONNX Runtime's Linux builds report to their maker and keep a device id in the home folder; its own
    # disable_telemetry_events() comes too late for that.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
