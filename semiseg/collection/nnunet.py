"""Plans a collection from an nnU-Net folder with ``imagesTr/CASE_0000.nii.gz``, ``labelsTr/CASE.nii.gz``, dataset.json.

Version 1 (``modality``, ``labels: {"1": "liver"}``) and version 2 (``channel_names``, ``labels: {"liver": 1}``, regions
as lists, a ``dataset`` table of files instead of file names) are supported, as well as the format of the Decathlon,
whose images have no number at the end and hold their channels as 4D.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.collection.grid_matching import reorder_to_grid
from semiseg.collection.plan import CollectionPlan, CollectOptions
from semiseg.collection.pseudonyms import SourceRecord
from semiseg.collection.report import ReportEntry
from semiseg.collection.scans import LoadedScan
from semiseg.collection.source_index import relative_posix_path
from semiseg.dataset.dataset_json import (
    IGNORE_NAME,
    parse_channels,
    parse_file_ending,
    parse_ignore_label,
    parse_segments,
    read_json,
)
from semiseg.dataset.folder import Dataset, grid_difference, parse_case_id
from semiseg.errors import DatasetError, InputError, VolumeError
from semiseg.volumes.file_types import describe_file, has_detached_header
from semiseg.volumes.formats.registry import is_image_file, suffixes
from semiseg.volumes.image_files import read_image_file
from semiseg.volumes.image_files import split_channels as volumes_of
from semiseg.volumes.nifti import read_labels
from semiseg.volumes.segmentation import Segment, are_overlapping
from semiseg.volumes.volume import Volume

_NUMBERED = re.compile(r"(.+)_(\d{4})")


def is_nnunet(root: Path) -> bool:
    """Return True if ``root`` looks like an nnU-Net folder."""
    return (root / "imagesTr").is_dir() or (root / "dataset.json").is_file()


def plan_nnunet(root: Path, options: CollectOptions, extended: Dataset | None = None) -> CollectionPlan:
    """Plan the collection of every case of the folder.

    Raises:
        InputError: The folder contradicts itself, an option is for DICOM only, or ``extended`` has other channels or
            labels.
    """
    if options != CollectOptions():
        raise InputError(
            f"{root} has a dataset.json, which names its channels and labels; --labels, --matches, --overlap, "
            "--modality, --series, --channels and --partial are for DICOM folders."
        )
    described = root / "dataset.json"
    if not described.is_file():
        raise InputError(f"{root} has no dataset.json, so the meaning of its channels and label values is unknown.")
    document = read_json(described)
    channels, segments = parse_channels(document, described), parse_segments(document, described)
    ignore = parse_ignore_label(document, described)
    if extended is not None:
        _require_same(root, channels, segments, ignore, extended)
    entries: list[ReportEntry] = []
    present: set[int] = set()
    scans = []
    for case, images, label in _cases(root, document, entries):
        if len(images) not in (1, len(channels)):
            reason = f"It has {len(images)} image file(s) for {len(channels)} channel(s) ({', '.join(channels)})."
            entries.append(ReportEntry("refused", "scan", case, reason))
            continue
        origin = SourceRecord(key=f"{root.resolve()} {case}", folder=str(root), description=case)
        scans.append(NnunetScan(origin, case, tuple(images), label, channels, segments, ignore, present, root))
    return CollectionPlan(
        channels=channels,
        scans=tuple(scans),
        labels=lambda: _labels(segments, ignore),
        painted=tuple(s.painted for s in segments if s.painted is not None),
        absent=lambda: [s.name for s in segments if not present & set(s.reference_values)],
        entries=tuple(entries),
    )


@dataclass(frozen=True)
class NnunetScan:
    """One case: a file for each channel, or one for all, and its label file if it has one.

    Attributes:
        ignore: Label value of unannotated voxels; None if there is none.
        present: Label values that were found in any scan so far; :meth:`read` adds to it.
    """

    origin: SourceRecord
    name: str
    images: tuple[Path, ...]
    label: Path | None
    channels: tuple[str, ...]
    segments: tuple[Segment, ...]
    ignore: int | None
    present: set[int]
    root: Path

    @property
    def label_file_names(self) -> tuple[str, ...]:
        """Name of the label file, if there is one."""
        return () if self.label is None else (relative_posix_path(self.label, self.root),)

    def read(self) -> LoadedScan:
        """Read the channels, then the label on their grid."""
        volumes: list[Volume] = []
        notes: list[ReportEntry] = []
        one_each = len(self.images) == len(self.channels)
        for path, names in zip(
            self.images, [(c,) for c in self.channels] if one_each else [self.channels], strict=True
        ):
            stored = read_image_file(path)
            volumes += volumes_of(path, stored, names).values()
            notes += [
                ReportEntry("note", "scan", relative_posix_path(path, self.root), remark.text)
                for remark in stored.warnings
            ]
        for path, volume in zip(self.images, volumes, strict=False):
            problem = grid_difference(volumes[0], volume)
            if problem:
                raise VolumeError(f"{path} lies on another grid than {self.images[0].name}: {problem}.")
        try:
            return LoadedScan(tuple(volumes), self._label(volumes[0]), tuple(notes))
        except VolumeError as error:
            assert self.label is not None
            line = ReportEntry(
                "refused",
                "label",
                relative_posix_path(self.label, self.root),
                f"{error} The scan is taken as unlabelled.",
            )
            return LoadedScan(tuple(volumes), None, (*notes, line))

    def _label(self, grid: Volume) -> NDArray[np.uint8] | None:
        if self.label is None:
            return None
        label = read_labels(self.label)
        try:
            array = reorder_to_grid(grid, label)
        except VolumeError as error:
            raise VolumeError(f"{self.label}: {error}") from error
        known = {value for segment in self.segments for value in segment.reference_values}
        found = {int(value) for value in np.unique(array)} - {0}
        strange = sorted(found - known - {self.ignore})
        if strange:
            listed = ", ".join(map(str, strange[:8]))
            raise VolumeError(f"{self.label} holds the value(s) {listed}, which dataset.json does not name.")
        self.present.update(found)
        return array.astype(np.uint8)


def _require_same(
    root: Path, channels: tuple[str, ...], segments: tuple[Segment, ...], ignore: int | None, extended: Dataset
) -> None:
    if channels != extended.channels:
        raise DatasetError(f"{root} has the channels {channels} and {extended.folder} {extended.channels}.")
    meanings = [[(s.name, s.reference_values) for s in one] for one in (segments, extended.segments)]
    if meanings[0] != meanings[1]:
        raise DatasetError(f"{root} and {extended.folder} do not have the same labels: {meanings[0]}, {meanings[1]}.")
    if ignore != extended.ignore:
        raise DatasetError(
            f"{root} and {extended.folder} do not have the same value for the label `ignore`: {ignore}, "
            f"{extended.ignore}."
        )


def _labels(segments: tuple[Segment, ...], ignore: int | None) -> dict[str, Any]:
    if are_overlapping(segments):
        regions = {s.name: list(s.reference_values) for s in segments}
        return {"background": 0, **regions, **({} if ignore is None else {IGNORE_NAME: ignore})}
    ignored = {} if ignore is None else {str(ignore): IGNORE_NAME}
    return {"0": "background", **{str(s.label): s.name for s in segments}, **ignored}


def _cases(
    root: Path, document: dict[str, Any], entries: list[ReportEntry]
) -> list[tuple[str, list[Path], Path | None]]:
    """Return (case, image files in the order of the channels, label file) of every case; report other files."""
    if "dataset" in document:
        return _cases_of_table(root, document["dataset"])
    ending = parse_file_ending(document, root / "dataset.json")
    images = _by_id(root, "imagesTr", entries, ending)
    labels = _by_id(root, "labelsTr", entries, ending)
    if not images:
        wanted = "NIfTI files or other supported volumes" if ending is None else f"volumes named {ending}"
        raise InputError(f"{root}/imagesTr holds no {wanted}.")
    # A Decathlon case may end in four digits too: then its label has the same name, or dataset.json lists the file.
    plain = bool(set(labels) & set(images)) or _listed(root, document)
    grouped = {case: [path] for case, path in images.items()} if plain else _grouped(images, entries)
    out: list[tuple[str, list[Path], Path | None]] = []
    for case, paths in sorted(grouped.items()):
        out.append((case, paths, labels.pop(case, None)))
    for case, path in labels.items():
        entries.append(
            ReportEntry("refused", "label", relative_posix_path(path, root), f"There is no usable image of '{case}'.")
        )
    if (root / "imagesTs").is_dir():
        entries.append(ReportEntry("left out", "file", "imagesTs", "The challenge's test images are not collected."))
    return out


def _listed(root: Path, document: dict[str, Any]) -> bool:
    """Return True if the ``training`` list names an image file that exists."""
    listed = document.get("training")
    entries = [entry.get("image") for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return any(isinstance(image, str) and (root / image).is_file() for image in entries)


def _grouped(images: dict[str, Path], entries: list[ReportEntry]) -> dict[str, list[Path]]:
    """Group files into cases, in the order of the channels, by names such as ``liver_001_0000``."""
    numbered: dict[str, dict[int, Path]] = defaultdict(dict)
    for name, path in images.items():
        found = _NUMBERED.fullmatch(name)
        if found:
            numbered[found[1]][int(found[2])] = path
        else:
            entries.append(
                ReportEntry("refused", "scan", name, "Its name does not end with the number of a channel (_0000).")
            )
    out = {}
    for case, by_number in numbered.items():
        if sorted(by_number) == list(range(len(by_number))):
            out[case] = [by_number[number] for number in sorted(by_number)]
        else:
            numbers = ", ".join(f"{number:04d}" for number in sorted(by_number))
            entries.append(
                ReportEntry("refused", "scan", case, f"Its channels are numbered {numbers}, which leaves a gap.")
            )
    return out


def _cases_of_table(root: Path, table: Any) -> list[tuple[str, list[Path], Path | None]]:
    """Return the cases of version 2's ``dataset`` table: {case: {"images": [...], "label": ...}}."""
    out: list[tuple[str, list[Path], Path | None]] = []
    for case, entry in table.items() if isinstance(table, dict) else ():
        images, label = (entry.get("images"), entry.get("label")) if isinstance(entry, dict) else (None, None)
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images) or not images:
            raise InputError(f"{root}/dataset.json: 'dataset' must list the images of '{case}'.")
        out.append((case, [root / image for image in images], root / label if isinstance(label, str) else None))
    if not out:
        raise InputError(f"{root}/dataset.json: 'dataset' must be a table of cases.")
    return out


def _by_id(root: Path, folder: str, entries: list[ReportEntry], ending: str | None) -> dict[str, Path]:
    """Return the volumes of a folder by the ids in their names; report other files, except the voxels of pairs.

    Raises:
        InputError: Two files have the same id.
    """
    out: dict[str, Path] = {}
    for path in sorted((root / folder).iterdir()) if (root / folder).is_dir() else ():
        if path.name.startswith(".") or not path.is_file() or has_detached_header(path):
            continue
        name, case_id = relative_posix_path(path, root), parse_case_id(path, ending)
        if case_id is None or not is_image_file(path):
            known = ", ".join(suffixes()) if ending is None else ending
            reason = f"Not a NIfTI file or another volume named {known}: it is {describe_file(path)}."
            entries.append(ReportEntry("refused", "file", name, reason))
        elif case_id in out:
            raise InputError(f"{root / folder} holds '{case_id}' twice: {out[case_id].name} and {path.name}.")
        else:
            out[case_id] = path
    return out
