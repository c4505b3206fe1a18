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
from semiseg.collection.sources import relative
from semiseg.dataset.description import channels_of, file_ending_of, read_json, segments_of
from semiseg.dataset.folder import Dataset, case_id_of, grid_difference
from semiseg.errors import DatasetError, InputError, VolumeError
from semiseg.volumes.formats.registry import is_image, suffixes
from semiseg.volumes.images import channels_of as volumes_of
from semiseg.volumes.images import read_stored
from semiseg.volumes.kinds import has_header, what_is
from semiseg.volumes.nifti import read_labels
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
        notes: list[Line] = []
        one_each = len(self.images) == len(self.channels)
        for path, names in zip(
            self.images, [(c,) for c in self.channels] if one_each else [self.channels], strict=True
        ):
            stored = read_stored(path)
            volumes += volumes_of(path, stored, names).values()
            notes += [Line("note", "scan", relative(path, self.root), remark.text) for remark in stored.remarks]
        for path, volume in zip(self.images, volumes, strict=False):
            problem = grid_difference(volumes[0], volume)
            if problem:
                raise VolumeError(f"{path} lies on another grid than {self.images[0].name}: {problem}.")
        try:
            return Read(tuple(volumes), self._label(volumes[0]), tuple(notes))
        except VolumeError as error:
            assert self.label is not None
            line = Line(
                "refused", "label", relative(self.label, self.root), f"{error} The scan is taken as unlabelled."
            )
            return Read(tuple(volumes), None, (*notes, line))

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
    ending = file_ending_of(document, root / "dataset.json")
    images = _by_id(root, "imagesTr", lines, ending)
    labels = _by_id(root, "labelsTr", lines, ending)
    if not images:
        wanted = "NIfTI files or other volumes that are read" if ending is None else f"volumes named {ending}"
        raise InputError(f"{root}/imagesTr holds no {wanted}.")
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


def _by_id(root: Path, folder: str, lines: list[Line], ending: str | None) -> dict[str, Path]:
    """The volumes of a folder by the ids in their names; lines for all other files but the voxels of pairs.

    Raises:
        InputError: two files of one id.
    """
    out: dict[str, Path] = {}
    for path in sorted((root / folder).iterdir()) if (root / folder).is_dir() else ():
        if path.name.startswith(".") or not path.is_file() or has_header(path):
            continue
        name, case_id = relative(path, root), case_id_of(path, ending)
        if case_id is None or not is_image(path):
            known = ", ".join(suffixes()) if ending is None else ending
            reason = f"Not a NIfTI file or another volume named {known}: it is {what_is(path)}."
            lines.append(Line("refused", "file", name, reason))
        elif case_id in out:
            raise InputError(f"{root / folder} holds '{case_id}' twice: {out[case_id].name} and {path.name}.")
        else:
            out[case_id] = path
    return out
