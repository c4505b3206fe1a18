"""Reads a DICOM series as one volume, or gives the reason why it is not one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from semiseg.errors import VolumeError
from semiseg.volumes.dicom_file import DicomHeader, is_undecodable, require_header, text
from semiseg.volumes.dicom_geometry import (
    SAME_PLACE_MM,
    Irregularity,
    Plane,
    SliceStack,
    find_irregularities,
    require_regular,
    stack_affine,
    stack_planes,
)
from semiseg.volumes.dicom_index import DicomObject, SkippedFile, index_files, possible_slices
from semiseg.volumes.dicom_mixtures import differing_attributes, require_single_image_type
from semiseg.volumes.dicom_pixels import apply_rescale, decode_slices, decode_stored_values
from semiseg.volumes.dicom_resampling import RegularGrid, make_regular_grid
from semiseg.volumes.dicom_slices import Slice, read_slices
from semiseg.volumes.formats.stream import MAX_VOXEL_BYTES
from semiseg.volumes.scan_warning import ScanWarning
from semiseg.volumes.series_rules import SeriesCandidate, SeriesDecision, SeriesRule, group_by_series, select_series
from semiseg.volumes.volume import Volume

_ONLY = "scan"  # name of the channel if there is only one
_TEXTS = ("PatientID", "PatientName", "IssuerOfPatientID", "AccessionNumber", "StudyID", "StudyDescription")
_NOBODY = "so it is unknown whose scan it is; separate them first"
_ORIGINS = (
    ("PatientID", "patients (by Patient ID)", _NOBODY),
    ("IssuerOfPatientID", "patients (by the issuer of the Patient ID)", _NOBODY),
    ("PatientName", "patients (by name)", _NOBODY),
    ("PatientBirthDate", "patients (by date of birth)", _NOBODY),
    ("PatientSex", "patients (by sex)", _NOBODY),
    ("StudyInstanceUID", "studies", "but a series belongs to one study"),
    ("FrameOfReferenceUID", "frames of reference", "so their positions cannot be compared"),
)
"""Attributes in which all slices of a series must agree: keyword, plural for messages, consequence if they differ."""


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """One image series as a volume, with the attributes that results in DICOM have to refer to.

    Attributes:
        uid: Series Instance UID; "" if an anonymiser has emptied it (such a series can be segmented, but no result in
            DICOM can refer to it).
        study_uid: Study Instance UID.
        modality: Modality, such as "MR" or "CT".
        description: Series Description, "" if absent.
        frame_of_reference: Frame of Reference UID, "" if absent.
        slices: Positions and attributes of the slices, from the lowest along the normal to the highest.
        volume: Array (X along rows, Y along columns, Z along the normal) and affine to RAS+ mm. Rescale Slope and
            Intercept are applied; the values stay integers if the slope is 1 and the intercept an integer, else they
            are float32.
        grid: Grid that the slices were resampled to; None if the slices are the planes of the volume, one by one.
        warnings: Descriptions of what was left out or corrected.
    """

    uid: str
    study_uid: str
    modality: str
    description: str
    frame_of_reference: str
    slices: tuple[Slice, ...]
    volume: Volume
    grid: RegularGrid | None = None
    warnings: tuple[ScanWarning, ...] = ()

    @property
    def instances(self) -> tuple[pydicom.Dataset, ...]:
        """Attributes of each slice's object."""
        return tuple(one.header for one in self.slices)

    def on_slices(self, array: NDArray[Any]) -> NDArray[Any]:
        """Bring labels or masks from the volume's grid (..., X, Y, Z) to the slices (..., columns, rows, N)."""
        return array if self.grid is None else self.grid.on_slices(array)

    def labels(self, slices: NDArray[Any], outside: int = 0) -> NDArray[Any]:
        """Bring labels from the slices (columns, rows, N) to the volume's grid (X, Y, Z), with a value beside them."""
        return slices if self.grid is None else self.grid.labels(slices, outside)


