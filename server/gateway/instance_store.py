"""Store of instances on disk, which are complete and durable before their sender receives a success status.

    incoming/                   data that is being received
    studies/STUDY/INSTANCE.dcm  STUDY and INSTANCE are keyed hashes of their UIDs
    studies/STUDY/from-NAME     an empty file for each sender of the study
    studies/STUDY/series-SERIES an empty file for each of its series, under a keyed hash of its UID
    studies/STUDY/sending-NAME  an empty file for each sender whose association or request has not ended yet
    studies/STUDY/lacks-KEY     a sentence that says what is missing of the study
        studies/STUDY/accepted      an empty file: the study was accepted although it is incomplete
    studies/STUDY/patient-..., accession-...   see :mod:`server.gateway.patient_marks`
    studies/STUDY/newer/...     other versions of instances; see :mod:`server.gateway.conflicts`

The folder is the only record of the received instances, so there is no other record to keep consistent with it.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from semiseg.errors import SemisegError
from semiseg.system.durable_files import free_bytes, sync
from server.gateway.conflicts import (
    ConflictChoice,
    StudyConflict,
    differing_attributes,
    find_conflict,
    keep_other_version,
    resolve_conflict,
)
from server.gateway.instance_identity import InstanceIdentity as InstanceIdentity
from server.gateway.instance_identity import InvalidInstance as InvalidInstance
from server.gateway.instance_identity import parse_count as parse_count
from server.gateway.instance_identity import read_identity
from server.gateway.patient_marks import conflicting_attributes
from server.gateway.uid_hasher import UidHasher
from server.gateway.uids import UidRule
from server.jobs.deletion import empty_folder

STUDIES_FOLDER = "studies"
_SUFFIX, _SENDER, _SERIES, _SENDING, _LACKS = ".dcm", "from-", "series-", "sending-", "lacks-"
_ACCEPTED = "accepted"


class DiskFull(SemisegError):  # noqa: N818 - temporary
    """The volume has fewer free bytes than have to stay free."""


@dataclass(frozen=True)
class Arrival:
    """Result of adding an instance.

    Attributes:
        study: Name of its study.
        instance: Name of the instance.
        new: True if it was not stored before.
        differs: True if an instance with the same UID and different content was stored before; it stays, and the new
            one is kept beside it until an operator decides.
        attributes: Keywords of the attributes that differ.
    """

    study: str
    instance: str
    new: bool
    differs: bool
    attributes: tuple[str, ...] = ()


class InstanceStore:
    """Store of instances; thread-safe, for the one process that owns the folder."""

    def __init__(
        self,
        folder: Path,
        hasher: UidHasher,
        keep_free: int,
        arriving: Callable[[str, int | None], None] = lambda *_: None,
        uids: UidRule = "strict",
    ) -> None:
        """Create the folders, and delete partial data of a former process.

        Args:
            folder: Parent folder of `incoming` and `studies`.
            hasher: Keyed hashes of UIDs.
            keep_free: Bytes that have to stay free on the volume.
            arriving: Function that is called just before each instance is stored, with its study's name and the Number
                of Study Related Instances of its header, or None.
            uids: Rule by which UIDs are validated.
        """
        self.incoming, self.studies = folder / "incoming", folder / STUDIES_FOLDER
        for one in (self.incoming, self.studies):
            one.mkdir(exist_ok=True)
        empty_folder(self.incoming)
        sync(self.studies)  # a former process may have been killed between making a folder and syncing its name
        self._hasher, self._keep_free, self._arriving, self._uids = hasher, keep_free, arriving, uids
        self._lock = threading.Lock()

    def require_free_space(self) -> None:
        """Check the free disk space.

        Raises:
            DiskFull: The volume has fewer free bytes than have to stay free.
        """
        if free_bytes(self.incoming) < self._keep_free:
            raise DiskFull("The disk is nearly full; nothing is accepted until the operator has freed space.")

    def add(
        self, file: Path, sender: str, identity: InstanceIdentity | None = None, *, more_follows: bool = False
    ) -> Arrival:
        """Move a file from ``incoming`` into the store; when this returns, the instance survives a power failure.

        Args:
            file: DICOM file; it is always removed from its place, also after an error.
            sender: AE title of the sender.
            identity: Result of :meth:`identify`, if it was called before.
            more_follows: True if the sender's association or request is still open; :meth:`transfer_ended` follows.

        Raises:
            InvalidInstance: The file is not DICOM, or lacks required UIDs.
            DiskFull: The disk is nearly full.
        """
        try:
            self.require_free_space()
            identity = identity or self.identify(file)
            study, name = self._hasher.hash(identity.study), self._hasher.hash(identity.instance)
            sync(file)
            new, attributes = self._place(file, study, name, sender, identity, more_follows)
            return Arrival(study, name, new, bool(attributes), tuple(attributes))
        finally:
            file.unlink(missing_ok=True)

    def identify(self, file: Path) -> InstanceIdentity:
        """Read an instance's header up to the attributes of its study.

        Raises:
            InvalidInstance: See :func:`server.gateway.instance_identity.read_identity`.
        """
        return read_identity(file, self._hasher, self._uids)

    def _place(
        self, file: Path, study: str, name: str, sender: str, identity: InstanceIdentity, more_follows: bool
    ) -> tuple[bool, list[str]]:
        """Link the file into its study; return True if it is new, otherwise the attributes that differ."""
        folder, there = self.studies / study, self.studies / study / f"{name}{_SUFFIX}"
        marks = [f"{_SENDER}{quote(sender, safe='')}", f"{_SERIES}{self._hasher.hash(identity.series)}"]
        if more_follows:
            marks.append(f"{_SENDING}{quote(sender, safe='')}")
        with self._lock:  # so that retention cannot delete the study while an instance is added
            self._arriving(study, identity.announced)
            self._require_folder(folder)
            for mark in marks:
                (folder / mark).touch()
            try:
                os.link(file, there)  # unlike a rename, this replaces nothing
                new = True
                (folder / _ACCEPTED).unlink(missing_ok=True)
                _mark(folder, identity.marks)
            except FileExistsError:
                new = False
            (folder / f"{_LACKS}{name}").unlink(missing_ok=True)
        # The files are compared without the lock, because they may be large.
        attributes = [] if new else differing_attributes(there, file)
        if not new:
            with self._lock:
                if attributes:
                    keep_other_version(folder, there.name, file, attributes)
                    (folder / _ACCEPTED).unlink(missing_ok=True)
                _mark(folder, identity.marks)
        sync(folder)  # also for a stored instance: the thread that added it may not have synced yet
        return new, attributes

    def _require_folder(self, folder: Path) -> None:
        if not folder.exists():
            folder.mkdir()
            sync(self.studies)

    def transfer_ended(self, study: str, sender: str) -> None:
        """Record that the association or request in which ``sender`` sent instances has ended normally."""
        (self.studies / study / f"{_SENDING}{quote(sender, safe='')}").unlink(missing_ok=True)

    def interrupted_transfers(self) -> dict[str, str]:
        """Find the studies whose sender had not ended its association or request when a former process stopped.

        Returns:
            AE title of a sender, by study.
        """
        found = self.studies.glob(f"*/{_SENDING}*")
        return {mark.parent.name: unquote(mark.name.removeprefix(_SENDING)) for mark in found}

    def record_missing(self, identity: InstanceIdentity, why: str) -> str:
        """Record that an instance was refused or its transfer interrupted; storing the instance deletes the record.

        Returns:
            Name of the study.
        """
        study = self._hasher.hash(identity.study)
        if not (self.studies / study / f"{self._hasher.hash(identity.instance)}{_SUFFIX}").exists():
            self.record_incomplete(study, self._hasher.hash(identity.instance), why)
        return study

    def record_missing_uid(self, study: str, uid: str, why: str) -> None:
        """Record a missing instance that could not be read, by its announced UID; see :meth:`record_missing`."""
        name = self._hasher.hash(uid)
        if not (self.studies / study / f"{name}{_SUFFIX}").exists():
            self.record_incomplete(study, name, why)

    def record_incomplete(self, study: str, key: str, why: str) -> None:
        """Record under ``key`` why a study is incomplete."""
        folder = self.studies / study
        with self._lock, suppress(OSError):  # if the disk is full, the sender is told so and sends everything again
            self._arriving(study, None)
            self._require_folder(folder)
            (folder / f"{_LACKS}{key}").write_text(why, encoding="utf-8")
            (folder / _ACCEPTED).unlink(missing_ok=True)
            sync(folder)

    def missing_reasons(self, study: str) -> list[str]:
        """Return why a study is incomplete, one sentence for each reason; empty if nothing is known to be missing."""
        with suppress(FileNotFoundError):
            return [mark.read_text(encoding="utf-8") for mark in sorted((self.studies / study).glob(f"{_LACKS}*"))]
        return []

    def accept_incomplete(self, study: str) -> None:
        """Accept a study although it is incomplete, until further instances arrive."""
        accept_incomplete(self.studies / study)

    def is_accepted(self, study: str) -> bool:
        """Return True if a study was accepted although it is incomplete, and nothing has arrived since."""
        return (self.studies / study / _ACCEPTED).exists()

    def find_conflict(self, study: str) -> StudyConflict | None:
        """Return the conflict that an operator has to decide; None if there is none."""
        return find_conflict(self.studies / study)

    def is_of_two_patients(self, study: str) -> bool:
        """Return True if instances of a study name different patients, and no operator has decided about it."""
        return not self.is_accepted(study) and bool(conflicting_attributes(self.studies / study))

    def resolve_conflict(self, study: str, choice: ConflictChoice) -> None:
        """Resolve the conflict of a study: keep the versions that were received first, or those received last."""
        folder = self.studies / study
        with self._lock:
            resolve_conflict(folder, self._hasher, choice)
            series = {f"{_SERIES}{self._hasher.hash(self.identify(file).series)}" for file in self.instances(study)}
            for mark in folder.glob(f"{_SERIES}*"):
                if mark.name not in series:
                    mark.unlink()

    def last_change(self, study: str) -> float:
        """Return the time of the last change of a study, in Unix seconds; the current time if it was deleted."""
        with suppress(FileNotFoundError):
            return (self.studies / study).stat().st_mtime
        return time.time()

    def study_names(self) -> list[str]:
        """Return the names of the stored studies."""
        return sorted(path.name for path in self.studies.iterdir())

    def instances(self, study: str) -> list[Path]:
        """Return the files of a study; empty if it was deleted."""
        with suppress(FileNotFoundError):
            return sorted(path for path in (self.studies / study).iterdir() if path.suffix == _SUFFIX)
        return []

    def senders(self, study: str) -> list[str]:
        """Return the AE titles of the senders of a study."""
        with suppress(FileNotFoundError):
            found = [path.name for path in (self.studies / study).iterdir() if path.name.startswith(_SENDER)]
            return sorted(unquote(name.removeprefix(_SENDER)) for name in found)
        return []

    def is_in_other_study(self, study: str, series: str) -> bool:
        """Return True if another stored study has a series with the same Series Instance UID."""
        mark = f"{_SERIES}{self._hasher.hash(series)}"
        return any((other / mark).exists() for other in self.studies.iterdir() if other.name != study)

    def has_instance(self, uid: str) -> bool:
        """Return True if an instance is stored, by its SOP Instance UID."""
        name = f"{self._hasher.hash(uid)}{_SUFFIX}"
        return any((study / name).exists() for study in self.studies.iterdir())

    def remove(self, study: str, unless: Callable[[], bool], *, overwrite: bool) -> bool:
        """Delete a study ``unless`` instances of it are arriving; return True if it was deleted."""
        with self._lock:
            if unless():
                return False
            gone = self.incoming / f"gone-{study}"
            with suppress(FileNotFoundError):
                (self.studies / study).rename(gone)
        delete(gone, overwrite=overwrite)
        return True


def _mark(folder: Path, marks: Sequence[str]) -> None:
    """Create the mark files of patient and order; their times are those of the first instance of this patient."""
    for mark in marks:
        if not (folder / mark).exists():
            (folder / mark).touch()


def delete(path: Path, *, overwrite: bool) -> None:
    """Delete a file or folder, if it exists; with ``overwrite``, files are first overwritten with zeros."""
    if overwrite:
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file() and not file.is_symlink():
                with file.open("r+b") as stream:
                    left = file.stat().st_size
                    while left > 0:
                        left -= stream.write(bytes(min(left, 2**20)))
                    stream.flush()
                    os.fsync(stream.fileno())
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def accept_incomplete(folder: Path) -> None:
    """Accept the incomplete study in ``folder``; a running gateway notices it."""
    (folder / _ACCEPTED).touch()
    for mark in folder.glob(f"{_LACKS}*"):
        mark.unlink(missing_ok=True)
