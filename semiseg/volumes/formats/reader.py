"""Interface of the readers of volume formats: the file to read, and the stored image that they return."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.errors import VolumeError
from semiseg.volumes.scan_warning import ScanWarning

FileFinder = Callable[[str], Path | None]
"""Function that finds the file that a header calls by a relative name, such as ``scan.raw``; None if there is none."""


@dataclass(frozen=True, eq=False)
class StoredImage:
    """Voxels as a file holds them, with their affine.

    Attributes:
        array: Stored values, shape (X, Y, Z, K), in native byte order; the scaling is not applied.
        slope, intercept: Scaling of the values, ``value * slope + intercept``.
        affine: (4, 4) matrix from voxel indices to RAS+ mm.
        warnings: Facts that a user of the result has to know; ``--strict`` refuses a scan that has any.
    """

    array: NDArray[Any]
    slope: float
    intercept: float
    affine: NDArray[np.float64]
    warnings: tuple[ScanWarning, ...] = ()

    @property
    def needs_scaling(self) -> bool:
        """True if the stored values have to be scaled."""
        return (self.slope, self.intercept) != (1.0, 0.0)


@dataclass(frozen=True)
class ImageFile:
    """A file to read, with a way to find the other files that its header names.

    Attributes:
        path: Path of the file; for a format of several files, of the one with the header.
        find: Function that finds the other files; by default they are looked for in the file's own folder.
        member: Name of the file in the archive from which it comes; "" for its own name.
    """

    path: Path
    find: FileFinder | None = None
    member: str = ""

    @property
    def name(self) -> str:
        """Name of the file without its folder; the two files of a pair have the same stem."""
        return PurePosixPath(self.member.replace("\\", "/")).name or self.path.name

    def find_data_file(self, name: str) -> Path:
        """Find the file that the header calls ``name``, in the header's own folder or below it.

        Raises:
            VolumeError: There is no such file, or the name leads out of the folder.
        """
        parts = PurePosixPath(name.strip().replace("\\", "/"))
        # The message does not quote the name: it comes from the header and may identify the patient.
        if not name.strip() or parts.is_absolute() or ".." in parts.parts or re.match("[A-Za-z]:", str(parts)):
            raise VolumeError(
                f"{self.path}: the header names a data file elsewhere, but only a file in the header's own folder is "
                "read."
            )
        found = (self.find or self._in_own_folder)(str(parts))
        if found is None:
            raise VolumeError(f"{self.path}: the data file that the header names does not exist.")
        return found

    def _in_own_folder(self, name: str) -> Path | None:
        folder = self.path.parent.resolve()
        exact = folder / name
        # Case-insensitive file systems have left pairs such as SCAN.HDR and scan.img.
        tried = [exact] if exact.is_file() else _ignoring_case(exact)
        if len(tried) != 1:
            return None
        if not tried[0].resolve().is_relative_to(folder):
            raise VolumeError(f"{self.path}: the data file is a link out of the header's own folder.")
        return tried[0]


@dataclass(frozen=True)
class Reader:
    """A supported format.

    Attributes:
        name: Name of the format in messages, such as "NIfTI file".
        suffixes: Suffixes of the names of such files.
        recognises: Test of a file's first (unpacked) bytes, 1024 at most; True if the file is in this format.
        read: Function that reads a file.
        may_be_gzipped: True if the whole file may be a gzip stream.
        parts: Function for formats of several files; it returns all files of a scan by the names under which its header
            finds them in one archive, the header first, and none for a scan in one file.
    """

    name: str
    suffixes: tuple[str, ...]
    recognises: Callable[[bytes], bool]
    read: Callable[[ImageFile], StoredImage]
    may_be_gzipped: bool = False
    parts: Callable[[ImageFile], Mapping[str, Path]] | None = None

    @property
    def with_article(self) -> str:
        """Name with its article: "a NIfTI file", "an MGH file"."""
        return f"{'an' if self.name.startswith(('A', 'MGH', 'NRRD')) else 'a'} {self.name}"


def _ignoring_case(path: Path) -> list[Path]:
    if not path.parent.is_dir():
        return []
    return [other for other in path.parent.iterdir() if other.name.lower() == path.name.lower() and other.is_file()]
