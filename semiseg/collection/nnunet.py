"""A plan from a folder as nnU-Net has it: ``imagesTr/CASE_0000.nii.gz``, ``labelsTr/CASE.nii.gz``, ``dataset.json``.

Version 1 (``modality``, ``labels: {"1": "liver"}``) and version 2 (``channel_names``, ``labels: {"liver": 1}``, regions
as lists, a ``dataset`` table of files in place of names) are read, and the Decathlon's own form, whose images have no
number at the end and hold their channels as 4D.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.collection.lattice import onto
from semiseg.collection.plan import Plan, Wishes
from semiseg.collection.pseudonyms import Origin
from semiseg.collection.report import Line
from semiseg.collection.scans import Read
from semiseg.collection.sources import is_nifti_file, relative
from semiseg.dataset.description import channels_of, read_json, segments_of
from semiseg.dataset.folder import Dataset, case_id_of, grid_difference
from semiseg.errors import DatasetError, InputError, VolumeError
from semiseg.volumes.nifti import read_labels, read_nifti_channels
from semiseg.volumes.segmentation import Segment, overlapping
from semiseg.volumes.volume import Volume

_NUMBERED = re.compile(r"(.+)_(\d{4})")


def is_nnunet(root: Path) -> bool:
    """Whether ``root`` is such a folder."""
    return (root / "imagesTr").is_dir() or (root / "dataset.json").is_file()


def plan_nnunet(root: Path, wishes: Wishes, extended: Dataset | None = None) -> Plan:
    """Say what becomes of every case of the folder.

    Raises:
        InputError: it contradicts itself, wishes that only DICOM can fulfil, or ``extended`` means something else.
    """
    if wishes != Wishes():
        raise InputError(
            f"{root} has a dataset.json that names its channels and labels; --labels, --matches, --overlap, "
            "--modality, --series and --channels are for DICOM folders."
        )
    described = root / "dataset.json"
    if not described.is_file():
        raise InputError(f"{root} has no dataset.json, so what its channels and label values mean is not known.")
    document = read_json(described)
    channels, segments = channels_of(document, described), segments_of(document, described)
    if extended is not None:
        _require_same(root, channels, segments, extended)
    lines: list[Line] = []
    present: set[int] = set()
    scans = []
    for case, images, label in _cases(root, document, lines):
        if len(images) not in (1, len(channels)):
            reason = f"It has {len(images)} image file(s) for {len(channels)} channel(s) ({', '.join(channels)})."
            lines.append(Line("refused", "scan", case, reason))
            continue
        origin = Origin(key=f"{root.resolve()} {case}", folder=str(root), description=case)
        scans.append(NnunetScan(origin, case, tuple(images), label, channels, segments, present, root))
    return Plan(
        channels=channels,
        scans=tuple(scans),
        labels=lambda: _labels(segments),
        painted=tuple(s.painted for s in segments if s.painted is not None),
        absent=lambda: [s.name for s in segments if not present & set(s.reference_values)],
        lines=tuple(lines),
    )


@dataclass(frozen=True)
class NnunetScan:
    """One case: a file for each channel, or one for all, and its label file if it has one.

    Attributes:
        present: label values that were found in any scan; reading adds to it.
    """

    origin: Origin
    name: str
    images: tuple[Path, ...]
    label: Path | None
    channels: tuple[str, ...]
    segments: tuple[Segment, ...]
    present: set[int]
    root: Path

    @property
    def outlined_by(self) -> tuple[str, ...]:
        """Its label file."""
        return () if self.label is None else (relative(self.label, self.root),)

    def read(self) -> Read:
        """Read the channels, then the label on their grid."""
        volumes: list[Volume] = []
        if len(self.images) == len(self.channels):
            for path, name in zip(self.images, self.channels, strict=True):
                volumes += read_nifti_channels(path, (name,)).values()
        else:
            volumes += read_nifti_channels(self.images[0], self.channels).values()
        for path, volume in zip(self.images, volumes, strict=False):
            problem = grid_difference(volumes[0], volume)
            if problem:
                raise VolumeError(f"{path} lies on another grid than {self.images[0].name}: {problem}.")
        try:
            return Read(tuple(volumes), self._label(volumes[0]), ())
        except VolumeError as error:
            assert self.label is not None
            line = Line(
                "refused", "label", relative(self.label, self.root), f"{error} The scan is taken as unlabelled."
            )
            return Read(tuple(volumes), None, (line,))

    def _label(self, grid: Volume) -> NDArray[np.uint8] | None:
        if self.label is None:
            return None
        label = read_labels(self.label)
        try:
            array = onto(grid, label)
        except VolumeError as error:
            raise VolumeError(f"{self.label}: {error}") from error
        known = {value for segment in self.segments for value in segment.reference_values}
        found = {int(value) for value in np.unique(array)} - {0}
        strange = sorted(found - known)
        if strange:
            listed = ", ".join(map(str, strange[:8]))
            raise VolumeError(f"{self.label} holds the value(s) {listed}, which dataset.json does not name.")
        self.present.update(found)
        return array.astype(np.uint8)


def _require_same(root: Path, channels: tuple[str, ...], segments: tuple[Segment, ...], extended: Dataset) -> None:
    if channels != extended.channels:
        raise DatasetError(f"{root} has the channels {channels} and {extended.folder} {extended.channels}.")
    meanings = [[(s.name, s.reference_values) for s in one] for one in (segments, extended.segments)]
    if meanings[0] != meanings[1]:
        raise DatasetError(f"{root} and {extended.folder} do not have the same labels: {meanings[0]}, {meanings[1]}.")


def _labels(segments: tuple[Segment, ...]) -> dict[str, Any]:
    if overlapping(segments):
        return {"background": 0, **{s.name: list(s.reference_values) for s in segments}}
    return {"0": "background", **{str(s.label): s.name for s in segments}}


def _cases(root: Path, document: dict[str, Any], lines: list[Line]) -> list[tuple[str, list[Path], Path | None]]:
    """(case, image files in the order of the channels, label file) of every case; lines for what is none."""
    if "dataset" in document:
        return _cases_of_table(root, document["dataset"])
    images = {case_id_of(path) or "": path for path in _files(root / "imagesTr", lines, root)}
    labels = {case_id_of(path) or "": path for path in _files(root / "labelsTr", lines, root)}
    if not images:
        raise InputError(f"{root}/imagesTr holds no NIfTI files.")
    # A Decathlon case may end in four digits too: then its label has that very name, or dataset.json lists the file.
    plain = bool(set(labels) & set(images)) or _listed(root, document)
    grouped = {case: [path] for case, path in images.items()} if plain else _grouped(images, lines)
    out: list[tuple[str, list[Path], Path | None]] = []
    for case, paths in sorted(grouped.items()):
        out.append((case, paths, labels.pop(case, None)))
    for case, path in labels.items():
        lines.append(Line("refused", "label", relative(path, root), f"There is no image of '{case}' that can be used."))
    if (root / "imagesTs").is_dir():
        lines.append(Line("left out", "file", "imagesTs", "The challenge's test images stay out."))
    return out


def _listed(root: Path, document: dict[str, Any]) -> bool:
    """Whether the ``training`` list names an image file as it lies in imagesTr."""
    listed = document.get("training")
    entries = [entry.get("image") for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return any(isinstance(image, str) and (root / image).is_file() for image in entries)


def _grouped(images: dict[str, Path], lines: list[Line]) -> dict[str, list[Path]]:
    """The files of each case in the order of its channels, from names such as ``liver_001_0000``."""
    numbered: dict[str, dict[int, Path]] = defaultdict(dict)
    for name, path in images.items():
        found = _NUMBERED.fullmatch(name)
        if found:
            numbered[found[1]][int(found[2])] = path
        else:
            lines.append(Line("refused", "scan", name, "Its name does not end in the number of a channel (_0000)."))
    out = {}
    for case, by_number in numbered.items():
        if sorted(by_number) == list(range(len(by_number))):
            out[case] = [by_number[number] for number in sorted(by_number)]
        else:
            numbers = ", ".join(f"{number:04d}" for number in sorted(by_number))
            lines.append(Line("refused", "scan", case, f"Its channels are numbered {numbers}, which leaves a gap."))
    return out


def _cases_of_table(root: Path, table: Any) -> list[tuple[str, list[Path], Path | None]]:
    """Cases of version 2's ``dataset`` table: {case: {"images": [...], "label": ...}}."""
    out: list[tuple[str, list[Path], Path | None]] = []
    for case, entry in table.items() if isinstance(table, dict) else ():
        images, label = (entry.get("images"), entry.get("label")) if isinstance(entry, dict) else (None, None)
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images) or not images:
            raise InputError(f"{root}/dataset.json: 'dataset' must list the images of '{case}'.")
        out.append((case, [root / image for image in images], root / label if isinstance(label, str) else None))
    if not out:
        raise InputError(f"{root}/dataset.json: 'dataset' must be a table of cases.")
    return out


def _files(folder: Path, lines: list[Line], root: Path) -> list[Path]:
    out = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or not path.is_file():
            continue
        if case_id_of(path) is not None and is_nifti_file(path):
            out.append(path)
        else:
            lines.append(Line("refused", "file", relative(path, root), "Not a NIfTI file (.nii, .nii.gz)."))
    return out
