"""Backup of a gateway's state folder, taken while the gateway runs, with which another gateway can continue."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from semiseg.errors import InputError
from semiseg.system.durable_files import move_durably, sync
from server.gateway.gateway import AUDIT_FILE, DATABASE_FILE
from server.gateway.instance_store import STUDIES_FOLDER
from server.gateway.job_kinds import RESULTS_FOLDER
from server.gateway.uid_hasher import KEY_FILE
from server.gateway.ups_claims import CLAIMS_FOLDER
from server.jobs.queue import Queue


def back_up(queue: Queue, state: Path, target: Path) -> int:
    """Copy the state of a gateway to a new folder, which appears only when it is complete.

    The queue is copied first and the files that its jobs name afterwards: instances received in between are in the copy
    as a study that has just arrived. Results delivered in between are delivered once more, under the same UIDs, by the
    gateway that continues with the copy. Files are copied and not linked, so that overwriting deleted files
    (`retention.overwrite`) does not affect the copy.

    Args:
        queue: The gateway's queue.
        state: The gateway's state folder.
        target: Folder to create.

    Returns:
        Number of files of studies and results that were copied.

    Raises:
        InputError: The target exists, or cannot be written.
        QueueError: The queue cannot be read.
    """
    if target.exists():
        raise InputError(f"{target} exists; name a new folder, such as one with today's date in its name.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))  # mode 700
    except OSError as error:
        raise InputError(f"{target.parent} cannot be written ({error.strerror}).") from None
    try:
        queue.copy_to(scratch / DATABASE_FILE)
        shutil.copy2(state / KEY_FILE, scratch / KEY_FILE)
        for log in state.glob(f"{Path(AUDIT_FILE).stem}*.jsonl"):
            _copy(log, scratch / log.name)
        count = sum(_copy_tree(state / name, scratch / name) for name in (STUDIES_FOLDER, RESULTS_FOLDER))
        if (state / CLAIMS_FOLDER).is_dir():
            _copy_tree(state / CLAIMS_FOLDER, scratch / CLAIMS_FOLDER)
        move_durably(scratch, target)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise InputError(f"The copy {target} cannot be written ({error.strerror}); its parts were deleted.") from None
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return count


def _copy_tree(source: Path, target: Path) -> int:
    """Return the number of copied files; a folder that was deleted meanwhile is left out, not copied in part."""
    target.mkdir(mode=0o700)
    count = 0
    try:
        for path in sorted(source.iterdir()):
            count += (_copy_tree if path.is_dir() else _copy)(path, target / path.name)
    except FileNotFoundError:
        pass
    if not source.exists():
        shutil.rmtree(target)
        return 0
    sync(target)
    return count


def _copy(source: Path, target: Path) -> int:
    try:
        shutil.copy2(source, target)
    except FileNotFoundError:  # renamed or deleted since it was listed
        return 0
    sync(target)
    return 1
