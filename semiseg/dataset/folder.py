"""A dataset folder in the form of the Medical Segmentation Decathlon.

``imagesTr/`` and ``labelsTr/`` hold one file a scan (NIfTI, or another format of volumes that is read), and
``dataset.json`` says what the channels and the label values are called (Antonelli et al. 2022, "The Medical
Segmentation Decathlon"; nnU-Net v2 turned the two tables round: ``channel_names`` and ``{"liver": 1}``; both are read).
Nothing here opens an image: a scan's voxels are read when someone asks for them, and a label only for a scan that the
split allows to be opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from semiseg.dataset.dataset_json import (
    abbreviate_ids,
    check_distinct,
    parse_channels,
    parse_file_ending,
    parse_ignore_label,
    parse_segments,
    read_json,
)
from semiseg.errors import DatasetError, VolumeError
from semiseg.volumes.formats.registry import suffixes
from semiseg.volumes.nifti import read_labels, read_nifti_channels
from semiseg.volumes.segmentation import Segment
from semiseg.volumes.volume import Volume, format_shape, same_grid


@dataclass(frozen=True)
class Case:
    """One scan: its id (the file's name without ``.nii.gz``), its image, and its outline if somebody drew one."""

    id: str
    image: Path
    label: Path | None


@dataclass(frozen=True)
class Dataset:
    """The scans of one folder and what their channels and label values mean.

    ``segments`` is empty when the folder has no ``dataset.json``: label values have no names then, and whoever trains
    or evaluates gives them (:meth:`with_names`). ``ignore`` is the label value of voxels that nobody outlined, or None.
    """

    folder: Path
    name: str
    channels: tuple[str, ...]
    segments: tuple[Segment, ...]
    cases: Mapping[str, Case] = field(repr=False)
    ignore: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "cases", dict(self.cases))

    @property
    def label_values(self) -> tuple[int, ...]:
        """The values that its label maps may hold, besides 0 for the background."""
        return tuple(sorted({value for segment in self.segments for value in segment.reference_values}))

    @property
    def known_values(self) -> tuple[int, ...]:
        """All values that its label maps may hold."""
        return (0, *self.label_values, *(() if self.ignore is None else (self.ignore,)))

    def case(self, case_id: str) -> Case:
        """The scan called ``case_id``.

        Raises:
            DatasetError: there is none.
        """
        try:
            return self.cases[case_id]
        except KeyError:
            raise DatasetError(f"{self.folder} has no scan called '{case_id}'.") from None

    def with_names(
        self, *, channels: Iterable[str] | None = None, segments: Iterable[Segment] | None = None
    ) -> Dataset:
        """The same scans with other names for the channels or the label values; None keeps what there is.

        Raises:
            DatasetError: two segments share a name or a label value.
        """
        named = tuple(self.segments if segments is None else segments)
        check_distinct(named, self.folder)
        return replace(self, channels=tuple(self.channels if channels is None else channels), segments=named)


