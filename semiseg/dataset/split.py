"""Splits of a dataset: labelled, unlabelled, validation, test and development scans.

A scan is labelled only if it has a label file AND the split (or ``--labelled N``) names it. Labels of other training
scans are never opened, so that a result "with 4 labels" uses 4 labels even if the folder contains more. The label
budget includes the validation scans, because labels that select a checkpoint also have to be drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from semiseg.dataset.dataset_json import abbreviate_ids
from semiseg.dataset.folder import Dataset
from semiseg.dataset.split_file import FILE_NAME, Ids, SplitFile, find_split, has_label, read_split
from semiseg.errors import DatasetError

Pool = Literal["test", "validation", "development", "all"]


@dataclass(frozen=True)
class Split:
    """The scans of one experiment, as disjoint lists of ids.

    Attributes:
        labelled: Training scans whose labels the loss uses.
        unlabelled: Training scans whose labels, if any, are not opened.
        validation: Scans whose labels select the best checkpoint; they count in the label budget. May be empty.
        test: Scans whose labels only evaluation and comparison open.
        development: Scans for the choice of settings, which are never trained on. May be empty.
    """

    labelled: Ids
    unlabelled: Ids = ()
    validation: Ids = ()
    test: Ids = ()
    development: Ids = ()

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for pool, ids in self.pools().items():
            for case_id in ids:
                if case_id in seen:
                    raise DatasetError(f"The split has scan '{case_id}' in {seen[case_id]} and again in {pool}.")
                seen[case_id] = pool
        if not self.labelled:
            raise DatasetError("The split leaves no labelled scan to train on.")

    def pools(self) -> dict[str, Ids]:
        """Return every list by its name."""
        return {
            "labelled": self.labelled,
            "unlabelled": self.unlabelled,
            "validation": self.validation,
            "test": self.test,
            "development": self.development,
        }

    @property
    def budget(self) -> int:
        """Number of labels that training needs: labelled and validation scans."""
        return len(self.labelled) + len(self.validation)


def make_split(dataset: Dataset, split_file: Path | None = None, labelled: int | None = None) -> Split:
    """Determine the labelled and unlabelled scans of an experiment.

    With ``labelled`` = N the split's list for N is used. If there is none, N scans are taken in this order: the split's
    validation scans, its longest labelled list, and (unless the file has one fixed list) the other scans of ``train``;
    scans without a label file are skipped. Without ``labelled`` the split's only list is used.

    Without a split file there are no test scans: scans with a label file are labelled, and the others are unlabelled.
    An error is raised if this leaves the split undefined, because all scans have a label file or ``labelled`` is
    smaller than their number.

    Raises:
        DatasetError: The split contradicts itself or the dataset, or does not have that many labels.
    """
    if labelled is not None and labelled < 1:
        raise DatasetError(f"At least one scan must be labelled; {labelled} were requested.")
    path = find_split(dataset, split_file)
    if path is None:
        return _without_file(dataset, labelled)
    return split_for_budget(dataset, read_split(dataset, path), labelled)


def split_for_budget(dataset: Dataset, split: SplitFile, labelled: int | None) -> Split:
    """Return the :class:`Split` of ``split`` for a budget of ``labelled`` scans (None: its only list).

    Raises:
        DatasetError: The split does not have that many labels, or its list for them contradicts the other lists.
    """
    train = split.train
    if train is None:
        kept_out = {*split.test, *split.development}
        train = tuple(i for i in dataset.cases if i not in kept_out)
    outlined = _budget(dataset, split, train, labelled)
    without = [i for i in outlined if not has_label(dataset, i)]
    if without:
        raise DatasetError(f"{split.path}: {abbreviate_ids(without)} must be labelled but has no label file.")
    teaching = tuple(i for i in outlined if i not in split.validation)
    if not teaching:
        raise DatasetError(
            f"{split.path}: all {len(outlined)} labels go to validation, so none is left for training; "
            "increase --labelled or shorten 'validation'."
        )
    rest = tuple(i for i in train if i not in {*outlined, *split.validation})
    _check_unlabelled(split, teaching, rest, len(outlined))
    return Split(teaching, rest, split.validation, split.test, split.development)


def evaluation_scans(dataset: Dataset, split_file: Path | None, on: Pool) -> Ids:
    """Return the scans to evaluate on, each of which has a label file.

    Args:
        dataset: The dataset.
        split_file: Path of the split file; None for the dataset's own ``split.json``.
        on: Name of a list of the split; ``"all"`` selects every scan with a label file in a folder without a split,
            such as data from another hospital.

    Raises:
        DatasetError: The list is empty, one of its scans has no label file, or ``"all"`` would include training scans.
    """
    path = find_split(dataset, split_file)
    if path is None:
        ids = tuple(i for i in dataset.cases if has_label(dataset, i))
        if on != "all":
            raise DatasetError(
                f"{dataset.folder} has no {FILE_NAME}, so its {on} scans are not known; write one "
                f"(semiseg data split), name one with --split, or use --on all for its {len(ids)} outlined scans."
            )
        if not ids:
            raise DatasetError(f"{dataset.folder}: no scan has a label file to compare with.")
        return ids
    if on == "all":
        raise DatasetError(f"{path} lists training scans, so --on must name one of its other lists, not 'all'.")
    split = read_split(dataset, path)
    chosen: dict[Pool, Ids] = {"test": split.test, "validation": split.validation, "development": split.development}
    if not chosen[on]:
        raise DatasetError(f"{path} names no {on} scans.")
    without = [i for i in chosen[on] if not has_label(dataset, i)]
    if without:
        raise DatasetError(f"{path}: {on} names {abbreviate_ids(without)}, which has no label file to compare with.")
    return chosen[on]


def _budget(dataset: Dataset, split: SplitFile, train: Ids, labelled: int | None) -> Ids:
    """Return the scans whose labels the split opens for a budget, including the validation scans."""
    lists = split.labelled
    validation = split.validation
    if labelled is None:
        if isinstance(lists, dict) and len(lists) == 1:
            labelled = int(next(iter(lists)))
        elif isinstance(lists, dict) and lists:
            known = ", ".join(str(n) for n in split.budgets)
            raise DatasetError(f"{split.path} has labelled lists of {known} scans: select one with --labelled.")
        elif lists:
            return _union(lists, validation)
        else:
            raise DatasetError(f"{split.path} does not say which scans are labelled; give a number with --labelled.")
    if isinstance(lists, dict) and str(labelled) in lists:
        chosen = _union(lists[str(labelled)], validation)
        if len(chosen) != labelled:
            raise DatasetError(
                f"{split.path}: labelled '{labelled}' and validation together name {len(chosen)} scans; the label "
                f"budget includes validation, so they must name {labelled}."
            )
        return chosen
    order = validation
    if isinstance(lists, dict):
        longest: Ids = max(lists.values(), key=lambda ids: len(ids), default=())
        order = _union(order, longest, train)
    else:
        order = _union(order, train if lists is None else lists)
    available = [i for i in order if has_label(dataset, i)]
    if labelled > len(available):
        raise DatasetError(
            f"{split.path}: {labelled} labelled scans were requested, but only {len(available)} scans that may be "
            "labelled have a label file."
        )
    return tuple(available[:labelled])


def _check_unlabelled(split: SplitFile, teaching: Ids, rest: Ids, budget: int) -> None:
    """Refuse an ``unlabelled`` list for this budget that differs from the remaining scans of ``train``."""
    given: Ids | None
    if isinstance(split.unlabelled, dict):
        given = split.unlabelled.get(str(budget))
    else:
        given = split.unlabelled if isinstance(split.labelled, tuple) and (budget,) == split.budgets else None
    if given is None:
        return
    wrong = sorted(set(given) ^ set(rest))
    if wrong:
        raise DatasetError(
            f"{split.path}: unlabelled must be the remaining scans of train, but the list for {budget} labels differs "
            f"in {abbreviate_ids(wrong)}; omit or correct the list."
        )


def _without_file(dataset: Dataset, labelled: int | None) -> Split:
    outlined = tuple(i for i in dataset.cases if has_label(dataset, i))
    rest = tuple(i for i in dataset.cases if i not in set(outlined))
    if not outlined:
        raise DatasetError(f"{dataset.folder}: no scan has a label file.")
    if labelled not in (None, len(outlined)):
        raise DatasetError(
            f"{dataset.folder} has no {FILE_NAME} and {len(outlined)} scans with a label file; write a split that "
            f"lists the {labelled} labelled scans and the test scans (semiseg data split)."
        )
    if not rest:
        raise DatasetError(
            f"{dataset.folder} has no {FILE_NAME} and every scan has a label file; write a split that lists the test "
            "scans (semiseg data split)."
        )
    return Split(outlined, rest)


def _union(*lists: Iterable[str]) -> Ids:
    return tuple(dict.fromkeys(i for ids in lists for i in ids))
