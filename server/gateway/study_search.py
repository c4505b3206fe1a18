"""Search for studies by name, Study Instance UID, accession number or patient ID.

The search term is hashed with the installation's key and compared with the names and marks in the state folder; it is
not stored. Studies of an earlier version, which have no marks, are found by the header of one of their instances.
"""

from __future__ import annotations

import re
from pathlib import Path

from semiseg.errors import InputError
from server.gateway.instance_store import STUDIES_FOLDER
from server.gateway.patient_marks import ACCESSION, PATIENT, accession_mark, mark_names, patient_id_mark, read_values
from server.gateway.uid_hasher import KEY_FILE, UidHasher
from server.jobs.lanes import Lane
from server.jobs.queue import Queue, QueuedJob

_NAME = re.compile(r"[0-9a-f]{32}")


def find_studies(queue: Queue, state: Path, typed: str) -> list[str]:
    """Return the names of the studies that match, the one that changed last at the end.

    Args:
        queue: The gateway's queue.
        state: The gateway's state folder.
        typed: Search term: name of a study, Study Instance UID, accession number or patient ID.
    """
    typed = typed.strip()
    if not typed:
        return []
    hasher, folder = UidHasher(state / KEY_FILE), state / STUDIES_FOLDER
    for name in (typed, hasher.hash(typed)):
        if _NAME.fullmatch(name) and ((folder / name).is_dir() or queue.jobs(owner=name)):
            return [name]
    wanted = {accession_mark(typed, hasher), patient_id_mark(typed, hasher)}
    found = [one for one in folder.iterdir() if wanted & _marks(one, hasher)] if folder.is_dir() else []
    return [one.name for one in sorted(found, key=lambda one: one.stat().st_mtime)]


def find_study(queue: Queue, state: Path, typed: str) -> str:
    """Return the name of the one study that matches.

    Raises:
        InputError: No study or several studies match; the message does not repeat the search term.
    """
    found = find_studies(queue, state, typed)
    if not found:
        raise InputError(
            "There is no such study here. Give its name, its Study Instance UID, its accession number or its patient "
            "ID; `semiseg gateway status` lists the names."
        )
    if len(found) > 1:
        raise InputError(f"{len(found)} studies match; give the name of one of them: {', '.join(found)}.")
    return found[0]


def find_series(queue: Queue, state: Path, typed: str, kind: str) -> list[QueuedJob]:
    """Return the jobs of a kind for a series, by its name in the audit log or its Series Instance UID."""
    names = tuple({typed.strip(), UidHasher(state / KEY_FILE).hash(typed.strip())})
    return queue.jobs(queue=kind, lane=Lane("series", names)) if typed.strip() else []


def _marks(folder: Path, hasher: UidHasher) -> set[str]:
    found = {mark.name for kind in (PATIENT, ACCESSION) for mark in folder.glob(f"{kind}*")}
    if not found and (instance := next(folder.glob("*.dcm"), None)):
        return set(mark_names(read_values(instance), hasher))
    return found
