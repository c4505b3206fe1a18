"""Which scans may teach, which are only looked at, and which judge.

A scan is labelled only if it has a label file AND the split (or ``--labelled N``) names it. Labels of other training
scans are never opened, so a figure "with 4 labels" is what 4 labels give, even when the folder holds more. The budget
of labels includes the validation scans: a label spent on choosing the best iterate is a label somebody had to draw.
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
    """The scans of one experiment, by id; no scan is in two of them.

    Attributes:
        labelled: outlines that the loss sees.
        unlabelled: training scans whose labels, if any, stay closed.
        validation: outlines that choose the best iterate; they count in the budget of labels. May be empty.
        test: opened by evaluation and comparison alone.
        development: for choosing settings; in no training pool. May be empty.
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
        """Every list by its name."""
        return {
            "labelled": self.labelled,
            "unlabelled": self.unlabelled,
            "validation": self.validation,
            "test": self.test,
            "development": self.development,
        }

    @property
    def budget(self) -> int:
        """How many outlines somebody had to draw for training: labelled and validation."""
        return len(self.labelled) + len(self.validation)


def make_split(dataset: Dataset, split_file: Path | None = None, labelled: int | None = None) -> Split:
    """Decide which scans teach with and which without their outline.

    ``labelled`` = N takes the list that the split has for N. If it has none, N scans are taken in this order: its
    validation scans, its longest labelled list, and (unless the file gives one fixed list) the rest of train; scans
    without a label file are passed over. Without ``labelled`` the split's only list is taken.

    Without any split file there are no test scans: every outlined scan is labelled and the rest is unlabelled, which is
    refused when that leaves nothing to tell them apart (all scans outlined, or fewer asked for).

    Raises:
        DatasetError: the split contradicts itself or the dataset, or cannot give that many labels.
    """
    if labelled is not None and labelled < 1:
        raise DatasetError(f"At least one scan must be labelled; {labelled} were asked for.")
    path = find_split(dataset, split_file)
    if path is None:
        return _without_file(dataset, labelled)
    return split_for_budget(dataset, read_split(dataset, path), labelled)


def split_for_budget(dataset: Dataset, split: SplitFile, labelled: int | None) -> Split:
    """The :class:`Split` that ``split`` gives for a budget of ``labelled`` scans (None: its only list).

    Raises:
        DatasetError: it cannot give that many, or the list it has for them contradicts the other lists.
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
            f"{split.path}: all {len(outlined)} labels go to validation, so none is left to train on; "
            "ask for more with --labelled or shorten 'validation'."
        )
    rest = tuple(i for i in train if i not in {*outlined, *split.validation})
    _check_unlabelled(split, teaching, rest, len(outlined))
    return Split(teaching, rest, split.validation, split.test, split.development)


def evaluation_scans(dataset: Dataset, split_file: Path | None, on: Pool) -> Ids:
    """The scans that figures are made on, each with its label file.

    Args:
        dataset: the scans.
        split_file: None takes the dataset's own ``split.json``.
        on: a list of the split; ``"all"`` is every outlined scan of a folder without a split, such as data from
            another hospital.

    Raises:
        DatasetError: the list is empty, one of its scans has no label file, or ``"all"`` would mix in training scans.
    """
    path = find_split(dataset, split_file)
    if path is None:
        ids = tuple(i for i in dataset.cases if has_label(dataset, i))
        if on != "all":
            raise DatasetError(
                f"{dataset.folder} has no {FILE_NAME}, so which scans are its {on} scans is not known; write one "
                f"(semiseg data split), name one with --split, or use --on all for its {len(ids)} outlined scans."
            )
        if not ids:
            raise DatasetError(f"{dataset.folder}: no scan has a label file to compare with.")
        return ids
    if on == "all":
        raise DatasetError(f"{path} says which scans are for training: name one of its lists with --on, not 'all'.")
    split = read_split(dataset, path)
    chosen: dict[Pool, Ids] = {"test": split.test, "validation": split.validation, "development": split.development}
    if not chosen[on]:
        raise DatasetError(f"{path} names no {on} scans.")
    without = [i for i in chosen[on] if not has_label(dataset, i)]
    if without:
        raise DatasetError(f"{path}: {on} names {abbreviate_ids(without)}, which has no label file to compare with.")
    return chosen[on]


def _budget(dataset: Dataset, split: SplitFile, train: Ids, labelled: int | None) -> Ids:
    """The outlined scans of the split for a budget: validation scans are among them."""
    lists = split.labelled
    validation = split.validation
    if labelled is None:
        if isinstance(lists, dict) and len(lists) == 1:
            labelled = int(next(iter(lists)))
        elif isinstance(lists, dict) and lists:
            known = ", ".join(str(n) for n in split.budgets)
            raise DatasetError(f"{split.path} has labelled lists of {known} scans: say which with --labelled.")
        elif lists:
            return _union(lists, validation)
        else:
            raise DatasetError(f"{split.path} does not say which scans are labelled: give a number with --labelled.")
    if isinstance(lists, dict) and str(labelled) in lists:
        chosen = _union(lists[str(labelled)], validation)
        if len(chosen) != labelled:
            raise DatasetError(
                f"{split.path}: labelled '{labelled}' and validation together name {len(chosen)} scans; the budget of "
                f"labels includes validation, so they must name {labelled}."
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
            f"{split.path}: {labelled} labelled scans were asked for and {len(available)} scans that it allows "
            "to be labelled have a label file."
        )
    return tuple(available[:labelled])


def _check_unlabelled(split: SplitFile, teaching: Ids, rest: Ids, budget: int) -> None:
    """Refuse an ``unlabelled`` list for this very budget that is not the rest of train."""
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
            f"{split.path}: unlabelled is the rest of train, but the list for {budget} labels differs from it in "
            f"{abbreviate_ids(wrong)}; leave the list out or mend it."
        )


def _without_file(dataset: Dataset, labelled: int | None) -> Split:
    outlined = tuple(i for i in dataset.cases if has_label(dataset, i))
    rest = tuple(i for i in dataset.cases if i not in set(outlined))
    if not outlined:
        raise DatasetError(f"{dataset.folder}: no scan has a label file.")
    if labelled not in (None, len(outlined)):
        raise DatasetError(
            f"{dataset.folder} has no {FILE_NAME} and {len(outlined)} outlined scans: which {labelled} of them are "
            "labelled, and which are for the test, has to be written down (semiseg data split)."
        )
    if not rest:
        raise DatasetError(
            f"{dataset.folder} has no {FILE_NAME} and every scan is outlined: which ones are for the test has to be "
            "written down (semiseg data split)."
        )
    return Split(outlined, rest)


def _union(*lists: Iterable[str]) -> Ids:
    return tuple(dict.fromkeys(i for ids in lists for i in ids))
