"""MetaImage files: inside and beside, by all names of their tags; what cannot be meant is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from semiseg.errors import VolumeError
from semiseg.volumes.nifti import read_nifti, read_nifti_channels
from semiseg.volumes.read_options import ReadOptions
from semiseg.volumes.scan import open_scan
from tests.volumes.volume_files import (
    AFFINE,
    CHANNELS,
    META,
    VALUES,
    assert_as_written,
    assert_refused,
    big_endian,
    little_endian,
    make_metaimage,
    remark_codes,
    zlib_compressed,
)


def test_metaimage_with_its_data_inside_and_beside(tmp_path: Path) -> None:
    assert_as_written(make_metaimage(tmp_path / "a.mha"))
    (tmp_path / "a.raw").write_bytes(little_endian())
    assert_as_written(make_metaimage(tmp_path / "a.mhd", file="a.raw"))
    assert_as_written(make_metaimage(tmp_path / "z.mha", {"CompressedData": "True"}, zlib_compressed(little_endian())))
    assert_as_written(make_metaimage(tmp_path / "g.mha", {"CompressedData": "True"}, gzip.compress(little_endian())))
    (tmp_path / "a.zraw").write_bytes(zlib_compressed(little_endian()))
    assert_as_written(make_metaimage(tmp_path / "z.mhd", {"CompressedData": "True"}, file="a.zraw"))


def test_metaimage_by_other_names_of_its_tags_and_big_endian(tmp_path: Path) -> None:
    old = {"TransformMatrix": None, "Rotation": META["TransformMatrix"], "Offset": None, "Position": META["Offset"]}
    assert_as_written(make_metaimage(tmp_path / "a.mha", old))
    old = {"TransformMatrix": None, "Orientation": META["TransformMatrix"], "Offset": None, "Origin": META["Offset"]}
    assert_as_written(make_metaimage(tmp_path / "b.mha", {**old, "ElementSpacing": None, "ElementSize": "2 3 4"}))
    assert_as_written(make_metaimage(tmp_path / "c.mha", {"BinaryDataByteOrderMSB": "True"}, big_endian()))
    assert_as_written(
        make_metaimage(
            tmp_path / "d.mha", {"BinaryDataByteOrderMSB": None, "ElementByteOrderMSB": "True"}, big_endian()
        )
    )


def test_metaimage_in_several_files_and_behind_a_foreign_header(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"s{number}.raw").write_bytes(little_endian()[24 * (number - 1) : 24 * number])
    make_metaimage(tmp_path / "list.mhd", file="LIST")
    (tmp_path / "list.mhd").write_bytes((tmp_path / "list.mhd").read_bytes() + b"s1.raw\ns2.raw\n")
    assert_as_written(tmp_path / "list.mhd")
    assert_as_written(make_metaimage(tmp_path / "pattern.mhd", file="s%d.raw 1 2 1"))
    (tmp_path / "h.raw").write_bytes(b"foreign" + little_endian())
    assert_as_written(make_metaimage(tmp_path / "h.mhd", {"HeaderSize": "7"}, file="h.raw"))
    assert_as_written(make_metaimage(tmp_path / "e.mhd", {"HeaderSize": "-1"}, file="h.raw"))


def test_channels_of_a_metaimage_come_first_in_the_file_and_last_in_the_volume(tmp_path: Path) -> None:
    data = CHANNELS.transpose(3, 0, 1, 2).astype("<i2").tobytes(order="F")
    make_metaimage(tmp_path / "a.mha", {"ElementNumberOfChannels": "2"}, data)
    channels = read_nifti_channels(tmp_path / "a.mha", ["T1", "T2"])
    np.testing.assert_array_equal(channels["T2"].array, VALUES + 100)
    four = {"NDims": "4", "DimSize": "4 3 2 2", "TransformMatrix": "0 -1 0 0 0 0 1 0 1 0 0 0 0 0 0 1"}
    four |= {"Offset": "-10 -20 30 0", "ElementSpacing": "2 3 4 1"}
    make_metaimage(tmp_path / "b.mha", four, CHANNELS.astype("<i2").tobytes(order="F"))
    channels = read_nifti_channels(tmp_path / "b.mha", ["T1", "T2"])
    np.testing.assert_array_equal(channels["T2"].array, VALUES + 100)
    np.testing.assert_allclose(channels["T2"].affine, AFFINE)


def test_orientation_of_a_metaimage_that_is_missing_or_contradicted_is_remarked_on(tmp_path: Path) -> None:
    """The letters name the side that each axis comes from: this one comes from posterior, inferior and right."""
    assert_as_written(make_metaimage(tmp_path / "a.mha", {"AnatomicalOrientation": "PIR"}))
    assert_as_written(
        make_metaimage(tmp_path / "b.mha", {"AnatomicalOrientation": "PIL"}), ("contradictory_orientation",)
    )
    assert_as_written(make_metaimage(tmp_path / "c.mha", {"AnatomicalOrientation": "???"}))
    make_metaimage(tmp_path / "d.mha", {"TransformMatrix": None})
    np.testing.assert_allclose(read_nifti(tmp_path / "d.mha").affine[:3, :3], np.diag([-2, -3, 4]))
    assert remark_codes(tmp_path / "d.mha") == ["no_orientation"]
    assert (
        remark_codes(make_metaimage(tmp_path / "e.mha", {"TransformMatrix": None, "AnatomicalOrientation": "RAI"}))
        == []
    )
    assert remark_codes(
        make_metaimage(tmp_path / "f.mha", {"TransformMatrix": None, "AnatomicalOrientation": "LPS"})
    ) == ["contradictory_orientation"]
    for name in "bdf":
        with pytest.raises(VolumeError, match=rf"{name}\.mha: The header"):
            open_scan(tmp_path / f"{name}.mha", None, ReadOptions(strict=True))


def test_scaling_of_a_metaimage_is_applied_and_said(tmp_path: Path) -> None:
    tags = {"ElementToIntensityFunctionSlope": "2", "ElementToIntensityFunctionOffset": "-1000"}
    make_metaimage(tmp_path / "a.mha", tags)
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.mha").array, VALUES * 2.0 - 1000)
    assert remark_codes(tmp_path / "a.mha") == ["uncertain_scaling"]


NOT_READ_META = {
    "no sizes": ({"DimSize": None}, "DimSize is ''"),
    "a size below zero": ({"DimSize": "4 -3 2"}, "not a 3D image"),
    "two axes": ({"NDims": "2", "DimSize": "4 6"}, "NDims is 2"),
    "a mesh": ({"ObjectType": "Mesh"}, "type Mesh is not an image"),
    "text": ({"BinaryData": "False"}, "voxels are text"),
    "an unknown type": ({"ElementType": "MET_COLOUR"}, "not grey values"),
    "a matrix of four": ({"TransformMatrix": "1 0 0 1"}, "9 finite numbers"),
    "an endless spacing": ({"ElementSpacing": "2 3 inf"}, "3 finite numbers"),
    "a flat grid": ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "singular"),
}


@pytest.mark.parametrize("what", NOT_READ_META)
def test_a_metaimage_that_cannot_be_meant_is_refused_with_a_sentence(what: str, tmp_path: Path) -> None:
    tags, sentence = NOT_READ_META[what]
    assert_refused(make_metaimage(tmp_path / "a.mha", tags), sentence)
