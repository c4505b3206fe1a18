"""Volumes of every format that is read: voxels and places stand in the tests, and a header may lie."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from semiseg.errors import VolumeError
from semiseg.volumes.formats.registry import is_image_file, reader_for_file, readers, suffixes
from semiseg.volumes.image_files import apply_scaling, read_image_file
from semiseg.volumes.inspection import inspect_files
from semiseg.volumes.nifti import read_labels, read_nifti
from semiseg.volumes.read_options import ReadOptions
from semiseg.volumes.scan import files_in, open_scan
from semiseg.volumes.series_rules import SeriesRule
from tests.volumes.volume_files import (
    AFFINE,
    NRRD,
    VALUES,
    assert_as_written,
    little_endian,
    make_metaimage,
    make_mgh,
    make_nrrd,
    nifti_file,
    remark_codes,
    zlib_compressed,
)


def test_adding_a_reader_is_adding_a_file() -> None:
    assert readers()[0].name == "NIfTI file"
    assert {".nii", ".nii.gz", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgh", ".mgz"} <= set(suffixes())
    folder = Path(str(__import__("semiseg.volumes.formats", fromlist=["x"]).__file__)).parent
    with_reader = [file for file in folder.glob("*.py") if "\nREADER = " in file.read_text(encoding="utf-8")]
    assert len(with_reader) == len(readers())


# MGH, pairs, Analyze


@pytest.mark.parametrize("name", ["a.mgh", "a.mgz"])
def test_mgh_packed_or_not(name: str, tmp_path: Path) -> None:
    assert_as_written(make_mgh(tmp_path / name))
    np.testing.assert_array_equal(read_nifti(make_mgh(tmp_path / name, VALUES / 4, kind=3)).array, VALUES / 4)


def test_an_mgh_without_orientation_is_read_with_a_remark(tmp_path: Path) -> None:
    make_mgh(tmp_path / "a.mgz", oriented=False)
    volume = read_nifti(tmp_path / "a.mgz")
    assert (volume.axcodes, volume.spacing) == ("LIA", (1.0, 1.0, 1.0))
    assert remark_codes(tmp_path / "a.mgz") == ["no_orientation"]


@pytest.mark.parametrize("capitals", [False, True])
def test_a_nifti_pair_is_read_by_its_header(capitals: bool, tmp_path: Path) -> None:
    content = nifti_file(magic=b"ni1\0", vox_offset=0.0)
    names = ("scan.HDR", "SCAN.img") if capitals else ("scan.hdr", "scan.img")
    (tmp_path / names[0]).write_bytes(content[:348])
    (tmp_path / names[1]).write_bytes(content[352:])
    volume = read_nifti(tmp_path / names[0])
    np.testing.assert_array_equal(volume.array, VALUES)
    assert volume.spacing == (2.0, 3.0, 4.0) and remark_codes(tmp_path / names[0]) == []
    (tmp_path / names[1]).unlink()
    with pytest.raises(VolumeError, match=r"there is no \.img of the same name"):
        read_nifti(tmp_path / names[0])


def analyze(folder: Path) -> Path:
    content = nifti_file(magic=bytes(4), vox_offset=0.0, codes=(0, 0))
    (folder / "scan.hdr").write_bytes(content[:348])
    (folder / "scan.img").write_bytes(content[352:])
    return folder / "scan.hdr"


def test_an_analyze_pair_is_read_where_spm_says_its_place_and_refused_by_name_elsewhere(tmp_path: Path) -> None:
    header = analyze(tmp_path)
    with pytest.raises(VolumeError, match=r"scan\.hdr: this is an Analyze pair without orientation"):
        read_nifti(header)
    savemat(tmp_path / "scan.mat", {"M": np.eye(4)}, format="4")  # leaves the flip open
    with pytest.raises(VolumeError, match="an Analyze pair without orientation"):
        read_nifti(header)
    from_one = AFFINE.copy()
    from_one[:3, 3] -= AFFINE[:3, :3].sum(axis=1)
    savemat(tmp_path / "scan.mat", {"M": np.eye(4), "mat": from_one}, format="4")
    assert_as_written(header)
    (tmp_path / "scan.mat").write_bytes(b"no matrix at all" * 20)
    with pytest.raises(VolumeError, match="an Analyze pair without orientation"):
        read_nifti(header)


def test_a_damaged_matrix_of_spm_cannot_end_the_process(tmp_path: Path) -> None:
    """VOL-06: SciPy 1.17 ends with a segmentation fault where such a file has an unknown type of numbers."""
    header = analyze(tmp_path)
    savemat(tmp_path / "scan.mat", {"mat": AFFINE}, format="5")
    content = bytearray((tmp_path / "scan.mat").read_bytes())
    content[176] = 0  # the type of the stored numbers
    (tmp_path / "scan.mat").write_bytes(content)
    with pytest.raises(VolumeError, match="an Analyze pair without orientation"):
        read_nifti(header)


def test_a_matrix_of_spm_in_a_file_of_matlab_7_3_is_none(tmp_path: Path) -> None:
    header = analyze(tmp_path)
    (tmp_path / "scan.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n")
    with pytest.raises(VolumeError, match="an Analyze pair without orientation"):
        read_nifti(header)


# What all have in common


def hostile(tmp_path: Path) -> dict[str, Path]:
    """Small files that declare 16 TB or 1.7 GB of voxels."""
    huge, much = "30000 30000 9000", "1200 1200 600"
    out = {}
    for name, sizes in (("huge", huge), ("much", much)):
        out[f"nrrd {name}"] = make_nrrd(tmp_path / f"{name}.nrrd", {"sizes": sizes})
        out[f"gzipped nrrd {name}"] = make_nrrd(
            tmp_path / f"{name}-z.nrrd", {"sizes": sizes, "encoding": "gzip"}, gzip.compress(bytes(2**16))
        )
        out[f"nrrd as text {name}"] = make_nrrd(tmp_path / f"{name}-t.nrrd", {"sizes": sizes, "encoding": "text"})
        out[f"metaimage {name}"] = make_metaimage(tmp_path / f"{name}.mha", {"DimSize": sizes})
        out[f"packed metaimage {name}"] = make_metaimage(
            tmp_path / f"{name}-z.mha", {"DimSize": sizes, "CompressedData": "True"}, zlib_compressed(bytes(2**16))
        )
    content = bytearray(make_mgh(tmp_path / "huge.mgh").read_bytes())
    content[4:16] = np.array([30000, 30000, 9000], ">i4").tobytes()
    (tmp_path / "huge.mgh").write_bytes(bytes(content))
    (tmp_path / "huge.mgz").write_bytes(gzip.compress(bytes(content)))
    return out | {"mgh": tmp_path / "huge.mgh", "mgz": tmp_path / "huge.mgz"}


def test_a_small_file_of_any_format_cannot_ask_for_much_memory(tmp_path: Path) -> None:
    """VOL-06."""
    for name, path in hostile(tmp_path).items():
        assert path.stat().st_size < 2000, name
        with pytest.raises(VolumeError, match="the header declares"):
            read_nifti(path)


@pytest.mark.parametrize(
    "name", ["../secret.raw", "/etc/passwd", "sub/../../secret.raw", "C:\\secret.raw", "..\\secret.raw"]
)
def test_data_files_outside_the_headers_folder_are_never_read(name: str, tmp_path: Path) -> None:
    """VOL-07."""
    (tmp_path / "secret.raw").write_bytes(little_endian())
    folder = tmp_path / "scans"
    folder.mkdir()
    for path in (make_nrrd(folder / "a.nhdr", {"data file": name}), make_metaimage(folder / "a.mhd", file=name)):
        with pytest.raises(VolumeError, match="only a file in the header's own folder is read"):
            read_nifti(path)


def test_a_link_out_of_the_headers_folder_is_not_followed(tmp_path: Path) -> None:
    """VOL-07."""
    (tmp_path / "secret.raw").write_bytes(little_endian())
    folder = tmp_path / "scans"
    folder.mkdir()
    try:
        (folder / "a.raw").symlink_to(tmp_path / "secret.raw")
    except OSError:
        pytest.skip("this system gives no links to this user")
    with pytest.raises(VolumeError, match="a link out of the header's own folder"):
        read_nifti(make_metaimage(folder / "a.mhd", file="a.raw"))


def test_a_data_file_that_is_missing_cut_short_or_longer_is_told(tmp_path: Path) -> None:
    path = make_metaimage(tmp_path / "a.mhd", file="a.raw")
    with pytest.raises(VolumeError, match=r"a\.mhd: the data file that the header names does not exist"):
        read_nifti(path)
    (tmp_path / "a.raw").write_bytes(little_endian()[:-1])
    with pytest.raises(VolumeError, match="cut short"):
        read_nifti(path)
    (tmp_path / "a.raw").write_bytes(little_endian() + b"\0")
    assert remark_codes(path) == ["contradictory_header"]
    for damaged in (gzip.compress(little_endian())[:-9], b"\x1f\x8b" + bytes(20)):
        with pytest.raises(VolumeError, match=r"a\.nrrd: .*\.$"):
            read_nifti(make_nrrd(tmp_path / "a.nrrd", {"encoding": "gzip"}, damaged))


FILES = {"a.nrrd": make_nrrd, "a.mha": make_metaimage, "a.mgh": make_mgh, "a.mgz": make_mgh}


@pytest.mark.parametrize("name", FILES)
def test_content_and_not_the_name_says_what_a_file_is(name: str, tmp_path: Path) -> None:
    FILES[name](tmp_path / name)
    (tmp_path / name).rename(tmp_path / "0001.dcm")
    assert is_image_file(tmp_path / "0001.dcm")
    np.testing.assert_array_equal(open_scan(tmp_path / "0001.dcm").grid.array, VALUES)


@pytest.mark.parametrize("name", FILES)
def test_a_label_map_is_read_from_every_format(name: str, tmp_path: Path) -> None:
    labels = read_labels(FILES[name](tmp_path / name))
    assert labels.array.dtype == np.int32
    np.testing.assert_array_equal(labels.array, VALUES)


@pytest.mark.parametrize("name", FILES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(place=st.integers(0, 500), value=st.integers(0, 255))
def test_any_changed_byte_gives_a_volume_or_a_volume_error(name: str, place: int, value: int, tmp_path: Path) -> None:
    """VOL-06."""
    content = bytearray(FILES[name](tmp_path / name).read_bytes())
    content[place % len(content)] = value
    (tmp_path / name).write_bytes(bytes(content))
    try:
        stored = read_image_file(tmp_path / name)
    except VolumeError as error:
        assert str(tmp_path / name) in str(error) and "\n" not in str(error)
    else:
        assert np.isfinite(stored.affine).all() and apply_scaling(stored, 0).ndim == 3


def rules() -> dict[str, SeriesRule]:
    return {"MR": SeriesRule()}


def test_a_header_finds_its_data_in_its_own_zip_and_nowhere_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(make_metaimage(tmp_path / "x.mhd", file="x.raw"), "study/x.mhd")
        archive.writestr("study/notes.txt", "litter")
        archive.writestr("x.raw", little_endian() + b"another one")
        archive.writestr("study/X.RAW", little_endian())
    scan = open_scan(tmp_path / "a.zip", rules())
    np.testing.assert_array_equal(scan.grid.array, VALUES)
    assert scan.warnings == ()
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(make_metaimage(tmp_path / "x.mhd", file="../x.raw"), "study/x.mhd")
        archive.writestr("x.raw", little_endian())
    with pytest.raises(VolumeError, match=r"^b\.zip, member 00001: .*only a file in the header's own folder"):
        open_scan(tmp_path / "b.zip", rules())


def test_a_pair_is_one_by_its_names_in_a_zip(tmp_path: Path) -> None:
    content = bytes(nifti_file(magic=b"ni1\0", vox_offset=0.0))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("study/other.img", bytes(48))
        archive.writestr("study/scan.img", content[352:])
        archive.writestr("study/scan.hdr", content[:348])
        archive.writestr("scan.img", bytes(48))
    np.testing.assert_array_equal(open_scan(tmp_path / "a.zip", rules()).grid.array, VALUES)
    with files_in(tmp_path / "a.zip") as files:
        things, left_out = inspect_files(files)
        assert [one.outcome for one in things] == ["Read as it is."]
        assert [one.sentence.partition(":")[0] for one in left_out] == ["study/other.img", "scan.img"]


def test_a_header_and_its_data_are_one_scan_without_their_names(tmp_path: Path) -> None:
    """As they lie on a server: numbered."""
    make_metaimage(tmp_path / "scan-00001", file="x.raw")
    (tmp_path / "scan-00002").write_bytes(little_endian())
    np.testing.assert_array_equal(open_scan([tmp_path / "scan-00001", tmp_path / "scan-00002"]).grid.array, VALUES)
    content = nifti_file(magic=b"ni1\0", vox_offset=0.0)
    (tmp_path / "scan-00003").write_bytes(content[352:])
    (tmp_path / "scan-00004").write_bytes(content[:348])
    np.testing.assert_array_equal(open_scan([tmp_path / "scan-00003", tmp_path / "scan-00004"]).grid.array, VALUES)


def test_two_volumes_are_refused_and_their_formats_named(tmp_path: Path) -> None:
    make_nrrd(tmp_path / "a.nrrd")
    make_metaimage(tmp_path / "b.mha")
    with pytest.raises(VolumeError, match="holds 2 MetaImage and NRRD files; send one scan"):
        open_scan(tmp_path)
    with pytest.raises(VolumeError, match="NRRD file and holds no DICOM series"):
        open_scan(tmp_path / "a.nrrd", rules(), ReadOptions(series="1.2.3"))


def test_nibabel_reads_what_is_read_as_nifti_here(tmp_path: Path) -> None:
    """The hand-written file means to an independent reader what the tests say."""
    (tmp_path / "a.nii").write_bytes(bytes(nifti_file()))
    image = nib.load(tmp_path / "a.nii")
    np.testing.assert_array_equal(np.asarray(image.dataobj), VALUES)
    np.testing.assert_array_equal(image.affine, [[2, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.nii").affine, image.affine)
    assert reader_for_file(tmp_path / "a.nii") is readers()[0] and NRRD["sizes"] == "4 3 2"
