"""What the JSON answer says besides the volumes: the series, why it was chosen, and what is to be known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from semiseg.outputs.report import ModelIdentity, Report
from semiseg.phantoms.anatomy import SEGMENTS, make_phantom
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.nifti import write_nifti
from semiseg.volumes.scan import Scan, open_scan
from semiseg.volumes.scan_warning import ScanWarning
from semiseg.volumes.segmentation import Segment, Segmentation
from semiseg.volumes.series_rules import SeriesRule

MODEL = ModelIdentity(name="m", sha256=None, method="mn", version="1")


@pytest.fixture
def scans(tmp_path: Path) -> dict[str, Scan]:
    image = make_phantom(3, (24, 20, 10), (4.0, 4.5, 5.0)).image
    write_nifti(tmp_path / "scan.nii", image.array, image.affine)
    series = write_dicom_series(tmp_path / "series", image, description="AX T1")
    rules = {"MR": SeriesRule(modality="MR")}
    return {"nifti": open_scan(tmp_path / "scan.nii", rules), "dicom": open_scan(series, rules)}


def report(scan: Scan, segments: tuple[Segment, ...], *remarks: ScanWarning) -> Report:
    segmentation = Segmentation(segments, np.zeros(scan.grid.shape, np.uint8), scan.grid.affine)
    return Report.from_segmentation(segmentation, MODEL, scan, remarks, windows=1, seconds={})


def test_the_series_and_the_reason_for_it_are_told(scans: dict[str, Scan]) -> None:
    told = report(scans["dicom"], SEGMENTS)
    assert told.series is not None
    assert (told.series.modality, told.series.description, told.series.slices) == ("MR", "AX T1", 10)
    (verdict,) = told.selection
    assert (verdict.channel, verdict.reason) == ("MR", "It is the only image series.")
    assert report(scans["nifti"], SEGMENTS).series is None


def test_remarks_of_scan_and_segmenter_are_told_and_private_codes_of_dicom(scans: dict[str, Scan]) -> None:
    noticed = ScanWarning("unfamiliar_spacing", "It is thick.")
    assert [r.code for r in report(scans["dicom"], SEGMENTS, noticed).remarks] == ["unfamiliar_spacing"]
    plain = (Segment(name="liver", label=1), SEGMENTS[1])
    told = report(scans["dicom"], plain, noticed).remarks
    assert [r.code for r in told] == ["unfamiliar_spacing", "uncoded_segments"]
    assert "No code of a standard terminology is known for liver; DICOM results" in told[1].text
    assert [r.code for r in report(scans["nifti"], plain).remarks] == []


def test_an_answer_says_what_other_programs_misread_of_a_dicom_result(tmp_path: Path) -> None:
    def codes(shape: tuple[int, int, int], lean: float = 0.0, gap: float = 0.0, missing: int = 0) -> list[str]:
        folder = tmp_path / f"{shape} {lean} {gap} {missing}"
        files = write_dicom_series(folder, make_phantom(3, shape, (4.0, 4.5, 5.0)).image)
        for z, file in enumerate(files):
            image = pydicom.dcmread(file)
            x, y, place = map(float, image.ImagePositionPatient)
            image.ImagePositionPatient = [x, y + lean * z, place + gap * (z % 2)]
            image.save_as(file)
        told = report(open_scan([*files[:4], *files[4 + missing :]]), SEGMENTS).remarks
        return [remark.code for remark in told if remark.code.startswith("seg_")]

    assert codes((24, 20, 10)) == codes((24, 20, 10), missing=1) == []
    assert codes((23, 21, 10)) == ["seg_packed_bits"]
    assert codes((24, 20, 10), lean=1.2) == codes((24, 20, 10), gap=1.5) == ["seg_irregular_planes"]
    assert codes((23, 21, 10), lean=1.2) == ["seg_packed_bits", "seg_irregular_planes"]
