"""Pixel data to raw frames, with decoders that are kept in processes of their own.

GDCM ends the process that it runs in when a stream is damaged in ways that it did not foresee, and a server must not
end with one upload. Other decoders hold Python's lock while they work, so that threads do not make them faster. So GDCM
always works in another process, the others do where there is much to decode, and RLE does because pydicom only warns of
frames that hold more than they should, which a process of its own can make an error.
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
"""Compressed pixels from which further processes take less time than starting them: 32 frames of 512 x 512."""
_PLUGINS = ("pylibjpeg", "pyjpegls", "pydicom", "pillow", "gdcm")
"""pydicom's names of decoders, in the order in which one is taken. The last is asked only where no other is there."""
_PIXEL_MODULE = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns", "NumberOfFrames",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)  # fmt: skip
"""What a decoder needs of an object (PS3.3 C.7.6.3)."""


class DecoderError(ValueError):
    """A decoder could not decode, or ended."""


class DecoderPool:
    """Decoders for one series; processes are started when they are needed, and end with the context.

    Args:
        pixels: number of pixels to decode in all.
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
        """Frames of an object in containers as large as Bits Allocated or as the codec's, with nothing masked.

        Args:
            dataset: the object with its pixel data.
            indices: numbers of the frames, from 0.

        Raises:
            Exception: what pydicom and its decoders raise; see :data:`semiseg.volumes.dicom_file.PARSING_ERRORS`.
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
    # raw: no colours. The rest is what pydicom would correct, and corrects for some transfer syntaxes only.
    options: dict[str, Any] = {"raw": True, "correct_unused_bits": False}
    if syntax in JPEG2000TransferSyntaxes:
        options["apply_j2k_sign_correction"] = False
    elif syntax in JPEGLSTransferSyntaxes:
        options["apply_jls_sign_correction"] = False
    if plugin := _plugin(syntax):
        # One decoder, and no other one when it fails: the next might end the process.
        options["decoding_plugin"] = plugin
    if not _all_of(dataset, indices):
        options["indices"] = list(indices)
    frames = [frame for frame, _ in get_decoder(syntax).iter_array(dataset, **options)]
    return [frame if frame.dtype.isnative else frame.astype(frame.dtype.newbyteorder("=")) for frame in frames]


def check_frame_size(dataset: pydicom.Dataset, syntax: UID, indices: Sequence[int]) -> None:
    """Refuse compressed frames that say another size of themselves than the object does (PS3.5 section 8.2).

    Raises:
        DecoderError: they contradict each other.
    """
    said = int(dataset.Rows), int(dataset.Columns), int(dataset.get("SamplesPerPixel") or 1)
    for frame in _compressed(dataset, indices):
        found = parse_codestream_header(frame, str(syntax))
        if found is None:
            continue
        if (found.rows, found.columns, found.components) != said:
            raise DecoderError(
                f"the compressed image is of {found.rows} rows, {found.columns} columns and {found.components} "
                f"component(s), and the header says {said[0]}, {said[1]} and {said[2]}"
            )
        if found.precision > int(dataset.BitsAllocated):
            raise DecoderError(
                f"the compressed image is of {found.precision} bits, and Bits Allocated is {dataset.BitsAllocated}"
            )


def _compressed(dataset: pydicom.Dataset, indices: Sequence[int]) -> list[bytes]:
    count = int(dataset.get("NumberOfFrames") or 1)
    if _all_of(dataset, indices):
        # In their order frames are found one behind the other, without a search for each.
        frames = list(generate_frames(dataset.PixelData, number_of_frames=count))
        if len(frames) < count:
            raise DecoderError(f"there are {len(frames)} compressed frames of {count}")
        return frames[:count]
    return [get_frame(dataset.PixelData, index, number_of_frames=count) for index in indices]


def _all_of(dataset: pydicom.Dataset, indices: Sequence[int]) -> bool:
    return list(indices) == list(range(int(dataset.get("NumberOfFrames") or 1)))


def _plugin(syntax: UID) -> str | None:
    """The decoder that is taken for a transfer syntax; None where pydicom has to say what is missing."""
    if syntax == JPEGExtended12Bit:
        return "gdcm"
    there = get_decoder(syntax).available_plugins
    # pydicom's own decoder of RLE refuses what is damaged; the faster one panics, which is no exception to catch.
    order = ("pydicom", *_PLUGINS) if syntax in RLETransferSyntaxes else _PLUGINS
    return next((name for name in order if name in there), None)


def _extended(dataset: pydicom.Dataset, frame: bytes) -> NDArray[Any]:
    """A frame of 12-bit JPEG Extended (process 4), which GDCM decodes although pydicom does not let it."""
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
    """A Python that decodes what it is sent, one object at a time; started with the first, and again if it ended."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def ask(self, task: tuple[pydicom.Dataset, str, list[int]]) -> list[NDArray[Any]]:
        if self._child is None or self._child.poll() is not None:
            # Not multiprocessing: it would run a user's script a second time.
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
            raise DecoderError(f"the decoder ended with {code}, and the pixel data are damaged")
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
    """Write an object with its length before it."""
    data = pickle.dumps(what, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(struct.pack("<Q", len(data)))
    pipe.write(data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    """Read what :func:`send` wrote; None where the other side ended. For processes of our own: it is unpickled."""
    head = pipe.read(8)
    if len(head) < 8:
        return None
    (length,) = struct.unpack("<Q", head)
    data = pipe.read(length)
    return pickle.loads(data) if len(data) == length else None
