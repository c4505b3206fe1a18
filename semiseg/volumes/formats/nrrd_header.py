"""Parses and checks the text header of an NRRD file (https://teem.sourceforge.net/nrrd/format.html)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.errors import VolumeError
from semiseg.volumes.formats.geometry import LPS_TO_RAS, no_orientation_warning
from semiseg.volumes.formats.stream import MAX_HEADER_BYTES
from semiseg.volumes.scan_warning import ScanWarning

_MAGIC = re.compile(rb"NRRD000[1-9]\r?\n")
_TYPES = {
    name: code
    for code, names in {
        "i1": "signed char,int8,int8_t,char",
        "u1": "uchar,unsigned char,uint8,uint8_t",
        "i2": "short,short int,signed short,signed short int,int16,int16_t",
        "u2": "ushort,unsigned short,unsigned short int,uint16,uint16_t",
        "i4": "int,signed int,int32,int32_t",
        "u4": "uint,unsigned int,uint32,uint32_t",
        "i8": "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t",
        "u8": "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(",")
}
_ALIASES = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip", "centers": "centerings"}
TEXT_ENCODINGS = ("ascii", "text", "txt")
_LPS, _RAS, _LAS = LPS_TO_RAS, np.eye(4), np.diag([-1.0, 1.0, 1.0, 1.0])
_SPACES = {
    "left-posterior-superior": _LPS,
    "lps": _LPS,
    "right-anterior-superior": _RAS,
    "ras": _RAS,
    "left-anterior-superior": _LAS,
    "las": _LAS,
}
_OF_THE_SCANNER = ("scanner-xyz", "3d-right-handed", "3d-left-handed")
_MM = {
    "mm": 1.0,
    "millimeter": 1.0,
    "millimeters": 1.0,
    "cm": 10.0,
    "m": 1000.0,
    "um": 0.001,
    "microns": 0.001,
    "": 1.0,
}
_SPATIAL = ("domain", "space", "???", "none")
_CHANNELS = ("list", "vector", "point", "covariant-vector", "normal", "time")
_VECTOR = re.compile(r"none|\([^()]*\)")


@dataclass(frozen=True)
class NrrdHeader:
    """The fields and key/value pairs of a header.

    Attributes:
        path: Path of the file.
        fields: Values of the fields by name, in lower case.
        pairs: Values by key, as in ``Segment0_Name:=liver``.
        listed: Names of data files after ``data file: LIST``.
        length: Length of the header in bytes, including the empty line at its end.
    """

    path: Path
    fields: dict[str, str]
    pairs: dict[str, str]
    listed: tuple[str, ...] = field(default=())
    length: int = 0

    def sizes(self) -> list[int]:
        """Return the sizes of all axes, the fastest first.

        Raises:
            VolumeError: The sizes are missing, or their number is not the dimension.
        """
        sizes = [self._integer("sizes", word) for word in self.required("sizes").split()]
        dimension = self._integer("dimension", self.required("dimension"))
        if len(sizes) != dimension or any(n < 1 for n in sizes):
            raise self._wrong("sizes", f"{dimension} sizes of at least 1 are needed")
        if len(sizes) < 3:
            raise VolumeError(f"{self.path}: a 3D image is needed, but this file has {dimension} axes.")
        return sizes

    def dtype(self) -> np.dtype[Any]:
        """Return the stored type with its byte order.

        Raises:
            VolumeError: The type or the byte order is missing, or it is not a type of grey values.
        """
        code = _TYPES.get(self.required("type").lower())
        if code is None:
            raise VolumeError(f"{self.path}: voxels of type '{self.fields['type'][:40]}' are not grey values.")
        endian = self.fields.get("endian", "").lower()
        if endian not in ("", "little", "big"):
            raise self._wrong("endian", "it is little or big")
        text = self.fields.get("encoding", "").lower() in TEXT_ENCODINGS
        if not endian and code[1] != "1" and not text:
            raise VolumeError(f"{self.path}: the NRRD header does not give the byte order (field 'endian').")
        return np.dtype((">" if endian == "big" else "<") + code)

    def channel_axis(self, sizes: list[int]) -> int | None:
        """Return the axis that holds channels; None if all axes lie in space.

        Raises:
            VolumeError: There are not exactly three axes in space, or an axis holds something else, such as colours.
        """
        kinds = [kind.lower() for kind in self.fields.get("kinds", "").split()] or ["???"] * len(sizes)
        if len(kinds) != len(sizes):
            raise self._wrong("kinds", f"{len(sizes)} axes have one each")
        directions = self._directions(len(sizes))
        others = []
        for axis, kind in enumerate(kinds):
            outside = directions is not None and directions[axis] is None
            if kind in _CHANNELS or (outside and kind in _SPATIAL):
                others.append(axis)
            elif kind not in _SPATIAL and not (sizes[axis] == 1 and outside):
                raise VolumeError(f"{self.path}: an axis of the kind '{kind[:40]}' does not hold grey values.")
        if not others and len(sizes) == 4:
            others = [3]  # ITK writes several volumes like this, without kinds
        if len(sizes) - len(others) != 3 or len(others) > 1:
            raise VolumeError(
                f"{self.path}: three axes in space and at most one of channels are required, but this file has axes of "
                f"the kinds {' '.join(kinds)} and the sizes {' '.join(map(str, sizes))}."
            )
        return others[0] if others else None

    def affine(self, channel_axis: int | None) -> tuple[NDArray[np.float64], tuple[ScanWarning, ...]]:
        """Return the affine to RAS+ mm, and a warning if the header does not tell left from right.

        Raises:
            VolumeError: Directions or origin are missing or not numbers, or the space does not have three dimensions.
        """
        count = 3 if channel_axis is None else 4
        space = self.fields.get("space", "").lower().removesuffix("-time")
        directions, warnings = self._directions(count), []
        to_ras = _SPACES.get(space)
        if space and to_ras is None and space not in _OF_THE_SCANNER:
            raise self._wrong(
                "space", "known are left-posterior-superior, right-anterior-superior, left-anterior-superior"
            )
        if to_ras is None:
            why = f"its space is {space}" if space else "it has no field 'space'"
            warnings.append(
                no_orientation_warning(why, "the axes of DICOM (left, posterior, superior) were assumed, as in ITK")
            )
            to_ras = _LPS
        affine = np.eye(4)
        if directions is None:
            affine[:3, :3] = np.diag(self._spacings(count, channel_axis))
            if space:
                warnings.append(
                    no_orientation_warning(
                        "it has no field 'space directions'", "its axes were assumed to be those of its space"
                    )
                )
        else:
            columns = [vector for axis, vector in enumerate(directions) if axis != channel_axis]
            if any(vector is None for vector in columns):
                raise self._wrong("space directions", "each axis in space needs one")
            if any(vector is not None and vector[3:].any() for vector in columns):
                raise self._wrong("space directions", "an axis in space cannot run along time")
            affine[:3, :3] = np.array(columns)[:, :3].T
        if origin := self.fields.get("space origin"):
            affine[:3, 3] = self._vector("space origin", origin)[:3]
        elif directions is not None:
            warnings.append(
                ScanWarning("contradictory_header", "The header has directions but no origin; 0 0 0 was assumed.")
            )
        affine[:3] *= self._mm()
        return to_ras @ affine, tuple(warnings)

    def skip(self, name: str) -> int:
        """Return the value of ``line skip`` or ``byte skip``, 0 by default."""
        return self._integer(name, self.fields.get(name, "0"))

    def required(self, name: str) -> str:
        """Return the value of a field.

        Raises:
            VolumeError: The header has no such field.
        """
        if name not in self.fields:
            raise VolumeError(f"{self.path}: the NRRD header has no field '{name}'.")
        return self.fields[name]

    def _directions(self, count: int) -> list[NDArray[np.float64] | None] | None:
        text = self.fields.get("space directions")
        if text is None:
            return None
        words = _VECTOR.findall(text)
        if len(words) != count or _VECTOR.sub("", text).strip():
            raise self._wrong("space directions", f"{count} axes have one each")
        return [None if word == "none" else self._vector("space directions", word) for word in words]

    def _spacings(self, count: int, channel_axis: int | None) -> list[float]:
        words = self.fields.get("spacings", "").split()
        if len(words) != count:
            raise VolumeError(f"{self.path}: the NRRD header has neither 'space directions' nor {count} 'spacings'.")
        return [self._number("spacings", word) for axis, word in enumerate(words) if axis != channel_axis]

    def _mm(self) -> float:
        units = set(re.findall(r'"([^"]*)"', self.fields.get("space units", '""'))) or {""}
        factors = {_MM.get(unit.strip().lower()) for unit in units}
        if len(factors) != 1 or None in factors:
            raise self._wrong("space units", "one known unit of length for all axes is needed")
        return float(factors.pop() or 1.0)

    def _vector(self, name: str, text: str) -> NDArray[np.float64]:
        values = [self._number(name, word) for word in text.strip().strip("()").split(",")]
        time = self.fields.get("space dimension") == "4" or self.fields.get("space", "").lower().endswith("-time")
        if len(values) != 3 + time:
            raise self._wrong(name, f"vectors of {3 + time} numbers are needed")
        return np.array(values)

    def _number(self, name: str, word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            raise self._wrong(name, "numbers are needed") from None
        if not math.isfinite(value):
            raise self._wrong(name, "finite numbers are needed")
        return value

    def _integer(self, name: str, word: str) -> int:
        if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", word):
            raise self._wrong(name, "whole numbers are needed")
        return int(word)

    def _wrong(self, name: str, rule: str) -> VolumeError:
        found = self.fields.get(name, "")[:80]
        return VolumeError(f"{self.path}: the NRRD header's field '{name}' is '{found}'; {rule}.")


def is_nrrd(start: bytes) -> bool:
    """Return True if a file with these first bytes is NRRD."""
    return _MAGIC.match(start) is not None


def parse_nrrd(path: Path) -> NrrdHeader:
    """Read the header of an NRRD file.

    Raises:
        VolumeError: The file is not NRRD, or its header has no end, a line that is not a field, or a field twice.
    """
    try:
        with path.open("rb") as file:
            start = file.read(MAX_HEADER_BYTES)
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if not is_nrrd(start):
        raise VolumeError(f"{path}: not an NRRD file.")
    end = re.search(rb"\n\r?\n", start)
    if end is None and len(start) == MAX_HEADER_BYTES:
        raise VolumeError(f"{path}: the NRRD header does not end within {MAX_HEADER_BYTES} bytes.")
    text = start if end is None else start[: end.start()]
    fields: dict[str, str] = {}
    pairs: dict[str, str] = {}
    listed: list[str] = []
    for number, line in enumerate(text.decode("utf-8", "replace").splitlines()[1:], start=2):
        if line.startswith("#"):
            continue
        if fields.get("data file", "").upper().startswith("LIST"):
            listed.append(line.strip())
            continue
        _add_line(path, number, line.rstrip(), fields, pairs)
    return NrrdHeader(path, fields, pairs, tuple(listed), len(start) if end is None else end.end())


def _add_line(path: Path, number: int, line: str, fields: dict[str, str], pairs: dict[str, str]) -> None:
    name, separator, value = line.partition(":")
    if not separator or not name.strip():
        raise VolumeError(f"{path}: the NRRD header is damaged (line {number} is not a field).")
    if value.startswith("="):
        pairs[_unescaped(name)] = _unescaped(value[1:])
        return
    name = name.strip().lower()
    name = _ALIASES.get(name, name)
    if name in fields:
        raise VolumeError(f"{path}: the NRRD header has the field '{name[:60]}' twice.")
    fields[name] = value.strip()


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], text)
