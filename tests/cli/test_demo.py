"""`semiseg demo` from the first scan to the last picture, with a training too short to learn much."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import highdicom as hd
import pydicom
import pytest
from PIL import Image

from cli import demo
from semiseg.dataset import load_dataset
from semiseg.volumes.nifti import read_labels, read_nifti
from semiseg.volumes.volume import same_grid
from tests.fork_server import ForkingSubprocess, run_semiseg


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What the demo makes of fewer scans, and its output."""
    out = tmp_path_factory.mktemp("demo") / "out"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(demo, "CASES", 9)
        patch.setattr(demo, "TEST", 2)
        patch.setattr(demo, "subprocess", ForkingSubprocess)
        demo.demo(out, updates=16)
    return out, printed.getvalue()


def test_masks_lie_on_the_grid_of_the_scans_they_were_drawn_on(made):
    out, _ = made
    dataset = load_dataset(out / "data")
    test = json.loads((out / "data" / "split.json").read_text())["test"]
    for case_id, kind in zip(test, ("dicom", "nifti"), strict=False):
        scan = read_nifti(dataset.case(case_id).image)
        mask = read_labels(out / "answers" / f"{kind}_mask.nii.gz")
        assert mask.shape == scan.shape or kind == "dicom"
        assert kind == "dicom" or same_grid(mask.affine, scan.affine)
        assert mask.array.any(), "even a short training draws something"


def test_seg_refers_to_the_slices_that_were_uploaded(made):
    out, _ = made
    seg = hd.seg.segread(out / "answers" / "dicom_seg.dcm")
    uploaded = {pydicom.dcmread(p, stop_before_pixels=True).SOPInstanceUID for p in (out / "dicom").iterdir()}
    referred = {
        item.ReferencedSOPInstanceUID
        for series in seg.ReferencedSeriesSequence
        for item in series.ReferencedInstanceSequence
    }
    assert referred and referred <= uploaded


def test_pictures_are_there_and_everything_made_is_explained(made):
    out, printed = made
    for name in ("dicom_contact_sheet.png", "nifti_contact_sheet.png"):
        with Image.open(out / name) as picture:
            assert picture.convert("L").getextrema() != (0, 0)
        assert name in printed
    flat = "".join(printed.split())  # a terminal may break a long path
    for path in ("run", "bundle", "answers/dicom_seg.dcm", "evaluation"):
        assert (out / path).exists()
        assert "".join(str(out / path).split()) in flat


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("two years of work")
    run = run_semiseg("demo", "--out", tmp_path)
    assert run.returncode == 2
    assert "was not made by" in run.stderr and "Traceback" not in run.stderr
    assert (tmp_path / "thesis.txt").read_text() == "two years of work"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_command_as_a_user_types_it(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "semiseg", "demo", "--out", str(tmp_path / "out"), "--updates", "16"],
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for name in ("dicom_contact_sheet.png", "nifti_contact_sheet.png"):
        assert (tmp_path / "out" / name).is_file() and name in run.stdout
