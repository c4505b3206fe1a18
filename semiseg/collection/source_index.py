"""What lies in a folder: image series, the DICOM objects that outline them, volumes in files, and litter.

What a file is decides its content; folders may be nested in any way and a series may be spread over several of them.
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
    """The files of one series of images; whether they make a volume is for the series reader to say.

    Attributes:
        key: Series Instance UID, or the folder of a series whose UID was taken away.
        objects: its files, by path.
        folder: the deepest folder that holds them all.
    """

    key: str
    objects: tuple[DicomObject, ...]
    folder: Path

    @property
    def first(self) -> DicomObject:
        """One of its files, for what they have in common."""
        return self.objects[0]

    @property
    def instances(self) -> frozenset[str]:
        """SOP Instance UIDs of its images."""
        return frozenset(o.instance for o in self.objects if o.instance)

    @property
    def paths(self) -> list[Path]:
        """Its files."""
        return [o.path for o in self.objects]


@dataclass(frozen=True)
class SourceIndex:
    """What is in a source folder; ``entries`` tells of every file that is none of the rest."""

    root: Path
    series: dict[str, ImageSeries]
    label_objects: tuple[DicomObject, ...]  # SEG and RTSTRUCT objects, each once
    volumes: tuple[Path, ...]  # NIfTI files, NRRD files, and the other formats of volumes
    entries: tuple[ReportEntry, ...]

    def display_path(self, path: Path) -> str:
        """A path as the report has it: relative to the source folder where it lies in it."""
        return relative_posix_path(path, self.root)


def index_source(root: Path, progress: Callable[[int], None] | None = None) -> SourceIndex:
    """Look at every file below ``root``; ``progress`` is called with the number of files so far.

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
            entries.append(ReportEntry("left out", "file", name, "A DICOMDIR; the files themselves are looked at."))
        else:
            entries.append(
                ReportEntry(
                    "left out", "file", name, f"Neither DICOM nor a volume that is read: {describe_file(path)}."
                )
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
            entries.append(ReportEntry("left out", "file", name, f"A DICOM object that is no scan ({found.modality})."))
    series = {key: ImageSeries(key, tuple(members), _common(members)) for key, members in images.items()}
    return SourceIndex(root, series, tuple(label_objects.values()), tuple(volumes), tuple(entries))


def relative_posix_path(path: Path, root: Path) -> str:
    """``path`` relative to ``root`` where it lies below it, with "/" on every system."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _files(root: Path) -> Iterator[Path]:
    """Every file, in an order that does not depend on the file system; hidden ones are somebody else's."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _common(members: list[DicomObject]) -> Path:
    return Path(os.path.commonpath([member.path.parent for member in members]))
