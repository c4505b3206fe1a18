"""docs/python.md: its lines run as they stand, and it shows all that `import semiseg` offers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom

import semiseg
from docs.generators.document import REPOSITORY
from semiseg.phantoms.writers import write_dataset, write_dicom_series
from tests.server.harness import running_server

RELEASE = REPOSITORY / "tests" / "releases" / "0.1.0"
PAGE = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")


def test_page_runs_as_it_stands(tmp_path: Path) -> None:
    shutil.copytree(RELEASE / "bundle", tmp_path / "BUNDLE")
    shutil.copy(RELEASE / "scan.nii.gz", tmp_path / "SCAN.nii.gz")
    write_dicom_series(tmp_path / "SERIES", semiseg.read_nifti(RELEASE / "scan.nii.gz"))
    write_dataset(tmp_path / "DATA", cases=3, labelled=2, test=1, shape=(22, 20, 13), spacing=(5.0, 5.0, 8.0))
    with running_server(RELEASE / "bundle", tmp_path / "process") as server:
        blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
        assert len(blocks) == 8
        program = "\n".join(blocks).replace("http://127.0.0.1:3000", server.url)
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr
    assert "liver: 62.0 ml" in done.stdout and "| liver" in done.stdout and "There is no bundle folder" in done.stdout
    kept, made = (np.asarray(nib.load(one).dataobj) for one in (RELEASE / "mask.nii.gz", tmp_path / "MASK.nii.gz"))
    assert np.count_nonzero(kept != made) < 5
    modalities = {
        name: pydicom.dcmread(tmp_path / f"{name}.dcm").Modality for name in ("seg", "labelmap", "rtstruct", "report")
    }
    assert modalities == {"seg": "SEG", "labelmap": "SEG", "rtstruct": "RTSTRUCT", "report": "SR"}
    assert json.loads((tmp_path / "report.json").read_text())["segments"][0]["name"] == "liver"


def test_the_three_lines_of_the_readme_run_as_they_stand(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in block.splitlines() if line]) == 3
    shutil.copytree(RELEASE / "bundle", tmp_path / "demo" / "bundle")
    files = write_dicom_series(tmp_path / "series", semiseg.read_nifti(RELEASE / "scan.nii.gz"))
    with zipfile.ZipFile(tmp_path / "demo" / "dicom.zip", "w") as archive:
        for file in files:
            archive.write(file, file.name)
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert pydicom.dcmread(tmp_path / "seg.dcm").Modality == "SEG"


def test_page_shows_all_that_is_offered_and_nothing_else() -> None:
    assert set(re.findall(r"semiseg\.([A-Za-z_]+)", PAGE)) == set(semiseg.__all__)
    assert dir(semiseg) == sorted(semiseg.__all__)
    assert all(getattr(semiseg, name).__doc__ for name in semiseg.__all__)


def test_importing_it_brings_nothing_along() -> None:
    code = "import sys, semiseg; print([m for m in sys.modules if m.split('.')[0] in ('numpy', 'pydicom', 'pydantic')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
