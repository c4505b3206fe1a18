"""Decodes pixel data into raw frames, where needed in separate processes.

Some damaged streams make GDCM crash its process, and one upload must not crash a server: GDCM always runs in a separate
process. The other decoders hold Python's global lock while they work, so threads do not make them faster: they run in
separate processes where there is much to decode. RLE always runs in a separate process, because pydicom only warns of
frames that hold more data than they should, and a separate process can turn this warning into an error.
"""

from __future__ import annotations

import contextlib
import pickle
import queue
import struct
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import generate_frames, get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGExtended12Bit, JPEGLSTransferSyntaxes, RLETransferSyntaxes

from semiseg.system.processors import usable_processors
from semiseg.volumes.dicom_codestream import parse_codestream_header

SUBPROCESS_MIN_PIXELS = 2**23
"""Number of compressed pixels above which further processes save more time than they take to start: 32 frames of
512 x 512."""
_PLUGINS = ("pylibjpeg", "pyjpegls", "pydicom", "pillow", "gdcm")
"""pydicom's names of the decoders in order of preference. The last is used only if no other is installed."""
_PIXEL_MODULE = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns", "NumberOfFrames",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)  # fmt: skip
"""Attributes of an object that a decoder needs (PS3.3 C.7.6.3)."""


class DecoderError(ValueError):
    """A decoder could not decode a frame, or its process ended."""


class DecoderPool:
    """Decoders for one series; processes are started when they are needed and stopped when the context ends.

    Args:
        pixels: Total number of pixels to decode.
    """

    def __init__(self, pixels: int) -> None:
        self._most = usable_processors() if pixels >= SUBPROCESS_MIN_PIXELS else 1
        self._pixels = pixels
        self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
        self._all: list[_Process] = []
        for _ in range(self._most):
            process = _Process()
            self._all.append(process)
            self._idle.put(process)

    def __enter__(self) -> DecoderPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self._all:
            process.stop()

    def decode(self, dataset: pydicom.Dataset, indices: Sequence[int]) -> list[NDArray[Any]]:
        """Decode frames of an object into containers as large as Bits Allocated or the codec's own, without masking.

        Args:
            dataset: The object with its pixel data.
            indices: Numbers of the frames, from 0.

        Raises:
            Exception: Any error that pydicom and its decoders raise; see
                :data:`semiseg.volumes.dicom_file.PARSING_ERRORS`.
        """
        syntax = UID(str(dataset.file_meta.TransferSyntaxUID))
        if not syntax.is_transfer_syntax or not syntax.is_compressed:
            return decode_frames(dataset, syntax, indices)
        check_frame_size(dataset, syntax, indices)
        always = _plugin(syntax) == "gdcm" or syntax in RLETransferSyntaxes
        if not always and self._pixels < SUBPROCESS_MIN_PIXELS:
            return decode_frames(dataset, syntax, indices)
        needed = pydicom.Dataset()
        for keyword in _PIXEL_MODULE:
            if keyword in dataset:
                needed[keyword] = dataset[keyword]
        process = self._idle.get()
        try:
            return process.ask((needed, str(syntax), list(indices)))
        finally:
            self._idle.put(process)


def decode_frames(dataset: pydicom.Dataset, syntax: UID, indices: Sequence[int]) -> list[NDArray[Any]]:
    """Decode frames in this process; see :meth:`DecoderPool.decode`."""
    if syntax == JPEGExtended12Bit and int(dataset.BitsStored) > 8:
        return [_extended(dataset, frame) for frame in _compressed(dataset, indices)]
    # raw: no colour conversion. The other options turn off corrections that pydicom makes for some syntaxes only.
    options: dict[str, Any] = {"raw": True, "correct_unused_bits": False}
    if syntax in JPEG2000TransferSyntaxes:
        options["apply_j2k_sign_correction"] = False
    elif syntax in JPEGLSTransferSyntaxes:
        options["apply_jls_sign_correction"] = False
    if plugin := _plugin(syntax):
        # No other decoder is tried when this one fails: the next one might crash the process.
        options["decoding_plugin"] = plugin
    if not _all_of(dataset, indices):
        options["indices"] = list(indices)
    frames = [frame for frame, _ in get_decoder(syntax).iter_array(dataset, **options)]
    return [frame if frame.dtype.isnative else frame.astype(frame.dtype.newbyteorder("=")) for frame in frames]


