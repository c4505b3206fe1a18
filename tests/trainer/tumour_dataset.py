"""Scans with tumours in three nested parts, as BraTS labels them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from semiseg.dataset import Dataset, load_dataset
from semiseg.volumes.nifti import write_nifti
from tests.trainer.factories import make_recipe_for
from trainer.recipe import Recipe

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
REGIONS = {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}


def write_tumours(folder: Path, *, regions_in_the_dataset: bool = False) -> Dataset:
    """Two-channel scans of a ball in a ball in a ball, as BraTS labels them."""
    cases = []
    for k in range(5):
        random = np.random.default_rng(k)
        centre = random.uniform(7, 9, size=3)
        grid = np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij"), axis=-1)
        distance = np.linalg.norm(grid - centre, axis=-1)
        labels = (distance < 6).astype(np.uint8) + (distance < 4.5) + (distance < 3)
        noise = random.normal(0, 0.1, size=(16, 16, 16, 2))
        image = np.stack([labels >= 1, labels >= 3], axis=-1) + noise
        (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
        (folder / "labelsTr").mkdir(exist_ok=True)
        write_nifti(folder / "imagesTr" / f"t{k}.nii.gz", image.astype(np.float32), AFFINE)
        write_nifti(folder / "labelsTr" / f"t{k}.nii.gz", labels, AFFINE)
        cases.append({"image": f"imagesTr/t{k}.nii.gz", "label": f"labelsTr/t{k}.nii.gz"})
    named = (
        {"background": 0, **REGIONS}
        if regions_in_the_dataset
        else {"0": "background", "1": "oedema", "2": "necrosis", "3": "enhancing"}
    )
    document = {"modality": {"0": "FLAIR", "1": "T1c"}, "labels": named, "training": cases}
    (folder / "dataset.json").write_text(json.dumps(document))
    split = {"test": ["t4"], "labelled": {"2": ["t0", "t1"]}}
    (folder / "split.json").write_text(json.dumps(split))
    return load_dataset(folder)


def tumour_recipe(method: str = "supervised", **changes: Any) -> Recipe:
    return make_recipe_for(method, {"patch": [16, 16, 16], "updates": 60, "regions": REGIONS, **changes})
