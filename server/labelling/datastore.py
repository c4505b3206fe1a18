"""The dataset folder together with the labels that annotators saved, for clients and for training."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semiseg.dataset.folder import Case, Dataset
from semiseg.dataset.split_file import SplitFile, has_label
from server.labelling.label_names import LabelNames
from server.labelling.record import DATASET, FINAL, ORIGINAL, LabelRecord
from server.labelling.split_growth import BaseSplit, write_grown_split
from server.labelling.store import LabelStore, NewLabel

SPLIT = "split.json"


@dataclass(frozen=True)
class KnownLabel:
    """One label of an image, as clients can request it.

    Attributes:
        file: File of the label map.
        info: Further data about the label.
        record: Record of the label; None for a label of the dataset folder that was not changed here.
    """

    file: Path
    info: Mapping[str, Any] = field(default_factory=dict)
    record: LabelRecord | None = None


class Datastore:
    """The images of a dataset, their labels, and the split that grows with them."""

    def __init__(self, dataset: Dataset, names: LabelNames, base: BaseSplit, state: Path) -> None:
        """Open the store in the folder ``state`` and write the current split.

        Raises:
            InputError: See :class:`LabelStore`.
        """
        self.dataset = dataset
        self.names = names
        self.base = base
        self.state = state
        self.store = LabelStore(state)
        self._sums: dict[Path, tuple[tuple[int, int], str]] = {}
        self._growth = threading.Lock()
        self._write_split()

    def case(self, image: str) -> Case | None:
        """The image called ``image``; None if there is none."""
        return self.dataset.cases.get(image)

    def labels(self, image: str) -> dict[str, KnownLabel]:
        """The labels of an image by tag.

        ``final`` is the label for training: the newest final label, or else the dataset's own if the split opens it.
        ``original`` is the label that an annotator starts from: the newest label of another tag, such as a model's
        draft.
        """
        records = self.store.labels(image)
        out = {tag: self._known(record) for tag, record in records.items()}
        drafts = [record for record in records.values() if record.tag not in (FINAL, DATASET)]
        if drafts:
            out[ORIGINAL] = self._known(max(drafts, key=lambda record: record.version))
        if FINAL not in out and (own := self._own_label(image)) is not None:
            out[FINAL] = own
        return out

    def label(self, image: str, tag: str) -> KnownLabel | None:
        """The label of an image under a tag; None if there is none."""
        return self.labels(image).get(tag)

    def save(self, image: str, label: NewLabel, *, tag: str, who: str, **more: Any) -> LabelRecord:
        """Save a label as :meth:`LabelStore.add` does, and update the split."""
        record = self.store.add(image, label, tag=tag, who=who, **more)
        if tag == FINAL:
            self._write_split()
        return record

    def withdraw(self, image: str, tag: str, who: str) -> bool:
        """Withdraw the newest label of a tag; return False if the store has none.

        Without a final label of an annotator, the dataset's own label is used again if the split opens it.
        """
        done = self.store.withdraw(image, tag, who) is not None
        if done and tag == FINAL:
            self._write_split()
        return done

    def finished(self) -> list[str]:
        """Images with a final label in the store, in the order in which they got their first one."""
        found = [
            (next(one.when for one in self.store.history(image) if one.kind == "label" and one.tag == FINAL), image)
            for image in self.store.images()
            if image in self.dataset.cases and self.store.newest(image, FINAL) is not None
        ]
        return [image for _, image in sorted(found)]

    def split(self) -> SplitFile:
        """The split for a training that starts now."""
        return self.base.grown(self.finished())

    def waiting(self) -> list[str]:
        """Training scans that have no final label yet, in the order of the dataset."""
        done = {*self.base.labelled, *self.finished()}
        return [image for image in self.dataset.cases if self.base.teaches(image) and image not in done]

    def checksum(self, file: Path) -> str:
        """The SHA-256 of a file; it is computed again only after the file has changed."""
        found = file.stat()
        stamp = (found.st_mtime_ns, found.st_size)
        known = self._sums.get(file)
        if known is None or known[0] != stamp:
            with file.open("rb") as stream:
                known = stamp, hashlib.file_digest(stream, "sha256").hexdigest()
            self._sums[file] = known
        return known[1]

    def _known(self, record: LabelRecord) -> KnownLabel:
        return KnownLabel(self.store.file_of(record), self.store.info_of(record), record)

    def _own_label(self, image: str) -> KnownLabel | None:
        case = self.dataset.cases.get(image)
        if case is None or case.label is None or not self.base.opens(image) or not has_label(self.dataset, image):
            return None
        return KnownLabel(case.label)

    def _write_split(self) -> None:
        with self._growth:
            write_grown_split(self.split(), self.state / SPLIT)
