"""Reads scans of a source folder, with the same reader as the server, and the labels that were matched to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from semiseg.collection.label_file import LabelFile, LabelReader
from semiseg.collection.label_matching import ambiguity_reason
from semiseg.collection.labels_nifti import LabelMapReader
from semiseg.collection.labels_rtstruct import RtstructReader
from semiseg.collection.labels_seg import SegReader
from semiseg.collection.labels_seg_nrrd import SegNrrdReader
from semiseg.collection.pseudonyms import SourceRecord
from semiseg.collection.report import ReportEntry
from semiseg.collection.source_index import ImageSeries
from semiseg.collection.structures import Structures
from semiseg.dataset.folder import grid_difference
from semiseg.errors import VolumeError
from semiseg.volumes.dicom_series import DicomSeries, read_series
from semiseg.volumes.image_files import read_image_file, split_channels
from semiseg.volumes.volume import Volume

_UNKNOWN_SLICES = (
    "The direction of the slices on which a volume in a file was outlined is unknown, so --partial cannot be used for "
    "it. Mark the other voxels in the label map and collect it as an nnU-Net folder with the label `ignore`."
)


@dataclass(frozen=True, eq=False)
class LoadedScan:
    """A scan in memory.

    Attributes:
        channels: Volumes in the dataset's order of channels, all on one grid.
        label: Label map uint8 (X, Y, Z) on that grid; None for an unlabelled scan.
        entries: Additional report entries.
    """

    channels: tuple[Volume, ...]
    label: NDArray[np.uint8] | None
    entries: tuple[ReportEntry, ...]

    def image(self) -> NDArray[Any]:
        """Return the image (X, Y, Z), or (X, Y, Z, K) for several channels."""
        arrays = [volume.array for volume in self.channels]
        return arrays[0] if len(arrays) == 1 else np.stack(arrays, axis=-1)


class SourceScan(Protocol):
    """A scan of the source that becomes a case."""

    @property
    def origin(self) -> SourceRecord:
        """Origin of the scan."""

    @property
    def name(self) -> str:
        """Name in the report."""

    @property
    def label_file_names(self) -> tuple[str, ...]:
        """Names of the label files, usable or not, in the report."""

    def read(self) -> LoadedScan:
        """Read image and label.

        Raises:
            VolumeError: The image is not a volume. A label that cannot be used only causes a report entry.
        """


@dataclass(frozen=True)
class _LabelledScan:
    """Common attributes of scans from series and from files.

    Attributes:
        labels: Label files of the scan.
        structures: Structures to read from the label files.
        shown: Function that returns a path as the report shows it.
    """

    origin: SourceRecord
    name: str
    labels: tuple[LabelFile, ...]
    structures: Structures
    shown: Callable[[Path], str]

    @property
    def label_file_names(self) -> tuple[str, ...]:
        """Names of the label files in the report."""
        return tuple(self.shown(label.path) for label in self.labels)


@dataclass(frozen=True)
class SeriesScan(_LabelledScan):
    """One image series, or one for each channel.

    Attributes:
        series: Image series in the order of the channels.
        chosen: Label files that the user named for the scan.
    """

    series: tuple[ImageSeries, ...]
    chosen: frozenset[Path]

    def read(self) -> LoadedScan:
        """Read the series with the server's reader, then the label on its slices."""
        read = [_series(one) for one in self.series]
        volumes = [series.volume for series in read]
        for one, volume in zip(self.series, volumes, strict=True):
            problem = grid_difference(volumes[0], volume)
            if problem:
                raise VolumeError(f"Series {one.key} lies on another grid than {self.series[0].key}: {problem}.")
        notes = tuple(
            ReportEntry("note", "scan", self.name, remark.text) for series in read for remark in series.warnings
        )
        label, entries = self._label(read[0])
        return LoadedScan(tuple(volumes), label, (*notes, *entries))

    def _label(self, series: DicomSeries) -> tuple[NDArray[np.uint8] | None, tuple[ReportEntry, ...]]:
        frame = self.series[0].first.frame
        grid = series.volume
        if series.grid is not None and self.labels:
            if series.grid.sheared_affine is None:
                source = ", ".join(self.label_file_names)
                reason = "It was drawn on unevenly spaced slices; the scan was resampled, but labels cannot be."
                return None, (ReportEntry("refused", "label", source, reason),)
            # Labels are read on the slices on which they were drawn.
            grid = Volume(
                np.broadcast_to(np.uint8(0), (*series.grid.size, len(series.slices))), series.grid.sheared_affine
            )
        label, entries = read_label(self.labels, grid, frame, self.structures, self.chosen, self.shown)
        if label is None:
            return None, entries
        ignored = self.structures.ignore
        return series.labels(label, ignored if ignored is not None and (label == ignored).any() else 0), entries


