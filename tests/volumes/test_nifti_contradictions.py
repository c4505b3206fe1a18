"""NIfTI headers that contradict themselves: read with a remark where one reading is right, refused where none is.

What is read and how is in the tables; ``--strict`` refuses whatever has a remark.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semiseg.errors import VolumeError
from semiseg.volumes.image_files import apply_scaling, read_image_file
from semiseg.volumes.read_options import ReadOptions
from semiseg.volumes.scan import open_scan
from tests.volumes.volume_files import VALUES, little_endian, nifti_file

AFFINE = np.array([[2.0, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])
HALF = float(np.sqrt(0.5))


def extension(size: int = 32, *, flag: int = 1, code: int = 6) -> bytes:
    """The four bytes that announce extensions, and one of them."""
    return bytes([flag, 0, 0, 0]) + struct.pack("<ii", size, code).ljust(size, b"x")


def srow(*, flip: tuple[float, float, float] = (1, 1, 1), shift: float = 0.0) -> tuple[float, ...]:
    rows = AFFINE[:3].copy()
    rows[:, :3] *= flip
    rows[:, 3] += shift
    return tuple(rows.ravel())


SOUND: dict[str, dict[str, Any]] = {
    "a sound header": {},
    "sform alone": {"codes": (1, 0)},
    "qform alone": {"codes": (0, 1)},
    "qform alone, with a negative qfac": {"codes": (0, 1), "pixdim": (-1.0, 2, 3, 4, 1, 1, 1, 1)},
    "voxels behind a gap": {"vox_offset": 368.0, "extension": bytes(20)},
    "an extension before the voxels": {"vox_offset": 384.0, "extension": extension()},
    "no scaling": {"scl": (0.0, 0.0)},
    "no scaling, with an intercept that is no number": {"scl": (0.0, float("nan"))},
    "an unknown unit of length": {"unit": 0},
    "sform of an atlas in another place": {"codes": (4, 1), "srow": srow(shift=50.0)},
    "transforms that differ by less than half a voxel": {"codes": (1, 1), "srow": srow(shift=0.5)},
    "a vector of one axis": {"intent": 1007},
    "a pixdim that is rounded": {"pixdim": (1.0, 2.001, 3.001, 4.001, 1, 1, 1, 1), "codes": (1, 0)},
}

REMARKED: dict[str, tuple[dict[str, Any], str, str]] = {
    "vox_offset of 0": ({"vox_offset": 0.0}, "contradictory_header", "vox_offset is 0, .* read from byte 352"),
    "vox_offset inside the header": ({"vox_offset": 348.0}, "contradictory_header", "vox_offset is 348"),
    "vox_offset below 0": ({"vox_offset": -16.0}, "contradictory_header", "vox_offset is -16"),
    "vox_offset of 0 before an extension": (
        {"vox_offset": 0.0, "extension": extension()},
        "contradictory_header",
        "read from byte 384",
    ),
    "an extension beyond vox_offset": (
        {"vox_offset": 352.0, "extension": extension()},
        "contradictory_header",
        "vox_offset is 352, inside a header extension; the voxels were read from byte 384",
    ),
    "an extension that is not there": (
        {"vox_offset": 352.0, "extension": b"\x01\0\0\0", "data": struct.pack("<ii", 48, 6) + little_endian()[8:]},
        "contradictory_header",
        "read from byte 352",
    ),
    "bitpix of another type": ({"bitpix": 8}, "contradictory_header", "bitpix gives 8 bits per voxel and datatype 16"),
    "bitpix of 0": ({"bitpix": 0}, "contradictory_header", "bitpix gives 0"),
    "more voxels than declared": (
        {"data": little_endian() + bytes(48)},
        "contradictory_header",
        "more bytes than the header",
    ),
    "a slope that is no number": ({"scl": (float("nan"), 0.0)}, "contradictory_header", "scl_slope is nan"),
    "a slope of 0 with an intercept": ({"scl": (0.0, -1024.0)}, "contradictory_header", "scl_inter -1024"),
    "sform and qform mirrored": (
        {"srow": srow(flip=(-1, 1, 1))},
        "contradictory_orientation",
        "sform and qform differ about left and right; sform was used",
    ),
    "sform of an atlas and qform mirrored": (
        {"codes": (4, 1), "srow": srow(flip=(-1, 1, 1))},
        "contradictory_orientation",
        "about left and right",
    ),
    "sform and qform turned by half a circle": (
        {"srow": srow(flip=(-1, -1, 1))},
        "contradictory_orientation",
        "about left and right",
    ),
    "sform and qform upside down": (
        {"srow": srow(flip=(1, -1, -1))},
        "contradictory_orientation",
        "about the directions of the axes",
    ),
    "sform and qform in other places": (
        {"srow": srow(shift=50.0)},
        "contradictory_orientation",
        r"about the place of the voxels \(up to 25 voxels\)",
    ),
    "no code": ({"codes": (0, 0)}, "no_orientation", "does not define left and right"),
    "codes that NIfTI does not have": ({"codes": (9, -3)}, "no_orientation", "does not define left and right"),
    "qfac of 0": (
        {"codes": (0, 1), "pixdim": (0.0, 2, 3, 4, 1, 1, 1, 1)},
        "contradictory_orientation",
        r"pixdim\[0\], which defines left and right, is 0",
    ),
    "qfac of 3": ({"codes": (0, 1), "pixdim": (3.0, 2, 3, 4, 1, 1, 1, 1)}, "contradictory_orientation", "is 3 and not"),
    "a negative pixdim": (
        {"codes": (0, 1), "pixdim": (1.0, -2, 3, 4, 1, 1, 1, 1)},
        "contradictory_header",
        "voxel sizes of -2 x 3 x 4; the sign was dropped",
    ),
    "a pixdim of 0 beside sform": (
        {"codes": (1, 0), "pixdim": (1.0, 0, 3, 4, 1, 1, 1, 1)},
        "contradictory_header",
        "sform was used",
    ),
    "a pixdim that sform contradicts": (
        {"codes": (1, 0), "pixdim": (1.0, 1, 1, 1, 1, 1, 1, 1)},
        "contradictory_header",
        "voxel sizes of 1 x 1 x 1 and sform 2 x 3 x 4",
    ),
    "a quaternion that is not normalised beside sform": (
        {"quatern": (0.9, 0.9, 0.9)},
        "contradictory_header",
        "the quaternion of qform is not normalised",
    ),
    "metres that are millimetres": ({"unit": 1}, "implausible_size", "its unit of length may be wrong"),
    "micrometres that are millimetres": ({"unit": 3}, "implausible_size", "its unit of length may be wrong"),
    "labels": ({"intent": 1002}, "declared_content", "the voxels are labels"),
    "statistics": ({"intent": 5}, "declared_content", "the voxels are statistics"),
    "displacements": ({"intent": 1006}, "declared_content", "the voxels are displacements"),
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no dimensions": ({"dim": (0, 4, 3, 2, 1, 1, 1, 1)}, r"gives 0 dimensions \(dim\[0\]\)"),
    "eight dimensions": ({"dim": (8, 4, 3, 2, 1, 1, 1, 1)}, "gives 8 dimensions"),
    "dimensions in the other byte order": ({"dim": (768, 4, 3, 2, 1, 1, 1, 1)}, "gives 768 dimensions"),
    "a dimension of 0": ({"dim": (3, 4, 0, 2, 1, 1, 1, 1)}, "an empty image"),
    "vox_offset of 0 in a file of another length": (
        {"vox_offset": 0.0, "data": little_endian() + b"xy"},
        "inside the header|more voxels",
    ),
    "vox_offset beyond the file": ({"vox_offset": 1e6}, "the header declares"),
    "vox_offset between two bytes": ({"vox_offset": 352.5}, "vox_offset is not a whole number"),
    "an endless vox_offset": ({"vox_offset": float("inf")}, "vox_offset is not a whole number"),
    "bitpix of another type in a file of another length": (
        {"bitpix": 32, "data": little_endian() + little_endian()},
        "the file holds more voxels than it declares",
    ),
    "datatype wider than the file": ({"datatype": 16, "bitpix": 16}, "cannot hold them"),
    "an unknown datatype": ({"datatype": 0}, "header is damaged|not grey values|not recognized"),
    "an endless slope": ({"scl": (float("inf"), 0.0)}, "scl_slope is infinite"),
    "a slope with an intercept that is no number": ({"scl": (2.0, float("nan"))}, "scaling is not a number"),
    "a slope with an endless intercept": ({"scl": (2.0, float("inf"))}, "scaling is not a number"),
    "voxels without a size": ({"codes": (0, 1), "pixdim": (1.0, 2, 0, 4, 1, 1, 1, 1)}, "a voxel has no size"),
    "voxels whose size is no number": (
        {"codes": (0, 0), "pixdim": (1.0, 2, float("nan"), 4, 1, 1, 1, 1)},
        "a voxel has no size",
    ),
    "an sform without extent": ({"srow": (0.0,) * 12}, "singular"),
    "an sform that is no number": ({"srow": (float("nan"),) * 12}, "not finite"),
    "a quaternion that is not normalised": (
        {"codes": (0, 1), "quatern": (0.9, 0.9, 0.9)},
        "no valid affine",
    ),
    "a unit that NIfTI does not have": ({"unit": 5}, "unit of length"),
}


def written(tmp_path: Path, fields: dict[str, Any], packed: bool) -> Path:
    path = tmp_path / "scan.nii"
    content = bytes(nifti_file(**fields))
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("what", SOUND)
def test_a_header_without_a_contradiction_is_read_without_a_remark(what: str, packed: bool, tmp_path: Path) -> None:
    stored = read_image_file(written(tmp_path, SOUND[what], packed))
    assert [remark.text for remark in stored.warnings] == []
    np.testing.assert_array_equal(apply_scaling(stored, 0), VALUES)
    assert open_scan(tmp_path / "scan.nii", None, ReadOptions(strict=True)).warnings == ()


@pytest.mark.parametrize("what", REMARKED)
def test_a_contradiction_that_can_be_decided_is_remarked_on_and_refused_when_strict(what: str, tmp_path: Path) -> None:
    """VOL-09."""
    fields, code, sentence = REMARKED[what]
    path = written(tmp_path, fields, packed=False)
    scan = open_scan(path)
    assert [remark.code for remark in scan.warnings] == [code]
    assert all(remark.text[0].isupper() or remark.text.startswith("scan.nii") for remark in scan.warnings)
    with pytest.raises(VolumeError, match=rf"scan\.nii: .*{sentence}"):
        open_scan(path, None, ReadOptions(strict=True))
    if "extension that is not there" not in what:
        np.testing.assert_array_equal(scan.grid.array, VALUES)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("what", REFUSED)
def test_a_contradiction_that_nothing_decides_is_refused(what: str, packed: bool, tmp_path: Path) -> None:
    fields, sentence = REFUSED[what]
    if packed and "beyond the file" in what:
        fields = {"vox_offset": 1e9}
    with pytest.raises(VolumeError, match=rf"scan\.nii: .*({sentence})|cut short") as caught:
        open_scan(written(tmp_path, fields, packed))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "codes"),
    [
        ({"vox_offset": 0.0}, ["contradictory_header"]),
        ({"bitpix": 8}, ["contradictory_header"]),
        ({"data": little_endian() + bytes(48)}, ["contradictory_header"]),
    ],
)
def test_a_packed_file_is_decided_by_the_length_that_it_unpacks_to(
    fields: dict[str, Any], codes: list[str], tmp_path: Path
) -> None:
    scan = open_scan(written(tmp_path, fields, packed=True))
    assert [remark.code for remark in scan.warnings] == codes
    np.testing.assert_array_equal(scan.grid.array, VALUES)


def test_what_is_followed_is_where_the_voxels_lie(tmp_path: Path) -> None:
    """sform before qform, the first axis to the left where neither counts, and voxel sizes without their signs."""
    expected = {
        "sform and qform mirrored": np.diag([-2.0, 3, 4, 1]),
        "no code": np.diag([-2.0, 3, 4, 1]),
        "a negative pixdim": np.diag([2.0, 3, 4, 1]),
        "qfac of 0": np.diag([2.0, 3, 4, 1]),
        "a pixdim that sform contradicts": np.diag([2.0, 3, 4, 1]),
        "metres that are millimetres": np.diag([2000.0, 3000, 4000, 1]),
    }
    for what, steps in expected.items():
        affine = open_scan(written(tmp_path, REMARKED[what][0], packed=False)).grid.affine
        np.testing.assert_allclose(affine[:3, :3], steps[:3, :3], atol=1e-6, err_msg=what)


def test_two_volumes_in_a_vector_are_channels_and_no_contradiction(tmp_path: Path) -> None:
    """As ITK writes them: five dimensions and the intent of a vector."""
    fields = {"dim": (5, 4, 3, 2, 1, 2, 1, 1), "intent": 1007, "data": little_endian() + little_endian(VALUES + 100)}
    stored = read_image_file(written(tmp_path, fields, packed=False))
    assert stored.array.shape == (4, 3, 2, 2) and stored.warnings == ()
    np.testing.assert_array_equal(apply_scaling(stored, 1), VALUES + 100)
