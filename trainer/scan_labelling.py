"""Input and result types of stages that label unlabelled scans without a network of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from semiseg.deprecation import renamed_attributes
from semiseg.inference.segmenter import Segmenter
from trainer.cases import PreparedCase
from trainer.recipe import Recipe

if not TYPE_CHECKING:
    __getattr__ = renamed_attributes(__name__, LabellingWork="LabellingWorkload", LabelsOfScan="ScanLabeller")


@dataclass(frozen=True)
class TrainingScans:
    """Input of a stage that labels scans without a network of its own.

    Attributes:
        cases: The preprocessed scans by name.
        labelled: Names of the labelled scans.
        unlabelled: Names of the unlabelled scans.
        processes: Largest number of processes that run at a time.
        cache: Folder for results that other runs may use.
        train: Called with a recipe, the name of a folder and names of labelled scans. It trains a network on these and
            the unlabelled scans in a separate run, which is kept in the folder of this run, or loads it if it is
            trained.
        tell: Called with messages for the user.
        progress: Called with (activity, done, total).
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
    """Work that labelling requires, from which its time is estimated.

    Attributes:
        registrations: Number of registrations of one scan onto another.
        members: Networks that are trained for it, each as its recipe, its number of labelled scans, and the number of
            networks that are trained in this way.
    """

    registrations: int = 0
    members: tuple[tuple[Recipe, int, int], ...] = ()


ScanLabeller = Callable[[Sequence[str]], Iterator[tuple[str, NDArray[np.uint8]]]]
"""Function from names of scans to pairs of a name and labels: codes, or soft labels of :mod:`trainer.soft_labels`."""
