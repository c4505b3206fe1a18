"""The one door through which scans come in: files of whatever kind, out come the model's channels.

The command line and the HTTP server both open scans here, so that they accept and refuse the same things.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from semiseg.errors import VolumeError
from semiseg.volumes.alignment import align
from semiseg.volumes.dicom_file import is_dicom
from semiseg.volumes.dicom_index import files_of_directory, is_directory, look_at
from semiseg.volumes.dicom_series import DicomSeries, read_looked_at
from semiseg.volumes.nifti import is_nifti, read_nifti_channels
from semiseg.volumes.remark import Remark
from semiseg.volumes.series_rules import SeriesRule, Verdict
from semiseg.volumes.unpack import UnpackLimits, is_zip, unpack_zip
from semiseg.volumes.volume import Volume
from semiseg.volumes.wishes import Paths, Wishes


@dataclass(frozen=True, eq=False)
class Scan:
    """One scan, ready for a model.

    Attributes:
        channels: a volume for each channel name, in the model's order; all on one grid.
        series: the DICOM series of the first channel, whose grid it is; None for NIfTI.
        verdicts: for DICOM: what was decided of each image series among the files.
        remarks: what was left out, corrected or resampled.
        source: the NIfTI file whose grid it is; None for DICOM. One that came in a zip is gone once the scan is open.
    """

    channels: dict[str, Volume]
    series: DicomSeries | None
    verdicts: tuple[Verdict, ...] = ()
    remarks: tuple[Remark, ...] = ()
    source: Path | None = None

    @property
    def grid(self) -> Volume:
        """The first channel: its shape and affine are those of the answer."""
        return next(iter(self.channels.values()))


def open_scan(
    paths: Paths | Mapping[str, Paths],
    rules: Mapping[str, SeriesRule] | None = None,
    wishes: Wishes | None = None,
    *,
    scratch: Path | None = None,
    limits: UnpackLimits | None = None,
) -> Scan:
    """Open a NIfTI file, DICOM files (a folder, a list, a zip of them) or a zip of one NIfTI file.

    What a file is decides its content, never its name. Files of other kinds beside the scan are ignored. Of a DICOM
    study each channel gets the one series that its rule lets through.

    Args:
        paths: one file or folder, or several files; or those of each channel, by its name.
        rules: the model's channels in its order, and what a DICOM series has to be to serve each; by default
            one channel, named ``image``, that any series serves.
        wishes: what a person says besides.
        scratch: an existing folder to unpack zips in (emptied again); None for the system's.
        limits: how much a zip may hold.

    Raises:
        VolumeError: nothing readable, more than one scan, a channel that is missing, unknown, or on a grid that cannot
            be compared, or whatever the readers refuse.
    """
    wishes = wishes or Wishes()
    if rules is None:
        rules = {"image": SeriesRule()}
    if not rules:
        raise VolumeError("A model without channels cannot be given a scan.")
    with ExitStack() as stack:
        door = _Door(wishes, scratch, limits or UnpackLimits(), stack)
        if not isinstance(paths, Mapping):
            return door.open(_listed(paths), rules)
        missing = [name for name in rules if name not in paths]
        unknown = [name for name in paths if name not in rules]
        if missing or unknown:
            told = [f"missing: {', '.join(missing)}"] * bool(missing) + [f"unknown: {', '.join(unknown)}"] * bool(
                unknown
            )
            raise VolumeError(f"The model takes the channel(s) {', '.join(rules)}; {'; '.join(told)}.")
        return _together({name: door.open(_listed(paths[name]), {name: rules[name]}) for name in rules}, wishes)


@dataclass(frozen=True)
class _Door:
    wishes: Wishes
    scratch: Path | None
    limits: UnpackLimits
    stack: ExitStack

    def open(self, given: list[Path], rules: Mapping[str, SeriesRule]) -> Scan:
        zips = [path for path in given if path.is_file() and is_zip(path)]
        if not zips:
            return self._open(_files(given), given, rules)
        if len(given) > 1:
            raise VolumeError(f"{zips[0]}: a zip archive is a whole scan; send it alone.")
        folder = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="semiseg-", dir=self.scratch))
        members = unpack_zip(zips[0], Path(folder), self.limits)
        try:
            return self._open(members, given, rules)
        except VolumeError as error:
            # The numbered file is gone by the time anyone reads this.
            raise VolumeError(str(error).replace(f"{folder}{os.sep}", f"{zips[0].name}, member ")) from error

    def _open(self, files: list[Path], given: list[Path], rules: Mapping[str, SeriesRule]) -> Scan:
        niftis = [path for path in files if is_nifti(path)]
        chosen = set(niftis)
        objects, left_out = look_at((path for path in files if path not in chosen), keep_headers=True)
        what = given[0] if len(given) == 1 else f"The {len(given)} files"
        if niftis and objects:
            raise VolumeError(
                f"{what}: holds both NIfTI ({len(niftis)}) and DICOM ({len(objects)}) files; send one scan."
            )
        if len(niftis) > 1:
            raise VolumeError(
                f"{what}: holds {len(niftis)} NIfTI files; send one scan, with several channels as one 4D file or each "
                "under its own name."
            )
        if niftis:
            if self.wishes.series is not None:
                raise VolumeError(
                    f"{niftis[0]}: a NIfTI file holds no DICOM series, so no series UID can be asked of it."
                )
            return Scan(read_nifti_channels(niftis[0], list(rules)), None, source=niftis[0])
        if not objects and not any(one.damaged or one.directory for one in left_out):
            raise VolumeError(f"{what}: neither a NIfTI file (.nii, .nii.gz) nor DICOM images nor a zip of those.")
        named = _named(self.wishes.series, rules)
        series, verdicts = read_looked_at(objects, left_out, rules, named=named, strict=self.wishes.strict)
        return _together(
            {name: Scan({name: one.volume}, one, remarks=one.remarks) for name, one in series.items()},
            self.wishes,
            verdicts,
        )


@contextmanager
def files_in(path: Path) -> Iterator[list[Path]]:
    """The files of a folder, of a zip (unpacked while they are looked at), or of a DICOMDIR; or the file itself.

    Raises:
        VolumeError: there is no such file or folder, or the archive is refused.
    """
    if path.is_file() and is_zip(path):
        with tempfile.TemporaryDirectory(prefix="semiseg-") as folder:
            yield unpack_zip(path, Path(folder), UnpackLimits())
    else:
        yield _files([path])


def _together(scans: dict[str, Scan], wishes: Wishes, verdicts: tuple[Verdict, ...] = ()) -> Scan:
    """Channels that were read apart, as one scan on the grid of the first."""
    frames = {name: scan.series.frame_of_reference if scan.series else "" for name, scan in scans.items()}
    channels, moved = align({name: scan.grid for name, scan in scans.items()}, frames, aligned=wishes.aligned)
    remarks = [
        replace(remark, text=f"Channel '{name}': {remark.text}") if len(scans) > 1 else remark
        for name, scan in scans.items()
        for remark in scan.remarks
    ]
    first = next(iter(scans.values()))
    told = (*verdicts, *(verdict for scan in scans.values() for verdict in scan.verdicts))
    return Scan(channels, first.series, told, (*remarks, *moved), first.source)


def _named(series: str | None, rules: Mapping[str, SeriesRule]) -> dict[str, str]:
    """``UID`` or ``NAME=UID,NAME=UID`` as a table."""
    if series is None:
        return {}
    if "=" not in series:
        if len(rules) > 1:
            raise VolumeError(f"Say which series is which channel: {','.join(f'{name}=UID' for name in rules)}.")
        return dict.fromkeys(rules, series.strip())
    table: dict[str, str] = {}
    for part in series.split(","):
        name, _, uid = (piece.strip() for piece in part.rpartition("="))
        if name not in rules or name in table or not uid:
            raise VolumeError(f"'{part[:80]}' names no series of a channel; the channels are {', '.join(rules)}.")
        table[name] = uid
    return table


def _listed(paths: Paths) -> list[Path]:
    return [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]


def _files(given: list[Path]) -> list[Path]:
    files: list[Path] = []
    for path in given:
        if path.is_dir():
            files += sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        elif path.is_file():
            # Asked for by itself, the directory of a medium stands for what it lists.
            listed = len(given) == 1 and is_dicom(path) and is_directory(path)
            files += files_of_directory(path) if listed else [path]
        else:
            raise VolumeError(f"{path}: there is no such file or folder.")
    return files
