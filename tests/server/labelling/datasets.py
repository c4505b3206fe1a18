"""Dataset folders with an opened labelling store, for the tests of the labelling server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from semiseg.dataset import load_dataset
from server.labelling.datastore import Datastore
from server.labelling.label_names import LabelNames
from server.labelling.split_growth import BaseSplit
from server.labelling.store import NewLabel
from tests.datasets import AFFINE, random_labels, write_dataset

SPLIT = {
    "test": ["s0"],
    "development": ["s1"],
    "validation": ["s2"],
    "train": ["s2", "s3", "s4", "s5", "s6"],
    "labelled": ["s3"],
}
"""Seven scans: s0 is for the test, s1 for development, s2 for validation, s3 labelled, s4 to s6 unlabelled."""


def write_labelled_dataset(folder: Path, **more: Any) -> Path:
    """Write a dataset of seven scans, of which s0 to s4 have a label file, and return its folder."""
    write_dataset(folder, 5, 2, split=SPLIT, **more)
    return folder


def open_datastore(folder: Path, state: Path | None = None, **more: Any) -> Datastore:
    """Open the labels of a dataset folder as the server does."""
    dataset = load_dataset(folder)
    state = state or folder / "labelling"
    state.mkdir(exist_ok=True)
    return Datastore(dataset, LabelNames.from_dataset(dataset), BaseSplit.read(dataset, **more), state)


def random_new_label(seed: int) -> NewLabel:
    """A label map on the grid of the datasets' scans, another one for each seed."""
    array = random_labels(seed)
    return NewLabel(array, AFFINE, None, {"low": int(np.sum(array == 1)), "high": int(np.sum(array == 2))})


RECIPE = {
    "name": "tiny",
    "method": "supervised",
    "student": {"kind": "unet", "channels": [4, 8], "residual_units": 0},
    "patch": [16, 16, 8],
    "batch": 2,
    "updates": 4,
    "threads": 1,
    "optimiser": {"kind": "adamw", "rate": 0.02},
}
"""A recipe whose training takes a moment."""


def training_config(folder: Path, *, updates: int = 4, **acceptance: object) -> Path:
    """Write a recipe and a configuration of the training, and return the latter."""
    recipe = RECIPE | {"updates": updates}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    document = {"recipe": "tiny.yaml", "changes": ["checkpoint_every=1"], "threads": 1, "acceptance": acceptance}
    (folder / "training.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return folder / "training.yaml"
