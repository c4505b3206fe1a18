"""One DICOM file, read without trusting it.

pydicom parses lazily and raises many kinds of errors on damaged files, at once or when a value is first looked at. All
of them become :class:`VolumeError` here.
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

# pydicom warns of values that break a rule of their type, and quotes them: a patient's name would get into the log.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

MAX_INFLATED_BYTES = 2**30
"""A deflated data set may grow to 1 GiB; a slice is a thousandth of that."""

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
"""What pydicom and its decoders were seen to raise on damaged files."""

_Stop = Callable[[BaseTag, str | None, int], bool]
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)  # Float, Double Float and integer Pixel Data (PS3.3 C.7.6.3)
_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)


def is_dicom(path: Path) -> bool:
    """Whether the file starts like DICOM: "DICM" behind a preamble, or at once with a data element of group 2 or 8.

    Files without the preamble (PS3.10 section 7.1 asks for it) are in circulation; one is taken for DICOM only if its
    first element is in a group that must come first and has a plausible value representation or length.
    """
    try:
        with path.open("rb") as file:
            return starts_like_dicom(file.read(132))
    except OSError:
        return False


@dataclass(frozen=True, eq=False)
class DicomHeader:
    """What stands in a DICOM file in front of its pixel data, parsed once.

    Attributes:
        path: the file.
        dataset: the attributes, without pixel data.
        pixels_at: the byte at which the pixel data element begins, or would; None where the data set is deflated.
        has_pixels: True if there are pixel data, and for a deflated data set, of which it is not known.
    """

    path: Path
    dataset: pydicom.Dataset
    pixels_at: int | None
    has_pixels: bool

    def with_pixels(self) -> pydicom.Dataset:
        """The attributes together with the pixel data, which alone are read.

        Raises:
            VolumeError: the file is damaged behind its header, or gone.
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
        VolumeError: damaged, or a deflated data set that grows beyond all reason.
    """
    try:
        with path.open("rb") as file:
            if not starts_like_dicom(file.read(132)):
                return None
            return _header(path, file, None, _at_pixels)
    except OSError as error:
        raise damaged_file_error(path, error) from error


def require_header(path: Path) -> DicomHeader:
    """As :func:`read_header`, of a file that was DICOM when it was looked at.

    Raises:
        VolumeError: damaged, or DICOM no more.
    """
    header = read_header(path)
    if header is None:
        raise VolumeError(f"{path}: not a DICOM file.")
    return header


def read_dicom(path: Path, *, pixels: bool, tags: list[str] | None = None, last: int | None = None) -> pydicom.Dataset:
    """Read a file's attributes, with or without its pixel data.

    Args:
        path: the file.
        pixels: whether to read the pixel data too.
        tags: keywords of the only attributes wanted; None for all.
        last: the tag behind which nothing is read, such as 0x00201208; None for the end.

    Raises:
        VolumeError: not DICOM, damaged, or a deflated data set that grows beyond all reason.
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
        # force: the start has been looked at already, and some files have no preamble.
        dataset = read_partial(file, stop, force=True, specific_tags=wanted)
        deflated = dataset.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
        at = None if deflated else file.tell()
        peeked = file.read(2)  # the group of the element that the parser stopped at
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
    """Inflate a deflated data set (PS3.5 A.5) piece by piece, keeping nothing, to learn how large it gets."""
    file.seek(0)
    start = file.read(4096)
    if start[128:132] != b"DICM" or DeflatedExplicitVRLittleEndian.encode() not in start:
        return
    # The first element of group 2 is its length (PS3.10 table 7.1-1): explicit VR, 12 bytes in all.
    if start[132:138] != b"\x02\x00\x00\x00UL":
        raise VolumeError(f"{path}: a deflated DICOM file must say how long its file meta information is.")
    file.seek(144 + struct.unpack_from("<I", start, 140)[0])
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    total = 0
    while (chunk := file.read(2**14)) and not inflater.eof:
        total += len(inflater.decompress(chunk))
        if total > MAX_INFLATED_BYTES:
            raise VolumeError(f"{path}: the deflated data set grows beyond {MAX_INFLATED_BYTES} bytes.")


def damaged_file_error(path: Path, error: Exception) -> VolumeError:
    """The sentence for a file that pydicom could not parse."""
    return VolumeError(f"{path}: the DICOM file is damaged ({one_line(error)}).")


def one_line(error: Exception) -> str:
    """The first line of an error's message that says something, without its full stop."""
    lines = str(error).strip().splitlines()
    if lines and lines[0].startswith("Unable to decode as exceptions"):  # pydicom: the decoders' own words follow
        lines = [line.partition(": ")[2] for line in lines[1:]] or lines
    return (lines[0].strip().rstrip(".:")[:200] if lines else "") or type(error).__name__


def value(dataset: pydicom.Dataset, keyword: str, path: Path) -> Any:
    """An attribute's value, or None where it is absent or empty.

    Raises:
        VolumeError: the value cannot be parsed.
    """
    try:
        found = dataset.get(keyword)
        return None if found is None or (hasattr(found, "__len__") and len(found) == 0) else found
    except PARSING_ERRORS as error:
        raise VolumeError(f"{path}: the DICOM attribute {keyword} is damaged ({one_line(error)}).") from error


def text(dataset: pydicom.Dataset, keyword: str, path: Path) -> str:
    """An attribute's value as text, "" where it is absent."""
    found = value(dataset, keyword, path)
    return "" if found is None else str(found).strip()


def is_undecodable(dataset: pydicom.Dataset, keyword: str) -> bool:
    """Whether the bytes of a text are none of the character set that the object declares (PS3.3 C.12.1.1.2).

    pydicom reads them all the same, with replacement characters, or as Latin-1 where the object declares ASCII.
    """
    try:
        said = str(dataset.get(keyword) or "")
        declared = str(dataset.get("SpecificCharacterSet") or "") not in ("", "ISO_IR 6", "ISO 2022 IR 6")
    except PARSING_ERRORS:
        return True
    return "\ufffd" in said or (not declared and not said.isascii())


def numbers(dataset: pydicom.Dataset, keyword: str, path: Path) -> list[float] | None:
    """An attribute's values as numbers, or None where it is absent.

    Raises:
        VolumeError: a value is no number.
    """
    found = value(dataset, keyword, path)
    if found is None:
        return None
    try:
        many = not isinstance(found, (str, bytes)) and hasattr(found, "__iter__")
        return [float(v) for v in found] if many else [float(found)]
    except PARSING_ERRORS as error:
        raise VolumeError(f"{path}: the DICOM attribute {keyword} holds no numbers ({one_line(error)}).") from error


def decimals(dataset: pydicom.Dataset | None, keyword: str, path: Path) -> list[int]:
    """Digits behind the decimal point of an attribute's values as they are written; none where it is absent.

    Negative for values that are written as multiples of ten, such as 1E2.
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
    """The items of a sequence, none where it is absent. They are not copied: there may be thousands of them."""
    try:
        found = dataset.get(keyword)
        return found if isinstance(found, pydicom.Sequence) else []
    except PARSING_ERRORS as error:
        raise VolumeError(f"{path}: the DICOM attribute {keyword} is damaged ({one_line(error)}).") from error


def starts_like_dicom(start: bytes) -> bool:
    """Whether a file that begins with these (132) bytes may be DICOM; see :func:`is_dicom`."""
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
