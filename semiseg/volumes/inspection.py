"""What is in some files, series by series: what it is, what would be done with it, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import UID

from semiseg.errors import VolumeError
from semiseg.volumes.dicom_file import read_dicom, text
from semiseg.volumes.dicom_index import LeftOut, look_at
from semiseg.volumes.dicom_series import read_found
from semiseg.volumes.nifti import is_nifti, read_nifti
from semiseg.volumes.series_rules import FoundSeries, series_among
from semiseg.volumes.volume import Volume


@dataclass(frozen=True, eq=False)
class Inspected:
    """One series or NIfTI file.

    Attributes:
        name: what it is called.
        title: the same, short enough for a picture.
        facts: what it is, as short phrases.
        outcome: what would be done with it, as sentences.
        volume: what it would be read as; None if it would be refused.
    """

    name: str
    title: str
    facts: tuple[str, ...]
    outcome: str
    volume: Volume | None


def inspect(paths: Sequence[Path]) -> tuple[Iterator[Inspected], list[LeftOut]]:
    """Read everything in ``paths``, one thing at a time; and the files that are neither DICOM objects nor NIfTI."""
    niftis = [path for path in paths if is_nifti(path)]
    objects, left_out = look_at([path for path in paths if path not in set(niftis)])
    found = series_among(objects)

    def everything() -> Iterator[Inspected]:
        yield from map(_nifti, niftis)
        yield from map(_series, found)

    return everything(), left_out


def _nifti(path: Path) -> Inspected:
    try:
        volume = read_nifti(path)
    except VolumeError as error:
        return Inspected(
            str(path), path.name, ("NIfTI file",), f"Refused: {str(error).removeprefix(f'{path}: ')}", None
        )
    return Inspected(str(path), path.name, ("NIfTI file", *_grid(volume)), "Read as it is.", volume)


def _series(found: FoundSeries) -> Inspected:
    title = f"{found.modality} {found.description}".strip()
    if not found.images:
        kinds = Counter(str(one.not_image) for one in found.objects)
        facts = tuple(f"{count} x {kind}" for kind, count in kinds.items())
        return Inspected(found.name, title, facts, "Left alone: no images.", None)
    facts = (f"{found.slices} slice(s) in {len(found.images)} file(s)", *_place(found), *_syntaxes(found))
    try:
        series = read_found(found)
    except VolumeError as error:
        sentence = str(error).removeprefix(f"{found.name}: ")
        return Inspected(found.name, title, facts, f"Refused: {sentence[:1].upper()}{sentence[1:]}", None)
    done = " ".join(remark.text for remark in series.remarks)
    outcome = f"Read with a correction: {done}" if done else "Read as it is."
    return Inspected(found.name, title, (*facts, *_grid(series.volume)), outcome, series.volume)


def _place(found: FoundSeries) -> tuple[str, ...]:
    placed = any(one.planes for one in found.images)
    out: list[str] = [found.orientation or "of several orientations"] if placed else ["without a place in the patient"]
    if found.slice_gap:
        out.append(f"slices {found.slice_gap:.3g} mm apart")
    if found.pixel_spacing:
        out.append(f"pixels {found.pixel_spacing:.3g} mm")
    return tuple(out)


def _syntaxes(found: FoundSeries) -> tuple[str, ...]:
    """How the pixel data of its first file are stored, where they are compressed."""
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
