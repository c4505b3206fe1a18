"""Parses the header of a compressed frame before a decoder receives it.

Decoders take the size of the output image from the DICOM header, and the pixels to write from the stream. Where the two
contradict each other, pixels are scrambled without an error, or the process crashes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pydicom.uid import (
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLETransferSyntaxes,
)

_HTJ2K = ("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203")
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xDA)}  # TEM, RSTn, SOI, EOI (ISO/IEC 10918-1 table B.1)
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}  # SOFn, and JPEG-LS


@dataclass(frozen=True)
class CodestreamHeader:
    """The size of a compressed frame.

    Attributes:
        rows, columns: Size in pixels.
        components: Number of values per pixel; 1 for grey values.
        precision: Bits per value.
    """

    rows: int
    columns: int
    components: int
    precision: int


def parse_codestream_header(frame: bytes, syntax: str) -> CodestreamHeader | None:
    """Read the header of a compressed frame; None for a transfer syntax whose frames have no header (RLE).

    Raises:
        ValueError: The frame does not belong to this transfer syntax.
    """
    try:
        if syntax in JPEG2000TransferSyntaxes or syntax in _HTJ2K:
            return _jpeg_2000(frame)
        if syntax in JPEGTransferSyntaxes or syntax in JPEGLSTransferSyntaxes:
            return _jpeg(frame)
    except (struct.error, IndexError):
        raise ValueError("the compressed frame ends within its header") from None
    if syntax in RLETransferSyntaxes:
        return None
    raise ValueError("the transfer syntax is not supported")


def _jpeg_2000(frame: bytes) -> CodestreamHeader:
    """Parse SIZ (ISO/IEC 15444-1 A.5.1) after SOC; some writers put the boxes of a .jp2 file around the stream."""
    start = frame.find(b"\xff\x4f\xff\x51")
    if start < 0:
        raise ValueError("the compressed frame is not a JPEG 2000 codestream")
    width, height, left, top = struct.unpack_from(">4I", frame, start + 8)
    components = struct.unpack_from(">H", frame, start + 40)[0]
    return CodestreamHeader(height - top, width - left, components, (frame[start + 42] & 0x7F) + 1)


def _jpeg(frame: bytes) -> CodestreamHeader:
    """Parse the first SOFn (ISO/IEC 10918-1 B.2.2) or JPEG-LS SOF55 (ISO/IEC 14495-1 C.2.2) in the stream."""
    if frame[:2] != b"\xff\xd8":
        raise ValueError("the compressed frame is not a JPEG stream")
    at = 2
    while True:
        if frame[at] != 0xFF:
            raise ValueError("the compressed frame is damaged: a JPEG marker is missing")
        marker = frame[at + 1]
        if marker == 0xFF or marker in _WITHOUT_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in _FRAMES:
            precision, rows, columns, components = struct.unpack_from(">BHHB", frame, at + 4)
            return CodestreamHeader(rows, columns, components, precision)
        at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
