"""Opens scans: reads the channels of a model from files of any supported kind.

The command line and the HTTP server both open scans with this module, so that they accept and refuse the same files.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from semiseg.deprecation import RenamedMember, renamed_arguments
from semiseg.errors import VolumeError
from semiseg.volumes.alignment import align_channels
from semiseg.volumes.archives import UnpackLimits, archive_finder, is_zip, unpack_zip_with_names
from semiseg.volumes.dicom_file import is_dicom
from semiseg.volumes.dicom_index import dicomdir_files, index_files, is_dicomdir
from semiseg.volumes.dicom_series import DicomSeries, read_indexed_study
from semiseg.volumes.file_types import describe_file, detached_data_files, supported_inputs_text, unsupported_file_text
from semiseg.volumes.formats.reader import FileFinder, ImageFile
from semiseg.volumes.formats.registry import format_names, is_image_file, reader_for_file, reader_for_name
from semiseg.volumes.formats.stream import read_start
from semiseg.volumes.image_files import read_image_file, split_channels
from semiseg.volumes.read_options import Paths, ReadOptions
from semiseg.volumes.scan_warning import ScanWarning
from semiseg.volumes.seg_nrrd import is_seg_nrrd
from semiseg.volumes.series_rules import SeriesDecision, SeriesRule
from semiseg.volumes.volume import Volume


@dataclass(frozen=True, eq=False)
class Scan:
    """One scan, ready for a model.

    Attributes:
        channels: Volumes by channel name, in the model's order; all on one grid.
        series: DICOM series of the first channel, which defines the grid; None for a volume in one file.
        decisions: Decision on each image series among the files, for DICOM.
        warnings: Descriptions of what was left out, corrected or resampled.
        source: File (NIfTI, NRRD, ...) that defines the grid; None for DICOM. A file from a zip no longer exists once
            the scan is open.

    Examples:
        >>> import semiseg
        >>> scan = semiseg.open_scan("SERIES")
        >>> list(scan.channels), scan.grid.axcodes
        (['image'], 'RAS')
    """

    channels: dict[str, Volume]
    series: DicomSeries | None
    decisions: tuple[SeriesDecision, ...] = ()
    warnings: tuple[ScanWarning, ...] = ()
    source: Path | None = None

    remarks = RenamedMember("warnings")
    verdicts = RenamedMember("decisions")

    @property
    def grid(self) -> Volume:
        """The first channel; the result has its shape and affine."""
        return next(iter(self.channels.values()))


@renamed_arguments(wishes="options")
def open_scan(
    paths: Paths | Mapping[str, Paths],
    rules: Mapping[str, SeriesRule] | None = None,
    options: ReadOptions | None = None,
    *,
    scratch: Path | None = None,
    limits: UnpackLimits | None = None,
) -> Scan:
    """Open a volume in one file, DICOM files (a folder, a list, a zip of them), or a zip of one such volume.

    The file's content decides its type, never its name; :mod:`semiseg.volumes.formats` has the formats of volumes.
    Files of other types beside the scan are ignored; if their names are those of scans, they cause a warning, or an
    error with ``options.strict``. From a DICOM study each channel gets the only series that its rule accepts.
    Segmentations of 3D Slicer beside the scan are ignored.

    Args:
        paths: One file or folder, or several files; or the paths of each channel, by channel name.
        rules: Channels of the model in its order, each with the rule that its DICOM series has to meet; by default one
            channel named ``image`` with a rule that accepts any series.
        options: Options for reading the scan.
        scratch: Existing folder in which zips are unpacked; the files are removed again. None for the system's own.
        limits: Limits on the content of a zip.

    Raises:
        VolumeError: There is nothing readable or more than one scan, a channel is missing, unknown or on a grid that
            cannot be compared, or a reader refuses a file.

    Examples:
        >>> import semiseg
        >>> scan = semiseg.open_scan("SCAN.nii.gz")
        >>> [round(mm, 2) for mm in scan.grid.spacing]
        [5.0, 5.0, 8.0]
        >>> scan.warnings
        ()
    """
    options = options or ReadOptions()
    if rules is None:
        rules = {"image": SeriesRule()}
    if not rules:
        raise VolumeError("A model without channels cannot be given a scan.")
    with ExitStack() as stack:
        opener = _ScanOpener(options, scratch, limits or UnpackLimits(), stack)
        if not isinstance(paths, Mapping):
            return opener.open(_listed(paths), rules)
        missing = [name for name in rules if name not in paths]
        unknown = [name for name in paths if name not in rules]
        if missing or unknown:
            told = [f"missing: {', '.join(missing)}"] * bool(missing) + [f"unknown: {', '.join(unknown)}"] * bool(
                unknown
            )
            raise VolumeError(f"The model takes the channel(s) {', '.join(rules)}; {'; '.join(told)}.")
        return _together({name: opener.open(_listed(paths[name]), {name: rules[name]}) for name in rules}, options)


@dataclass(frozen=True)
class _ScanOpener:
    options: ReadOptions
    scratch: Path | None
    limits: UnpackLimits
    stack: ExitStack

    def open(self, given: list[Path], rules: Mapping[str, SeriesRule]) -> Scan:
        zips = [path for path in given if path.is_file() and is_zip(path) and not is_image_file(path)]
        if not zips:
            return self._open(_files(given), {}, given, rules)
        if len(given) > 1:
            raise VolumeError(f"{zips[0]}: a zip archive must hold a whole scan; send it alone.")
        folder = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="semiseg-", dir=self.scratch))
        members = unpack_zip_with_names(zips[0], Path(folder), self.limits)
        try:
            return self._open(list(members), members, given, rules)
        except VolumeError as error:
            # The numbered file no longer exists when the message is read, so the message names the archive's member.
            raise VolumeError(str(error).replace(f"{folder}{os.sep}", f"{zips[0].name}, member ")) from error

    def _open(
        self, files: list[Path], names: Mapping[Path, str], given: list[Path], rules: Mapping[str, SeriesRule]
    ) -> Scan:
        """Open the one scan in ``files``; ``names`` are the names of the files in their zip."""
        volumes = [path for path in files if is_image_file(path)]
        # Slicer stores its segmentations beside the scan; a segmentation without a scan is opened and described.
        images = [path for path in volumes if not is_seg_nrrd(path)] or volumes
        passed = {*images, *_voxels(files, names, images)}
        objects, left_out = index_files((path for path in files if path not in passed), keep_headers=True)
        dicoms = len(objects) + sum(one.like_dicom for one in left_out)
        if dicoms and all(is_seg_nrrd(path) for path in images):
            images = []
        what = given[0] if len(given) == 1 else f"The {len(given)} files"
        if images and dicoms:
            raise VolumeError(
                f"{what}: holds both {format_names(images)} ({len(images)}) and DICOM ({dicoms}) files; send one scan."
            )
        if len(images) > 1:
            raise VolumeError(
                f"{what}: holds {len(images)} {format_names(images)} files; send one scan, with several channels as "
                "one 4D file or each under its own name."
            )
        if images:
            image = ImageFile(images[0], _finder(images[0], files, names, given), names.get(images[0], ""))
            return self._image(image, _unreadable(files, names), rules)
        if not dicoms:
            raise VolumeError(_nothing(what, files))
        named = _named(self.options.series, rules)
        series, decisions = read_indexed_study(
            objects, left_out, rules, named=named, strict=self.options.strict, names=names
        )
        return _together(
            {name: Scan({name: one.volume}, one, warnings=one.warnings) for name, one in series.items()},
            self.options,
            decisions,
        )

    def _image(self, image: ImageFile, unreadable: tuple[ScanWarning, ...], rules: Mapping[str, SeriesRule]) -> Scan:
        """Open a volume in one file; if the options are strict, refuse it if there are warnings."""
        if self.options.series is not None:
            raise VolumeError(
                f"{image.path}: this is a {format_names([image.path])} file and holds no DICOM series, so no series "
                "UID can be given for it."
            )
        stored = read_image_file(image)
        warnings = (*unreadable, *stored.warnings)
        if warnings and self.options.strict:
            raise VolumeError(
                f"{image.path}: {' '.join(remark.text for remark in warnings)} Without `strict` it is read."
            )
        return Scan(split_channels(image.path, stored, list(rules)), None, (), warnings, image.path)


@contextmanager
def files_in(path: Path) -> Iterator[dict[Path, str]]:
    """List the files of a folder, of a zip (unpacked within the context), or of a DICOMDIR; or the file itself.

    Yields:
        The files, each with its name in the zip; "" for files that do not come from a zip.

    Raises:
        VolumeError: There is no such file or folder, or the archive is refused.
    """
    if path.is_file() and is_zip(path) and not is_image_file(path):
        with tempfile.TemporaryDirectory(prefix="semiseg-") as folder:
            yield unpack_zip_with_names(path, Path(folder), UnpackLimits())
    else:
        yield dict.fromkeys(_files([path]), "")


def _together(scans: dict[str, Scan], options: ReadOptions, decisions: tuple[SeriesDecision, ...] = ()) -> Scan:
    """Combine channels that were read separately into one scan on the grid of the first."""
    frames = {name: scan.series.frame_of_reference if scan.series else "" for name, scan in scans.items()}
    channels, moved = align_channels({name: scan.grid for name, scan in scans.items()}, frames, aligned=options.aligned)
    warnings = [
        replace(remark, text=f"Channel '{name}': {remark.text}") if len(scans) > 1 else remark
        for name, scan in scans.items()
        for remark in scan.warnings
    ]
    first = next(iter(scans.values()))
    told = (*decisions, *(decision for scan in scans.values() for decision in scan.decisions))
    return Scan(channels, first.series, told, (*warnings, *moved), first.source)


def _named(series: str | None, rules: Mapping[str, SeriesRule]) -> dict[str, str]:
    """Parse ``UID`` or ``NAME=UID,NAME=UID`` into UIDs by channel name."""
    if series is None:
        return {}
    if "=" not in series:
        if len(rules) > 1:
            raise VolumeError(f"Give the series of each channel: {','.join(f'{name}=UID' for name in rules)}.")
        return dict.fromkeys(rules, series.strip())
    table: dict[str, str] = {}
    for part in series.split(","):
        name, _, uid = (piece.strip() for piece in part.rpartition("="))
        if name not in rules or name in table or not uid:
            raise VolumeError(f"'{part[:80]}' does not name the series of a channel; channels: {', '.join(rules)}.")
        table[name] = uid
    return table


def _voxels(files: list[Path], names: Mapping[Path, str], images: list[Path]) -> frozenset[Path]:
    """Return the files that only hold the voxels of a header; their bytes may happen to look like DICOM."""
    found = detached_data_files({path: names.get(path, "") for path in files}, images)
    if not names and len(files) == 2 and len(images) == 1:
        # Uploads lose their names, but a DICOM file starts with a preamble and "DICM".
        found |= {path for path in files if path not in images and read_start(path)[128:132] != b"DICM"}
    return found


def _finder(image: Path, files: list[Path], names: Mapping[Path, str], given: list[Path]) -> FileFinder | None:
    """Return a function that finds the data files of a header from a zip, or from an upload of two files."""
    if names:
        return archive_finder(image, names)
    others = [path for path in files if path != image]
    if len(given) == 2 and len(others) == 1:
        # Uploads lose their names: the only other file of the upload must be the data file.
        beside = image.parent
        return lambda name: found if (found := beside / name).is_file() else others[0]
    return None


def _unreadable(files: list[Path], names: Mapping[Path, str]) -> tuple[ScanWarning, ...]:
    """Warn about files that are named like scans but cannot be read."""
    broken = [
        f"{f'member {path.name}' if names else name}: {describe_file(path, name)}"
        for path, name in ((path, names.get(path, path.name)) for path in files)
        if reader_for_name(name) is not None and reader_for_file(path) is None
    ]
    if not broken:
        return ()
    more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
    text = (
        f"{len(broken)} file(s) are named like scans but cannot be read ({'; '.join(broken[:3])}{more}); they were "
        "left out."
    )
    return (ScanWarning("damaged_files", text),)


def _nothing(what: object, files: list[Path]) -> str:
    """Make the message for files of which none is a scan."""
    if len(files) == 1:
        return f"{what}: {unsupported_file_text(files[0])}."
    kinds = Counter(describe_file(path) for path in files)
    told = f" ({', '.join(f'{count} x {kind}' for kind, count in kinds.most_common(5))})" if kinds else ""
    return f"{what}: none of {len(files)} file(s){told} is a scan, {supported_inputs_text()}."


def _listed(paths: Paths) -> list[Path]:
    return [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]


def _files(given: list[Path]) -> list[Path]:
    files: list[Path] = []
    for path in given:
        if path.is_dir():
            files += sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        elif path.is_file():
            # A DICOMDIR that is given alone stands for the files that it lists.
            listed = len(given) == 1 and is_dicom(path) and is_dicomdir(path)
            files += dicomdir_files(path) if listed else [path]
        else:
            raise VolumeError(f"{path}: there is no such file or folder.")
    return files