def read_series(
    paths: Sequence[Path], *, series_uid: str | None = None, rule: SeriesRule | None = None, strict: bool = False
) -> DicomSeries:
    """Read the image series with a given UID among ``paths``, or the only one that a rule accepts.

    Slices are placed and sorted by Image Position and Image Orientation (Patient) alone; the order of the files does
    not matter. Objects that are not images (SEG, SR, RT) may lie beside the images and are ignored. A tilted gantry,
    uneven gaps and single missing slices are corrected, and copies are left out; the series then has warnings.

    Args:
        paths: Files of the series, in any order; other files may be among them.
        series_uid: Series Instance UID of the series to read; only the modality of the rule is then checked.
        rule: Conditions that the series has to meet; by default, that it is not a localiser and has more than one
            slice.
        strict: If True, a series is refused if anything in it would have to be corrected or left out.

    Raises:
        VolumeError: There is no image series, none or several of them fit, the UID is unknown, the slices do not make
            one volume, or the pixel data cannot be decoded.
    """
    named = {_ONLY: series_uid} if series_uid is not None else {}
    series, _ = read_study(paths, {_ONLY: rule or SeriesRule()}, named=named, strict=strict)
    return series[_ONLY]


def read_study(
    paths: Sequence[Path],
    rules: Mapping[str, SeriesRule],
    *,
    named: Mapping[str, str] | None = None,
    strict: bool = False,
) -> tuple[dict[str, DicomSeries], tuple[SeriesDecision, ...]]:
    """Read a series for each channel; see :func:`read_series` and :func:`semiseg.volumes.series_rules.select_series`.

    Returns:
        The series by channel, and the decision on each image series among the files.
    """
    return read_indexed_study(*index_files(paths, keep_headers=True), rules, named=named, strict=strict)


def read_indexed_study(
    objects: Sequence[DicomObject],
    left_out: Sequence[SkippedFile],
    rules: Mapping[str, SeriesRule],
    *,
    named: Mapping[str, str] | None = None,
    strict: bool = False,
    names: Mapping[Path, str] | None = None,
) -> tuple[dict[str, DicomSeries], tuple[SeriesDecision, ...]]:
    """Read a series for each channel from files that :func:`semiseg.volumes.dicom_index.index_files` has indexed.

    Args:
        objects, left_out: Results of that function.
        rules, named, strict: Arguments of :func:`read_study`.
        names: Original names of the files, if their paths are copies under other names (out of a zip).
    """
    if not objects:
        if len(left_out) < 2:
            raise VolumeError(left_out[0].sentence if left_out else "There are no files to read.")
        raise VolumeError(f"None of the {len(left_out)} files is a DICOM image; the first: {left_out[0].sentence}")
    lost = possible_slices(left_out, objects, names)
    if lost and strict:
        raise VolumeError(f"{lost[0].sentence} It may be a slice of the series.")
    chosen, decisions = select_series(group_by_series(objects), rules, named)
    out = {}
    for channel, found in chosen.items():
        series = read_candidate(found, strict=strict)
        if lost:
            sentence = (
                f"{len(lost)} file(s) that are damaged, empty or, despite their names, not DICOM were left out; they "
                "may be slices of the series."
            )
            series = replace(series, warnings=(ScanWarning("damaged_files", sentence), *series.warnings))
        out[channel] = series
    return out, decisions


def read_candidate(found: SeriesCandidate, *, strict: bool = False) -> DicomSeries:
    """Read a series from a candidate; see :func:`read_series`."""
    others = [one for one in found.objects if one.non_image_kind]
    kinds = ", ".join(sorted({str(one.non_image_kind) for one in others}))
    if others and (strict or not all(one.companion for one in others)):
        raise VolumeError(f"{found.name} mixes images with {len(others)} {kinds} object(s).")
    try:
        series = _read([one.header or require_header(one.path) for one in found.images], strict=strict)
    except VolumeError as error:
        raise VolumeError(f"{found.name}: {error}") from error
    if others:
        told = ScanWarning(
            "companions", f"{len(others)} object(s) of the series are not images and were left out: {kinds}."
        )
        series = replace(series, warnings=(told, *series.warnings))
    return series


