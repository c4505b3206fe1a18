"""The labels of a dataset's images: every saved version, with its history, in plain files.

``labels/IMAGE/000003.nii.gz`` is the label map of the third entry of an image and ``000003.json`` its
:class:`server.labelling.record.LabelRecord`. The label map is written to the disk before its record, and the record
before the label is acknowledged, so that an acknowledged label survives a killed process and a power cut. A label map
without a record was never acknowledged; it is deleted when the store is opened.

The store belongs to one process (:func:`semiseg.system.file_locks.exclusive_lock` on the state folder), whose threads
may share it.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from semiseg.errors import InputError, validation_message
from semiseg.system.durable_files import rename, replace_file, sync
from semiseg.volumes.nifti import write_nifti
from server.labelling.record import DATASET, LabelRecord, state_for_tag

LABELS = "labels"
INFO_BYTES = 65_536
_RECORD = re.compile(r"(\d{6})\.json")
_MAP = re.compile(r"(\d{6})\.nii\.gz")
_IMAGE = re.compile(r"(?!\.)[^/\\\x00-\x1f]{1,200}")


@dataclass(frozen=True, eq=False)
class NewLabel:
    """A label map to save.

    Attributes:
        array: Label values, uint8, shape (X, Y, Z), on the grid of the image.
        affine: Matrix (4, 4) from voxel indices to RAS+ mm.
        like: File of the image; if it is NIfTI, the label repeats its header.
        voxels: Number of voxels of each segment.
    """

    array: NDArray[np.uint8]
    affine: NDArray[np.float64]
    like: Path | None = None
    voxels: Mapping[str, int] = field(default_factory=dict)


class LabelStore:
    """All versions of all labels; see the module's description for the files."""

    def __init__(self, folder: Path) -> None:
        """Open the store and delete unfinished files of a killed process.

        Args:
            folder: State folder of the labelling server; created if it does not exist.

        Raises:
            InputError: A record cannot be read, or does not match its path or its file.
            OSError: The folder cannot be written.
        """
        self._root = folder / LABELS
        self._root.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._history: dict[str, list[LabelRecord]] = {}
        for place in sorted(path for path in self._root.iterdir() if path.is_dir()):
            self._history[place.name] = _read_history(place)

    def images(self) -> list[str]:
        """Ids of the images that have a history."""
        with self._lock:
            return sorted(image for image, history in self._history.items() if history)

    def history(self, image: str) -> tuple[LabelRecord, ...]:
        """All entries of an image, oldest first."""
        with self._lock:
            return tuple(self._history.get(image, ()))

    def newest(self, image: str, tag: str) -> LabelRecord | None:
        """The newest label of a tag; None if there is none or it was withdrawn."""
        return self.labels(image).get(tag)

    def labels(self, image: str) -> dict[str, LabelRecord]:
        """The newest label of each tag of an image, in the order in which they were saved."""
        found: dict[str, LabelRecord] = {}
        for record in self.history(image):
            if record.kind == "label":
                found.pop(record.tag, None)
                found[record.tag] = record
            elif record.kind == "withdrawal":
                found.pop(record.tag, None)
        return found

    def file_of(self, record: LabelRecord) -> Path:
        """The label map's file of an entry of the kind ``label``."""
        return self._root / record.image / record.file

    def info_of(self, record: LabelRecord) -> dict[str, Any]:
        """The data about a label that clients sent when it was saved and afterwards."""
        info = dict(record.info)
        for other in self.history(record.image):
            if other.kind == "information" and other.about == record.version:
                info.update(other.info)
        return info

    def add(
        self,
        image: str,
        label: NewLabel,
        *,
        tag: str,
        who: str,
        model: str = "",
        model_sha256: str = "",
        info: Mapping[str, Any] | None = None,
    ) -> LabelRecord:
        """Save a new version of a label; when this returns, the label survives a crash and a power cut.

        If the label equals the newest one of its tag, by the same person and from the same model, no second version is
        made: a client saves again if it did not get the response.

        Args:
            image: Id of the image.
            label: Label map.
            tag: Tag of the label, such as ``final``.
            who: Name of the person or program that saves it.
            model, model_sha256: Name and SHA-256 of the model that the label comes from.
            info: Further data about the label, which can be stored as JSON.

        Returns:
            Record of the new or the equal version.

        Raises:
            InputError: The image's id or the tag cannot be used, or ``info`` is too long.
            OSError: The label cannot be written, for example because the disk is full.
        """
        told = _checked_info(info or {})
        state_for_tag(tag)  # raises an error before anything is written
        part = self._place(image) / f".{secrets.token_hex(8)}.nii.gz"
        try:
            write_nifti(part, label.array, label.affine, like=label.like)
            return self._keep(
                image,
                _sha256(part),
                lambda target: rename(part, target),
                tag=tag,
                who=who,
                model=model,
                model_sha256=model_sha256,
                voxels=dict(label.voxels),
                info=told,
            )
        finally:
            part.unlink(missing_ok=True)

    def add_file(
        self, image: str, file: Path, *, tag: str = DATASET, who: str, voxels: Mapping[str, int]
    ) -> LabelRecord:
        """Save an unchanged copy of a gzipped NIfTI label map as a new version.

        Raises:
            InputError, OSError: See :meth:`add`.
        """
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        return self._keep(
            image, digest, lambda target: replace_file(target, content), tag=tag, who=who, voxels=dict(voxels)
        )

    def withdraw(self, image: str, tag: str, who: str) -> LabelRecord | None:
        """Withdraw the newest label of a tag; its file and its record are kept.

        Returns:
            Record of the withdrawal; None if the tag has no label.
        """
        return self._about(image, tag, who, "withdrawal", {})

    def add_info(self, image: str, tag: str, info: Mapping[str, Any], who: str) -> LabelRecord | None:
        """Add a note about the newest label of a tag.

        Returns:
            Record of the note; None if the tag has no label.

        Raises:
            InputError: The note is too long.
        """
        return self._about(image, tag, who, "information", _checked_info(info))

    def check(self) -> list[str]:
        """Compare every label map with its record; return a sentence for each that is missing or was altered."""
        found = []
        for image in self.images():
            for record in self.history(image):
                if record.kind != "label":
                    continue
                file = self.file_of(record)
                if not file.is_file():
                    found.append(f"{file} is missing.")
                elif _sha256(file) != record.sha256:
                    found.append(f"{file} was altered: its SHA-256 is not that of its record.")
        return found

    def _keep(
        self, image: str, digest: str, put: Callable[[Path], None], *, tag: str, who: str, **told: Any
    ) -> LabelRecord:
        """Store a label map as the next version of a label, unless it equals the newest one.

        Args:
            image: Id of the image.
            digest: SHA-256 of the label map's file.
            put: Function that writes the file to the path with which it is called.
            tag, who: Tag and author; see :meth:`add`.
            told: Further fields of the record.
        """
        state, place = state_for_tag(tag), self._place(image)
        with self._lock:
            history = self._history.setdefault(image, [])
            same = _same(history, tag, digest, who, told.get("model", ""), told.get("model_sha256", ""))
            if same is not None:
                return same
            version = len(history) + 1
            record = LabelRecord(
                version=version,
                image=image,
                kind="label",
                tag=tag,
                state=state,
                who=who,
                when=_now(),
                file=f"{version:06d}.nii.gz",
                sha256=digest,
                **told,
            )
            put(place / record.file)
            sync(place)
            self._append(place, history, record)
            return record

    def _about(self, image: str, tag: str, who: str, kind: Any, info: dict[str, Any]) -> LabelRecord | None:
        label = self.newest(image, tag)
        if label is None:
            return None
        with self._lock:
            history = self._history[image]
            record = LabelRecord(
                version=len(history) + 1,
                image=image,
                kind=kind,
                tag=tag,
                state=label.state,
                who=who,
                when=_now(),
                about=label.version,
                info=info,
            )
            self._append(self._place(image), history, record)
        return record

    def _append(self, place: Path, history: list[LabelRecord], record: LabelRecord) -> None:
        text = json.dumps(record.model_dump(mode="json", exclude_defaults=True), indent=1, ensure_ascii=False)
        replace_file(place / f"{record.version:06d}.json", text.encode() + b"\n")
        history.append(record)

    def _place(self, image: str) -> Path:
        if not _IMAGE.fullmatch(image):
            raise InputError(f"The image id {image[:80]!r} cannot be the name of a folder.")
        place = self._root / image
        if not place.is_dir():
            place.mkdir(exist_ok=True)
            sync(self._root)
        return place


