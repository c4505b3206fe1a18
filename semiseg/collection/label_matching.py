"""Matches label files to scans, by a CSV, by the references in the file, or by the folder. Nothing is guessed.

In this order:

1. A row of the CSV takes precedence over the references of the label file.
2. A SEG or RTSTRUCT belongs to the series that holds the images it refers to; if it names no images, to the series it
   names; if it names neither, to the only series of its frame of reference.
3. A label map in a file (NIfTI, NRRD, ...) belongs to the only series in its own folder (and the folders below) if no
   other such file is there.

A label file that fits two scans or none is refused with a reason, and the scan counts as unlabelled.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

from semiseg.collection.label_file import LabelFile
from semiseg.collection.labels_rtstruct import describe_rtstruct
from semiseg.collection.labels_seg import describe_seg
from semiseg.collection.labels_seg_nrrd import describe_seg_nrrd
from semiseg.collection.report import ReportEntry
from semiseg.collection.source_index import RTSTRUCT_CLASS, SEG_CLASSES, SourceIndex
from semiseg.errors import InputError, VolumeError
from semiseg.volumes.dicom_file import is_dicom, read_dicom, text
from semiseg.volumes.dicom_index import DicomObject
from semiseg.volumes.file_types import describe_file
from semiseg.volumes.formats.registry import format_names, is_image_file
from semiseg.volumes.seg_nrrd import is_seg_nrrd


@dataclass(frozen=True)
class LabelMatches:
    """Label files by the scan they belong to.

    Attributes:
        by_series: Label files by the key of the series.
        images: Label files by the path of a volume that the CSV names as a scan.
        chosen: Label files that the CSV names.
        entries: Report entries for refused label files.
    """

    by_series: dict[str, list[LabelFile]] = field(default_factory=dict)
    images: dict[Path, list[LabelFile]] = field(default_factory=dict)
    chosen: set[Path] = field(default_factory=set)
    entries: list[ReportEntry] = field(default_factory=list)


def match_labels(found: SourceIndex, table: Path | None) -> LabelMatches:
    """Match every label file of a source folder, and those that ``table`` names, to their scans.

    Raises:
        InputError: A row of the table names something that does not exist or that fits two scans.
    """
    matches = LabelMatches()
    for number, (scan, label) in enumerate(_rows(table) if table else (), start=2):
        assert table is not None
        _by_row(found, matches, f"{table}, line {number}", table.parent, scan, label)
    for outline in found.label_objects:
        if outline.path.resolve() not in matches.chosen:
            _by_reference(found, matches, outline)
    for path in found.volumes:
        if path.resolve() not in matches.chosen and path.resolve() not in matches.images:
            _by_folder(found, matches, path)
    return matches


def describe_label_file(path: Path) -> LabelFile:
    """Read the description of a label file of any type from its header.

    Raises:
        VolumeError: The file is not readable, or is neither a volume nor SEG nor RTSTRUCT.
    """
    if is_image_file(path):
        return describe_seg_nrrd(path) if is_seg_nrrd(path) else LabelFile(path, "label map")
    if not (path.is_file() and is_dicom(path)):
        what = f"; it is {describe_file(path)}" if path.is_file() else ""
        raise VolumeError(f"{path} is not a label file: neither NIfTI nor DICOM nor another supported volume{what}.")
    sop_class = text(read_dicom(path, pixels=False, tags=["SOPClassUID"]), "SOPClassUID", path)
    if sop_class in SEG_CLASSES:
        return describe_seg(path)
    if sop_class == RTSTRUCT_CLASS:
        return describe_rtstruct(path)
    raise VolumeError(f"{path} is a DICOM object, but neither a SEG nor an RTSTRUCT.")


def _rows(table: Path) -> list[tuple[str, str]]:
    try:
        content = table.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{table} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{table} is not UTF-8 text; save the CSV as UTF-8.") from error
    lines = content.splitlines()
    separator = ";" if lines and ";" in lines[0] else ","  # some spreadsheets write semicolons
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)]
    if not rows or [cell.lower() for cell in rows[0]] != ["scan", "label"]:
        raise InputError(f"{table} must have the columns scan,label, named in its first line.")
    bad = next((number for number, row in enumerate(rows, start=1) if row and len(row) != 2), None)
    if bad:
        raise InputError(f"{table}, line {bad}: two columns are expected: a scan and its label.")
    return [(row[0], row[1]) if row else ("", "") for row in rows[1:]]


def _by_row(found: SourceIndex, matches: LabelMatches, where: str, beside: Path, scan: str, label: str) -> None:
    """Apply one row; its paths are relative to the source folder or to the CSV."""
    if not scan and not label:
        return
    key = _scan_named(found, where, beside, scan)
    if not label:
        if isinstance(key, str):
            raise InputError(f"{where}: scan '{scan}' has no label; remove the line.")
        matches.images.setdefault(key, [])
        return
    path = _path(found, beside, label)
    if path is None or not path.is_file():
        raise InputError(f"{where}: there is no label file '{label}'.")
    if path.resolve() in matches.chosen:
        raise InputError(f"{where}: label '{label}' is named for two scans.")
    try:
        described = describe_label_file(path)
    except VolumeError as error:
        raise InputError(f"{where}: {error}") from error
    matches.chosen.add(path.resolve())
    if isinstance(key, str):
        matches.by_series.setdefault(key, []).append(described)
    else:
        matches.images.setdefault(key, []).append(described)


def _scan_named(found: SourceIndex, where: str, beside: Path, scan: str) -> str | Path:
    """Return the key of the series that a row names, or the path of the volume."""
    if scan in found.series:
        return scan
    path = _path(found, beside, scan)
    if path is None:
        raise InputError(f"{where}: '{scan}' is neither the UID of a series in {found.root} nor a folder or file.")
    if path.is_dir():
        inside = [s.key for s in found.series.values() if s.folder.resolve().is_relative_to(path.resolve())]
        if len(inside) != 1:
            raise InputError(f"{where}: folder '{scan}' holds {len(inside)} image series; give the UID of one.")
        return inside[0]
    if not is_image_file(path):
        raise InputError(
            f"{where}: '{scan}' is a file, but not a NIfTI image or other volume: it is {describe_file(path)}."
        )
    return path.resolve()


def _path(found: SourceIndex, beside: Path, name: str) -> Path | None:
    tried = (found.root / name, beside / name) if name else ()
    return next((path for path in tried if path.exists()), None)


def _by_reference(found: SourceIndex, matches: LabelMatches, outline: DicomObject) -> None:
    name = found.display_path(outline.path)
    try:
        described = describe_label_file(outline.path)
    except VolumeError as error:
        matches.entries.append(ReportEntry("refused", "label", name, str(error).removeprefix(f"{outline.path}: ")))
        return
    if described.instances:
        keys = [key for key, series in found.series.items() if series.instances & described.instances]
        how = "images"
    elif described.series:
        keys = [key for key in found.series if key in described.series]
        how = "series"
    else:
        keys = [key for key, series in found.series.items() if series.first.frame in described.frames]
        how = "frame of reference"
    if len(keys) == 1:
        _give(found, matches, keys[0], described)
        return
    kind = described.kind
    if not keys:
        reason = f"The {kind} refers to {how} that the source folder does not hold."
    else:
        reason = f"The {kind} refers to {how} of {len(keys)} series ({', '.join(keys[:4])}); --matches can select one."
    matches.entries.append(ReportEntry("refused", "label", name, reason))


def _by_folder(found: SourceIndex, matches: LabelMatches, path: Path) -> None:
    beside = [s.key for s in found.series.values() if s.folder.is_relative_to(path.parent)]
    rivals = [other for other in found.volumes if other.is_relative_to(path.parent)]
    if len(beside) == 1 and len(rivals) == 1:
        try:
            _give(found, matches, beside[0], describe_label_file(path))
        except VolumeError as error:
            reason = str(error).removeprefix(f"{path}: ")
            matches.entries.append(ReportEntry("refused", "label", found.display_path(path), reason))
        return
    reason = (
        f"Its folder holds {len(beside)} image series and {len(rivals)} {format_names(rivals)} file(s), so it is "
        "unknown to which scan it belongs; name it in the CSV of --matches."
    )
    matches.entries.append(ReportEntry("refused", "label", found.display_path(path), reason))


def _give(found: SourceIndex, matches: LabelMatches, key: str, label: LabelFile) -> None:
    """Add a label to a scan, unless the CSV has named that scan's label."""
    files = matches.by_series.setdefault(key, [])
    if any(other.path.resolve() in matches.chosen for other in files):
        reason = "The CSV of --matches names another label for its scan."
        matches.entries.append(ReportEntry("left out", "label", found.display_path(label.path), reason))
    else:
        files.append(label)


def ambiguity_reason(files: list[LabelFile], wanted: dict[str, list[str]]) -> str | None:
    """Return the reason why the label files of one scan cannot be combined; None if each structure is in one of them.

    Args:
        files: Label files of one scan.
        wanted: Files (as the report names them) that hold each structure, by its name.
    """
    if sum(label.kind == "label map" for label in files) and len(files) > 1:
        return (
            f"The scan has {len(files)} label files, at least one of them a label map (such as NIfTI) without names; "
            "--matches can select one."
        )
    for name, holders in wanted.items():
        if len(holders) > 1:
            listed = ", ".join(holders)
            return f"'{name}' is outlined in {len(holders)} files ({listed}); --matches can select one."
    return None
