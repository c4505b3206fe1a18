"""Whatever form a scan arrives in, the same volume comes out of the one door."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from semiseg.errors import VolumeError
from semiseg.outputs.nrrd import write_seg_nrrd
from semiseg.phantoms.anatomy import make_phantom
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.archives import UnpackLimits
from semiseg.volumes.nifti import write_nifti
from semiseg.volumes.read_options import ReadOptions
from semiseg.volumes.scan import open_scan
from semiseg.volumes.segmentation import Segment, Segmentation
from semiseg.volumes.series_rules import SeriesRule
from semiseg.volumes.volume import Volume, reorient


@pytest.fixture(scope="module")
def image() -> Volume:
    return make_phantom(11, (24, 20, 8), (4.0, 4.5, 12.0)).image


@pytest.fixture
def nifti(image: Volume, tmp_path: Path) -> Path:
    write_nifti(tmp_path / "scan.nii.gz", image.array, image.affine)
    return tmp_path / "scan.nii.gz"


@pytest.fixture
def series(image: Volume, tmp_path: Path) -> list[Path]:
    return write_dicom_series(tmp_path / "series", image)


def zipped(path: Path, files: list[Path]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, f"../{file.parent.name}/{file.name}")
    return path


def rules(*names: str) -> dict[str, SeriesRule]:
    return {name: SeriesRule() for name in names}


def in_ras(volume: Volume) -> np.ndarray:
    return reorient(volume.array, volume.affine, "RAS")[0]


def test_every_form_of_a_scan_gives_the_same_volume(
    image: Volume, nifti: Path, series: list[Path], tmp_path: Path
) -> None:
    forms = {
        "NIfTI file": nifti,
        "zip of a NIfTI file": zipped(tmp_path / "n.zip", [nifti]),
        "DICOM folder": series[0].parent,
        "DICOM files": series,
        "zip of DICOM files": zipped(tmp_path / "d.zip", series),
    }
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for name, paths in forms.items():
        scan = open_scan(paths, rules("MR"), scratch=scratch)
        assert list(scan.channels) == ["MR"], name
        assert scan.grid is scan.channels["MR"]
        assert (scan.series is not None) == ("DICOM" in name), name
        np.testing.assert_array_equal(in_ras(scan.grid), image.array, err_msg=name)
    assert list(scratch.iterdir()) == []


def test_names_do_not_matter(nifti: Path, series: list[Path], tmp_path: Path) -> None:
    nifti.rename(tmp_path / "upload-1.dcm")
    assert open_scan(tmp_path / "upload-1.dcm", rules("MR")).series is None
    archive = zipped(tmp_path / "upload-2.nii", series)
    assert open_scan(archive, rules("MR")).series is not None


def test_other_files_beside_the_slices_are_ignored(series: list[Path]) -> None:
    folder = series[0].parent
    (folder / "README.txt").write_text("slices of a phantom " * 20)
    (folder / ".DS_Store").write_bytes(b"\0" * 200)
    assert open_scan(folder, rules("MR")).grid.shape[2] == len(series)


def test_a_4d_file_gives_a_channel_per_name(image: Volume, tmp_path: Path) -> None:
    write_nifti(tmp_path / "two.nii", np.stack([image.array, image.array + 1], axis=-1), image.affine)
    scan = open_scan(tmp_path / "two.nii", rules("T1", "T2"))
    np.testing.assert_array_equal(scan.channels["T2"].array, image.array + 1)


def test_a_dicom_series_cannot_be_two_channels_and_the_missing_one_is_named(series: list[Path]) -> None:
    with pytest.raises(
        VolumeError, match=r"takes the channels T1, FLAIR, each from a separate series.* 1 image series"
    ):
        open_scan(series, rules("T1", "FLAIR"))
    wanted = {"T1": SeriesRule(), "FLAIR": SeriesRule(description=("*flair*",))}
    with pytest.raises(VolumeError, match=r"no series fits FLAIR\.$"):
        open_scan(series, wanted)


def test_one_of_several_series_can_be_named(image: Volume, series: list[Path], tmp_path: Path) -> None:
    other = write_dicom_series(tmp_path / "other", image, description="Other")
    both = zipped(tmp_path / "both.zip", [*series, *other])
    with pytest.raises(VolumeError, match="2 image series"):
        open_scan(both, rules("MR"))
    uid = open_scan(other, rules("MR")).series
    assert uid is not None
    found = open_scan(both, rules("MR"), ReadOptions(series=uid.uid)).series
    assert found is not None
    assert found.description == "Other"


def test_what_is_no_scan_is_refused_with_a_sentence(nifti: Path, series: list[Path], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no scan")
    (tmp_path / "empty").mkdir()
    cases: list[tuple[Path | list[Path], str]] = [
        (tmp_path / "nowhere", "there is no such file or folder"),
        (tmp_path / "notes.txt", "neither a NIfTI file"),
        (tmp_path / "empty", "neither a NIfTI file"),
        ([nifti, *series], r"both NIfTI \(1\) and DICOM \(8\)"),
        ([nifti, nifti], "holds 2 NIfTI files"),
        ([zipped(tmp_path / "a.zip", series), nifti], "send it alone"),
        (zipped(tmp_path / "b.zip", [tmp_path / "notes.txt"]), "neither a NIfTI file"),
    ]
    for paths, sentence in cases:
        with pytest.raises(VolumeError, match=sentence):
            open_scan(paths, rules("MR"))
    with pytest.raises(VolumeError, match="no series UID can be given for it"):
        open_scan(nifti, rules("MR"), ReadOptions(series="1.2.3"))


def test_errors_about_a_zip_name_the_zip_and_not_the_scratch_folder(nifti: Path, tmp_path: Path) -> None:
    whole = nifti.read_bytes()
    nifti.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VolumeError, match=r"^cut\.zip, member 00001: .*damaged or cut short") as caught:
        open_scan(zipped(tmp_path / "cut.zip", [nifti]), rules("MR"))
    assert "semiseg-" not in str(caught.value)


def test_limits_hold_for_the_zip(series: list[Path], tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="the limit is 3"):
        open_scan(zipped(tmp_path / "a.zip", series), rules("MR"), limits=UnpackLimits(members=3))


def test_a_dangling_link_in_a_folder_does_no_harm(series: list[Path], tmp_path: Path) -> None:
    (series[0].parent / "dangling").symlink_to(tmp_path / "gone")
    assert open_scan(series[0].parent, rules("MR")).grid.shape[2] == len(series)


def test_a_segmentation_of_slicer_beside_the_scan_is_left_alone(
    series: list[Path], nifti: Path, tmp_path: Path
) -> None:
    image = open_scan(series, rules("MR")).grid
    mask = Segmentation((Segment(name="liver", label=1),), np.ones(image.shape, np.uint8), image.affine)
    write_seg_nrrd(series[0].parent / "Segmentation.seg.nrrd", mask)
    assert open_scan(series[0].parent, rules("MR")).series is not None
    both = tmp_path / "both"
    both.mkdir()
    nifti.rename(both / "scan.nii.gz")
    write_seg_nrrd(both / "Segmentation.seg.nrrd", mask)
    np.testing.assert_array_equal(in_ras(open_scan(both, rules("MR")).grid), in_ras(image))
    (remark,) = open_scan(series[0].parent / "Segmentation.seg.nrrd", rules("MR")).warnings
    assert remark.code == "declared_content" and "3D Slicer" in remark.text
