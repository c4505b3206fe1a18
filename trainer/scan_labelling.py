"""Labelling unlabelled scans without a network of the stage's own: what a stage works with, and what it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semiseg.inference.segmenter import Segmenter
from trainer.cases import PreparedCase
from trainer.recipe import Recipe


@dataclass(frozen=True)
class TrainingScans:
    """What a stage that labels scans without a network works with.

    Attributes:
        cases: The prepared scans by name.
        labelled: Names of the labelled ones.
        unlabelled: Names of the unlabelled ones.
        processes: Processes that may work at a time.
        cache: Folder of what may be kept for other runs.
        train: Called with a recipe, the name of a folder and names of labelled scans; trains a network on those and the
            unlabelled ones, in a run of its own that is kept in this run's folder, or finds it trained.
        tell: Called with a sentence for the person who trains.
        progress: Called with (what is done, number done, total).
    """

    cases: Mapping[str, PreparedCase]
    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    processes: int
    cache: Path
    train: Callable[[Recipe, str, tuple[str, ...]], Segmenter]
    tell: Callable[[str], None]
    progress: Callable[[str, int, int], None]


@dataclass(frozen=True)
class LabellingWorkload:
    """What labelling consists of.

    Attributes:
        registrations: Number of registrations of one scan onto another.
        members: Of each network that is trained for it: its recipe, its number of labelled scans, and how often one
            like it is trained.
    """

    registrations: int = 0
    members: tuple[tuple[Recipe, int, int], ...] = ()


ScanLabeller = Callable[[Sequence[str]], Iterator[tuple[str, NDArray[np.uint8]]]]
"""From names of scans to pairs of a name and its labels: codes, or soft labels of :mod:`trainer.soft_labels`."""
