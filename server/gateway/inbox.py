"""Instances on the disk: whole, under the name of what they are, and there before their sender is told so.

    incoming/                   what is still arriving
    studies/STUDY/INSTANCE.dcm  STUDY and INSTANCE are keyed hashes of their UIDs
    studies/STUDY/from-NAME     an empty file for each sender of the study
    studies/STUDY/series-SERIES an empty file for each of its series, under a keyed hash of its UID

The folder is the only record of what has arrived: nothing else has to be kept in step with it.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from semiseg.errors import InputError, SemisegError, VolumeError
from semiseg.system.durable_files import free_bytes, sync
from semiseg.volumes.dicom_file import read_dicom, text
from server.gateway.names import Names
from server.jobs.files import empty

LAST = 0x00201208  # Number of Study Related Instances
_TAGS = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "NumberOfStudyRelatedInstances"]
STUDIES = "studies"
_SUFFIX, _SENDER, _SERIES = ".dcm", "from-", "series-"


class DiskFull(SemisegError):  # noqa: N818 - it passes
    """Less is free than has to stay free."""


class NotOurs(InputError):  # noqa: N818 - a refusal
    """What came is no instance, or not the one that it was announced as."""


@dataclass(frozen=True)
class Identity:
    """What an instance says that it is; ``announced`` is how many its study has by its own account, or None."""

    sop_class: str
    instance: str
    study: str
    series: str
    announced: int | None


@dataclass(frozen=True)
class Arrival:
    """An instance that is on the disk.

    Attributes:
        study: name of its study.
        instance: its own name.
        new: whether it was not there before.
        differs: whether another object of the same UID was there, which stays.
    """

    study: str
    instance: str
    new: bool
    differs: bool


class Inbox:
    """The two folders; to be used from any thread of the one process that holds them."""

    def __init__(
        self, folder: Path, names: Names, keep_free: int, arriving: Callable[[str, int | None], None] = lambda *_: None
    ) -> None:
        """Make them, and empty what a former process was receiving.

        Args:
            folder: above both.
            names: what UIDs are called.
            keep_free: bytes that must stay free on the volume.
            arriving: told of each instance just before it gets its place: its study's name, and how many instances
                that has by its own account, or None.
        """
        self.incoming, self.studies = folder / "incoming", folder / STUDIES
        for one in (self.incoming, self.studies):
            one.mkdir(exist_ok=True)
        empty(self.incoming)
        sync(self.studies)  # a former process may have been killed between making a folder and syncing its name
        self._names, self._keep_free, self._arriving = names, keep_free, arriving
        self._lock = threading.Lock()

    def require_room(self) -> None:
        """Refuse while the disk is nearly full.

        Raises:
            DiskFull: fewer bytes are free than have to stay free.
        """
        if free_bytes(self.incoming) < self._keep_free:
            raise DiskFull("The disk is nearly full; nothing is accepted before its operator has made room.")

    def take(self, file: Path, sender: str, identity: Identity | None = None) -> Arrival:
        """Give a file in ``incoming`` its place; when this returns, a power cut cannot take it away.

        Args:
            file: a DICOM file; it is gone afterwards, whatever happens.
            sender: AE title of who sent it.
            identity: what :meth:`identify` said of it, where it was asked already.

        Raises:
            NotOurs: no DICOM, or without the UIDs that it needs.
            DiskFull: there is no room.
        """
        try:
            self.require_room()
            identity = identity or self.identify(file)
            study, name = self._names.of(identity.study), self._names.of(identity.instance)
            sync(file)
            new = self._place(file, study, name, sender, identity)
            differs = not new and not filecmp.cmp(file, self.studies / study / f"{name}{_SUFFIX}", shallow=False)
            return Arrival(study, name, new, differs)
        finally:
            file.unlink(missing_ok=True)

    @staticmethod
    def identify(file: Path) -> Identity:
        """Read an instance's header as far as its study.

        Raises:
            NotOurs: no DICOM, or without the UIDs that it needs.
        """
        try:
            header = read_dicom(file, pixels=False, tags=_TAGS, last=LAST)
            uids = {keyword: text(header, keyword, file) for keyword in _TAGS}
        except VolumeError as error:
            raise NotOurs(str(error).replace(str(file), "the instance")) from None
        for keyword in _TAGS[:4]:
            if not uids[keyword]:
                raise NotOurs(f"The instance has no {keyword}.")
        announced = uids["NumberOfStudyRelatedInstances"]
        return Identity(
            uids["SOPClassUID"],
            uids["SOPInstanceUID"],
            uids["StudyInstanceUID"],
            uids["SeriesInstanceUID"],
            int(announced) if announced.isdecimal() else None,
        )

    def _place(self, file: Path, study: str, name: str, sender: str, identity: Identity) -> bool:
        folder = self.studies / study
        marks = (f"{_SENDER}{quote(sender, safe='')}", f"{_SERIES}{self._names.of(identity.series)}")
        with self._lock:  # so that retention sees the study arriving, or deletes it before and not with this in it
            self._arriving(study, identity.announced)
            if not folder.exists():
                folder.mkdir()
                sync(self.studies)
            for mark in marks:
                (folder / mark).touch()
            try:
                os.link(file, folder / f"{name}{_SUFFIX}")  # unlike a rename, this replaces nothing
                new = True
            except FileExistsError:
                new = False
        sync(folder)  # also for one that is here already: who brought it first may not have come to this yet
        return new

    def known(self) -> list[str]:
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

    def elsewhere(self, study: str, series: str) -> bool:
        """Whether another study that is here has a series of the same Series Instance UID."""
        mark = f"{_SERIES}{self._names.of(series)}"
        return any((other / mark).exists() for other in self.studies.iterdir() if other.name != study)

    def has(self, uid: str) -> bool:
        """Whether an instance is here, by its SOP Instance UID."""
        name = f"{self._names.of(uid)}{_SUFFIX}"
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
