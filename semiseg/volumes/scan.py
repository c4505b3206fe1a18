"""The one door through which scans come in: files of whatever kind, out come the model's channels.

The command line and the HTTP server both open scans here, so that they accept and refuse the same things.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from semiseg.errors import VolumeError
from semiseg.volumes.dicom_file import is_dicom
from semiseg.volumes.dicom_series import DicomSeries, read_series
from semiseg.volumes.nifti import is_nifti, read_nifti_channels
from semiseg.volumes.remark import Remark
from semiseg.volumes.unpack import UnpackLimits, is_zip, unpack_zip
from semiseg.volumes.volume import Volume


@dataclass(frozen=True, eq=False)
class Scan:
    """One scan, ready for a model.

    Attributes:
        channels: a volume for each channel name, in the model's order; all on one grid.
        series: the DICOM series it came from; None for NIfTI.
    """

    channels: dict[str, Volume]
    series: DicomSeries | None

    @property
    def grid(self) -> Volume:
        """The first channel: its shape and affine are those of the answer."""
        return next(iter(self.channels.values()))

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """What was left out or corrected."""
        return () if self.series is None else self.series.remarks


def open_scan(
    paths: Path | Sequence[Path],
    channel_names: Sequence[str],
    *,
    series_uid: str | None = None,
    strict: bool = False,
    scratch: Path | None = None,
    limits: UnpackLimits | None = None,
) -> Scan:
    """Open a NIfTI file, a DICOM series (its folder, its files, a zip of them) or a zip of one NIfTI file.

    What a file is decides its content, never its name. Files of other kinds beside the scan are ignored.

    Args:
        paths: one file or folder, or several files.
        channel_names: what the model wants, in its order.
        series_uid: which series to take where the files hold several.
        strict: refuse a series whose slices would have to be corrected, or files that would be left out.
        scratch: an existing folder to unpack zips in (emptied again); None for the system's.
        limits: how much a zip may hold.

    Raises:
        VolumeError: nothing readable, more than one scan, too few channels, or whatever the readers refuse.
    """
    given = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(p) for p in paths]
    if not channel_names:
        raise VolumeError("A model without channels cannot be given a scan.")
    zips = [path for path in given if path.is_file() and is_zip(path)]
    if not zips:
        return _open(_files(given), given, channel_names, series_uid, strict)
    if len(given) > 1:
        raise VolumeError(f"{zips[0]}: a zip archive is a whole scan; send it alone.")
    with tempfile.TemporaryDirectory(prefix="semiseg-", dir=scratch) as folder:
        members = unpack_zip(zips[0], Path(folder), limits or UnpackLimits())
        try:
            return _open(members, given, channel_names, series_uid, strict)
        except VolumeError as error:
            # The numbered file is gone by the time anyone reads this.
            raise VolumeError(str(error).replace(f"{folder}/", f"{zips[0].name}, member ")) from error


def _files(given: list[Path]) -> list[Path]:
    files: list[Path] = []
    for path in given:
        if path.is_dir():
            files += sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        elif path.is_file():
            files.append(path)
        else:
            raise VolumeError(f"{path}: there is no such file or folder.")
    return files


def _open(files: list[Path], given: list[Path], names: Sequence[str], series_uid: str | None, strict: bool) -> Scan:
    niftis = [path for path in files if is_nifti(path)]
    dicoms = [path for path in files if is_dicom(path)]
    what = given[0] if len(given) == 1 else f"The {len(given)} files"
    if niftis and dicoms:
        raise VolumeError(f"{what}: holds both NIfTI ({len(niftis)}) and DICOM ({len(dicoms)}) files; send one scan.")
    if len(niftis) > 1:
        raise VolumeError(
            f"{what}: holds {len(niftis)} NIfTI files; send one scan, with several channels as one 4D file."
        )
    if niftis:
        if series_uid is not None:
            raise VolumeError(f"{niftis[0]}: a NIfTI file holds no DICOM series, so no series UID can be asked of it.")
        return Scan(read_nifti_channels(niftis[0], names), None)
    if not dicoms:
        raise VolumeError(f"{what}: neither a NIfTI file (.nii, .nii.gz) nor DICOM images nor a zip of those.")
    if len(names) > 1:
        raise VolumeError(
            f"{what}: the model needs the channels {', '.join(names)}, and a DICOM series can only be one of them; "
            f"missing: {', '.join(names[1:])}. Send a 4D NIfTI file with all of them."
        )
    series = read_series(dicoms, series_uid=series_uid, strict=strict)
    return Scan({names[0]: series.volume}, series)
