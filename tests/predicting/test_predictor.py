"""The predictor: one way from a scan to a saved result, the same for Python, the command line and the server."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

import semiseg
from semiseg.outputs.formats import OUTPUT_FORMATS
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.volume import Volume
from tests.bundles import expected_mask, make_threshold_bundle, scan_array

SCAN = scan_array((24, 20, 18))
AFFINE = np.array([[0.0, -1.5, 0.0, 12.0], [0.8, 0.0, 0.0, -7.0], [0.0, 0.0, 2.0, 3.0], [0.0, 0.0, 0.0, 1.0]])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> semiseg.Predictor:
    folder = tmp_path_factory.mktemp("model")
    return semiseg.load_model(str(make_threshold_bundle(folder / "bundle").folder), threads=1)


@pytest.fixture
def nifti(tmp_path: Path) -> Path:
    nib.save(nib.Nifti1Image(SCAN, AFFINE), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


@pytest.fixture
def series(tmp_path: Path) -> Path:
    write_dicom_series(tmp_path / "series", Volume(SCAN, AFFINE))
    return tmp_path / "series"


def test_three_lines_of_python_write_the_mask_that_the_network_draws(
    model: semiseg.Predictor, nifti: Path, tmp_path: Path
) -> None:
    prediction = model.predict(str(nifti))
    assert prediction.save(str(tmp_path / "mask.nii.gz")) == tmp_path / "mask.nii.gz"
    saved = nib.load(tmp_path / "mask.nii.gz")
    assert np.array_equal(np.asarray(saved.dataobj), expected_mask(SCAN))
    assert np.allclose(saved.affine, AFFINE) and np.allclose(prediction.affine, AFFINE)
    name = model.segments[0]
    assert np.array_equal(prediction.mask(name), prediction.array == 1)
    assert prediction.volumes[name] == pytest.approx(np.count_nonzero(prediction.array == 1) * 2.4e-3, rel=1e-4)


def test_every_output_format_is_saved_from_one_pass_over_a_series(
    model: semiseg.Predictor, series: Path, tmp_path: Path
) -> None:
    prediction = model.predict(series, probabilities=True)
    for kind in OUTPUT_FORMATS:
        path = prediction.save(tmp_path / f"{kind}{OUTPUT_FORMATS[kind].suffixes[0]}", format=kind)
        assert path.stat().st_size > 0
    modalities = {kind: pydicom.dcmread(tmp_path / f"{kind}.dcm").Modality for kind in ("seg", "rtstruct", "sr")}
    assert modalities == {"seg": "SEG", "rtstruct": "RTSTRUCT", "sr": "SR"}
    assert json.loads((tmp_path / "json.json").read_text()) == prediction.report.model_dump(mode="json")
    assert prediction.warnings == [remark.text for remark in prediction.report.remarks]


def test_a_scan_that_was_opened_is_predicted_without_reading_it_again(model: semiseg.Predictor, series: Path) -> None:
    scan = model.open(series)
    for file in series.iterdir():
        file.unlink()
    assert np.array_equal(model.predict(scan).array, expected_mask(SCAN))


def test_a_list_of_files_and_a_zip_are_the_same_scan(model: semiseg.Predictor, series: Path, tmp_path: Path) -> None:
    files = [str(file) for file in sorted(series.iterdir())]
    with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive:
        for file in files:
            archive.write(file, Path(file).name)
    one, other = model.predict(files), model.predict(tmp_path / "series.zip")
    assert np.array_equal(one.array, other.array) and np.count_nonzero(one.array)
    other.save(tmp_path / "seg.dcm")  # although what was unpacked is gone


def test_a_mask_repeats_the_header_of_the_nifti_file_among_other_files(
    model: semiseg.Predictor, nifti: Path, tmp_path: Path
) -> None:
    (tmp_path / "a note.txt").write_text("beside the scan")
    image = nib.Nifti1Image(SCAN, AFFINE)
    image.header.set_qform(AFFINE, code=3)
    image.header.set_sform(AFFINE, code=4)
    nib.save(image, nifti)
    model.predict([tmp_path / "a note.txt", nifti]).save(tmp_path / "mask.nii.gz")
    header = nib.load(tmp_path / "mask.nii.gz").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (3, 4)


@pytest.mark.parametrize(
    ("name", "form", "sentence"),
    [
        ("mask.png", None, "name the result .nii.gz"),
        ("mask.nii.gz", "seg", "is named .dcm"),
        ("mask.dcm", None, "needs the DICOM series"),
        ("mask.dcm", "seg-fractional", "call predict with probabilities=True"),
        ("no such folder/mask.nii.gz", None, "There is no folder"),
        ("mask.nii.gz", "tiff", "is none of these"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_with_a_sentence(
    model: semiseg.Predictor, nifti: Path, tmp_path: Path, name: str, form: str | None, sentence: str
) -> None:
    prediction = model.predict(nifti)
    with pytest.raises(semiseg.SemisegError, match=sentence):
        prediction.save(tmp_path / name, format=form)
    assert not (tmp_path / name).exists()


def test_a_segment_that_the_model_lacks_is_named_with_those_that_it_has(model: semiseg.Predictor, nifti: Path) -> None:
    with pytest.raises(semiseg.SemisegError, match=f"no segment 'spine'.* {model.segments[0]}"):
        model.predict(nifti).mask("spine")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"precision": "fp8"}, "A precision is fp32"),
        ({"overlap": 1.5}, "overlap"),
        ({"window": (7, 7, 7)}, "Window 7x7x7"),
    ],
)
def test_an_option_that_the_model_does_not_allow_is_refused(
    tmp_path: Path, options: dict[str, object], sentence: str
) -> None:
    bundle = make_threshold_bundle(tmp_path / "bundle")
    with pytest.raises(semiseg.SemisegError, match=sentence):
        semiseg.load_model(bundle.folder, **options)


def test_a_training_run_is_told_to_be_exported_first(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(semiseg.SemisegError, match="semiseg export"):
        semiseg.load_model(tmp_path)


def test_any_scan_is_opened_without_a_model(nifti: Path, series: Path) -> None:
    for path in (nifti, series):
        scan = semiseg.open_scan(str(path))
        assert list(scan.channels) == ["image"] and scan.grid.shape == SCAN.shape
