"""`semiseg predict` without highdicom, as on Python 3.14 by default: what that writes is refused in a sentence.

The child process finds no highdicom: `None` in `sys.modules` is how Python marks a module that cannot be imported.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.volume import Volume
from tests.bundles import expected_mask, make_threshold_bundle, scan_array

SHAPE = (20, 14, 11)
AFFINE = np.diag([-0.8, -0.9, 2.5, 1.0])
PROGRAM = "import sys; sys.modules['highdicom'] = None; from cli.app import main; main(sys.argv[1:])"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_threshold_bundle(tmp_path_factory.mktemp("bundle") / "bundle").folder


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series")
    write_dicom_series(folder, Volume(scan_array(SHAPE), AFFINE))
    return folder


def predict(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, "predict", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_dicom_series_is_segmented_into_nifti(bundle: Path, series: Path, tmp_path: Path) -> None:
    run = predict(bundle, series, "--out", tmp_path / "mask.nii.gz")
    assert run.returncode == 0, run.stderr
    mask = nib.load(tmp_path / "mask.nii.gz")
    values, counts = np.unique(np.asanyarray(mask.dataobj), return_counts=True)
    wanted, of_each = np.unique(expected_mask(scan_array(SHAPE)), return_counts=True)
    assert (values.tolist(), counts.tolist()) == (wanted.tolist(), of_each.tolist())


def test_an_rtstruct_is_written(bundle: Path, series: Path, tmp_path: Path) -> None:
    run = predict(bundle, series, "--out", tmp_path / "structures.dcm", "--output-format", "rtstruct")
    assert run.returncode == 0, run.stderr
    assert pydicom.dcmread(tmp_path / "structures.dcm").Modality == "RTSTRUCT"


@pytest.mark.parametrize(
    ("kind", "name"), [("seg", "mask.dcm"), ("seg-labelmap", "mask.dcm"), ("sr", "report.dcm"), ("overlay", "o.zip")]
)
def test_what_highdicom_writes_is_refused_in_a_sentence_that_says_how_to_install_it(
    bundle: Path, series: Path, tmp_path: Path, kind: str, name: str
) -> None:
    run = predict(bundle, series, "--out", tmp_path / name, "--output-format", kind)
    assert run.returncode == 2, run.stderr
    assert run.stderr.startswith("semiseg: ") and run.stderr.count("\n") == 1, run.stderr
    assert "pip install --no-deps highdicom" in run.stderr
    assert not (tmp_path / name).exists()
