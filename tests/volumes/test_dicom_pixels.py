"""What stands in the pixel data is what is read: bits, signs, padding, transfer syntaxes, and streams that lie."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openjpeg.utils import encode_array
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from semiseg.errors import VolumeError
from semiseg.phantoms.anatomy import make_phantom
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes import dicom_decoding
from semiseg.volumes.dicom_codestream import CodestreamHeader, parse_codestream_header
from semiseg.volumes.dicom_series import read_series
from tests.volumes.enhanced_multiframe import write_enhanced

ROWS, COLUMNS, COUNT = 36, 33, 3  # the encoder of JPEG 2000 makes nothing smaller


def stored_as(
    folder: Path,
    values: np.ndarray[Any, Any],
    *,
    stored: int,
    signed: bool = False,
    junk: int = 0,
    syntax: str = ExplicitVRLittleEndian,
    change: Callable[[pydicom.Dataset], Any] = lambda dataset: None,
) -> list[Path]:
    """A series whose slices hold ``values`` (slices, rows, columns) in 16 bits, with ``junk`` above Bits Stored."""
    volume = make_phantom(7, (COLUMNS, ROWS, COUNT), (3.0, 3.0, 30.0)).image
    files = write_dicom_series(folder, volume)
    containers = (values.astype(np.int64) & (2**stored - 1) | junk << stored).astype(np.uint16)
    for path, frame in zip(sorted(files), containers, strict=True):
        dataset = pydicom.dcmread(path)
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, stored, stored - 1
        dataset.PixelRepresentation = int(signed)
        dataset.file_meta.TransferSyntaxUID = syntax
        if syntax == JPEG2000Lossless:
            stream = encode_array(frame, bits_stored=16, photometric_interpretation=2, use_mct=False)
            dataset.PixelData = encapsulate([bytes(stream)])
        else:
            dataset.PixelData = frame.tobytes()
        if syntax == RLELossless:
            dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            dataset.compress(RLELossless, encoding_plugin="pydicom")
        change(dataset)
        dataset.save_as(path)
    return files


def in_order(files: list[Path], **options: Any) -> np.ndarray[Any, Any]:
    """The values (slices, rows, columns) in the order of the files."""
    series = read_series(files, **options)
    by_file = {one.path: z for z, one in enumerate(series.slices)}
    return np.stack([series.volume.array[:, :, by_file[path]].T for path in sorted(files)])


# --- bits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless])
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stored=st.integers(9, 16), signed=st.booleans(), junk=st.integers(0, 2**16), seed=st.integers(0, 99))
def test_a_value_is_the_lowest_bits_stored_and_nothing_else(
    tmp_path: Path, syntax: str, stored: int, signed: bool, junk: int, seed: int
) -> None:
    low = -(2 ** (stored - 1)) if signed else 0
    values = np.random.default_rng(seed).integers(low, low + 2**stored, (COUNT, ROWS, COLUMNS))
    above = junk % 2 ** (16 - stored)
    files = stored_as(tmp_path, values, stored=stored, signed=signed, junk=above, syntax=syntax)
    np.testing.assert_array_equal(in_order(files), values)
    remarks = [remark.code for remark in read_series(files).warnings]
    assert remarks == (["unused_bits"] if above and not signed else [])


def test_bits_that_belong_to_nothing_are_refused_when_strict(tmp_path: Path) -> None:
    files = stored_as(tmp_path, np.full((COUNT, ROWS, COLUMNS), 5), stored=12, junk=1)
    with pytest.raises(VolumeError, match=f"{COUNT * ROWS * COLUMNS} pixel.*bits set above Bits Stored"):
        read_series(files, strict=True)


def test_bits_of_an_overlay_are_expected_there(tmp_path: Path) -> None:
    values = np.arange(COUNT * ROWS * COLUMNS).reshape(COUNT, ROWS, COLUMNS)

    def overlaid(dataset: pydicom.Dataset) -> None:
        dataset.add_new(0x60000010, "US", ROWS)
        dataset.add_new(0x60000100, "US", 16)
        dataset.add_new(0x60000102, "US", 12)

    files = stored_as(tmp_path, values, stored=12, junk=1, change=overlaid)
    np.testing.assert_array_equal(in_order(files, strict=True), values)


@pytest.mark.parametrize(("signed", "lowest"), [(False, 0), (True, -2048)])
def test_padding_that_bits_stored_cannot_hold_is_the_lowest_value(tmp_path: Path, signed: bool, lowest: int) -> None:
    values = np.full((COUNT, ROWS, COLUMNS), 700)
    padding = -9000 if signed else 63536  # 63536 is -2000 in 16 bits

    def padded(dataset: pydicom.Dataset) -> None:
        dataset.add_new("PixelPaddingValue", "SS" if signed else "US", padding)
        pixels = np.frombuffer(dataset.PixelData, np.uint16).reshape(ROWS, COLUMNS).copy()
        pixels[0] = padding % 2**16
        dataset.PixelData = pixels.tobytes()

    files = stored_as(tmp_path, values, stored=12, signed=signed, change=padded)
    values[:, 0] = lowest
    np.testing.assert_array_equal(in_order(files, strict=True), values)


def test_signed_jpeg_ls_in_streams_of_16_bits_keeps_its_sign(
    tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    program = require_program("dcmcjpls")
    values = np.random.default_rng(3).integers(-2048, 2048, (COUNT, ROWS, COLUMNS))
    files = stored_as(tmp_path, values, stored=12, signed=True)
    for path in files:
        subprocess.run([program, path, path], check=True, capture_output=True)
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == JPEGLSLossless
    np.testing.assert_array_equal(in_order(files), values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"HighBit": 15}, "Bits Stored 12 and High Bit 15 contradict"),
        ({"BitsStored": 17, "HighBit": 16}, "Bits Stored 17 and High Bit 16 contradict"),
        ({"BitsStored": 0}, "contradict"),
    ],
)
def test_bits_that_contradict_each_other_are_refused(tmp_path: Path, change: dict[str, int], words: str) -> None:
    files = stored_as(tmp_path, np.ones((COUNT, ROWS, COLUMNS)), stored=12)
    for path in files:
        dataset = pydicom.dcmread(path)
        for keyword, value in change.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path)
    with pytest.raises(VolumeError, match=words):
        read_series(files)


def test_a_modality_lut_beside_a_rescale_slope_is_refused_and_an_empty_one_is_none(tmp_path: Path) -> None:
    values = np.arange(COUNT * ROWS * COLUMNS).reshape(COUNT, ROWS, COLUMNS) % 256
    table = pydicom.Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [256, 0, 16], "US"
    table.add_new("LUTData", "US", list(range(1000, 1256)))

    def with_table(*items: pydicom.Dataset, intercept: int = 0) -> Callable[[pydicom.Dataset], None]:
        def change(dataset: pydicom.Dataset) -> None:
            dataset.ModalityLUTSequence = list(items)
            dataset.RescaleSlope, dataset.RescaleIntercept = 1, intercept

        return change

    for intercept, items, expected in ((0, (), 0), (-5, (), -5), (0, (table,), 1000)):
        folder = tmp_path / f"{intercept}{len(items)}"
        files = stored_as(folder, values, stored=16, change=with_table(*items, intercept=intercept))
        np.testing.assert_array_equal(in_order(files), values + expected)
    files = stored_as(tmp_path / "both", values, stored=16, change=with_table(table, intercept=-5))
    with pytest.raises(VolumeError, match="a Modality LUT and a rescale slope"):
        read_series(files)


def test_big_endian_values_of_32_bits_are_refused(tmp_path: Path) -> None:
    def wide(dataset: pydicom.Dataset) -> None:
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 32, 24, 23
        dataset.PixelData = np.ones((ROWS, COLUMNS), ">u4").tobytes()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian

    files = stored_as(tmp_path, np.ones((COUNT, ROWS, COLUMNS)), stored=12)
    for path in files:
        dataset = pydicom.dcmread(path)
        wide(dataset)
        fresh = pydicom.Dataset(dataset)
        fresh.file_meta = dataset.file_meta
        fresh.save_as(path, little_endian=False, implicit_vr=False, enforce_file_format=True)
    with pytest.raises(VolumeError, match="big endian"):
        read_series(files)


# --- transfer syntaxes --------------------------------------------------------------------------------------------


def lifted(folder: Path, name: str) -> list[Path]:
    """Three slices that all hold the picture of a file that pydicom brings along."""
    folder.mkdir()
    files = []
    for z in range(3):
        image = pydicom.dcmread(str(get_testdata_file(name, download=False)))
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{z}"
        image.StudyInstanceUID, image.SeriesInstanceUID = "1.2", "1.2.3"
        image.PixelSpacing, image.ImageOrientationPatient = [1, 1], [1, 0, 0, 0, 1, 0]
        image.ImagePositionPatient = [0, 0, 2 * z]
        image.pop("ImageType", None)
        image.save_as(folder / f"{z}.dcm")
        files.append(folder / f"{z}.dcm")
    return files


@pytest.mark.parametrize("name", ["MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_RLE.dcm"])
def test_what_was_compressed_without_loss_is_what_it_was(tmp_path: Path, name: str) -> None:
    expected = pydicom.dcmread(str(get_testdata_file("MR_small.dcm", download=False))).pixel_array
    values = in_order(lifted(tmp_path / "series", name))
    for one in values:
        np.testing.assert_array_equal(one, expected)


def test_jpeg_of_12_bits_is_decoded(tmp_path: Path, require_program: Callable[[str], str]) -> None:
    files = lifted(tmp_path / "series", "JPEG-lossy.dcm")
    values = in_order(files)
    plain = tmp_path / "plain.dcm"
    subprocess.run([require_program("dcmdjpeg"), files[0], plain], check=True, capture_output=True)
    # Decoders of lossy JPEG may round differently.
    np.testing.assert_allclose(values[0], pydicom.dcmread(plain).pixel_array, atol=2)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless, ExplicitVRLittleEndian])
def test_frames_decoded_elsewhere_are_those_decoded_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str
) -> None:
    values = np.random.default_rng(5).integers(0, 4096, (COUNT, ROWS, COLUMNS))
    files = stored_as(tmp_path, values, stored=12, syntax=syntax)
    monkeypatch.setattr(dicom_decoding, "SUBPROCESS_MIN_PIXELS", 1)
    np.testing.assert_array_equal(in_order(files), values)


def test_an_object_of_many_frames_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = make_phantom(7, (COLUMNS, ROWS, 50), (3.0, 3.0, 2.0)).image
    classic = write_dicom_series(tmp_path / "series", volume)
    expected = read_series(classic).volume
    made = write_enhanced(tmp_path / "object.dcm", sorted(classic))
    np.testing.assert_array_equal(read_series([made]).volume.array, expected.array)
    dataset = pydicom.dcmread(made)
    dataset.compress(RLELossless, encoding_plugin="pydicom")
    dataset.save_as(made)
    for pixels in (dicom_decoding.SUBPROCESS_MIN_PIXELS, 1):
        monkeypatch.setattr(dicom_decoding, "SUBPROCESS_MIN_PIXELS", pixels)
        np.testing.assert_array_equal(read_series([made]).volume.array, expected.array)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, JPEG2000Lossless])
def test_each_file_is_opened_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str) -> None:
    """Once for its header and once for its pixels."""
    files = stored_as(tmp_path, np.ones((COUNT, ROWS, COLUMNS)), stored=12, syntax=syntax)
    opened: list[Path] = []
    first = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: opened.append(self) or first(self, *a, **k))
    read_series(files)
    assert sorted(opened) == sorted(files * 2)


# --- streams that say another size than the header ----------------------------------------------------------------


def stream(shape: tuple[int, ...]) -> bytes:
    grey = len(shape) == 2
    pixels = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    return bytes(encode_array(pixels, bits_stored=12, photometric_interpretation=2 if grey else 1, use_mct=False))


def test_an_rle_frame_that_holds_more_than_its_pixels_is_refused(tmp_path: Path) -> None:
    files = stored_as(tmp_path, np.ones((COUNT, ROWS, COLUMNS)), stored=12, syntax=RLELossless)
    dataset = pydicom.dcmread(files[0])
    whole = next(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([whole + b"\x05abcdef" * 20])  # five literal bytes and one, twenty times
    dataset.save_as(files[0])
    with pytest.raises(VolumeError, match="RLE Lossless cannot be decoded"):
        read_series(files)


@pytest.mark.parametrize("pixels", [b"", None])
def test_an_image_without_pixels_is_refused(tmp_path: Path, pixels: bytes | None) -> None:
    files = stored_as(tmp_path, np.ones((COUNT, ROWS, COLUMNS)), stored=12)
    dataset = pydicom.dcmread(files[1])
    if pixels is None:
        dataset.FloatPixelData = np.ones((ROWS, COLUMNS), np.float32).tobytes()
        del dataset.PixelData
    else:
        dataset.PixelData = pixels
    dataset.save_as(files[1])
    with pytest.raises(VolumeError, match="there are no integer pixel data"):
        read_series(files)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((COLUMNS, ROWS), f"has {COLUMNS} rows, {ROWS} columns and 1 component"),
        ((ROWS + 2, COLUMNS + 3), f"has {ROWS + 2} rows, {COLUMNS + 3} columns"),
        ((ROWS - 2, COLUMNS), f"has {ROWS - 2} rows"),
        ((ROWS, COLUMNS, 3), "and 3 component"),
    ],
)
def test_a_stream_of_another_size_than_the_header_says_is_refused(
    tmp_path: Path, shape: tuple[int, ...], words: str
) -> None:
    files = stored_as(tmp_path, np.ones((COUNT, ROWS, COLUMNS)), stored=12, syntax=JPEG2000Lossless)
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.PixelData = encapsulate([stream(shape)])
        dataset.save_as(path)
    with pytest.raises(VolumeError, match=words):
        read_series(files)


def test_the_header_of_a_stream_is_read() -> None:
    assert parse_codestream_header(stream((40, 50)), JPEG2000Lossless) == CodestreamHeader(40, 50, 1, 12)
    assert parse_codestream_header(b"\x00" * 64, RLELossless) is None
    jpeg = b"\xff\xd8\xff\xfe\x00\x04ab\xff\xff\xc3\x00\x0b\x0c\x00\x14\x00\x1e\x01\x01\x11\x00"
    assert parse_codestream_header(jpeg, "1.2.840.10008.1.2.4.70") == CodestreamHeader(20, 30, 1, 12)
    for damaged in (
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff\xc3\x00",
        jpeg[:12],
        b"\xff\xd8\x00\x01",
        b"\xff\xd8\xff\xe0\x00\x00",
    ):
        with pytest.raises(ValueError, match="compressed frame"):
            parse_codestream_header(damaged, "1.2.840.10008.1.2.4.70")


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.long)])
def test_a_decoder_that_ends_its_process_ends_nothing_else(
    tmp_path: Path, require_program: Callable[[str], str], every: int
) -> None:
    """The library behind JPEG lossless calls abort() on some damaged streams; each aborted one starts a new decoder."""
    program = require_program("dcmcjpeg")
    values = np.random.default_rng(3).integers(0, 4096, (COUNT, ROWS, COLUMNS))
    files = stored_as(tmp_path, values, stored=12)
    for path in files:
        subprocess.run([program, path, path], check=True, capture_output=True)
    np.testing.assert_array_equal(in_order(files), values)
    path = sorted(files)[1]
    whole = path.read_bytes()
    start = whole.index(b"\xff\xd8\xff")
    scan = whole.index(b"\xff\xda", start)
    sentences = set()
    for at in range(start + 2, scan + 10, every):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1 :])
        try:
            read_series(files)
        except VolumeError as error:
            sentences.add(str(error)[-60:])
    assert len(sentences) > 1, "nothing was damaged"
