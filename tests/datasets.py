"""Dataset folders made for one test: a few small scans whose every voxel the test knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.dataset import Dataset, load_dataset
from semiseg.volumes.nifti import write_nifti

SHAPE = (8, 9, 10)
AFFINE = np.diag([1.0, 1.0, 1.5, 1.0])
LABELS = {"0": "background", "1": "low", "2": "high"}


def random_image(seed: int, shape: tuple[int, ...] = SHAPE) -> NDArray[np.int16]:
    """A scan of noise, another one for each seed."""
    return np.random.default_rng(seed).integers(0, 1000, shape, dtype=np.int16)


def random_labels(seed: int, shape: tuple[int, int, int] = SHAPE) -> NDArray[np.uint8]:
    """A label map that holds 0, 1 and 2."""
    return np.random.default_rng(1000 + seed).integers(0, 3, shape, dtype=np.uint8)


def write_dataset(
    folder: Path,
    labelled: int = 4,
    without_label: int = 0,
    *,
    document: Mapping[str, Any] | None = None,
    split: Mapping[str, Any] | None = None,
    described: bool = True,
) -> Dataset:
    """Scans ``s0``, ``s1``, ...: first those with a label file, then those without."""
    entries: list[dict[str, str]] = []
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for k in range(labelled + without_label):
        write_scan(folder, f"s{k}", random_image(k), random_labels(k) if k < labelled else None)
        entry = {"image": f"./imagesTr/s{k}.nii.gz"}
        entries.append(entry | ({"label": f"./labelsTr/s{k}.nii.gz"} if k < labelled else {}))
    if described:
        base = {"name": "Noise", "modality": {"0": "image"}, "labels": LABELS, "training": entries}
        write_json(folder / "dataset.json", {**base, **(document or {})})
    if split is not None:
        write_json(folder / "split.json", split)
    return load_dataset(folder)


def write_scan(
    folder: Path,
    case_id: str,
    image: NDArray[Any],
    label: NDArray[Any] | None,
    *,
    affine: NDArray[np.float64] = AFFINE,
    label_affine: NDArray[np.float64] | None = None,
) -> None:
    """Write (or replace) one scan of a dataset folder."""
    write_nifti(folder / "imagesTr" / f"{case_id}.nii.gz", image, affine)
    if label is not None:
        write_nifti(folder / "labelsTr" / f"{case_id}.nii.gz", label, affine if label_affine is None else label_affine)


def write_json(path: Path, document: Mapping[str, Any]) -> Path:
    """Write a document and return its path."""
    path.write_text(json.dumps(document), encoding="utf-8")
    return path