def _read(sources: list[DicomHeader], *, strict: bool) -> DicomSeries:
    """Check headers and geometry, then decode the pixels of a series whose slices make a volume."""
    _require_one_origin(sources)
    _require_whole_concatenations(sources)
    sources, copies = _without_copies(sources)
    garbled = [keyword for keyword in _TEXTS if any(is_undecodable(one.dataset, keyword) for one in sources)]
    stack, slices, doubles = _without_doubles([one for source in sources for one in read_slices(source)])
    require_single_image_type(slices)
    more = [f"{n} {what}" for n, what in (copies, doubles) if n]
    if strict:
        if more:
            raise VolumeError(f"{more[0]}.")
        require_regular(stack)
    warnings = [ScanWarning("copies", f"{sentence}; they were left out.") for sentence in more]
    if garbled:
        warnings.append(_garbled(garbled, strict=strict))
    found = find_irregularities(stack)
    grid = make_regular_grid(stack, found) if found else None
    first = slices[0]
    shape = grid.shape if grid else (first.plane.columns, first.plane.rows, len(slices))
    if 4 * np.prod(shape, dtype=object) > MAX_VOXEL_BYTES:
        raise VolumeError(f"A volume of {shape[0]} x {shape[1]} x {shape[2]} voxels exceeds the size limit.")
    array, beyond = decode_slices(slices)
    if beyond:
        warnings.append(_bits_ignored(beyond, strict=strict))
    volume = Volume(array, stack_affine(stack)) if grid is None else Volume(grid.image(array), grid.affine)
    return DicomSeries(
        uid=text(first.header, "SeriesInstanceUID", first.path),
        study_uid=text(first.header, "StudyInstanceUID", first.path),
        modality=text(first.header, "Modality", first.path),
        description=text(first.header, "SeriesDescription", first.path),
        frame_of_reference=text(first.header, "FrameOfReferenceUID", first.path),
        slices=tuple(slices),
        volume=volume,
        grid=grid,
        warnings=(*warnings, *(_corrected(irregularity, grid) for irregularity in found if grid)),
    )


def _garbled(keywords: list[str], *, strict: bool) -> ScanWarning:
    sentence = f"{' and '.join(keywords)} cannot be decoded with the files' Specific Character Set"
    if strict:
        raise VolumeError(f"{sentence}.")
    return ScanWarning("undecodable_text", f"{sentence}; results contain a guess.")


def _bits_ignored(count: int, *, strict: bool) -> ScanWarning:
    sentence = (
        f"{count} pixel(s) have bits set above Bits Stored that no overlay explains, so header and pixel data disagree"
    )
    if strict:
        raise VolumeError(f"{sentence}.")
    return ScanWarning("unused_bits", f"{sentence}. These bits were ignored (PS3.5 section 8.1.1).")


def _corrected(found: Irregularity, grid: RegularGrid) -> ScanWarning:
    """Make the warning about a corrected irregularity."""
    planes = f"{grid.shape[2]} planes {np.linalg.norm(grid.affine[:3, 2]):.3g} mm apart"
    done = {
        "gantry_tilt": "Each slice was moved within its plane to its position in the patient.",
        "missing_slices": f"They were interpolated; the volume has {planes}.",
        "uneven_slices": f"The series was resampled to {planes}.",
    }
    return ScanWarning(found.code, f"{found.sentence} {done[found.code]}")


def _without_copies(sources: list[DicomHeader]) -> tuple[list[DicomHeader], tuple[int, str]]:
    """Drop files with an object that another file holds too; both must agree in position and values.

    Returns:
        The remaining files, and the number of dropped files with words for a warning.
    """
    kept: dict[str, DicomHeader] = {}
    for source in sources:
        # Without any UID (removed by an anonymiser) two files count as two objects.
        header, path = source.dataset, source.path
        uid = text(header, "SOPInstanceUID", path) or text(header.file_meta, "MediaStorageSOPInstanceUID", path)
        first = kept.setdefault(uid or str(path), source)
        if first is not source and not _show_the_same(read_slices(first), read_slices(source)):
            raise VolumeError(f"{path} and {first.path} have the same SOP Instance UID but differ.")
    return list(kept.values()), (len(sources) - len(kept), "file(s) hold an object that another file holds too")


