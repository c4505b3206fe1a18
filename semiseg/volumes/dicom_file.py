"""Reads single DICOM files, whose content is not trusted.

pydicom parses lazily and raises many types of errors on damaged files, at once or when a value is first accessed. This
module turns all of them into :class:`VolumeError`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from semiseg.errors import VolumeError

# pydicom quotes values that break a rule of their type in its warnings, which would put patients' names into the log.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

MAX_INFLATED_BYTES = 2**30
"""Maximum inflated size of a deflated data set: 1 GiB, a thousand times the size of a slice."""

PARSING_ERRORS = (
    InvalidDicomError,
    BytesLengthException,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RecursionError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""Errors that pydicom and its decoders were observed to raise on damaged files."""

_Stop = Callable[[BaseTag, str | None, int], bool]
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)  # Float, Double Float and integer Pixel Data (PS3.3 C.7.6.3)
_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)


def is_dicom(path: Path) -> bool:
    """Return True if the file starts like DICOM: with a preamble and "DICM", or with an element of group 2 or 8.

    Files without the preamble, which PS3.10 section 7.1 requires, are in circulation; one is taken for DICOM only if
    its first element is in a group that must come first and has a plausible value representation or length.
    """
    try:
        with path.open("rb") as file:
            return starts_like_dicom(file.read(132))
    except OSError:
        return False


@dataclass(frozen=True, eq=False)
class DicomHeader:
    """The part of a DICOM file before its pixel data, parsed once.

    Attributes:
        path: Path of the file.
        dataset: Attributes without the pixel data.
        pixels_at: Byte offset at which the pixel data element begins or would begin; None if the data set is deflated.
        has_pixels: True if there are pixel data; always True for a deflated data set, where it is not known.
    """

    path: Path
    dataset: pydicom.Dataset
    pixels_at: int | None
    has_pixels: bool

    def with_pixels(self) -> pydicom.Dataset:
        """Return the attributes together with the pixel data; only the pixel data are read from the file.

        Raises:
            VolumeError: The file is damaged after its header, or does not exist any more.
        """
        if self.pixels_at is None:
            return read_dicom(self.path, pixels=True)
        implicit, little = self.dataset.original_encoding
        try:
            with self.path.open("rb") as file:
                file.seek(self.pixels_at)
                pixels = read_dataset(file, bool(implicit), bool(little), stop_when=_behind_pixels)
        except PARSING_ERRORS as error:
            raise damaged_file_error(self.path, error) from error
        whole = pydicom.Dataset()
        whole.update(self.dataset)
        whole.update(pixels)
        whole.file_meta = self.dataset.file_meta
        whole.set_original_encoding(implicit, little)
        return whole


def read_header(path: Path) -> DicomHeader | None:
    """Open and parse a file once, up to its pixel data; None if it does not start like DICOM.

    Raises:
        VolumeError: The file is damaged, or its deflated data set inflates beyond :data:`MAX_INFLATED_BYTES`.
    """
    try:
        with path.open("rb") as file:
            if not starts_like_dicom(file.read(132)):
                return None
            return _header(path, file, None, _at_pixels)
    except OSError as error:
        raise damaged_file_error(path, error) from error


def require_header(path: Path) -> DicomHeader:
    """Read the header of a file that is known to be DICOM; see :func:`read_header`.

    Raises:
        VolumeError: The file is damaged, or is no longer DICOM.
    """
    header = read_header(path)
    if header is None:
        raise VolumeError(f"{path}: not a DICOM file.")
    return header


def read_dicom(path: Path, *, pixels: bool, tags: list[str] | None = None, last: int | None = None) -> pydicom.Dataset:
    """Read a file's attributes, with or without its pixel data.

    Args:
        path: Path of the file.
        pixels: If True, the pixel data are read too.
        tags: Keywords of the attributes to read; None for all.
        last: Last tag to read, such as 0x00201208; None to read to the end.

    Raises:
        VolumeError: The file is not DICOM or is damaged, or its deflated data set inflates beyond
            :data:`MAX_INFLATED_BYTES`.
    """
    try:
        with path.open("rb") as file:
            if starts_like_dicom(file.read(132)):
                stop = (lambda tag, *_: tag > last) if last is not None else None if pixels else _at_pixels
                return _header(path, file, tags, stop).dataset
    except OSError as error:
        if path.exists():
            raise damaged_file_error(path, error) from error
    raise VolumeError(f"{path}: not a DICOM file.")


def _header(path: Path, file: BinaryIO, tags: list[str] | None, stop: _Stop | None) -> DicomHeader:
    wanted: list[BaseTag | int] | None = None if tags is None else [Tag(tag) for tag in tags]
    try:
        _refuse_bomb(path, file)
        file.seek(0)
        # force: the start has been checked already, and some files have no preamble.
        dataset = read_partial(file, stop, force=True, specific_tags=wanted)
        deflated = dataset.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
        at = None if deflated else file.tell()
        peeked = file.read(2)  # group of the element at which the parser stopped
        if "TransferSyntaxUID" not in dataset.file_meta:
            implicit, little = dataset.original_encoding
            dataset.file_meta.TransferSyntaxUID = (
                ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            )
    except PARSING_ERRORS as error:
        raise damaged_file_error(path, error) from error
    return DicomHeader(path, dataset, at, at is None or peeked[:2] in (b"\xe0\x7f", b"\x7f\xe0"))


def _at_pixels(tag: BaseTag, *_: object) -> bool:
    return tag in _PIXELS


