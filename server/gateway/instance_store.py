"""Instances on the disk: whole, under the name of what they are, and there before their sender is told so.

    incoming/                   what is still arriving
    studies/STUDY/INSTANCE.dcm  STUDY and INSTANCE are keyed hashes of their UIDs
    studies/STUDY/from-NAME     an empty file for each sender of the study
    studies/STUDY/series-SERIES an empty file for each of its series, under a keyed hash of its UID
    studies/STUDY/sending-NAME  an empty file for each sender whose association or request has not ended yet
    studies/STUDY/lacks-KEY     a sentence: what is missing of the study, so that it is not whole
    studies/STUDY/accepted      an empty file: somebody decided that the study is taken as it is
    studies/STUDY/patient-..., accession-...   see :mod:`server.gateway.patient_marks`
    studies/STUDY/newer/...     other versions of instances; see :mod:`server.gateway.conflicts`

The folder is the only record of what has arrived: nothing else has to be kept in step with it.
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


class DiskFull(SemisegError):  # noqa: N818 - it passes
    """Less is free than has to stay free."""


@dataclass(frozen=True)
class Arrival:
    """An instance that is on the disk.

    Attributes:
        study: Name of its study.
        instance: Name of the instance.
        new: True if it was not there before.
        differs: True if an object of the same UID with another content was there; it stays, and this one is kept beside
            it until somebody decides.
        attributes: Keywords of the attributes that differ.
    """

    study: str
    instance: str
    new: bool
    differs: bool
    attributes: tuple[str, ...] = ()


class InstanceStore:
    """The two folders; to be used from any thread of the one process that holds them."""

    def __init__(
        self,
        folder: Path,
        hasher: UidHasher,
        keep_free: int,
        arriving: Callable[[str, int | None], None] = lambda *_: None,
        uids: UidRule = "strict",
    ) -> None:
        """Make them, and empty what a former process was receiving.

        Args:
            folder: Folder above both.
            hasher: Keyed hashes of UIDs.
            keep_free: Bytes that must stay free on the volume.
            arriving: Function that is told of each instance just before it gets its place: its study's name, and the
                number of instances that the study has by the instance's own account, or None.
            uids: Rule by which UIDs are refused.
        """
        self.incoming, self.studies = folder / "incoming", folder / STUDIES_FOLDER
        for one in (self.incoming, self.studies):
            one.mkdir(exist_ok=True)
        empty_folder(self.incoming)
        sync(self.studies)  # a former process may have been killed between making a folder and syncing its name
        self._hasher, self._keep_free, self._arriving, self._uids = hasher, keep_free, arriving, uids
        self._lock = threading.Lock()

    def require_free_space(self) -> None:
        """Refuse while the disk is nearly full.

        Raises:
            DiskFull: fewer bytes are free than have to stay free.
        """
        if free_bytes(self.incoming) < self._keep_free:
            raise DiskFull("The disk is nearly full; nothing is accepted before its operator has made room.")

    def add(
        self, file: Path, sender: str, identity: InstanceIdentity | None = None, *, more_follows: bool = False
    ) -> Arrival:
        """Give a file in ``incoming`` its place; when this returns, a power cut cannot take it away.

        Args:
            file: DICOM file; it is gone afterwards, whatever happens.
            sender: AE title of the sender.
            identity: Identity that :meth:`identify` read, where it was asked already.
            more_follows: True if the sender's association or request is still open; :meth:`transfer_ended` follows.

        Raises:
            InvalidInstance: no DICOM, or without the UIDs that it needs.
            DiskFull: there is no room.
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
        """Read an instance's header as far as its study.

        Raises:
            InvalidInstance: See :func:`server.gateway.instance_identity.read_identity`.
        """
        return read_identity(file, self._hasher, self._uids)

    def _place(
        self, file: Path, study: str, name: str, sender: str, identity: InstanceIdentity, more_follows: bool
    ) -> tuple[bool, list[str]]:
        """Whether an instance is new, and where it is not, what differs from the one that is there."""
        folder, there = self.studies / study, self.studies / study / f"{name}{_SUFFIX}"
        marks = [f"{_SENDER}{quote(sender, safe='')}", f"{_SERIES}{self._hasher.hash(identity.series)}"]
        if more_follows:
            marks.append(f"{_SENDING}{quote(sender, safe='')}")
        with self._lock:  # so that retention sees the study arriving, or deletes it before and not with this in it
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
        attributes = [] if new else differing_attributes(there, file)  # without the lock: they may be large
        if not new:
            with self._lock:
                if attributes:
                    keep_other_version(folder, there.name, file, attributes)
                    (folder / _ACCEPTED).unlink(missing_ok=True)
                _mark(folder, identity.marks)
        sync(folder)  # also for one that is here already: who brought it first may not have come to this yet
        return new, attributes

    def _require_folder(self, folder: Path) -> None:
        if not folder.exists():
            folder.mkdir()
            sync(self.studies)

    def transfer_ended(self, study: str, sender: str) -> None:
        """The association or request with which ``sender`` brought something of a study has ended in good order."""
        (self.studies / study / f"{_SENDING}{quote(sender, safe='')}").unlink(missing_ok=True)

    def interrupted_transfers(self) -> dict[str, str]:
        """Studies whose sender had not ended its association or request when a former process stopped.

        Returns:
            The AE title of a sender, by study.
        """
        found = self.studies.glob(f"*/{_SENDING}*")
        return {mark.parent.name: unquote(mark.name.removeprefix(_SENDING)) for mark in found}

    def record_missing(self, identity: InstanceIdentity, why: str) -> str:
        """Write down that an instance of a study was refused or broke off; it is forgotten when the instance comes.

        Returns:
            The name of the study.
        """
        study = self._hasher.hash(identity.study)
        if not (self.studies / study / f"{self._hasher.hash(identity.instance)}{_SUFFIX}").exists():
            self.record_incomplete(study, self._hasher.hash(identity.instance), why)
        return study

    def record_missing_uid(self, study: str, uid: str, why: str) -> None:
        """As :meth:`record_missing`, of an instance that could not be read, so that only its announced UID is known."""
        name = self._hasher.hash(uid)
        if not (self.studies / study / f"{name}{_SUFFIX}").exists():
            self.record_incomplete(study, name, why)

    def record_incomplete(self, study: str, key: str, why: str) -> None:
        """Write down under ``key`` why a study is not whole."""
        folder = self.studies / study
        with self._lock, suppress(OSError):  # a disk that is full: the sender is told so and sends all of it again
            self._arriving(study, None)
            self._require_folder(folder)
            (folder / f"{_LACKS}{key}").write_text(why, encoding="utf-8")
            (folder / _ACCEPTED).unlink(missing_ok=True)
            sync(folder)

    def missing_reasons(self, study: str) -> list[str]:
        """Why a study is not whole: one sentence for each thing that is missing; none where nothing is known to be."""
        with suppress(FileNotFoundError):
            return [mark.read_text(encoding="utf-8") for mark in sorted((self.studies / study).glob(f"{_LACKS}*"))]
        return []

    def accept_incomplete(self, study: str) -> None:
        """Forget what a study lacks, because somebody decided so; it counts until something more comes."""
        accept_incomplete(self.studies / study)

    def is_accepted(self, study: str) -> bool:
        """Whether somebody decided that a study is taken as it is, and nothing more has come."""
        return (self.studies / study / _ACCEPTED).exists()

    def find_conflict(self, study: str) -> StudyConflict | None:
        """What an operator has to decide of a study; None where nothing is."""
        return find_conflict(self.studies / study)

    def is_of_two_patients(self, study: str) -> bool:
        """Whether instances of a study name different patients, and nobody has decided about it."""
        return not self.is_accepted(study) and bool(conflicting_attributes(self.studies / study))

    def resolve_conflict(self, study: str, choice: ConflictChoice) -> None:
        """End the conflict of a study: keep what came first, or take what came last."""
        folder = self.studies / study
        with self._lock:
            resolve_conflict(folder, self._hasher, choice)
            series = {f"{_SERIES}{self._hasher.hash(self.identify(file).series)}" for file in self.instances(study)}
            for mark in folder.glob(f"{_SERIES}*"):
                if mark.name not in series:
                    mark.unlink()

    def last_change(self, study: str) -> float:
        """When something of a study came last, in Unix seconds; now where it is gone."""
        with suppress(FileNotFoundError):
            return (self.studies / study).stat().st_mtime
        return time.time()

    def study_names(self) -> list[str]:
        """Names of the studies that are here."""
        return sorted(path.name for path in self.studies.iterdir())

    def instances(self, study: str) -> list[Path]:
        """The files of a study; none where it is gone."""
        with suppress(FileNotFoundError):
            return sorted(path for path in (self.studies / study).iterdir() if path.suffix == _SUFFIX)
        return []

    def senders(self, study: str) -> list[str]:
        """Who has sent it."""
        with suppress(FileNotFoundError):
            found = [path.name for path in (self.studies / study).iterdir() if path.name.startswith(_SENDER)]
            return sorted(unquote(name.removeprefix(_SENDER)) for name in found)
        return []

    def is_in_other_study(self, study: str, series: str) -> bool:
        """Whether another study that is here has a series of the same Series Instance UID."""
        mark = f"{_SERIES}{self._hasher.hash(series)}"
        return any((other / mark).exists() for other in self.studies.iterdir() if other.name != study)

    def has_instance(self, uid: str) -> bool:
        """Whether an instance is here, by its SOP Instance UID."""
        name = f"{self._hasher.hash(uid)}{_SUFFIX}"
        return any((study / name).exists() for study in self.studies.iterdir())

    def remove(self, study: str, unless: Callable[[], bool], *, overwrite: bool) -> bool:
        """Delete a study ``unless`` something of it is arriving; whether it was deleted."""
        with self._lock:
            if unless():
                return False
            gone = self.incoming / f"gone-{study}"
            with suppress(FileNotFoundError):
                (self.studies / study).rename(gone)
        delete(gone, overwrite=overwrite)
        return True


def _mark(folder: Path, marks: Sequence[str]) -> None:
    """Make the files that say of which patient a study is; the time of each is when the first of this patient came."""
    for mark in marks:
        if not (folder / mark).exists():
            (folder / mark).touch()


def delete(path: Path, *, overwrite: bool) -> None:
    """Delete a file or folder, if it is there; with ``overwrite`` zeros are written over its files before."""
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
    """Forget what the study in ``folder`` lacks, because somebody decided so; a gateway that runs takes note of it."""
    (folder / _ACCEPTED).touch()
    for mark in folder.glob(f"{_LACKS}*"):
        mark.unlink(missing_ok=True)