@dataclass(frozen=True)
class FileScan(_LabelledScan):
    """A volume in a file (NIfTI, NRRD, ...) that the CSV names as a scan."""

    path: Path

    def read(self) -> LoadedScan:
        """Read the one volume of the file, then the label on its grid."""
        stored = read_image_file(self.path)
        image = split_channels(self.path, stored, ["image"])["image"]
        notes = tuple(ReportEntry("note", "scan", self.name, remark.text) for remark in stored.warnings)
        if self.structures.partial is not None and self.labels:
            source = ", ".join(self.label_file_names)
            refused = ReportEntry("refused", "label", source, f"{_UNKNOWN_SLICES} The scan is taken as unlabelled.")
            return LoadedScan((image,), None, (*notes, refused))
        chosen = frozenset(label.path for label in self.labels)
        label, entries = read_label(self.labels, image, "", self.structures, chosen, self.shown)
        return LoadedScan((image,), label, (*notes, *entries))


def _series(series: ImageSeries) -> DicomSeries:
    try:
        # A series without UID is found by its files.
        return read_series(series.paths, series_uid=series.first.series or None)
    except VolumeError as error:
        # The report entry names the series already.
        raise VolumeError(str(error).partition("): ")[2] or str(error)) from error


def read_label(
    files: tuple[LabelFile, ...],
    grid: Volume,
    frame: str,
    structures: Structures,
    chosen: frozenset[Path],
    shown: Callable[[Path], str],
) -> tuple[NDArray[np.uint8] | None, tuple[ReportEntry, ...]]:
    """Combine the label files of a scan into one label map.

    A structure that cannot be read makes the whole label unusable, because its voxels would count as background.

    Args:
        files: Label files of the scan.
        grid: Grid of the scan.
        frame: Frame of Reference UID of the scan, "" for none.
        structures: Structures and their values.
        chosen: Label files that the user named; their references are not compared.
        shown: Function that returns a path as the report shows it.

    Returns:
        The label map, uint8 (X, Y, Z) on ``grid``, or None if there is no label or it was refused; and report entries.
    """
    if not files:
        return None, ()
    source = ", ".join(shown(label.path) for label in files)
    entries: list[ReportEntry] = []
    try:
        sources = _sources(files, structures, shown, entries)
        markers = _markers(files, structures)
        if structures.partial is not None:
            structures.require_ignore_value()
        if not sources and not markers:
            entries.append(ReportEntry("refused", "label", source, "It holds none of the selected structures."))
            return None, tuple(entries)
        opened = {
            label.path: _opened(label, grid, "" if label.path in chosen else frame, structures, label.path in chosen)
            for label in files
            if label.path in {path for path, *_ in (*sources, *markers)}
        }
        label = structures.merge_masks(
            ((value, opened[path].mask(name)) for path, name, value in sorted(sources, key=lambda s: s[2])), grid.shape
        )
        found = np.unique(label[label != 0])
        if structures.partial is not None:
            outlined = np.asarray(label.any(axis=(0, 1)), dtype=bool)
            for path, name in markers:
                outlined |= opened[path].mask(name).any(axis=(0, 1))
            if not outlined.any():
                raise VolumeError("It has an outline on no slice.")
            label = structures.ignore_slices(label, outlined)
            reason = f"{np.count_nonzero(outlined)} of {len(outlined)} slices are outlined; the others are ignored."
            entries.append(ReportEntry("note", "label", source, reason))
    except VolumeError as error:
        return None, (
            *entries,
            ReportEntry("refused", "label", source, f"{_without_path(error, files)} The scan is taken as unlabelled."),
        )
    for path, name, _ in sources:
        entries += [ReportEntry("note", "structure", shown(path), remark) for remark in opened[path].notes(name)]
    for file, one in opened.items():
        if isinstance(one, LabelMapReader | SegNrrdReader):
            entries += [ReportEntry("note", "label", shown(file), remark) for remark in one.file_warnings]
        if isinstance(one, LabelMapReader) and one.unknown_values:
            values = ", ".join(map(str, one.unknown_values[:8])) + (", ..." if len(one.unknown_values) > 8 else "")
            entries.append(ReportEntry("left out", "structure", source, f"Value(s) {values}: not in --labels."))
    there = {part for code in found for part in structures.codes[int(code)]}
    entries += [
        ReportEntry("note", "structure", source, f"'{name}' is not in the label: the scan has no voxel of it.")
        for value, name in structures.names.items()
        if value not in there
    ]
    return label, tuple(entries)


