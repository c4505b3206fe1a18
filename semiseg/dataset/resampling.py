"""Splits for repeated experiments on one dataset: random draws of the labelled scans, and cross-validation folds.

The choice of the labelled scans often matters more than the method, so a result for one labelled set says little. A
draw keeps a split's test and development scans and labels other training scans; folds test once on every scan with a
label file.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from semiseg.dataset.folder import Dataset
from semiseg.dataset.split_file import SplitFile, has_label
from semiseg.errors import DatasetError


def resample_labelled(dataset: Dataset, split: SplitFile, labelled: Sequence[int], draw: int) -> SplitFile:
    """Return the same split with other labelled scans: nested lists from a shuffle of the training scans with labels.

    Args:
        dataset: The dataset.
        split: The split whose test, development and training scans are kept.
        labelled: Numbers of labelled scans.
        draw: Number of the draw, from 1; it is the seed of the shuffle.

    Raises:
        DatasetError: There are fewer training scans with a label file, or the split uses labels for validation.
    """
    if split.validation:
        raise DatasetError(f"{split.path} has validation scans; draws of the labelled scans need a split without them.")
    kept_out = {*split.test, *split.development}
    train = split.train if split.train is not None else tuple(i for i in dataset.cases if i not in kept_out)
    outlined = _shuffled(dataset, train, draw)
    if max(labelled, default=0) > len(outlined):
        raise DatasetError(
            f"{split.path}: {max(labelled)} labelled scans were requested, but only {len(outlined)} training scans "
            "have a label file."
        )
    return SplitFile(
        seed=draw,
        method=f"Draw {draw} of the labelled scans: a seeded shuffle of the training scans with a label file.",
        test=split.test,
        train=train,
        labelled={str(n): tuple(outlined[:n]) for n in sorted(set(labelled))},
        development=split.development,
        path=split.path,
    )


def make_folds(
    dataset: Dataset, count: int, labelled: Sequence[int], *, draw: int = 0, seed: int = 0
) -> list[SplitFile]:
    """Return the splits of a cross-validation: each tests on one part of the scans with a label file.

    Args:
        dataset: The dataset.
        count: Number of folds, at least 2.
        labelled: Numbers of labelled scans in each split.
        draw: Number of the draw of the labelled scans.
        seed: Seed of the shuffle that assigns the scans to the folds.

    Raises:
        DatasetError: There are too few scans with a label file.
    """
    outlined = _shuffled(dataset, tuple(dataset.cases), seed)
    if count < 2 or count > len(outlined):
        raise DatasetError(f"{len(outlined)} outlined scans make between 2 and {len(outlined)} folds, not {count}.")
    made = []
    for fold in range(count):
        test = tuple(sorted(outlined[fold::count]))
        train = tuple(sorted(set(dataset.cases) - set(test)))
        bare = SplitFile(test=test, train=train, path=dataset.folder / f"fold {fold + 1}")
        drawn = resample_labelled(dataset, bare, labelled, draw)
        words = f"Fold {fold + 1} of {count} over the scans with a label file, draw {draw} of the labelled scans."
        made.append(drawn.model_copy(update={"seed": seed, "method": words}))
    return made


def _shuffled(dataset: Dataset, ids: Sequence[str], seed: int) -> list[str]:
    """Return the scans with a label file in an order that depends on the seed only."""
    outlined = sorted(i for i in ids if has_label(dataset, i))
    random.Random(f"draw {seed}").shuffle(outlined)
    return outlined