def _show_the_same(one: list[Slice], other: list[Slice]) -> bool:
    """Return True if two objects have the same planes with the same values."""
    if [a.plane for a in one] != [b.plane for b in other]:
        return False
    pairs = zip(one, decode_stored_values(one).frames, other, decode_stored_values(other).frames, strict=True)
    return all(np.array_equal(apply_rescale(a, x), apply_rescale(b, y)) for a, x, b, y in pairs)


def _without_doubles(slices: list[Slice]) -> tuple[SliceStack, list[Slice], tuple[int, str]]:
    """Sort slices and keep one for each position; images at the same position must be equal in every value.

    Returns:
        The stack, its slices in order, and the number of dropped slices with words for a warning.
    """
    stack = stack_planes([one.plane for one in slices])
    ordered = [slices[i] for i in stack.order]
    starts = [0, *(np.flatnonzero(stack.gaps >= SAME_PLACE_MM) + 1).tolist()]
    places = [ordered[a:b] for a, b in zip(starts, [*starts[1:], len(ordered)], strict=True)]
    if len(places) == len(ordered):
        return stack, ordered, (0, "")
    for start, place in zip(starts, places, strict=True):
        if not _all_equal(place):
            what = differing_attributes(place)
            raise VolumeError(
                f"{len(ordered) - len(places)} of {len(ordered)} slices lie where another one does (for example "
                f"{stack.distances[start]:.2f} mm along the normal): the series holds several images of the same place"
                f"{f', which differ in {what}' if what else ''}. Send one of them as a separate series."
            )
    kept = [place[0] for place in places]
    left_out = len(ordered) - len(kept)
    words = "slice(s) lie where another one does and are equal to it in every value"
    return stack_planes([one.plane for one in kept]), kept, (left_out, words)


def _all_equal(place: list[Slice]) -> bool:
    """Return True if slices have the same position and the same values."""
    first, *others = ((one.plane, apply_rescale(one, decode_stored_values([one]).frames[0])) for one in place)
    return all(_aside(plane, first[0]) < SAME_PLACE_MM and np.array_equal(values, first[1]) for plane, values in others)


def _aside(a: Plane, b: Plane) -> float:
    return float(np.linalg.norm(np.subtract(a.position, b.position)))


def _require_one_origin(sources: list[DicomHeader]) -> None:
    """Refuse slices of several patients, studies or frames of reference; the message quotes no values."""
    for keyword, words, so in _ORIGINS:
        found = {text(one.dataset, keyword, one.path) for one in sources}
        if keyword == "PatientName":
            found = {_plain(name) for name in found}
        if keyword.startswith("Patient") or keyword.startswith("Issuer"):
            found.discard("")  # values that an anonymiser removed from some files do not contradict the others
        if len(found) > 1:
            raise VolumeError(f"The slices belong to {len(found)} {words}, {so}.")
    localisers = sum("LOCALIZER" in text(one.dataset, "ImageType", one.path).upper() for one in sources)
    if 0 < localisers < len(sources):
        raise VolumeError(f"The series mixes {localisers} localiser image(s) with {len(sources) - localisers} others.")


def _require_whole_concatenations(sources: list[DicomHeader]) -> None:
    """Refuse an incomplete concatenation, an object that was divided into several (PS3.3 C.7.6.16.2.2.4)."""
    parts: dict[str, tuple[set[str], str]] = {}
    for one in sources:
        uid = text(one.dataset, "ConcatenationUID", one.path)
        if uid:
            seen = parts.setdefault(uid, (set(), text(one.dataset, "InConcatenationTotalNumber", one.path)))[0]
            seen.add(text(one.dataset, "InConcatenationNumber", one.path))
    for seen, total in parts.values():
        highest = max((int(number) for number in seen if number.isdecimal()), default=0)
        count = int(total) if total.isdecimal() else highest
        if len(seen) < max(count, highest):
            raise VolumeError(f"The files hold {len(seen)} of {count} parts of a concatenation; send all of them.")


def _plain(name: str) -> str:
    """Return a person's name in lower case, without empty components at its end (PS3.5 6.2.1)."""
    return name.rstrip("^= ").casefold()
