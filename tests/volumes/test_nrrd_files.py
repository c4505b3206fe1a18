"""NRRD files: every space, encoding and axis of channels; what cannot be meant is refused."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import numpy as np
import pytest

from semiseg.errors import VolumeError
from semiseg.volumes.image_files import read_image_file
from semiseg.volumes.nifti import read_nifti, read_nifti_channels
from semiseg.volumes.read_options import ReadOptions
from semiseg.volumes.scan import open_scan
from tests.volumes.volume_files import (
    AFFINE,
    CHANNELS,
    VALUES,
    assert_as_written,
    assert_refused,
    big_endian,
    little_endian,
    make_nrrd,
    remark_codes,
)

LPS = {
    "space": "left-posterior-superior",
    "space directions": "(0,-2,0) (0,0,3) (4,0,0)",
    "space origin": "(-10,-20,30)",
}


SPACES = {
    "RAS": {},
    "LPS": LPS,
    "LAS": {
        "space": "left-anterior-superior",
        "space directions": "(0,2,0) (0,0,3) (4,0,0)",
        "space origin": "(-10,20,30)",
    },
    "abbreviated": {**LPS, "space": "LPS"},
}


@pytest.mark.parametrize("space", SPACES)
def test_nrrd_in_any_space_lies_in_the_same_place(space: str, tmp_path: Path) -> None:
    """VOL-02."""
    assert_as_written(make_nrrd(tmp_path / "a.nrrd", SPACES[space]))


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("raw", little_endian()),
        ("gzip", gzip.compress(little_endian())),
        ("gz", gzip.compress(little_endian())),
        ("bzip2", bz2.compress(little_endian())),
        ("ascii", " ".join(map(str, range(24))).encode()),
        ("text", "\n".join(map(str, range(24))).encode()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nrrd_of_every_encoding(encoding: str, data: bytes, tmp_path: Path) -> None:
    assert_as_written(make_nrrd(tmp_path / "a.nrrd", {"encoding": encoding}, data))


def test_nrrd_big_endian_with_carriage_returns(tmp_path: Path) -> None:
    make_nrrd(tmp_path / "a.nrrd", {"endian": "big"}, big_endian())
    assert_as_written(tmp_path / "a.nrrd")
    header, _, _ = make_nrrd(tmp_path / "b.nrrd").read_bytes().partition(b"\n\n")
    (tmp_path / "b.nrrd").write_bytes(header.replace(b"\n", b"\r\n") + b"\r\n\r\n" + little_endian())
    assert_as_written(tmp_path / "b.nrrd")


def test_detached_nrrd_with_one_file_a_list_and_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "one.raw").write_bytes(b"first line\nab" + little_endian())
    fields = {"data file": "./one.raw", "line skip": "1", "byte skip": "2"}
    assert_as_written(make_nrrd(tmp_path / "one.nhdr", fields))
    assert_as_written(make_nrrd(tmp_path / "end.nhdr", {"datafile": "one.raw", "data file": None, "byteskip": "-1"}))
    for number in (1, 2):
        (tmp_path / f"s{number:02d}.raw").write_bytes(little_endian()[24 * (number - 1) : 24 * number])
    assert_as_written(make_nrrd(tmp_path / "list.nhdr", {"data file": "LIST"}, more="s01.raw\ns02.raw\n"))
    assert_as_written(make_nrrd(tmp_path / "pattern.nhdr", {"data file": "s%02d.raw 1 2 1"}))


@pytest.mark.parametrize(
    ("sizes", "kinds", "directions", "order"),
    [
        ("2 4 3 2", "vector domain domain domain", "none (0,2,0) (0,0,3) (-4,0,0)", (3, 0, 1, 2)),
        ("2 4 3 2", "list domain domain domain", "none (0,2,0) (0,0,3) (-4,0,0)", (3, 0, 1, 2)),
        ("2 4 3 2", None, "none (0,2,0) (0,0,3) (-4,0,0)", (3, 0, 1, 2)),
        ("4 3 2 2", "domain domain domain list", "(0,2,0) (0,0,3) (-4,0,0) none", (0, 1, 2, 3)),
        ("4 3 2 2", "domain domain domain time", "(0,2,0) (0,0,3) (-4,0,0) none", (0, 1, 2, 3)),
        ("4 2 3 2", "domain list domain domain", "(0,2,0) none (0,0,3) (-4,0,0)", (0, 3, 1, 2)),
    ],
)
def test_the_axis_of_an_nrrd_that_is_not_in_space_holds_channels(
    sizes: str, kinds: str | None, directions: str, order: tuple[int, ...], tmp_path: Path
) -> None:
    fields = {"dimension": "4", "sizes": sizes, "kinds": kinds, "space directions": directions}
    make_nrrd(tmp_path / "a.nrrd", fields, CHANNELS.transpose(order).astype("<i2").tobytes(order="F"))
    channels = read_nifti_channels(tmp_path / "a.nrrd", ["T1", "T2"])
    np.testing.assert_array_equal(channels["T1"].array, VALUES)
    np.testing.assert_array_equal(channels["T2"].array, VALUES + 100)
    np.testing.assert_allclose(channels["T2"].affine, AFFINE)


@pytest.mark.parametrize(
    ("space", "remarks"),
    [
        ({"space": None, "space dimension": "4"}, ["no_orientation"]),  # as ITK writes several volumes
        ({"space": "left-posterior-superior-time"}, []),
        ({"space": "LPS-time"}, []),
    ],
)
def test_four_axes_of_an_nrrd_in_a_space_of_four_dimensions(
    space: dict[str, str | None], remarks: list[str], tmp_path: Path
) -> None:
    fields = {
        "dimension": "4",
        "sizes": "4 3 2 2",
        **space,
        "space directions": "(0,-2,0,0) (0,0,3,0) (4,0,0,0) (0,0,0,1)",
        "space origin": "(-10,-20,30,0)",
    }
    make_nrrd(tmp_path / "a.nrrd", fields, CHANNELS.astype("<i2").tobytes(order="F"))
    np.testing.assert_allclose(read_image_file(tmp_path / "a.nrrd").affine, AFFINE)
    assert remark_codes(tmp_path / "a.nrrd") == remarks


@pytest.mark.parametrize(
    "fields",
    [
        {**LPS, "space": None, "space dimension": "3"},
        {**LPS, "space": "scanner-xyz"},
        {**LPS, "space": "3D-right-handed"},
    ],
)
def test_an_nrrd_that_does_not_tell_left_from_right_is_taken_as_lps_with_a_remark(
    fields: dict[str, str | None], tmp_path: Path
) -> None:
    """VOL-09."""
    assert_as_written(make_nrrd(tmp_path / "a.nrrd", fields), ("no_orientation",))
    with pytest.raises(VolumeError, match=r"a\.nrrd: The header does not define left and right"):
        open_scan(tmp_path / "a.nrrd", None, ReadOptions(strict=True))


def test_an_nrrd_with_spacings_alone_says_nothing_about_left_and_right(tmp_path: Path) -> None:
    fields = {"space": None, "space directions": None, "space origin": None, "spacings": "2 3 4"}
    make_nrrd(tmp_path / "a.nrrd", fields)
    np.testing.assert_allclose(read_nifti(tmp_path / "a.nrrd").affine, np.diag([-2, -3, 4, 1.0]))
    assert remark_codes(tmp_path / "a.nrrd") == ["no_orientation"]


def test_units_of_an_nrrd_become_millimetres(tmp_path: Path) -> None:
    make_nrrd(tmp_path / "a.nrrd", {"space units": '"cm" "cm" "cm"'})
    assert read_nifti(tmp_path / "a.nrrd").spacing == (20.0, 30.0, 40.0)


NOT_READ_NRRD = {
    "no sizes": ({"sizes": None}, "no field 'sizes'"),
    "another number of sizes": ({"sizes": "4 3"}, "3 sizes of at least 1"),
    "two axes": ({"dimension": "2", "sizes": "4 6", "space directions": "(1,0,0) (0,1,0)"}, "a 3D image is needed"),
    "five axes": ({"dimension": "5", "sizes": "4 3 2 1 1", "space directions": None}, "three axes in space"),
    "a size of zero": ({"sizes": "4 0 2"}, "sizes of at least 1"),
    "a size below zero": ({"sizes": "4 -3 2"}, "sizes of at least 1"),
    "sizes that are no numbers": ({"sizes": "4 x 2"}, "whole numbers"),
    "colours": (
        {
            "dimension": "4",
            "sizes": "3 4 2 1",
            "kinds": "RGB-color domain domain domain",
            "space directions": "none (0,2,0) (0,0,3) (-4,0,0)",
        },
        "kind 'rgb-color' does not hold grey values",
    ),
    "an unknown type": ({"type": "block"}, "not grey values"),
    "no byte order": ({"endian": None}, "byte order"),
    "an unknown encoding": ({"encoding": "hex"}, "encoding 'hex' is not supported"),
    "an unknown space": ({"space": "left-right-up"}, "'left-right-up'; known are"),
    "an unknown unit": ({"space units": '"furlong" "furlong" "furlong"'}, "known unit of length"),
    "a direction without a number": ({"space directions": "(0,2,0) (0,0,nan) (-4,0,0)"}, "finite numbers"),
    "two directions": ({"space directions": "(0,2,0) (0,0,3)"}, "3 axes have one each"),
    "a flat grid": ({"space directions": "(0,2,0) (0,0,3) (0,2,3)"}, "singular"),
    "no place at all": ({"space directions": None}, "neither 'space directions' nor 3 'spacings'"),
    "a negative skip": ({"byte skip": "-2"}, "which is not valid"),
}


@pytest.mark.parametrize("what", NOT_READ_NRRD)
def test_an_nrrd_that_cannot_be_meant_is_refused_with_a_sentence(what: str, tmp_path: Path) -> None:
    fields, sentence = NOT_READ_NRRD[what]
    assert_refused(make_nrrd(tmp_path / "a.nrrd", fields), sentence)


def test_an_nrrd_with_a_field_twice_or_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="field 'sizes' twice"):
        read_nifti(make_nrrd(tmp_path / "a.nrrd", more="sizes: 4 3 2\n"))
    (tmp_path / "b.nrrd").write_bytes(b"NRRD0004\n" + b"key:=value\n" * 200_000)
    with pytest.raises(VolumeError, match="does not end"):
        read_nifti(tmp_path / "b.nrrd")
