"""Scans of a source folder, read through the reader that the server uses, with the labels that were matched to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from semiseg.collection.label_file import LabelFile, Outlines
from semiseg.collection.labels_nifti import NiftiOutlines
from semiseg.collection.labels_rtstruct import RtstructOutlines
from semiseg.collection.labels_seg import SegOutlines
from semiseg.collection.labels_seg_nrrd import SegNrrdOutlines
from semiseg.collection.matching import ambiguous
from semiseg.collection.pseudonyms import Origin
from semiseg.collection.report import Line
from semiseg.collection.sources import ImageSeries
from semiseg.collection.structures import Structures
from semiseg.dataset.folder import grid_difference
from semiseg.errors import VolumeError
from semiseg.volumes.dicom_series import DicomSeries, read_series
from semiseg.volumes.images import channels_of, read_stored
from semiseg.volumes.volume import Volume


@dataclass(frozen=True, eq=False)
class Read:
    """A scan in memory.

    Attributes:
        channels: volumes in the dataset's order of channels, all on one grid.
        label: label map uint8 (X, Y, Z) on that grid; None for a scan that nobody outlined.
        lines: what the report says besides.
    """

    channels: tuple[Volume, ...]
    label: NDArray[np.uint8] | None
    lines: tuple[Line, ...]

    def image(self) -> NDArray[Any]:
        """(X, Y, Z), or (X, Y, Z, K) for several channels."""
        arrays = [volume.array for volume in self.channels]
        return arrays[0] if len(arrays) == 1 else np.stack(arrays, axis=-1)


class Scan(Protocol):
    """Something that becomes a case."""

    @property
    def origin(self) -> Origin:
        """Whose scan it is."""

    @property
    def name(self) -> str:
        """What the report calls it."""

    @property
    def outlined_by(self) -> tuple[str, ...]:
        """Its label files, usable or not, as the report names them."""

    def read(self) -> Read:
        """Read image and label.

        Raises:
            VolumeError: the image is no volume; a label that cannot be used is told in the lines.
        """


@dataclass(frozen=True)
class _Labelled:
    """What both kinds of scan have.

    Attributes:
        labels: the label files that belong to it.
        structures: what to look for in them.
        shown: how the report names a path.
    """

    origin: Origin
    name: str
    labels: tuple[LabelFile, ...]
    structures: Structures
    shown: Callable[[Path], str]

    @property
    def outlined_by(self) -> tuple[str, ...]:
        """Its label files."""
        return tuple(self.shown(label.path) for label in self.labels)


@dataclass(frozen=True)
class SeriesScan(_Labelled):
    """One image series, or one for each channel.

    Attributes:
        series: in the order of the channels.
        chosen: which of the label files a person named for it.
    """

    series: tuple[ImageSeries, ...]
    chosen: frozenset[Path]

    def read(self) -> Read:
        """Read the series with the server's reader, then the label on its slices."""
        read = [_series(one) for one in self.series]
        volumes = [series.volume for series in read]
        for one, volume in zip(self.series, volumes, strict=True):
            problem = grid_difference(volumes[0], volume)
            if problem:
                raise VolumeError(f"Series {one.key} lies on another grid than {self.series[0].key}: {problem}.")
        notes = tuple(Line("note", "scan", self.name, remark.text) for series in read for remark in series.remarks)
        label, lines = self._label(read[0])
        return Read(tuple(volumes), label, (*notes, *lines))

    def _label(self, series: DicomSeries) -> tuple[NDArray[np.uint8] | None, tuple[Line, ...]]:
        frame = self.series[0].first.frame
        grid = series.volume
        if series.grid is not None and self.labels:
            if series.grid.leaning is None:
                source = ", ".join(self.outlined_by)
                reason = "It was drawn on slices that lie unevenly; the scan was resampled, and outlines are not."
                return None, (Line("refused", "label", source, reason),)
            # Outlines are found again on the slices that they were drawn on.
            grid = Volume(np.broadcast_to(np.uint8(0), (*series.grid.size, len(series.slices))), series.grid.leaning)
        label, lines = read_label(self.labels, grid, frame, self.structures, self.chosen, self.shown)
        return None if label is None else series.labels(label), lines


@dataclass(frozen=True)
class FileScan(_Labelled):
    """A volume in a file (NIfTI, NRRD, ...) that the CSV names as a scan."""

    path: Path

    def read(self) -> Read:
        """Read the one volume of the file, then the label on its grid."""
        stored = read_stored(self.path)
        image = channels_of(self.path, stored, ["image"])["image"]
        notes = tuple(Line("note", "scan", self.name, remark.text) for remark in stored.remarks)
        chosen = frozenset(label.path for label in self.labels)
        label, lines = read_label(self.labels, image, "", self.structures, chosen, self.shown)
        return Read((image,), label, (*notes, *lines))


