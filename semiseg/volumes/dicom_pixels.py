"""Decodes the pixel values of DICOM slices and rescales them.

A stored value is the lowest Bits Stored bits of its container (PS3.5 section 8.1.1). The other bits of the container do
not belong to it: they may hold overlays of old objects, an extended sign, or the excess of a codec that works in whole
bytes.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels.processing import apply_modality_lut
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRBigEndian

from semiseg.errors import VolumeError
from semiseg.system.processors import usable_processors
from semiseg.volumes.dicom_decoding import DecoderPool
from semiseg.volumes.dicom_file import PARSING_ERRORS, one_line, text
from semiseg.volumes.dicom_slices import Slice

MAX_BITS = 30
"""Maximum number of bits of a value; larger values would not fit 32 bits after rescaling."""
_PACKAGES = {
    "gdcm": ("python-gdcm", "gdcm"),
    "pyjpegls": ("pyjpegls", "jpeg_ls"),
    "pylibjpeg-libjpeg": ("pylibjpeg-libjpeg", "libjpeg"),
    "pylibjpeg-openjpeg": ("pylibjpeg-openjpeg", "openjpeg"),
    "pylibjpeg-rle": ("pylibjpeg-rle", "rle"),
    "pillow": ("pillow", "PIL"),
}
"""Distribution and import name of each decoding package, by the name that pydicom uses."""
_AT_ONCE = 16  # frames of one object that a thread decodes as one task


@dataclass(frozen=True, eq=False)
class DecodedFrames:
    """Stored values of frames of one object.

    Attributes:
        frames: Stored values of each frame (rows, columns), int or uint.
        excess_bits: Number of pixels with bits set above Bits Stored that neither a sign, an overlay nor padding
            explains.
    """

    frames: list[NDArray[Any]]
    excess_bits: int


@dataclass(frozen=True)
class _Bits:
    """Position of a stored value in its container (PS3.3 C.7.6.3.1)."""

    stored: int
    signed: bool
    overlaid: bool
    padding: int | None

    @classmethod
    def from_dataset(cls, dataset: pydicom.Dataset) -> _Bits:
        allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
        high = dataset.get("HighBit")
        if not 0 < stored <= allocated or (high is not None and int(high) != stored - 1):
            raise ValueError(
                f"Bits Allocated {allocated}, Bits Stored {stored} and High Bit {high} contradict each other"
            )
        if allocated > 16 and dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian:
            raise ValueError(f"the order of the halves of {allocated}-bit values in big endian is ambiguous")
        overlays = [tag for tag in map(Tag, dataset.keys()) if tag.group & 0xFF01 == 0x6000 and tag.element == 0x0102]
        padding = dataset.get("PixelPaddingValue")
        return cls(
            stored=stored,
            signed=bool(dataset.get("PixelRepresentation")),
            overlaid=any(int(dataset[tag].value or 0) > 0 for tag in overlays),  # Overlay Bit Position
            padding=padding if isinstance(padding, int) else None,
        )

    def values(self, raw: NDArray[Any]) -> tuple[NDArray[Any], int]:
        """Return the stored values in containers ``raw``, and the number of containers with other bits set."""
        width = 8 * raw.dtype.itemsize
        if width < self.stored:
            raise ValueError(f"containers of {width} bits cannot hold Bits Stored {self.stored}")
        container = raw.view(f"{'i' if self.signed else 'u'}{raw.dtype.itemsize}")
        shift = width - self.stored
        if not shift:
            return container, 0
        values = (container << shift) >> shift
        excess = container != values
        if not excess.any():
            return values, 0
        if self.padding is not None:
            # A padding value that Bits Stored cannot hold, such as -2000 with 12 bits, becomes the lowest value.
            padded = excess & (raw.view(f"u{raw.dtype.itemsize}") == self.padding % 2**width)
            values[padded] = -(2 ** (self.stored - 1)) if self.signed else 0
            excess &= ~padded
        # The bits above a signed value may be zero instead of extending its sign.
        return values, 0 if self.overlaid or self.signed else int(excess.sum())


def decode_stored_values(
    slices: Sequence[Slice], dataset: pydicom.Dataset | None = None, decoders: DecoderPool | None = None
) -> DecodedFrames:
    """Decode slices of one object, without rescaling.

    Args:
        slices: Slices of the object.
        dataset: The object with its pixel data, if it was read already.
        decoders: Decoders of the series; by default a pool for this object alone.

    Raises:
        VolumeError: The pixel data cannot be decoded, or are not grey values of the declared size.
    """
    first = slices[0]
    path, size = first.path, (first.plane.rows, first.plane.columns)
    if decoders is None:
        with DecoderPool(size[0] * size[1] * len(slices)) as decoders:
            return decode_stored_values(slices, dataset, decoders)
    dataset = first.source.with_pixels() if dataset is None else dataset
    syntax = UID(text(dataset.file_meta, "TransferSyntaxUID", path))
    compressed = syntax.is_transfer_syntax and syntax.is_compressed
    frames: list[NDArray[Any]] = []
    excess_bits = 0
    try:
        if not dataset.get("PixelData"):
            raise ValueError("there are no integer pixel data")
        bits = _Bits.from_dataset(dataset)
        looked_up = bool(dataset.get("ModalityLUTSequence"))
        if looked_up and (first.slope, first.intercept) != (1.0, 0.0):
            raise ValueError(
                "there are both a Modality LUT and a rescale slope or intercept; PS3.3 C.11.1 allows only one of them"
            )
        for raw in decoders.decode(dataset, [one.frame or 0 for one in slices]):
            if raw.shape != size or raw.dtype.kind not in "iu":
                raise VolumeError(f"{path}: pixel data of shape {raw.shape} ({raw.dtype}) are not grey-value slices.")
            values, excess = bits.values(raw)
            excess_bits += excess
            if looked_up:
                values = np.asarray(apply_modality_lut(values, dataset))
            frames.append(values)
        if len(frames) != len(slices):
            raise ValueError(f"there are {len(frames)} frames where {len(slices)} are expected")
    except PARSING_ERRORS as error:
        what = f"pixel data compressed as {syntax.name}" if compressed else "pixel data"
        raise VolumeError(f"{path}: the {what} cannot be decoded ({one_line(error)}{_missing(error)}).") from error
    return DecodedFrames(frames, excess_bits)


def decode_slices(slices: Sequence[Slice]) -> tuple[NDArray[Any], int]:
    """Decode and rescale slices into one array (columns, rows, slices), on all processors.

    Returns:
        The values, as integers if all slopes are 1 and all intercepts are integers, else as float32; and the number of
        pixels with unexplained bits (:attr:`DecodedFrames.excess_bits`).

    Raises:
        VolumeError: See :func:`decode_stored_values`.
    """
    plane = slices[0].plane
    whole = all(one.rescales_to_integers for one in slices)
    array = np.empty((plane.columns, plane.rows, len(slices)), dtype=np.int32 if whole else np.float32, order="F")
    objects: dict[Path, list[int]] = {}
    for z, one in enumerate(slices):
        objects.setdefault(one.path, []).append(z)

    def fill(members: list[int], dataset: pydicom.Dataset | None = None) -> int:
        stored = decode_stored_values([slices[z] for z in members], dataset, decoders)
        for z, values in zip(members, stored.frames, strict=True):
            array[:, :, z] = apply_rescale(slices[z], values).T
        return stored.excess_bits

    with DecoderPool(array.size) as decoders, ThreadPoolExecutor(usable_processors()) as threads:
        small = [members for members in objects.values() if len(members) <= _AT_ONCE]
        excess_bits = sum(threads.map(fill, small))
        for members in objects.values():
            if len(members) > _AT_ONCE:  # an object with many frames is read once and shared between tasks
                members.sort(key=lambda z: slices[z].frame or 0)
                dataset = slices[members[0]].source.with_pixels()
                parts = [members[k : k + _AT_ONCE] for k in range(0, len(members), _AT_ONCE)]
                excess_bits += sum(threads.map(fill, parts, repeat(dataset)))
    if whole and array.min() >= -(2**15) and array.max() < 2**15:
        array = array.astype(np.int16)
    return array, excess_bits


def apply_rescale(one: Slice, stored: NDArray[Any]) -> NDArray[Any]:
    """Apply Rescale Slope and Intercept to stored values (rows, columns) (PS3.3 C.11.1)."""
    if not one.rescales_to_integers:
        return np.asarray(stored * one.slope + one.intercept)
    if stored.dtype.itemsize > 2 and (stored.min() < -(2**MAX_BITS) or stored.max() > 2**MAX_BITS):
        raise VolumeError(f"{one.path}: pixel values of more than {MAX_BITS} bits are not supported.")
    return stored.astype(np.int32) + int(one.intercept)


def _missing(error: Exception) -> str:
    """Name the packages of which pydicom needs one to decode the pixels; "" if one is installed."""
    lines = [line.strip().partition(" - requires ")[2] for line in str(error).splitlines()]
    needed = [re.findall(r"[A-Za-z][\w-]*(?=>=)", line) for line in lines if line]
    choices = [" and ".join(_PACKAGES.get(n, (n,))[0] for n in names if not _installed(n)) for names in needed]
    return f"; install one of {', '.join(choices)}" if any(choices) else ""


def _installed(name: str) -> bool:
    try:
        importlib.import_module(_PACKAGES.get(name, (name, name))[1])
    except ImportError:
        return False
    return True