def load_dataset(folder: str | Path) -> Dataset:
    """Read ``folder/dataset.json``, or list ``imagesTr/`` and ``labelsTr/`` when there is none.

    With a ``dataset.json`` its ``training`` list decides which scans there are; one without a ``label`` (or given as
    a bare path) is a scan nobody outlined. Without that list, or without the file, scans are the images of
    ``imagesTr/`` and a label belongs to the image of the same name. The Decathlon's ``test`` list (``imagesTs/``) is
    its challenge's own and stays out. Whether the files can be read is left to :func:`check_dataset`.

    Raises:
        DatasetError: the folder or file is missing, not JSON, or contradicts itself.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder, so there is no dataset in it.")
    described = folder / "dataset.json"
    if not described.exists():
        cases = _cases_by_name(folder)
        return Dataset(folder, folder.resolve().name, ("image",), (), cases)
    document = read_json(described)
    channels = parse_channels(document, described)
    segments = parse_segments(document, described)
    listed = document.get("training")
    ending = parse_file_ending(document, described)
    cases = _cases_by_name(folder, ending) if listed is None else _cases_listed(folder, listed, described)
    name = document.get("name")
    named = name if isinstance(name, str) and name else folder.resolve().name
    return Dataset(folder, named, channels, segments, cases, parse_ignore_label(document, described))


def read_channels(case: Case, channels: tuple[str, ...]) -> dict[str, Volume]:
    """The image of ``case`` as one volume a channel, all on one grid.

    Raises:
        VolumeError: the file is unreadable or holds another number of channels.
    """
    return dict(read_nifti_channels(case.image, channels))


def read_reference(case: Case, image: Volume) -> Volume:
    """The label map of ``case``, int32, which must lie on the grid of ``image``.

    Raises:
        DatasetError: the scan has no label file.
        VolumeError: the file is unreadable, holds values that are not integers, or lies on another grid.
    """
    if case.label is None:
        raise DatasetError(f"Scan '{case.id}' has no label file, so there is nothing to compare with or learn from.")
    label = read_labels(case.label)
    problem = grid_difference(image, label)
    if problem:
        raise VolumeError(f"{case.label} does not lie on the grid of {case.image.name}: {problem}.")
    return label


def grid_difference(image: Volume, label: Volume) -> str | None:
    """What differs between two grids, with the numbers; None when their voxels lie at the same points.

    The tolerance is a share of a voxel, :data:`semiseg.volumes.volume.GRID_TOLERANCE`, at the corners of the grid.
    """
    if image.shape != label.shape:
        return f"the image has {format_shape(image.shape)} voxels and the label {format_shape(label.shape)}"
    if not same_grid(label.affine, image.affine, image.shape):
        row, column = divmod(int(abs(image.affine - label.affine).argmax()), 4)
        return (
            f"the affines differ by up to {abs(image.affine - label.affine).max():.6g} mm (row {row}, column {column}: "
            f"image {image.affine[row, column]:.6g}, label {label.affine[row, column]:.6g})"
        )
    return None


def parse_case_id(path: Path, ending: str | None = None) -> str | None:
    """The id that the name of a volume's file gives its scan; None for any other file.

    Args:
        path: The file.
        ending: Ending of the names of all scans, if the dataset gives one (nnU-Net's ``file_ending``).
    """
    for suffix in suffixes() if ending is None else (ending,):
        if path.name.lower().endswith(suffix) and not path.name.startswith("."):
            return path.name[: -len(suffix)]
    return None


def _cases_listed(folder: Path, listed: Any, path: Path) -> dict[str, Case]:
    if not isinstance(listed, list) or not listed:
        raise DatasetError(f'{path}: "training" must be a list with at least one scan.')
    cases: dict[str, Case] = {}
    for number, entry in enumerate(listed, 1):
        image, label = (entry, None) if isinstance(entry, str) else _image_and_label(entry, number, path)
        case_id = parse_case_id(Path(image))
        if case_id is None:
            raise DatasetError(
                f"{path}: training entry {number} is '{image}', which is not a .nii or .nii.gz file, nor in another "
                "format of volumes that is read."
            )
        if case_id in cases:
            raise DatasetError(f"{path}: two training entries have the scan id '{case_id}'.")
        cases[case_id] = Case(case_id, folder / image, None if label is None else folder / label)
    return cases


def _image_and_label(entry: Any, number: int, path: Path) -> tuple[str, str | None]:
    image = entry.get("image") if isinstance(entry, dict) else None
    label = entry.get("label") if isinstance(entry, dict) else None
    if not isinstance(image, str) or not (label is None or isinstance(label, str)):
        raise DatasetError(
            f'{path}: training entry {number} must be a path or {{"image": path, "label": path}} with one file each.'
        )
    return image, label


def _cases_by_name(folder: Path, ending: str | None = None) -> dict[str, Case]:
    images = _files_by_id(folder / "imagesTr", ending)
    if not images:
        raise DatasetError(
            f"{folder} has neither a dataset.json that lists scans nor NIfTI files (or other volumes that are read) in "
            "imagesTr/; give the folder of a dataset in Medical Segmentation Decathlon form."
        )
    labels = _files_by_id(folder / "labelsTr", ending)
    if _named_by_channel(set(images), set(labels)):
        if any(not i.endswith("_0000") for i in images):
            raise DatasetError(
                f"{folder}/imagesTr holds one file a channel (_0000, _0001, ...); stack the channels of each scan "
                "into one 4D NIfTI file."
            )
        images = {i[:-5]: path for i, path in images.items()}
    strangers = sorted(set(labels) - set(images))
    if strangers:
        raise DatasetError(f"{folder}/labelsTr has labels without an image: {abbreviate_ids(strangers)}.")
    return {i: Case(i, images[i], labels.get(i)) for i in sorted(images)}


def _named_by_channel(images: set[str], labels: set[str]) -> bool:
    """Whether images are named as nnU-Net does, ``liver_001_0000`` beside the label ``liver_001``."""
    without_number = {i[:-5] for i in images if i[-5:-4] == "_" and i[-4:].isdigit()}
    return bool(labels) and not labels & images and labels <= without_number


def _files_by_id(folder: Path, ending: str | None) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        case_id = parse_case_id(path, ending)
        if case_id is None:
            continue
        if case_id in found:
            raise DatasetError(f"{folder} holds '{case_id}' twice: {found[case_id].name} and {path.name}.")
        found[case_id] = path
    return found
