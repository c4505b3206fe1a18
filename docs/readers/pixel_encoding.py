"""Stored pixel values of generated objects, and their encoding by programs other than the product's.

DCMTK writes the native, RLE, JPEG lossless and JPEG-LS objects, imagecodecs (libjpeg-turbo, OpenJPEG, OpenJPH) the
frames of the others.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian

UnusedBits = Literal["clean", "zeroed", "garbage", "overlay"]
Tool = tuple[str, ...]

DCMTK: dict[str, tuple[str, Tool]] = {
    "explicit": ("1.2.840.10008.1.2.1", ()),
    "implicit": ("1.2.840.10008.1.2", ("dcmconv", "+ti")),
    "big_endian": ("1.2.840.10008.1.2.2", ("dcmconv", "+tb")),
    "deflated": ("1.2.840.10008.1.2.1.99", ("dcmconv", "+td")),
    "rle": ("1.2.840.10008.1.2.5", ("dcmcrle",)),
    "jpeg57": ("1.2.840.10008.1.2.4.57", ("dcmcjpeg", "+el", "+sv", "5")),
    "jpeg70": ("1.2.840.10008.1.2.4.70", ("dcmcjpeg", "+e1")),
    "jpegls80": ("1.2.840.10008.1.2.4.80", ("dcmcjpls", "+el")),
    "jpegls80_cooked": ("1.2.840.10008.1.2.4.80", ("dcmcjpls", "+el", "+pc")),
    "jpegls81": ("1.2.840.10008.1.2.4.81", ("dcmcjpls", "+en", "+md", "2")),
}
"""Name of a syntax: its UID, and the program that makes an object of it from an explicit little endian one."""

FRAME_SYNTAXES = {
    "jpeg50": "1.2.840.10008.1.2.4.50",
    "jpeg51": "1.2.840.10008.1.2.4.51",
    "jpegls80_wide": "1.2.840.10008.1.2.4.80",
    "j2k90": "1.2.840.10008.1.2.4.90",
    "j2k90_unsigned": "1.2.840.10008.1.2.4.90",
    "j2k91": "1.2.840.10008.1.2.4.91",
    "htj2k201": "1.2.840.10008.1.2.4.201",
    "htj2k202": "1.2.840.10008.1.2.4.202",
    "htj2k203": "1.2.840.10008.1.2.4.203",
}
"""Name of a syntax whose frames imagecodecs encodes, and its UID."""

SYNTAXES = (*DCMTK, *FRAME_SYNTAXES)
LOSSY = frozenset({"jpeg50", "jpeg51", "jpegls81", "j2k91", "htj2k203"})


@dataclass(frozen=True)
class Format:
    """How a pixel is stored (PS3.5 8.1.1): Bits Allocated, Bits Stored, Pixel Representation, and the bits above."""

    allocated: int
    stored: int
    signed: bool
    unused: UnusedBits = "clean"

    @property
    def name(self) -> str:
        """Such as ``16s12`` for 12 bits, signed, in 16."""
        return f"{self.allocated}{'s' if self.signed else 'u'}{self.stored}" + (
            "" if self.unused == "clean" else f"_{self.unused}"
        )

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest value."""
        return (-(2 ** (self.stored - 1)), 2 ** (self.stored - 1) - 1) if self.signed else (0, 2**self.stored - 1)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a cell of Bits Allocated."""
        return np.dtype(f"<{'i' if self.signed else 'u'}{self.allocated // 8}")

    def values(self, shape: tuple[int, int, int], rng: np.random.Generator, *, smooth: bool) -> NDArray[np.int64]:
        """Frames of values over the whole range; smooth ones for lossy encoders."""
        low, high = self.limits
        if smooth:
            z, y, x = np.indices(shape)
            wave = 0.5 + 0.45 * np.sin(x / 4 + z) * np.cos(y / 5)
            return np.asarray(np.rint(low + wave * (high - low)), dtype=np.int64)
        out = rng.integers(low, high, size=shape, endpoint=True, dtype=np.int64)
        out[:, 0, 0], out[:, -1, -1] = low, high
        return out

    def cells(self, values: NDArray[np.int64], rng: np.random.Generator) -> NDArray[Any]:
        """Values as cells of Bits Allocated, with something in the bits above Bits Stored."""
        unsigned = np.dtype(f"<u{self.allocated // 8}")
        mask = 2**self.stored - 1
        if self.unused == "clean":
            return values.astype(self.dtype)
        bits = (values & mask).astype(unsigned)
        if self.unused != "zeroed":
            above = rng.integers(0, 2 ** (self.allocated - self.stored), size=values.shape, dtype=np.uint64)
            if self.unused == "overlay":
                above &= np.uint64(1)
            bits |= (above << np.uint64(self.stored)).astype(unsigned)
        return np.asarray(bits.view(self.dtype))


def encode(dataset: pydicom.Dataset, cells: NDArray[Any], form: Format, syntax: str, path: Path) -> NDArray[Any] | None:
    """Write an object with its pixels (frames, rows, columns) in a transfer syntax.

    Returns:
        The values that a decoder gets if the syntax is lossy; None if it gets the cells.

    Raises:
        RuntimeError: the encoder does not take such pixels.
    """
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax in DCMTK:
        raw = cells.astype(cells.dtype.newbyteorder("<")).tobytes()
        dataset.PixelData = raw + b"\0" * (len(raw) % 2)
        dataset["PixelData"].VR = "OW" if form.allocated > 8 else "OB"
        dataset.save_as(path, enforce_file_format=True)
        return _converted(path, syntax, cells)
    frames = [_frame(frame, form, syntax) for frame in cells]
    dataset.file_meta.TransferSyntaxUID = UID(FRAME_SYNTAXES[syntax])
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path, enforce_file_format=True)
    if syntax not in LOSSY:
        return None
    decoders = {"jpeg50": imagecodecs.jpeg8_decode, "jpeg51": imagecodecs.jpeg8_decode}
    decoder = decoders.get(syntax, imagecodecs.jpeg2k_decode if syntax == "j2k91" else imagecodecs.htj2k_decode)
    return np.stack([np.asarray(decoder(frame)) for frame in frames])


def _converted(path: Path, syntax: str, cells: NDArray[Any]) -> NDArray[Any] | None:
    tool = DCMTK[syntax][1]
    if not tool:
        return None
    out = path.with_suffix(".tmp")
    done = subprocess.run([*tool, path, out], capture_output=True, text=True, check=False)
    if done.returncode or not out.exists():
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    out.replace(path)
    if syntax not in LOSSY and syntax != "jpegls80_cooked":
        return None
    # JPEG-LS near-lossless: what another decoder (CharLS in imagecodecs) gets.
    dataset = pydicom.dcmread(path)
    count = int(dataset.get("NumberOfFrames", 1))
    frames = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=count)
    try:
        decoded = np.stack([np.asarray(imagecodecs.jpegls_decode(frame)) for frame in frames])
    except imagecodecs.JpeglsError as error:
        raise RuntimeError(f"DCMTK 3.6.7 wrote a damaged stream: {error}") from error
    if syntax not in LOSSY:
        mask = 2 ** int(dataset.BitsStored) - 1
        if ((decoded.astype(np.int64) ^ cells.astype(np.int64)) & mask).any():
            raise RuntimeError("DCMTK 3.6.7 wrote a damaged stream.")
        return None
    return decoded.astype(np.uint16).view(cells.dtype) if cells.dtype.itemsize == 2 else decoded.view(cells.dtype)


def _frame(cells: NDArray[Any], form: Format, syntax: str) -> bytes:
    unsigned = cells.view(np.dtype(f"<u{cells.dtype.itemsize}"))
    try:
        if syntax in ("jpeg50", "jpeg51"):
            return bytes(imagecodecs.jpeg8_encode(cells, level=95, bitspersample=form.stored))
        if syntax == "jpegls80_wide":
            return bytes(imagecodecs.jpegls_encode(np.ascontiguousarray(unsigned)))
        if syntax.startswith("j2k"):
            data = unsigned if syntax == "j2k90_unsigned" else cells
            bits = form.allocated if syntax == "j2k90_unsigned" else form.stored
            lossy = {"level": 60} if syntax in LOSSY else {"level": 0, "reversible": True}
            return bytes(imagecodecs.jpeg2k_encode(data, codecformat="j2k", bitspersample=bits, resolutions=2, **lossy))
        return bytes(imagecodecs.htj2k_encode(cells, **_HTJ2K[syntax]))
    except (imagecodecs.DelayedImportError, RuntimeError, ValueError, TypeError) as error:
        raise RuntimeError(str(error)) from error


_HTJ2K: dict[str, dict[str, Any]] = {
    "htj2k201": {"reversible": True},
    "htj2k202": {"reversible": True, "tlm": True},  # OpenJPH's progression is RPCL, and PS3.5 A.4.4 asks for TLM
    "htj2k203": {"reversible": False},
}
