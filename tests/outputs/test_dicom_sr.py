"""The report says each segment's volume, and where that segment is outlined."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from semiseg.outputs.dicom_common import Algorithm, write_dicom
from semiseg.outputs.dicom_seg import segmentation_to_seg
from semiseg.outputs.dicom_sr import segmentation_to_sr
from semiseg.phantoms.anatomy import SEGMENTS, make_phantom
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.dicom_series import DicomSeries, read_series
from semiseg.volumes.segmentation import Segment, Segmentation

ALGORITHM = Algorithm(name="phantom abdomen", version="1.2", model_sha256="ab" * 32)
REMARKS = ("The slices lean.", "Have a person look at it.")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[DicomSeries, Segmentation]:
    phantom = make_phantom(21, (30, 26, 12), (3.2, 3.6, 8.0))
    series = read_series(write_dicom_series(tmp_path_factory.mktemp("series"), phantom.image))
    labels = phantom.labels.array
    if not np.array_equal(series.volume.array, phantom.image.array):
        labels = np.ascontiguousarray(labels[:, :, ::-1])
    return series, Segmentation((*SEGMENTS, Segment(name="nothing", label=9)), labels, series.volume.affine)


@pytest.fixture
def report(case: tuple[DicomSeries, Segmentation], tmp_path: Path) -> Path:
    write_dicom(tmp_path / "sr.dcm", segmentation_to_sr(case[1], case[0], algorithm=ALGORITHM, remarks=REMARKS))
    return tmp_path / "sr.dcm"


def test_each_segment_has_its_volume_and_refers_to_its_outline(
    case: tuple[DicomSeries, Segmentation], report: Path
) -> None:
    """OUT-06."""
    series, segmentation = case
    content = hd.sr.srread(report).content
    groups = content.get_volumetric_roi_measurement_groups()
    assert [g.tracking_identifier for g in groups] == [s.name for s in segmentation.segments]
    seg = segmentation_to_seg(segmentation, series, algorithm=ALGORITHM)
    for number, (group, segment) in enumerate(zip(groups, segmentation.segments, strict=True), start=1):
        (volume,) = group.get_measurements(name=codes.SCT.Volume)
        assert volume.unit.value == "mL"
        voxels = np.count_nonzero(segmentation.array == segment.label)
        assert volume.value == pytest.approx(voxels * 3.2 * 3.6 * 8.0 / 1000, abs=1e-5)
        outlined = group.referenced_segment
        assert outlined.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert list(np.atleast_1d(outlined.referenced_segment_numbers)) == [number]
        assert group.finding_type.value == segment.coded_type.value


def test_what_is_to_be_known_is_said_as_a_comment(report: Path) -> None:
    items = [item for item in pydicom.dcmread(report).ContentSequence if item.ValueType == "TEXT"]
    said = [item.TextValue for item in items if item.ConceptNameCodeSequence[0].CodeMeaning == "Comment"]
    assert said == ["RESEARCH USE ONLY.", *REMARKS]


def test_the_report_is_unverified_and_of_the_same_patient(case: tuple[DicomSeries, Segmentation], report: Path) -> None:
    """OUT-06."""
    made, source = pydicom.dcmread(report), case[0].instances[0]
    assert (made.CompletionFlag, made.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    assert (made.PatientID, made.StudyInstanceUID) == (source.PatientID, source.StudyInstanceUID)
    again = segmentation_to_sr(case[1], case[0], algorithm=ALGORITHM)
    assert made.SOPInstanceUID == again.SOPInstanceUID


def test_names_of_patients_stay_out_of_warnings(
    case: tuple[DicomSeries, Segmentation], recwarn: pytest.WarningsRecorder
) -> None:
    slices = copy.deepcopy(case[0].slices)
    for one in slices:
        one.header.PatientName = "Jane_Doe"
    made = segmentation_to_sr(case[1], replace(case[0], slices=slices), algorithm=ALGORITHM)
    assert made.PatientName == "Jane_Doe"
    assert not [w for w in recwarn if "Jane" in str(w.message)]


def test_independent_programs_read_it(report: Path, require_program: Callable[[str], str]) -> None:
    """OUT-02."""
    checked = subprocess.run([require_program("dciodvfy"), str(report)], capture_output=True, text=True, check=False)
    said = (checked.stdout + checked.stderr).splitlines()
    assert any("Comprehensive3DSR" in line for line in said), said
    assert [line for line in said if line.startswith("Error")] == []
    dumped = subprocess.run(
        [require_program("dsrdump"), str(report)], capture_output=True, text=True, check=True
    ).stdout
    assert "Imaging Measurement Report" in dumped
    assert dumped.count("Volume") >= 4