def check_frame_size(dataset: pydicom.Dataset, syntax: UID, indices: Sequence[int]) -> None:
    """Refuse compressed frames whose own header gives another size than the object (PS3.5 section 8.2).

    Raises:
        DecoderError: The sizes contradict each other.
    """
    said = int(dataset.Rows), int(dataset.Columns), int(dataset.get("SamplesPerPixel") or 1)
    for frame in _compressed(dataset, indices):
        found = parse_codestream_header(frame, str(syntax))
        if found is None:
            continue
        if (found.rows, found.columns, found.components) != said:
            raise DecoderError(
                f"the compressed image has {found.rows} rows, {found.columns} columns and {found.components} "
                f"component(s), but the header gives {said[0]}, {said[1]} and {said[2]}"
            )
        if found.precision > int(dataset.BitsAllocated):
            raise DecoderError(
                f"the compressed image has {found.precision} bits, but Bits Allocated is {dataset.BitsAllocated}"
            )


def _compressed(dataset: pydicom.Dataset, indices: Sequence[int]) -> list[bytes]:
    count = int(dataset.get("NumberOfFrames") or 1)
    if _all_of(dataset, indices):
        # All frames are read in one pass; get_frame would search the data anew for each.
        frames = list(generate_frames(dataset.PixelData, number_of_frames=count))
        if len(frames) < count:
            raise DecoderError(f"there are only {len(frames)} of {count} compressed frames")
        return frames[:count]
    return [get_frame(dataset.PixelData, index, number_of_frames=count) for index in indices]


def _all_of(dataset: pydicom.Dataset, indices: Sequence[int]) -> bool:
    return list(indices) == list(range(int(dataset.get("NumberOfFrames") or 1)))


def _plugin(syntax: UID) -> str | None:
    """Return the decoder for a transfer syntax; None if none is installed, so that pydicom names what is missing."""
    if syntax == JPEGExtended12Bit:
        return "gdcm"
    there = get_decoder(syntax).available_plugins
    # pydicom's own RLE decoder refuses damaged data; the faster one panics, which cannot be caught as an exception.
    order = ("pydicom", *_PLUGINS) if syntax in RLETransferSyntaxes else _PLUGINS
    return next((name for name in order if name in there), None)


def _extended(dataset: pydicom.Dataset, frame: bytes) -> NDArray[Any]:
    """Decode a frame of 12-bit JPEG Extended (process 4), which GDCM supports but pydicom does not pass to it."""
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((int(dataset.Columns), int(dataset.Rows), 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    stored, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, stored, stored - 1, signed))
    data = image.GetBuffer().encode("utf-8", "surrogateescape")  # SWIG hands out bytes as text
    return np.frombuffer(data, dtype=f"<{'i' if signed else 'u'}2").reshape(int(dataset.Rows), int(dataset.Columns))


class _Process:
    """A Python process that decodes one object at a time; started for the first one, and again if it ended."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def ask(self, task: tuple[pydicom.Dataset, str, list[int]]) -> list[NDArray[Any]]:
        if self._child is None or self._child.poll() is not None:
            # multiprocessing would run the user's script a second time.
            self._child = subprocess.Popen(
                [sys.executable, "-m", "semiseg.volumes.decoder_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            send(self._child.stdin, task)
            answer = receive(self._child.stdout)
        except OSError:
            answer = None
        if answer is None:
            self._child.kill()
            code = self._child.wait()
            raise DecoderError(f"the decoder process ended with exit code {code}; the pixel data are damaged")
        if isinstance(answer, str):
            raise DecoderError(answer)
        frames: list[NDArray[Any]] = answer
        return frames

    def stop(self) -> None:
        if self._child is not None:
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._child.kill()
            self._child.wait()


def send(pipe: IO[bytes], what: Any) -> None:
    """Write an object, preceded by its length."""
    data = pickle.dumps(what, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(struct.pack("<Q", len(data)))
    pipe.write(data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    """Read an object that :func:`send` wrote; None if the other process ended.

    The object is unpickled, so the other process must be trusted.
    """
    head = pipe.read(8)
    if len(head) < 8:
        return None
    (length,) = struct.unpack("<Q", head)
    data = pipe.read(length)
    return pickle.loads(data) if len(data) == length else None