def _without_path(error: VolumeError, files: tuple[LabelFile, ...]) -> str:
    for label in files:
        if str(error).startswith(f"{label.path}: "):
            return str(error).removeprefix(f"{label.path}: ")
    return str(error)


def _sources(
    files: tuple[LabelFile, ...], structures: Structures, shown: Callable[[Path], str], entries: list[ReportEntry]
) -> list[tuple[Path, str, int]]:
    """Return (file, name of the structure in the file, value) of the selected structures.

    Raises:
        VolumeError: A structure is in two files, or a selected one is not a solid body.
    """
    out: list[tuple[Path, str, int]] = []
    holders: dict[str, list[str]] = {}
    for label in files:
        names: Mapping[str, int | None]
        if label.kind == "label map":
            names = {name: value for value, name in structures.names.items()}
        else:
            names = {name: structures.value(name) for name in (*label.names, *label.unusable)}
        for name, value in names.items():
            if structures.partial is not None and structures.partial.is_marker(name):
                continue
            if value is None:
                if name in label.unusable:
                    entries.append(ReportEntry("refused", "structure", shown(label.path), label.unusable[name]))
                else:
                    entries.append(
                        ReportEntry("left out", "structure", shown(label.path), f"'{name}' is not in --labels.")
                    )
                continue
            if name in label.unusable:
                raise VolumeError(label.unusable[name])
            out.append((label.path, name, value))
            held = holders.setdefault(structures.names[value], [])
            if shown(label.path) not in held:
                held.append(shown(label.path))
    problem = ambiguity_reason(list(files), holders)
    if problem:
        raise VolumeError(problem)
    return out


def _markers(files: tuple[LabelFile, ...], structures: Structures) -> list[tuple[Path, str]]:
    """Return (file, name in the file) of the structures that mark slices as outlined.

    Raises:
        VolumeError: A marker cannot be read.
    """
    rule = structures.partial
    if rule is None:
        return []
    for label in files:
        for name in filter(rule.is_marker, label.unusable):
            raise VolumeError(label.unusable[name])
    return [(label.path, name) for label in files for name in label.names if rule.is_marker(name)]


def _opened(label: LabelFile, grid: Volume, frame: str, structures: Structures, chosen: bool) -> LabelReader:
    if label.kind == "SEG":
        return SegReader(label.path, grid)
    if label.kind == "RTSTRUCT":
        return RtstructReader(label.path, grid, frame)
    if label.kind == "seg.nrrd":
        return SegNrrdReader(label.path, grid)
    value_of = {name: value for value, name in structures.names.items()}
    return LabelMapReader(label.path, grid, value_of, strict=not chosen)
