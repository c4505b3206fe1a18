"""Dataset folders in the format of the Medical Segmentation Decathlon.

``imagesTr/`` and ``labelsTr/`` contain one file per scan (NIfTI or another supported volume format), and
``dataset.json`` names the channels and the label values (Antonelli et al. 2022, "The Medical Segmentation Decathlon").
The notation of nnU-Net v2 is read as well: ``channel_names``, and labels as ``{"liver": 1}``. Loading a dataset opens
no image: voxels are read on request, and a label is read only for a scan whose label the split opens.
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
    """One scan: its id (the file name without ``.nii.gz``), its image, and its label file, if there is one."""

    id: str
    image: Path
    label: Path | None


@dataclass(frozen=True)
class Dataset:
    """The scans of one folder and the names of their channels and label values.

    ``segments`` is empty if the folder has no ``dataset.json``; training and evaluation then supply the names
    (:meth:`with_names`). ``ignore`` is the label value of unannotated voxels, or None.
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
        """Values that the label maps may contain besides 0, the background."""
        return tuple(sorted({value for segment in self.segments for value in segment.reference_values}))

    @property
    def known_values(self) -> tuple[int, ...]:
        """All values that the label maps may contain."""
        return (0, *self.label_values, *(() if self.ignore is None else (self.ignore,)))

    def case(self, case_id: str) -> Case:
        """Return the scan with the id ``case_id``.

        Raises:
            DatasetError: There is no scan with this id.
        """
        try:
            return self.cases[case_id]
        except KeyError:
            raise DatasetError(f"{self.folder} has no scan called '{case_id}'.") from None

    def with_names(
        self, *, channels: Iterable[str] | None = None, segments: Iterable[Segment] | None = None
    ) -> Dataset:
        """Return the dataset with other channels or segments; None keeps the present ones.

        Raises:
            DatasetError: Two segments share a name or a label value.
        """
        named = tuple(self.segments if segments is None else segments)
        check_distinct(named, self.folder)
        return replace(self, channels=tuple(self.channels if channels is None else channels), segments=named)


def load_dataset(folder: str | Path) -> Dataset:
    """Read ``folder/dataset.json``, or list ``imagesTr/`` and ``labelsTr/`` if there is no such file.

    The ``training`` list of ``dataset.json`` defines the scans; an entry without a ``label`` (or a bare path) is a scan
    without annotation. Without that list, or without the file, the scans are the images of ``imagesTr/``, and a label
    belongs to the image of the same name. The Decathlon's ``test`` list (``imagesTs/``) belongs to its challenge and is
    ignored. The files themselves are not opened; :func:`check_dataset` does that.

    Raises:
        DatasetError: The folder or file is missing, not JSON, or contradicts itself.

    Examples:
        >>> import semiseg
        >>> dataset = semiseg.load_dataset("DATA")
        >>> len(dataset.cases), dataset.segments[0].name
        (3, 'liver')
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder, so it is not a dataset.")
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
    """Read the image of ``case`` as one volume per channel, all on one grid.

    Raises:
        VolumeError: The file is unreadable or has another number of channels.
    """
    return dict(read_nifti_channels(case.image, channels))


def read_reference(case: Case, image: Volume) -> Volume:
    """Read the label map of ``case`` as int32; it must be on the grid of ``image``.

    Raises:
        DatasetError: The scan has no label file.
        VolumeError: The file is unreadable, contains values that are not integers, or is on another grid.
    """
    if case.label is None:
        raise DatasetError(f"Scan '{case.id}' has no label file, so it cannot be used for evaluation or training.")
    label = read_labels(case.label)
    problem = grid_difference(image, label)
    if problem:
        raise VolumeError(f"{case.label} does not lie on the grid of {case.image.name}: {problem}.")
    return label


def grid_difference(image: Volume, label: Volume) -> str | None:
    """Describe the difference between two grids with numbers; return None if they are the same grid.

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
    """Return the scan id from the name of a volume file; None for other files.

    Args:
        path: The file.
        ending: Suffix of all scan files, if the dataset defines one (nnU-Net's ``file_ending``).
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
                f"{path}: training entry {number} is '{image}', which is not a .nii or .nii.gz file or a file of "
                "another supported volume format."
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
            f"{folder} has neither a dataset.json that lists scans nor NIfTI files (or other supported volumes) in "
            "imagesTr/; give the folder of a dataset in the format of the Medical Segmentation Decathlon."
        )
    labels = _files_by_id(folder / "labelsTr", ending)
    if _named_by_channel(set(images), set(labels)):
        if any(not i.endswith("_0000") for i in images):
            raise DatasetError(
                f"{folder}/imagesTr contains one file per channel (_0000, _0001, ...); stack the channels of each scan "
                "into one 4D NIfTI file."
            )
        images = {i[:-5]: path for i, path in images.items()}
    strangers = sorted(set(labels) - set(images))
    if strangers:
        raise DatasetError(f"{folder}/labelsTr has labels without an image: {abbreviate_ids(strangers)}.")
    return {i: Case(i, images[i], labels.get(i)) for i in sorted(images)}


def _named_by_channel(images: set[str], labels: set[str]) -> bool:
    """Return True if images are named as in nnU-Net, ``liver_001_0000`` for the label ``liver_001``."""
    without_number = {i[:-5] for i in images if i[-5:-4] == "_" and i[-4:].isdigit()}
    return bool(labels) and not labels & images and labels <= without_number


def _files_by_id(folder: Path, ending: str | None) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        case_id = parse_case_id(path, ending)
        if case_id is None:
            continue
        if case_id in found:
            raise DatasetError(f"{folder} contains '{case_id}' twice: {found[case_id].name} and {path.name}.")
        found[case_id] = path
    return found
