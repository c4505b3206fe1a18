"""Describes the series and volumes among some files: their content, how they would be read, and their faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from pydicom.uid import UID

from semiseg.errors import VolumeError
from semiseg.volumes.archives import archive_finder
from semiseg.volumes.dicom_file import is_dicom, read_dicom, text
from semiseg.volumes.dicom_index import SkippedFile, index_files
from semiseg.volumes.dicom_series import read_candidate
from semiseg.volumes.file_types import describe_file, detached_data_files
from semiseg.volumes.formats.reader import ImageFile
from semiseg.volumes.formats.registry import is_image_file, reader_for_file, reader_for_name
from semiseg.volumes.image_files import apply_scaling, read_image_file, require_finite
from semiseg.volumes.scan_warning import ScanWarning
from semiseg.volumes.series_rules import SeriesCandidate, group_by_series
from semiseg.volumes.volume import Volume


@dataclass(frozen=True, eq=False)
class InspectedItem:
    """One series, or one volume in a file.

    Attributes:
        name: Name of the series, or of the file.
        title: Short name for the title of a picture.
        facts: Description in short phrases.
        outcome: Sentences about how it would be read, or why it would be refused.
        volume: Volume that would be read; None if it would be refused.
    """

    name: str
    title: str
    facts: tuple[str, ...]
    outcome: str
    volume: Volume | None


def inspect_files(paths: Mapping[Path, str]) -> tuple[Iterator[InspectedItem], list[SkippedFile]]:
    """Read all series and volumes in ``paths``, one at a time.

    Args:
        paths: Names that the files have in their zip, by path, from :func:`semiseg.volumes.scan.files_in`.

    Returns:
        The items, which are read during iteration, and the files that are neither DICOM objects nor volumes.
    """
    images = [path for path in paths if is_image_file(path)]
    taken = {*images, *detached_data_files(paths, images)}
    objects, left_out = index_files([path for path in paths if path not in taken])
    found = group_by_series(objects)

    def everything() -> Iterator[InspectedItem]:
        for path in images:
            file = ImageFile(path, archive_finder(path, paths) if paths[path] else None, paths[path])
            yield _image(file, paths[path] or str(path))
        yield from map(_series, found)

    return everything(), [one if is_dicom(one.path) else _named(one, paths[one.path]) for one in left_out]


def _named(one: SkippedFile, name: str) -> SkippedFile:
    """Add a description of the content to a skipped file, and mark it as damaged if it is named like a scan."""
    sentence = f"{name or one.path}: {describe_file(one.path, name)}."
    return replace(one, sentence=sentence, damaged=reader_for_name(name or one.path.name) is not None)


def _image(file: ImageFile, name: str) -> InspectedItem:
    reader, title = reader_for_file(file.path), PurePath(name).name
    assert reader is not None
    try:
        stored = read_image_file(file)
        volume = Volume(require_finite(file.path, apply_scaling(stored, 0)), stored.affine)
    except VolumeError as error:
        return InspectedItem(name, title, (reader.name,), f"Refused: {_sentence(error, [file.path])}", None)
    count = stored.array.shape[3]
    facts = (reader.name, *([f"{count} volumes or channels"] if count > 1 else []), *_grid(volume))
    return InspectedItem(name, title, facts, _outcome(stored.warnings, "warning"), volume)


def _outcome(warnings: Sequence[ScanWarning], kind: str) -> str:
    done = " ".join(remark.text for remark in warnings)
    return f"Read with a {kind}: {done}" if done else "Read as it is."


def _sentence(error: VolumeError, files: Sequence[Path], name: str = "") -> str:
    """Return an error's message without the file or series at its start; capitalised unless it starts with a path."""
    text = str(error)
    if name:
        text = text.removeprefix(f"{name}: ")
    if len(files) == 1:
        text = text.removeprefix(f"{files[0]}: ")
    return text if any(text.startswith(str(file)) for file in files) else f"{text[:1].upper()}{text[1:]}"


def _series(found: SeriesCandidate) -> InspectedItem:
    title = f"{found.modality} {found.description}".strip()
    if not found.images:
        kinds = Counter(str(one.non_image_kind) for one in found.objects)
        facts = tuple(f"{count} x {kind}" for kind, count in kinds.items())
        return InspectedItem(found.name, title, facts, "Ignored: it has no images.", None)
    facts = (f"{found.slices} slice(s) in {len(found.images)} file(s)", *_place(found), *_syntaxes(found))
    try:
        series = read_candidate(found)
    except VolumeError as error:
        sentence = _sentence(error, [one.path for one in found.images], found.name)
        return InspectedItem(found.name, title, facts, f"Refused: {sentence}", None)
    outcome = _outcome(series.warnings, "correction")
    return InspectedItem(found.name, title, (*facts, *_grid(series.volume)), outcome, series.volume)


def _place(found: SeriesCandidate) -> tuple[str, ...]:
    placed = any(one.planes for one in found.images)
    out: list[str] = [found.orientation or "of several orientations"] if placed else ["no position in the patient"]
    if found.slice_gap:
        out.append(f"slices {found.slice_gap:.3g} mm apart")
    if found.pixel_spacing:
        out.append(f"pixels {found.pixel_spacing:.3g} mm")
    return tuple(out)


def _syntaxes(found: SeriesCandidate) -> tuple[str, ...]:
    """Return the transfer syntax of the first file as a fact, if its pixel data are compressed."""
    path = found.images[0].path
    try:
        syntax = UID(text(read_dicom(path, pixels=False, tags=["SOPClassUID"]).file_meta, "TransferSyntaxUID", path))
    except VolumeError:
        return ()
    return (syntax.name,) if syntax.is_transfer_syntax and syntax.is_compressed else ()


def _grid(volume: Volume) -> tuple[str, ...]:
    shape, values = " x ".join(map(str, volume.shape)), volume.array
    spacing = " x ".join(f"{value:.3g}" for value in volume.spacing)
    return (f"{shape} voxels of {spacing} mm, {volume.axcodes}, values {values.min():g} to {values.max():g}",)
