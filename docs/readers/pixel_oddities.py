"""Generated series that are odd in how their pixels are stored or what they are to mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import UID, HTJ2KLossless, JPEG2000Lossless, JPEGExtended12Bit, JPEGLosslessSV1, JPEGLSLossless

from docs.readers.generated_series import COLUMNS, ROWS, SLICES, GroundTruth, write_series
from docs.readers.header_oddities import (
    S12,
    U12,
    Change,
    Oddity,
    add_oddity,
    files_of,
    plain_case,
    sequence_item,
    write_changed,
)
from docs.readers.pixel_encoding import Format

PIXEL_ODDITIES: list[Oddity] = []


def stored_values(dataset: Dataset) -> NDArray[Any]:
    """The cells (frames, rows, columns) of a native object."""
    dtype = np.dtype(f"<u{dataset.BitsAllocated // 8}")
    count = int(dataset.get("NumberOfFrames", 1)) * ROWS * COLUMNS
    return np.frombuffer(dataset.PixelData, dtype, count).reshape(-1, ROWS, COLUMNS)


def store_native(dataset: Dataset, cells: NDArray[Any]) -> None:
    """Put native cells into an object."""
    raw = cells.tobytes()
    dataset.PixelData = raw + b"\0" * (len(raw) % 2)


def store_compressed(dataset: Dataset, syntax: UID, frames: list[bytes], **options: Any) -> None:
    """Put compressed frames into an object."""
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate(frames, **options)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True


def encode_jpeg2000(cells: NDArray[Any], bits: int = 12) -> bytes:
    """A lossless JPEG 2000 stream."""
    options: dict[str, Any] = {"codecformat": "j2k", "resolutions": 2, "level": 0, "reversible": True}
    return bytes(imagecodecs.jpeg2k_encode(np.ascontiguousarray(cells), bitspersample=bits, **options))


def _add(name: str, must: Any, why: str, make_it: Callable[[Path, np.random.Generator], GroundTruth | None]) -> None:
    PIXEL_ODDITIES.append(Oddity(f"odd-{name}", must, why, make_it))


def _stored_otherwise() -> None:
    def high_bit(dataset: Dataset, z: int) -> None:
        dataset.HighBit = 15
        store_native(dataset, (stored_values(dataset) << 4).astype("<u2"))

    why = "PS3.5 8.1.1: High Bit is Bits Stored - 1; before 2004 it could be higher"
    add_oddity("high_bit", "either", why, plain_case(), high_bit, into=PIXEL_ODDITIES)

    def trailing(dataset: Dataset, z: int) -> None:
        dataset.PixelData += bytes(64)

    def short(dataset: Dataset, z: int) -> None:
        dataset.PixelData = dataset.PixelData[:-20]

    add_oddity("native_trailing_bytes", "either", "PS3.5 8.1.1", plain_case(), trailing, into=PIXEL_ODDITIES)
    add_oddity("native_short", "refuse", "PS3.5 8.1.1", plain_case(), short, volume=False, into=PIXEL_ODDITIES)

    def with_slice(
        z: int, stored: Callable[[Dataset], NDArray[Any]]
    ) -> Callable[[Path, np.random.Generator], GroundTruth]:
        """A series of which one slice is stored by a function that returns the slice's new values."""

        def maker(folder: Path, rng: np.random.Generator) -> GroundTruth:
            truth = write_series(plain_case(), folder, rng)
            path = files_of(folder)[z]
            dataset = pydicom.dcmread(path)
            truth.array[:, :, z] = stored(dataset).T
            dataset.save_as(path)
            return truth

        return maker

    def signed(dataset: Dataset) -> NDArray[Any]:
        dataset.PixelRepresentation = 1
        cells = stored_values(dataset)[0].astype(np.int64)
        meant: NDArray[np.int64] = np.where(cells > 2047, cells - 4096, cells)
        store_native(dataset, meant.astype("<i2"))
        return meant

    def of_16_bits(dataset: Dataset) -> NDArray[Any]:
        dataset.BitsStored, dataset.HighBit = 16, 15
        cells: NDArray[np.int64] = stored_values(dataset)[0].astype(np.int64) * 16 + 7
        store_native(dataset, cells.astype("<u2"))
        return cells

    def mixed_syntax(folder: Path, rng: np.random.Generator) -> GroundTruth:
        truth = write_series(plain_case(), folder, rng)
        for path, syntax in zip(files_of(folder), (JPEG2000Lossless, JPEGLosslessSV1), strict=False):
            dataset = pydicom.dcmread(path)
            cells = stored_values(dataset)[0]
            lossless = syntax == JPEGLosslessSV1
            stream = imagecodecs.ljpeg_encode(cells, bitspersample=12) if lossless else encode_jpeg2000(cells)
            store_compressed(dataset, syntax, [bytes(stream)])
            dataset.save_as(path)
        return truth

    _add("mixed_signedness", "read", "PS3.3 C.7.6.3.1: Pixel Representation is each image's own", with_slice(2, signed))
    _add("mixed_bits_stored", "read", "PS3.3 C.7.6.3.1: Bits Stored is each image's own", with_slice(1, of_16_bits))
    _add("mixed_syntaxes", "read", "PS3.10 7.1: the transfer syntax is each file's own", mixed_syntax)

    def floating(name: str, dtype: str) -> Change:
        def change(dataset: Dataset, z: int) -> None:
            values = stored_values(dataset).astype(dtype)
            del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
            dataset.BitsAllocated = 32 if dtype == "<f4" else 64
            setattr(dataset, name, values.tobytes())

        return change

    why = "PS3.3 C.7.6.24, C.7.6.25"
    add_oddity("float_pixels", "either", why, plain_case(), floating("FloatPixelData", "<f4"), into=PIXEL_ODDITIES)
    add_oddity(
        "double_pixels", "either", why, plain_case(), floating("DoubleFloatPixelData", "<f8"), into=PIXEL_ODDITIES
    )
    for vr in ("OB", "UN"):

        def as_vr(dataset: Dataset, z: int, vr: str = vr) -> None:
            dataset["PixelData"].VR = vr

        add_oddity(f"native_16_bits_as_{vr}", "either",
            "PS3.5 8.1.2: OW where Bits Allocated is above 8", plain_case(), as_vr,
            into=PIXEL_ODDITIES)  # fmt: skip

    def icon(dataset: Dataset, z: int) -> None:
        dataset.IconImageSequence = [sequence_item(
            Rows=2, Columns=2, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2",
                                          BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0,
                                          PixelData=b"\1\2\3\4")]  # fmt: skip

    add_oddity(
        "icon_image", "read", "PS3.3 F.7: an icon has pixels of its own", plain_case(), icon, into=PIXEL_ODDITIES
    )

    def philips(dataset: Dataset, z: int) -> None:
        block = dataset.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
        block.add_new(0x0E, "FL", 0.01)
        block.add_new(0x0D, "FL", 3.0)

    add_oddity(
        "private_scale",
        "read",
        "vendor: private scale beside the modality LUT",
        plain_case(),
        philips,
        into=PIXEL_ODDITIES,
    )


