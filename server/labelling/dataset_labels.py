"""Writing of final labels into the dataset folder itself, for programs that do not know the labelling server."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from semiseg.dataset.dataset_json import read_json
from semiseg.dataset.folder import Case, Dataset, parse_case_id, read_channels, read_reference
from semiseg.dataset.split_file import SplitFile
from semiseg.errors import DatasetError
from semiseg.system.durable_files import atomic_file, replace_file
from semiseg.volumes.nifti import read_labels, write_nifti
from server.labelling.datastore import Datastore
from server.labelling.label_names import LabelNames
from server.labelling.record import DATASET, FINAL, LabelRecord
from server.labelling.store import NewLabel

_DESCRIPTION = "dataset.json"


def apply_labels(store: Datastore, who: str, tell: Callable[[str], None] = lambda sentence: None) -> list[str]:
    """Write the newest final label of each image to ``labelsTr`` and list it in ``dataset.json``.

    Before a label is replaced, it is saved in the store as a version with the state ``original``. Each file is replaced
    atomically; after an interruption, another call completes the rest.

    Args:
        store: Dataset and its labels.
        who: Name of the person who requests it.
        tell: Function that is called with a sentence for each label.

    Returns:
        Ids of the images whose label in the dataset folder was changed.

    Raises:
        DatasetError: A label's file has a format that cannot be written. Nothing is changed then.
    """
    dataset = store.dataset
    wanted: list[tuple[Case, LabelRecord, Path]] = []
    for image in store.finished():
        record, case = store.store.newest(image, FINAL), dataset.cases[image]
        if record is not None:
            wanted.append((case, record, _target(dataset, case)))
    changed = []
    for case, record, target in wanted:
        source = store.store.file_of(record)
        if target.is_file() and _same_labels(source, target):
            continue
        if target.is_file():
            _keep_original(store, case, target, who)
        target.parent.mkdir(exist_ok=True)
        _replace(source, target, case)
        tell(f"{target}: version {record.version} by {record.who} of {record.when}")
        changed.append(case.id)
    _list_labels(dataset, {case.id: target for case, _, target in wanted if case.label is None})
    return changed


def write_training_view(store: Datastore, folder: Path, split: SplitFile | None = None) -> dict[str, str]:
    """Write a dataset folder that lists the same images with the labels that training uses now.

    The folder holds ``dataset.json`` and ``split.json``, which refer to the existing files of the images and labels, so
    nothing is copied and the dataset folder is not changed. Labels that the split closes to training are not listed.

    Args:
        store: Dataset and its labels.
        folder: Folder to create.
        split: Split to write; that of the datastore by default.

    Returns:
        SHA-256 of each listed label by the image's id.

    Raises:
        DatasetError: The dataset has no ``dataset.json``, or an image's name is not its id.
    """
    dataset, split = store.dataset, split or store.split()
    source = dataset.folder / _DESCRIPTION
    if not source.is_file():
        raise DatasetError(f"{dataset.folder} has no {_DESCRIPTION} with the label values, which training needs.")
    judging = {*split.test, *split.development}
    listed, sums = [], {}
    for image, case in dataset.cases.items():
        if parse_case_id(case.image) != image:
            raise DatasetError(
                f"{case.image} has the ending of a channel (_0000); name the images of the dataset by their ids."
            )
        entry = {"image": _reference(case.image, folder)}
        label = store.label(image, FINAL)
        file = case.label if image in judging else label.file if label is not None else None
        if file is not None:
            entry["label"] = _reference(file, folder)
            if image not in judging:
                sums[image] = store.checksum(file)
        listed.append(entry)
    folder.mkdir(parents=True, exist_ok=True)
    document = {key: value for key, value in read_json(source).items() if key not in ("test", "file_ending")}
    _write_json(folder / _DESCRIPTION, {**document, "training": listed})
    _write_json(folder / "split.json", {"test": [], **split.model_dump(mode="json", exclude_defaults=True)})
    return sums


def _target(dataset: Dataset, case: Case) -> Path:
    """The file of a scan's label in the dataset folder."""
    if case.label is None:
        return dataset.folder / "labelsTr" / f"{case.id}.nii.gz"
    if not case.label.name.endswith((".nii", ".nii.gz")):
        raise DatasetError(f"{case.label} is not a NIfTI file; only NIfTI labels can be replaced in a dataset folder.")
    return case.label


def _same_labels(source: Path, target: Path) -> bool:
    """Return True if two label maps have the same shape and values."""
    if target.read_bytes() == source.read_bytes():
        return True
    theirs, ours = read_labels(target), read_labels(source)
    return theirs.shape == ours.shape and bool((theirs.array == ours.array).all())


def _keep_original(store: Datastore, case: Case, target: Path, who: str) -> None:
    """Save the label of the dataset folder in the store, unless the store has it already."""
    labels = [one for one in store.store.history(case.id) if one.kind == "label"]
    if any(_same_labels(store.store.file_of(one), target) for one in labels):
        return
    first = next(iter(read_channels(case, store.dataset.channels).values()))
    array = read_reference(Case(case.id, case.image, target), first).array
    voxels = _counts(array, store.names)
    if target.name.endswith(".nii.gz"):
        store.store.add_file(case.id, target, who=who, voxels=voxels)
    else:
        label = NewLabel(array.astype("uint8"), first.affine, case.image, voxels)
        store.store.add(case.id, label, tag=DATASET, who=who)


def _counts(array: Any, names: LabelNames) -> dict[str, int]:
    return names.count(array.astype("uint8"))


def _replace(source: Path, target: Path, case: Case) -> None:
    """Write the content of ``source``, a gzipped NIfTI file, under the name ``target``."""
    if target.name.endswith(".nii.gz"):
        with source.open("rb") as content, atomic_file(target) as file:
            shutil.copyfileobj(content, file)
    else:
        label = read_labels(source)
        write_nifti(target, label.array.astype("uint8"), label.affine, like=case.image)


def _list_labels(dataset: Dataset, files: dict[str, Path]) -> None:
    """Add the new labels to the list ``training`` of ``dataset.json``, if it has one."""
    path = dataset.folder / _DESCRIPTION
    if not files or not path.is_file():
        return
    document = read_json(path)
    listed = document.get("training")
    if not isinstance(listed, list):
        return
    wanted = {dataset.cases[image].image: file for image, file in files.items()}
    entries = []
    for entry in listed:
        image = entry if isinstance(entry, str) else entry["image"]
        file = wanted.get(dataset.folder / image)
        entries.append(entry if file is None else {"image": image, "label": _reference(file, dataset.folder)})
    if entries != listed:
        _write_json(path, {**document, "training": entries})


def _reference(file: Path, folder: Path) -> str:
    """The path of a file for a dataset.json in ``folder``: relative to the folder if possible."""
    try:
        return Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive of Windows
        return file.resolve().as_posix()


def _write_json(path: Path, document: dict[str, Any]) -> None:
    replace_file(path, json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n")