def _same(
    history: list[LabelRecord], tag: str, digest: str, who: str, model: str, model_sha256: str
) -> LabelRecord | None:
    """The newest label of a tag, if it is equal; drafts of the same model are equal regardless of the requester."""
    last = next((one for one in reversed(history) if one.tag == tag and one.kind != "information"), None)
    if last is None or last.kind != "label":
        return None
    equal = (last.sha256, last.model, last.model_sha256) == (digest, model, model_sha256)
    return last if equal and (last.who == who or (model_sha256 and last.state == "draft")) else None


def _read_history(place: Path) -> list[LabelRecord]:
    """Read the records in an image's folder and delete its unfinished files."""
    numbers = sorted(int(found[1]) for path in place.iterdir() if (found := _RECORD.fullmatch(path.name)))
    if numbers != list(range(1, len(numbers) + 1)):
        raise InputError(f"The records in {place} are not numbered without gaps; restore the missing ones.")
    history = [_read_record(place, number) for number in numbers]
    known = {record.file for record in history if record.file}
    for path in place.iterdir():
        if path.name.startswith(".") or (_MAP.fullmatch(path.name) and path.name not in known):
            path.unlink(missing_ok=True)
    return history


def _read_record(place: Path, number: int) -> LabelRecord:
    path = place / f"{number:06d}.json"
    try:
        record = LabelRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise InputError(f"{path} is not the record of a label: {validation_message(error)}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}).") from None
    expected = f"{number:06d}.nii.gz" if record.kind == "label" else ""
    if (record.version, record.image, record.file) != (number, place.name, expected):
        raise InputError(f"{path} is the record of another label.")
    return record


def _checked_info(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of ``info`` after conversion to JSON and back."""
    try:
        text = json.dumps(dict(info), allow_nan=False, ensure_ascii=False)
        size = len(text.encode("utf-8"))
    except (TypeError, ValueError, RecursionError):
        raise InputError("The data about a label must be JSON in UTF-8, without NaN.") from None
    if size > INFO_BYTES:
        raise InputError(f"The data about a label may have at most {INFO_BYTES} bytes.")
    found: dict[str, Any] = json.loads(text)
    return found


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in _blocks(file):
            digest.update(block)
    return digest.hexdigest()


def _blocks(file: Any) -> Iterator[bytes]:
    while block := file.read(2**20):
        yield block


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