def _behind_pixels(tag: BaseTag, *_: object) -> bool:
    return int(tag) > max(_PIXELS)


def _refuse_bomb(path: Path, file: BinaryIO) -> None:
    """Refuse a deflated data set (PS3.5 A.5) that inflates beyond the limit; it is inflated in parts and not kept."""
    file.seek(0)
    start = file.read(4096)
    if start[128:132] != b"DICM" or DeflatedExplicitVRLittleEndian.encode() not in start:
        return
    # The first element of group 2 is its length (PS3.10 table 7.1-1): explicit VR, 12 bytes in all.
    if start[132:138] != b"\x02\x00\x00\x00UL":
        raise VolumeError(f"{path}: a deflated DICOM file must state the length of its file meta information.")
    file.seek(144 + struct.unpack_from("<I", start, 140)[0])
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    total = 0
    while (chunk := file.read(2**14)) and not inflater.eof:
        total += len(inflater.decompress(chunk))
        if total > MAX_INFLATED_BYTES:
            raise VolumeError(f"{path}: the deflated data set grows beyond {MAX_INFLATED_BYTES} bytes.")


def damaged_file_error(path: Path, error: Exception) -> VolumeError:
    """Make the error for a file that pydicom could not parse."""
    return VolumeError(f"{path}: the DICOM file is damaged ({one_line(error)}).")


def one_line(error: Exception) -> str:
    """Return the first meaningful line of an error's message, without its full stop."""
    lines = str(error).strip().splitlines()
    if lines and lines[0].startswith("Unable to decode as exceptions"):  # the decoders' own messages follow
        lines = [line.partition(": ")[2] for line in lines[1:]] or lines
    return (lines[0].strip().rstrip(".:")[:200] if lines else "") or type(error).__name__


def value(dataset: pydicom.Dataset, keyword: str, path: Path) -> Any:
    """Return an attribute's value, or None if it is absent or empty.

    Raises:
        VolumeError: The value cannot be parsed.
    """
    try:
        found = dataset.get(keyword)
        return None if found is None or (hasattr(found, "__len__") and len(found) == 0) else found
    except PARSING_ERRORS as error:
        raise VolumeError(f"{path}: the DICOM attribute {keyword} is damaged ({one_line(error)}).") from error


def text(dataset: pydicom.Dataset, keyword: str, path: Path) -> str:
    """Return an attribute's value as text, "" if it is absent."""
    found = value(dataset, keyword, path)
    return "" if found is None else str(found).strip()


def is_undecodable(dataset: pydicom.Dataset, keyword: str) -> bool:
    """Return True if a text is not valid in the character set that the object declares (PS3.3 C.12.1.1.2).

    pydicom decodes such a text with replacement characters, or as Latin-1 where the object declares ASCII.
    """
    try:
        said = str(dataset.get(keyword) or "")
        declared = str(dataset.get("SpecificCharacterSet") or "") not in ("", "ISO_IR 6", "ISO 2022 IR 6")
    except PARSING_ERRORS:
        return True
    return "\ufffd" in said or (not declared and not said.isascii())


def numbers(dataset: pydicom.Dataset, keyword: str, path: Path) -> list[float] | None:
    """Return an attribute's values as numbers, or None if it is absent.

    Raises:
        VolumeError: A value is not a number.
    """
    found = value(dataset, keyword, path)
    if found is None:
        return None
    try:
        many = not isinstance(found, (str, bytes)) and hasattr(found, "__iter__")
        return [float(v) for v in found] if many else [float(found)]
    except PARSING_ERRORS as error:
        raise VolumeError(f"{path}: the DICOM attribute {keyword} is not a number ({one_line(error)}).") from error


def decimals(dataset: pydicom.Dataset | None, keyword: str, path: Path) -> list[int]:
    """Return the number of decimals with which each value of an attribute is written; empty if it is absent.

    The number is negative for values that are written as multiples of ten, such as 1E2.
    """
    found = None if dataset is None else value(dataset, keyword, path)
    if found is None:
        return []
    many = not isinstance(found, (str, bytes)) and hasattr(found, "__iter__")
    return [_decimals(getattr(v, "original_string", None) or repr(float(v))) for v in (found if many else [found])]


def _decimals(written: str) -> int:
    mantissa, _, exponent = written.strip().lower().partition("e")
    return len(mantissa.partition(".")[2]) - int(exponent or 0)


def items(dataset: pydicom.Dataset, keyword: str, path: Path) -> Sequence[pydicom.Dataset]:
    """Return the items of a sequence, none if it is absent. They are not copied: there may be thousands of them."""
    try:
        found = dataset.get(keyword)
        return found if isinstance(found, pydicom.Sequence) else []
    except PARSING_ERRORS as error:
        raise VolumeError(f"{path}: the DICOM attribute {keyword} is damaged ({one_line(error)}).") from error


def starts_like_dicom(start: bytes) -> bool:
    """Return True if a file that begins with these (132) bytes may be DICOM; see :func:`is_dicom`."""
    return start[128:132] == b"DICM" or _starts_with_an_element(start)


def _starts_with_an_element(start: bytes) -> bool:
    if len(start) < 8:
        return False
    for order in ("<", ">"):
        group, element = struct.unpack_from(f"{order}HH", start)
        if group not in (0x0002, 0x0008) or element > 0x2300:
            continue
        (length,) = struct.unpack_from(f"{order}I", start, 4)
        if start[4:6] in _VRS or (order == "<" and length <= 64):
            return True
    return False
