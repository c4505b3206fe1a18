"""What a reader of a volume format is given, and what it gives back."""

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
"""Gives the file that a header calls by a relative name, such as ``scan.raw``; None where there is none."""


@dataclass(frozen=True, eq=False)
class StoredImage:
    """Voxels as a file holds them, and where they lie.

    Attributes:
        array: Stored values, shape (X, Y, Z, K), in native byte order; the scaling is not applied.
        slope, intercept: A stored value means ``value * slope + intercept``.
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
        """Whether the stored values have to be scaled."""
        return (self.slope, self.intercept) != (1.0, 0.0)


@dataclass(frozen=True)
class ImageFile:
    """A file to read, and how the other files that its header names are found.

    Attributes:
        path: The file, which for a format of several files is the one with the header.
        find: FileFinder of the other files; by default they are looked for in the file's own folder.
        member: Name of the file in the archive that it came in; "" for its own name.
    """

    path: Path
    find: FileFinder | None = None
    member: str = ""

    @property
    def name(self) -> str:
        """The file's name without its folder, by which a pair is one."""
        return PurePosixPath(self.member.replace("\\", "/")).name or self.path.name

    def find_data_file(self, name: str) -> Path:
        """The file that the header calls ``name``, in the header's own folder or below it.

        Raises:
            VolumeError: There is none, or the name leads out of the folder.
        """
        parts = PurePosixPath(name.strip().replace("\\", "/"))
        # The name is not told: it is part of what was sent, and may say who the patient is.
        if not name.strip() or parts.is_absolute() or ".." in parts.parts or re.match("[A-Za-z]:", str(parts)):
            raise VolumeError(
                f"{self.path}: the header names a data file elsewhere, and only a file in the header's own folder is "
                "read."
            )
        found = (self.find or self._in_own_folder)(str(parts))
        if found is None:
            raise VolumeError(f"{self.path}: the data file that the header names is not there.")
        return found

    def _in_own_folder(self, name: str) -> Path | None:
        folder = self.path.parent.resolve()
        exact = folder / name
        # Systems that do not tell capitals apart left pairs such as SCAN.HDR and scan.img.
        tried = [exact] if exact.is_file() else _ignoring_case(exact)
        if len(tried) != 1:
            return None
        if not tried[0].resolve().is_relative_to(folder):
            raise VolumeError(f"{self.path}: the data file is a link out of the header's own folder.")
        return tried[0]


@dataclass(frozen=True)
class Reader:
    """A format that is read.

    Attributes:
        name: Name of the format in sentences, such as "NIfTI file".
        suffixes: Endings of the names of such files.
        recognises: Test of a file's first (unpacked) bytes, 1024 at most; true if the file is of this format.
        read: Function that reads a file.
        may_be_gzipped: True if the whole file may be a gzip stream.
        parts: For formats of several files: all files of a scan by names under which its header finds them in one
            archive, the header first; none for a scan in one file.
    """

    name: str
    suffixes: tuple[str, ...]
    recognises: Callable[[bytes], bool]
    read: Callable[[ImageFile], StoredImage]
    may_be_gzipped: bool = False
    parts: Callable[[ImageFile], Mapping[str, Path]] | None = None

    @property
    def with_article(self) -> str:
        """The name with its article: "a NIfTI file", "an MGH file"."""
        return f"{'an' if self.name.startswith(('A', 'MGH', 'NRRD')) else 'a'} {self.name}"


def _ignoring_case(path: Path) -> list[Path]:
    if not path.parent.is_dir():
        return []
    return [other for other in path.parent.iterdir() if other.name.lower() == path.name.lower() and other.is_file()]
