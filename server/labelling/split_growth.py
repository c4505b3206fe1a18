"""The split for training: the split at the start of the labelling, with the scans that got a final label since.

Test, development and validation scans keep their role when they get a new label; otherwise a figure on the test scans
would change its meaning with every saved label.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from semiseg.dataset.folder import Dataset
from semiseg.dataset.split import split_for_budget
from semiseg.dataset.split_file import Ids, SplitFile, find_split, has_label, read_split
from semiseg.errors import DatasetError
from semiseg.system.durable_files import replace_file


@dataclass(frozen=True)
class BaseSplit:
    """The split at the start of the labelling.

    Attributes:
        labelled: Training scans whose label in the dataset folder may be opened.
        train: All training scans: labelled, unlabelled and validation.
        validation: Scans on which the best iterate is chosen.
        test: Scans that only the evaluation may open.
        development: Scans for choosing settings.
        path: Path of the split file; None for a dataset without one.
    """

    labelled: Ids
    train: Ids
    validation: Ids = ()
    test: Ids = ()
    development: Ids = ()
    path: Path | None = None

    @classmethod
    def read(cls, dataset: Dataset, split_file: Path | None = None, labelled: int | None = None) -> BaseSplit:
        """Read the dataset's split; without one, all scans are training scans and those with a label are labelled.

        Args:
            dataset: Dataset to which the split belongs.
            split_file: File with the split; ``split.json`` in the dataset folder by default.
            labelled: Number of labelled scans at the start, for a split with several lists; 0 starts without any.

        Raises:
            DatasetError: The split contradicts itself or the dataset, or does not define which scans are labelled.
        """
        path = find_split(dataset, split_file)
        if path is None:
            outlined = tuple(one for one in dataset.cases if has_label(dataset, one))
            if labelled not in (None, 0, len(outlined)):
                raise DatasetError(
                    f"{dataset.folder} has no split.json to select {labelled} of the {len(outlined)} scans with a "
                    "label; write one (semiseg data split)."
                )
            return cls(() if labelled == 0 else outlined, tuple(dataset.cases))
        file = read_split(dataset, path)
        kept_out = {*file.test, *file.development}
        train = file.train if file.train is not None else tuple(one for one in dataset.cases if one not in kept_out)
        started = _labelled(dataset, file, labelled)
        return cls(started, train, file.validation, file.test, file.development, path)

    def opens(self, image: str) -> bool:
        """Return True if the label of an image in the dataset folder may be opened for training."""
        return image in self.labelled or image in self.validation

    def teaches(self, image: str) -> bool:
        """Return True if a final label makes the image a labelled training scan."""
        return image in self.train and image not in {*self.validation, *self.test, *self.development}

    def grown(self, finished: Iterable[str]) -> SplitFile:
        """Make the split in which the scans with a final label are labelled, too.

        Args:
            finished: Ids of the images with a final label, in the order in which they got it.
        """
        more = [image for image in finished if self.teaches(image)]
        labelled = tuple(dict.fromkeys((*self.labelled, *more)))
        return SplitFile(
            test=self.test,
            train=self.train,
            labelled=labelled,
            validation=self.validation,
            development=self.development,
            method="The split at the start of the labelling; scans with a final label were added to labelled.",
        )


def _labelled(dataset: Dataset, file: SplitFile, labelled: int | None) -> Ids:
    """The labelled scans of a split file, without its validation scans."""
    if labelled == 0 or (labelled is None and not file.labelled):
        return ()
    return split_for_budget(dataset, file, labelled).labelled


def write_grown_split(split: SplitFile, path: Path) -> None:
    """Write a grown split atomically as ``split.json``."""
    document = split.model_dump(mode="json", exclude_defaults=True)
    replace_file(path, json.dumps({"test": [], **document}, indent=1).encode() + b"\n")
