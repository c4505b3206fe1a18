"""What is no scan is named: one phrase for each kind, in whatever way it is sent."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semiseg.errors import VolumeError
from semiseg.volumes.file_types import describe_file, has_detached_header
from semiseg.volumes.inspection import inspect_files
from semiseg.volumes.nifti import read_nifti
from semiseg.volumes.read_options import ReadOptions
from semiseg.volumes.scan import files_in, open_scan
from tests.volumes.volume_files import little_endian, make_metaimage, make_nrrd, nifti_file


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("scan.nii")
        member.size = 600
        archive.addfile(member, io.BytesIO(bytes(600)))
    return out.getvalue()


def picture(kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(out, kind)
    return out.getvalue()


def dataset_json() -> bytes:
    document = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    return json.dumps(document).encode()


KINDS = {
    "empty.nii": (b"", "an empty file (0 bytes)"),
    "scan.tar": (tarred(), "a tar archive"),
    "scan.tar.gz": (gzip.compress(tarred()), "a gzip of a tar archive"),
    "slice.dcm.gz": (gzip.compress(bytes(128) + b"DICM" + bytes(300)), "a gzip of a DICOM file; unpack it"),
    "scan.nrrd.gz": (gzip.compress(b"NRRD0004\n" * 9), "a gzip of an NRRD file; unpack it"),
    "scan.mha.gz": (
        gzip.compress(b"ObjectType = Image\nNDims = 3\nDimSize = 1 1 1\n"),
        "a gzip of a MetaImage file; unpack it",
    ),
    "something.gz": (gzip.compress(bytes(range(256)) * 4), "a gzip of something else"),
    "cut.gz": (gzip.compress(b"x" * 3000)[:15], "a damaged gzip file"),
    "scan.7z": (b"7z\xbc\xaf\x27\x1c" + bytes(60), "a 7z archive"),
    "scan.rar": (b"Rar!\x1a\x07" + bytes(60), "a rar archive"),
    "scan.nii.xz": (b"\xfd7zXZ\0" + bytes(60), "a xz archive"),
    "broken.nii": (b"\x5c\x01" + bytes(range(200)) * 3, "a broken NIfTI file (its content is not a NIfTI file)"),
    "broken.nii.gz": (gzip.compress(b"hello" * 99), "a broken NIfTI file (its content is not a NIfTI file)"),
    "cut.nii.gz": (gzip.compress(bytes(nifti_file()))[:30], "a broken NIfTI file (its gzip stream is damaged)"),
    "broken.nrrd": (b"NRRX0004\n" * 9, "a broken NRRD file (its content is not an NRRD file)"),
    "broken.mha": (b"Objekt = Bild\n", "a broken MetaImage file (its content is not a MetaImage file)"),
    "picture.png": (picture("PNG"), "a PNG picture"),
    "picture.nii": (picture("JPEG"), "a JPEG picture"),
    "picture.tif": (picture("TIFF"), "a TIFF picture"),
    "letter.pdf": (b"%PDF-1.7\n" + bytes(99), "a PDF document"),
    "array.npy": (b"\x93NUMPY\x01\0" + bytes(99), "a NumPy array, which has no position in the patient"),
    "dataset.json": (dataset_json(), "an nnU-Net dataset.json, which describes scans but is not a scan"),
    "plans.json": (b'{"dataset_name": "x", "plans_name": "nnUNetPlans"}', "the plans of an nnU-Net"),
    "other.json": (b'[{"a": 1}]', "a JSON file"),
    "notes.txt": (b"Dear colleague,\nthe scan is enclosed.\n", "a text file"),
    "scan.raw": (
        little_endian() * 9,
        "the voxels of a pair without its header; give the header",
    ),
    "unknown": (bytes(range(256)), "a file of an unknown kind"),
}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_named_by_what_is_in_it(name: str, tmp_path: Path) -> None:
    content, phrase = KINDS[name]
    path = tmp_path / name
    path.write_bytes(content)
    assert describe_file(path) == phrase
    for reader in (read_nifti, open_scan):
        with pytest.raises(VolumeError) as caught:
            reader(path)
        assert str(caught.value).startswith(f"{path}: this is {phrase}, neither a NIfTI file (.nii, .nii.gz")
    _, left_out = inspect_files({path: ""})
    assert [one.sentence for one in left_out] == [f"{path}: {phrase}."]


def test_a_nifti_file_without_its_mark_is_called_broken_and_not_a_dicom_file(tmp_path: Path) -> None:
    (tmp_path / "broken.nii").write_bytes(bytes(nifti_file(magic=b"xxx\0")))
    with pytest.raises(VolumeError, match=r'broken\.nii: this is a broken NIfTI file \(its magic, "n\+1" at byte 344'):
        open_scan(tmp_path / "broken.nii")
    (found,), left_out = (list(part) for part in inspect_files({tmp_path / "broken.nii": ""}))
    assert left_out == [] and found.outcome.startswith("Refused: This is a broken NIfTI file")


def test_the_files_of_a_folder_without_a_scan_are_counted_by_kind(tmp_path: Path) -> None:
    for name in ("empty.nii", "notes.txt", "picture.png"):
        (tmp_path / name).write_bytes(KINDS[name][0])
    (tmp_path / "more.txt").write_text("more")
    with pytest.raises(
        VolumeError, match=r"of 4 file\(s\) \(2 x a text file, 1 x an empty file \(0 bytes\), 1 x a PNG"
    ):
        open_scan(tmp_path)


@pytest.mark.parametrize("name", ["empty.nii", "cut.nii.gz", "broken.nrrd", "broken.mha"])
def test_a_broken_file_beside_the_scan_is_remarked_on_and_refused_when_strict(name: str, tmp_path: Path) -> None:
    """VOL-04."""
    make_nrrd(tmp_path / "scan.nrrd")
    (tmp_path / name).write_bytes(KINDS[name][0])
    (remark,) = open_scan(tmp_path).warnings
    assert remark.code == "damaged_files"
    assert remark.text.startswith(f"1 file(s) are named like scans but cannot be read ({name}: {KINDS[name][1]})")
    with pytest.raises(VolumeError, match=r"1 file\(s\) are named like scans"):
        open_scan(tmp_path, None, ReadOptions(strict=True))


@pytest.mark.parametrize("name", ["notes.txt", "dataset.json", "picture.png", "unknown"])
def test_other_files_beside_the_scan_are_left_alone(name: str, tmp_path: Path) -> None:
    make_nrrd(tmp_path / "scan.nrrd")
    (tmp_path / name).write_bytes(KINDS[name][0])
    assert open_scan(tmp_path, None, ReadOptions(strict=True)).warnings == ()


def test_the_voxels_of_a_pair_belong_to_the_header_of_their_name(tmp_path: Path) -> None:
    make_metaimage(tmp_path / "a.mhd", file="a.raw")
    for name in ("a.raw", "b.raw", "a.mhd"):
        if name != "a.mhd":
            (tmp_path / name).write_bytes(little_endian())
        assert has_detached_header(tmp_path / name) == (name == "a.raw")


@pytest.mark.parametrize("name", ["im1", "Im1.dcm", "study/im1"])
def test_a_sentence_that_begins_with_a_path_keeps_its_letters(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is told as it was given."""
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(nifti_file(dim=(8, 4, 3, 2, 1, 1, 1, 1))))
    with files_in(path) as files:
        (found,) = inspect_files(files)[0]
    assert found.name == str(path)
    assert found.outcome.startswith("Refused: The header gives 8 dimensions")