def _series(series: ImageSeries) -> DicomSeries:
    try:
        # A series whose UID was taken away is read by its files.
        return read_series(series.paths, series_uid=series.first.series or None)
    except VolumeError as error:
        # The report has named the series already.
        raise VolumeError(str(error).partition("): ")[2] or str(error)) from error


def read_label(
    files: tuple[LabelFile, ...],
    grid: Volume,
    frame: str,
    structures: Structures,
    chosen: frozenset[Path],
    shown: Callable[[Path], str],
) -> tuple[NDArray[np.uint8] | None, tuple[Line, ...]]:
    """One label map from the label files of a scan, and what the report says of them.

    A structure that cannot be read makes the whole label unusable: without it the label would say that it is not there.

    Args:
        files: the label files of the scan.
        grid: the scan.
        frame: its Frame of Reference UID, "" for none.
        structures: which structures have which values.
        chosen: label files that a person named, whose references are not compared.
        shown: how the report names a path.

    Returns:
        uint8 (X, Y, Z) on ``grid``, or None if there is no label or it was refused.
    """
    if not files:
        return None, ()
    source = ", ".join(shown(label.path) for label in files)
    lines: list[Line] = []
    try:
        sources = _sources(files, structures, shown, lines)
        if not sources:
            lines.append(Line("refused", "label", source, "It holds none of the structures that are wanted."))
            return None, tuple(lines)
        opened = {
            label.path: _opened(label, grid, "" if label.path in chosen else frame, structures, label.path in chosen)
            for label in files
            if label.path in {path for path, _, _ in sources}
        }
        label = structures.paint(
            ((value, opened[path].mask(name)) for path, name, value in sorted(sources, key=lambda s: s[2])), grid.shape
        )
    except VolumeError as error:
        return None, (
            *lines,
            Line("refused", "label", source, f"{_without_path(error, files)} The scan is taken as unlabelled."),
        )
    for path, name, _ in sources:
        lines += [Line("note", "structure", shown(path), remark) for remark in opened[path].remarks(name)]
    for file, one in opened.items():
        if isinstance(one, NiftiOutlines | SegNrrdOutlines):
            lines += [Line("note", "label", shown(file), remark) for remark in one.file_remarks]
        if isinstance(one, NiftiOutlines) and one.strange:
            values = ", ".join(map(str, one.strange[:8])) + (", ..." if len(one.strange) > 8 else "")
            lines.append(Line("left out", "structure", source, f"Value(s) {values}: not in --labels."))
    there = {part for code in np.unique(label[label != 0]) for part in structures.codes[int(code)]}
    lines += [
        Line("note", "structure", source, f"'{name}' is not there: the scan gets no voxel of it.")
        for value, name in structures.names.items()
        if value not in there
    ]
    return label, tuple(lines)


def _without_path(error: VolumeError, files: tuple[LabelFile, ...]) -> str:
    for label in files:
        if str(error).startswith(f"{label.path}: "):
            return str(error).removeprefix(f"{label.path}: ")
    return str(error)


def _sources(
    files: tuple[LabelFile, ...], structures: Structures, shown: Callable[[Path], str], lines: list[Line]
) -> list[tuple[Path, str, int]]:
    """(file, structure as the file calls it, value) of what is wanted.

    Raises:
        VolumeError: a structure is in two files, or one that is wanted is no solid body.
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
            if value is None:
                if name in label.unusable:
                    lines.append(Line("refused", "structure", shown(label.path), label.unusable[name]))
                else:
                    lines.append(Line("left out", "structure", shown(label.path), f"'{name}' is not in --labels."))
                continue
            if name in label.unusable:
                raise VolumeError(label.unusable[name])
            out.append((label.path, name, value))
            held = holders.setdefault(structures.names[value], [])
            if shown(label.path) not in held:
                held.append(shown(label.path))
    problem = ambiguous(list(files), holders)
    if problem:
        raise VolumeError(problem)
    return out


def _opened(label: LabelFile, grid: Volume, frame: str, structures: Structures, chosen: bool) -> Outlines:
    if label.kind == "SEG":
        return SegOutlines(label.path, grid)
    if label.kind == "RTSTRUCT":
        return RtstructOutlines(label.path, grid, frame)
    if label.kind == "seg.nrrd":
        return SegNrrdOutlines(label.path, grid)
    value_of = {name: value for value, name in structures.names.items()}
    return NiftiOutlines(label.path, grid, value_of, strict=not chosen)