def _modality_luts() -> None:
    def table(
        first: int, entries: int, form: Format, *, rescale: bool
    ) -> Callable[[Path, np.random.Generator], GroundTruth]:
        def maker(folder: Path, rng: np.random.Generator) -> GroundTruth:
            lut = rng.integers(0, 65536, entries).astype(np.uint16)

            def change(dataset: Dataset, z: int) -> None:
                lookup = sequence_item(ModalityLUTType="US", LUTData=lut.tobytes())
                lookup.add_new("LUTDescriptor", "SS" if form.signed else "US", [entries % 65536, first, 16])
                lookup["LUTData"].VR = "OW"
                dataset.ModalityLUTSequence = [lookup]
                if rescale:
                    dataset.RescaleSlope, dataset.RescaleIntercept = "2", "3"

            truth = write_changed(plain_case(form=form), change, folder, rng)
            at = np.clip(truth.array.astype(np.int64) - first, 0, entries - 1)
            return GroundTruth(lut[at].astype(np.float64), truth.affine)

        return maker

    why = "PS3.3 C.11.1: table, clipped at its ends"
    _add("modality_lut", "read", why, table(0, 4096, U12, rescale=False))
    _add("modality_lut_clipped", "read", why, table(100, 1000, U12, rescale=False))
    _add("modality_lut_signed", "read", why, table(-2048, 4096, S12, rescale=False))
    _add("modality_lut_signed_clipped", "read", why, table(-100, 300, S12, rescale=False))
    _add("modality_lut_65536", "read", why, table(0, 65536, Format(16, 16, False), rescale=False))
    _add("modality_lut_and_rescale", "refuse", "PS3.3 C.11.1: one or the other", table(0, 4096, U12, rescale=True))


