"""`semiseg inspect` as a user runs it, on real folders."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from cli.app import main
from semiseg.phantoms.anatomy import make_phantom
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.nifti import write_nifti
from tests.bundles import make_threshold_bundle


def inspect(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["inspect", *map(str, arguments)])
    out, error = capsys.readouterr()
    return int(end.value.code or 0), out, error


def test_each_thing_in_a_folder_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = make_phantom(3, (24, 20, 10), (4.0, 4.5, 5.0)).image
    folder = tmp_path / "study"
    write_nifti(folder / "other.nii.gz", image.array, image.affine) if folder.mkdir() is None else None
    files = write_dicom_series(folder / "a", image, description="AX T1")
    files[4].unlink()
    (folder / "notes.txt").write_text("litter")
    (folder / "broken.dcm").write_bytes(files[0].read_bytes()[:300])
    code, out, error = inspect(capsys, folder)
    assert (code, error) == (0, "")
    assert "NIfTI file, 24 x 20 x 10 voxels of 4 x 4.5 x 5 mm, RAS" in out
    assert "(MR, AX T1)" in out and "9 slice(s) in 9 file(s), axial, slices 5 mm apart, pixels 4.5 mm" in out
    assert "Read with a correction: 1 slice(s) are missing" in out
    assert "left out  " in out and "notes.txt: a text file." in out
    assert "damaged  " in out
    assert "As one scan it would be refused: " in out and "holds both NIfTI (1) and DICOM (10) files" in out


def test_a_zip_and_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = make_phantom(3, (24, 20, 10), (4.0, 4.5, 5.0)).image
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for name in ("one", "two"):
            for file in write_dicom_series(tmp_path / name, image, description=name):
                archive.write(file, f"{name}/{file.name}")
    code, out, _ = inspect(capsys, tmp_path / "study.zip")
    assert code == 0
    assert "As one scan it would be refused: The files hold 2 image series that fit; name one of them" in out
    bundle = make_threshold_bundle(tmp_path / "bundle").folder
    code, out, _ = inspect(capsys, tmp_path / "one", "--model", bundle)
    assert "As one scan it would be read. image: one (It is the only image series.)" in out


def test_the_picture_has_a_row_for_each_thing_that_can_be_read(
    tmp_path: Path, semiseg_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heights = {}
    for folder in ("dicom/mr_hippocrop_study1", "dicom_odd/dcmqi_23x38x3"):
        code, out, _ = inspect(capsys, semiseg_data / folder, "--picture", tmp_path / "sheet.png")
        assert code == 0 and "wrote" in out
        sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
        assert sheet.std() > 10
        heights[folder] = sheet.shape[0]
    one, two = heights.values()
    assert two - one > 250  # a second row
    code, _, error = inspect(capsys, semiseg_data / "weights", "--picture", tmp_path / "none.png")
    assert (code, "nothing in it can be read" in error) == (2, True)
    code, _, error = inspect(capsys, tmp_path, "--picture", tmp_path / "none.jpg")
    assert (code, "the picture is a .png" in error) == (2, True)


def test_a_dicomdir_stands_for_the_files_that_it_lists(
    tmp_path: Path, semiseg_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = semiseg_data / "dicom_odd/pydicom_test/dicomdirtests"
    directory = source / "DICOMDIR"
    listed = [r for r in pydicom.dcmread(directory).DirectoryRecordSequence if "ReferencedFileID" in r]
    code, out, _ = inspect(capsys, directory)
    assert code == 0
    assert "(CT, Routine Brain)" in out and "(CR, Cervical LAT)" in out
    assert len(listed) > 5
    shutil.copy(directory, tmp_path / "DICOMDIR")
    code, _, error = inspect(capsys, tmp_path / "DICOMDIR")
    assert code == 2
    assert f"whose {len(listed)} listed file(s) do not exist; send the files themselves." in error