@pytest.mark.parametrize("start", [b"\x08\0\x05\0\x02\0\0\0", b"\x02\0\x10\0UI\x14\0"])
def test_voxels_that_look_like_dicom_belong_to_their_header(start: bytes, tmp_path: Path) -> None:
    """A file without DICOM's preamble is taken for DICOM by its first element, and voxels may be anything."""
    data = start + little_endian()[len(start) :]
    make_metaimage(tmp_path / "a.mhd", file="a.raw")
    (tmp_path / "a.raw").write_bytes(data)
    expected = np.frombuffer(data, "<i2").reshape((4, 3, 2), order="F")
    np.testing.assert_array_equal(open_scan(tmp_path).grid.array, expected)
    with files_in(tmp_path) as files:
        found, left_out = inspect_files(files)
        assert [one.title for one in found] == ["a.mhd"] and left_out == []
    folder = tmp_path / "upload"
    folder.mkdir()
    (tmp_path / "a.mhd").rename(folder / "scan-00001")
    (tmp_path / "a.raw").rename(folder / "scan-00002")
    np.testing.assert_array_equal(open_scan(sorted(folder.iterdir())).grid.array, expected)


def test_names_that_were_sent_are_not_told(tmp_path: Path) -> None:
    """VOL-08: a file's name may say who the patient is; members of a zip are told by their numbers."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(make_nrrd(tmp_path / "SMITH.nrrd"), "SMITH.nrrd")
        archive.writestr("SMITH_JOHN.nii", b"")
    (remark,) = open_scan(tmp_path / "a.zip").warnings
    assert "(member 00002: an empty file" in remark.text and "SMITH" not in remark.text
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(make_metaimage(tmp_path / "x.mhd", {"Comment": "SMITH JOHN"}, file="SMITH.raw"), "SMITH.mhd")
    with pytest.raises(VolumeError, match="the data file that the header names does not exist") as caught:
        open_scan(tmp_path / "b.zip")
    assert "SMITH" not in str(caught.value)
    for path in (make_nrrd(tmp_path / "c.nrrd", more="SMITH JOHN\n"), tmp_path / "d.mha"):
        if path.suffix == ".mha":
            path.write_bytes(b"ObjectType = Image\nNDims = 3\nSMITH JOHN\nDimSize = 4 3 2\nElementDataFile = LOCAL\n")
        with pytest.raises(VolumeError, match="header is damaged") as caught:
            open_scan(path)
        assert "SMITH" not in str(caught.value)