def _compressed() -> None:
    def unsigned_stream(dataset: Dataset, z: int) -> None:
        store_compressed(dataset, JPEG2000Lossless, [encode_jpeg2000(stored_values(dataset)[0] & 0x0FFF)])

    def signed_stream(dataset: Dataset, z: int) -> None:
        store_compressed(dataset, JPEG2000Lossless, [encode_jpeg2000(stored_values(dataset)[0].view("<i2"), 13)])

    why = "PS3.5 8.2.4: the stream is right where it and Pixel Representation differ in signedness"
    add_oddity(
        "j2k_unsigned_stream_signed_header", "either", why, plain_case(form=S12), unsigned_stream, into=PIXEL_ODDITIES
    )
    add_oddity("j2k_signed_stream_unsigned_header", "either", why, plain_case(), signed_stream, into=PIXEL_ODDITIES)

    def other_streams(syntax: UID, name: str, encode: Callable[[NDArray[Any]], bytes]) -> None:
        """Streams of another size or of another number of components than the header says."""
        for kind, change in (
            ("transposed", lambda cells: np.ascontiguousarray(cells.T)),
            ("smaller", lambda cells: np.ascontiguousarray(cells[:-2])),
            ("larger", lambda cells: np.ascontiguousarray(np.pad(cells, ((0, 2), (0, 3))))),
            ("colour", lambda cells: np.ascontiguousarray(np.repeat(cells[:, :, None], 3, axis=2))),
        ):

            def apply(dataset: Dataset, z: int, change: Any = change) -> None:
                store_compressed(dataset, syntax, [encode(change(stored_values(dataset)[0]))])

            add_oddity(f"{name}_{kind}_stream", "refuse",
                "PS3.5 8.2: Rows, Columns and Samples per Pixel are the stream's",
                plain_case(), apply, volume=False, into=PIXEL_ODDITIES)  # fmt: skip

    other_streams(JPEG2000Lossless, "j2k", encode_jpeg2000)
    other_streams(JPEGLSLossless, "jpegls", lambda cells: bytes(imagecodecs.jpegls_encode(cells)))
    other_streams(HTJ2KLossless, "htj2k", lambda cells: bytes(imagecodecs.htj2k_encode(cells, reversible=True)))
    other_streams(
        JPEGLosslessSV1, "jpeg70",
        lambda cells: bytes(imagecodecs.jpeg8_encode(cells, lossless=True, bitspersample=12, predictor=1)),
    )  # fmt: skip
    other_streams(
        JPEGExtended12Bit, "jpeg51", lambda cells: bytes(imagecodecs.jpeg8_encode(cells, level=95, bitspersample=12))
    )

    for syntax in ("rle", "jpeg70", "jpegls80", "j2k90", "htj2k201"):
        case = plain_case("enhanced", syntax=syntax)

        def split(dataset: Dataset, z: int, has_bot: bool = True) -> None:
            frames = list(generate_frames(dataset.PixelData, number_of_frames=SLICES))
            store_compressed(
                dataset, dataset.file_meta.TransferSyntaxUID, frames, fragments_per_frame=3, has_bot=has_bot
            )

        def split_no_table(dataset: Dataset, z: int) -> None:
            split(dataset, z, has_bot=False)

        def whole_no_table(dataset: Dataset, z: int) -> None:
            frames = list(generate_frames(dataset.PixelData, number_of_frames=SLICES))
            store_compressed(dataset, dataset.file_meta.TransferSyntaxUID, frames, has_bot=False)

        def extended(dataset: Dataset, z: int) -> None:
            frames = list(generate_frames(dataset.PixelData, number_of_frames=SLICES))
            data, table, lengths = encapsulate_extended(frames)
            dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = data, table, lengths
            dataset["PixelData"].is_undefined_length = True

        def a_frame_less(dataset: Dataset, z: int) -> None:
            frames = list(generate_frames(dataset.PixelData, number_of_frames=SLICES))[:-1]
            store_compressed(dataset, dataset.file_meta.TransferSyntaxUID, frames, has_bot=False)

        def a_frame_twice(dataset: Dataset, z: int) -> None:
            frames = list(generate_frames(dataset.PixelData, number_of_frames=SLICES))
            store_compressed(dataset, dataset.file_meta.TransferSyntaxUID, [*frames, frames[0]], has_bot=False)

        def cut(dataset: Dataset, z: int) -> None:
            frames = list(generate_frames(dataset.PixelData, number_of_frames=SLICES))
            frames[1] = frames[1][: len(frames[1]) // 2]
            store_compressed(dataset, dataset.file_meta.TransferSyntaxUID, frames)

        for name, must, change in (
            ("no_table", "read", whole_no_table),
            ("extended_table", "read", extended),
            ("a_frame_less", "refuse", a_frame_less),
            ("a_frame_twice", "either", a_frame_twice),
            ("frame_cut", "refuse", cut),
            ("fragments", "read", split),
            ("fragments_no_table", "either", split_no_table),
        ):
            if syntax == "rle" and name.startswith("fragments"):
                continue  # PS3.5 A.4.2: a frame is one fragment
            add_oddity(f"{syntax}_{name}", must, "PS3.5 A.4", case, change, volume=must != "refuse",  # type: ignore[arg-type]
                into=PIXEL_ODDITIES)  # fmt: skip


def _containers() -> None:
    def without_meta(folder: Path, rng: np.random.Generator) -> GroundTruth:
        truth = write_series(plain_case(syntax="implicit"), folder, rng)
        for path in files_of(folder):
            data = path.read_bytes()
            path.write_bytes(data[144 + int.from_bytes(data[140:144], "little") :])
        return truth

    _add("no_preamble", "read", "PS3.10 7.1: such files are in circulation", without_meta)

    def padding(dataset: Dataset, z: int) -> None:
        dataset.DataSetTrailingPadding = bytes(200)

    add_oddity("trailing_padding", "read", "PS3.10 7.2", plain_case(), padding, into=PIXEL_ODDITIES)
    add_oddity("group_length", "read", "PS3.5 7.2: retired", plain_case(), lambda d, z: d.add_new(0x00280000, "UL", 0),
        into=PIXEL_ODDITIES)  # fmt: skip

    def smallest(dataset: Dataset, z: int) -> None:
        dataset.add_new("SmallestImagePixelValue", "US", 5)
        dataset.add_new("LargestImagePixelValue", "US", 10)

    add_oddity("smallest_and_largest", "read", "PS3.3 C.7.6.3: no scaling", plain_case(), smallest, into=PIXEL_ODDITIES)


_stored_otherwise()
_modality_luts()
_compressed()
_containers()
