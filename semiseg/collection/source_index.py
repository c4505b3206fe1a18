"""Indexes a source folder: image series, DICOM objects with labels, volumes in files, and unrelated files.

The file's content decides its type, not its name. Folders may be nested in any way, and a series may be spread over
several of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from semiseg.collection.report import ReportEntry
from semiseg.errors import InputError
from semiseg.volumes.dicom_index import DicomObject, read_entry
from semiseg.volumes.file_types import describe_file, has_detached_header
from semiseg.volumes.formats.registry import is_image_file

SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"


@dataclass(frozen=True)
class ImageSeries:
    """The files of one series of images; the series reader checks if they make a volume.

    Attributes:
        key: Series Instance UID, or the folder for a series whose UID was removed.
        objects: Objects of the series, ordered by path.
        folder: Deepest folder that holds all files.
    """

    key: str
    objects: tuple[DicomObject, ...]
    folder: Path

    @property
    def first(self) -> DicomObject:
        """First object, for attributes that all have in common."""
        return self.objects[0]

    @property
    def instances(self) -> frozenset[str]:
        """SOP Instance UIDs of the images."""
        return frozenset(o.instance for o in self.objects if o.instance)

    @property
    def paths(self) -> list[Path]:
        """Paths of the files."""
        return [o.path for o in self.objects]


@dataclass(frozen=True)
class SourceIndex:
    """Content of a source folder; ``entries`` has a report entry for every file that belongs to no other attribute."""

    root: Path
    series: dict[str, ImageSeries]
    label_objects: tuple[DicomObject, ...]  # SEG and RTSTRUCT objects, each once
    volumes: tuple[Path, ...]  # NIfTI files, NRRD files, and the other formats of volumes
    entries: tuple[ReportEntry, ...]

    def display_path(self, path: Path) -> str:
        """Return a path as the report shows it: relative to the source folder if it is inside."""
        return relative_posix_path(path, self.root)


def index_source(root: Path, progress: Callable[[int], None] | None = None) -> SourceIndex:
    """Index every file below ``root``; ``progress`` is called with the number of files so far.

    Raises:
        InputError: ``root`` is not a folder.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder, so there is nothing to collect in it.")
    objects: list[DicomObject] = []
    volumes: list[Path] = []
    entries: list[ReportEntry] = []
    for number, path in enumerate(_files(root), start=1):
        if progress:
            progress(number)
        name = relative_posix_path(path, root)
        if is_image_file(path):
            volumes.append(path)
            continue
        if has_detached_header(path):
            continue
        found = read_entry(path)
        if isinstance(found, DicomObject):
            objects.append(found)
        elif found.damaged:
            entries.append(ReportEntry("refused", "file", name, found.sentence.removeprefix(f"{path}: ")))
        elif found.is_dicomdir:
            entries.append(ReportEntry("left out", "file", name, "A DICOMDIR; the files themselves are indexed."))
        else:
            entries.append(
                ReportEntry("left out", "file", name, f"Neither DICOM nor a supported volume: {describe_file(path)}.")
            )
    images: dict[str, list[DicomObject]] = {}
    label_objects: dict[str, DicomObject] = {}
    for found in objects:
        name = relative_posix_path(found.path, root)
        if found.sop_class in SEG_CLASSES or found.sop_class == RTSTRUCT_CLASS:
            first = label_objects.setdefault(found.instance or name, found)
            if first is not found:
                entries.append(
                    ReportEntry(
                        "left out", "file", name, f"The same object as {relative_posix_path(first.path, root)}."
                    )
                )
        elif found.non_image_kind is None:
            images.setdefault(found.series or f"folder {relative_posix_path(found.path.parent, root)}", []).append(
                found
            )
        else:
            entries.append(ReportEntry("left out", "file", name, f"A DICOM object, but not a scan ({found.modality})."))
    series = {key: ImageSeries(key, tuple(members), _common(members)) for key, members in images.items()}
    return SourceIndex(root, series, tuple(label_objects.values()), tuple(volumes), tuple(entries))


def relative_posix_path(path: Path, root: Path) -> str:
    """Return ``path`` relative to ``root`` if it lies below it, with "/" on every system."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _files(root: Path) -> Iterator[Path]:
    """Yield every file in an order that does not depend on the file system, except hidden files."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _common(members: list[DicomObject]) -> Path:
    return Path(os.path.commonpath([member.path.parent for member in members]))
