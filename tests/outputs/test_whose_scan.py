"""Results carry the source's patient and study letter for letter, and every attribute that their modules ask for."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from semiseg.errors import VolumeError
from semiseg.outputs.dicom_common import Algorithm, write_dicom
from semiseg.outputs.dicom_overlay import segmentation_to_overlays
from semiseg.outputs.dicom_rtstruct import segmentation_to_rtstruct
from semiseg.outputs.dicom_seg import segmentation_to_seg
from semiseg.outputs.dicom_sr import segmentation_to_sr
from semiseg.phantoms.anatomy import SEGMENTS, make_phantom
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.dicom_series import DicomSeries, read_series
from semiseg.volumes.segmentation import Segmentation
from tests.volumes.enhanced_multiframe import sequence_item, write_enhanced

ALGORITHM = Algorithm(name="phantom abdomen", version="1.2", model_sha256="ab" * 32)
MADE: dict[str, Callable[[Segmentation, DicomSeries], pydicom.Dataset]] = {
    "segmentation": lambda mask, series: segmentation_to_seg(mask, series, algorithm=ALGORITHM),
    "rt-structure-set": lambda mask, series: segmentation_to_rtstruct(mask, series, algorithm=ALGORITHM),
    "comprehensive-3d-sr": lambda mask, series: segmentation_to_sr(mask, series, algorithm=ALGORITHM),
    "secondary-capture-image": lambda mask, series: next(segmentation_to_overlays(mask, series, algorithm=ALGORITHM)),
}


def edited(tmp_path: Path, change: Callable[[pydicom.Dataset], Any]) -> list[Path]:
    phantom = make_phantom(21, (24, 20, 5), (4.0, 4.6, 20.0))
    files = write_dicom_series(tmp_path / "series", phantom.image)
    for path in files:
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)
    return files


def drawn_on(series: DicomSeries) -> Segmentation:
    mask = np.zeros(series.volume.shape, np.uint8)
    mask[4:12, 5:14, 1:4] = 1
    return Segmentation(SEGMENTS, mask, series.volume.affine)


def written(form: str, series: DicomSeries, path: Path) -> pydicom.Dataset:
    write_dicom(path, MADE[form](drawn_on(series), series))
    return pydicom.dcmread(path)


def with_much_said(dataset: pydicom.Dataset) -> None:
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientName = "Müller^Jörg"
    dataset.add_new("PatientID", "LO", "A\\17")  # no value may hold a backslash, and archives have them
    dataset.IssuerOfPatientID = "Krankenhaus Süd"
    dataset.IssuerOfPatientIDQualifiersSequence = [
        sequence_item({"UniversalEntityID": "1.2.276.0.76", "UniversalEntityIDType": "ISO"})
    ]
    other = sequence_item({"PatientID": "Ü-4", "IssuerOfPatientID": "Köln"})
    dataset.OtherPatientIDsSequence = [other]
    dataset.PatientAge, dataset.PatientWeight, dataset.PatientBirthDate = "045Y", "71.5", "19500102"
    dataset.StudyDescription, dataset.AccessionNumber = "Oberbauch", "2026/0815"
    dataset.IssuerOfAccessionNumberSequence = [sequence_item({"LocalNamespaceEntityID": "RIS"})]
    dataset.PatientIdentityRemoved, dataset.DeidentificationMethod = "YES", "by hand"
    dataset.ClinicalTrialProtocolID = "T-1"


@pytest.mark.parametrize("form", MADE)
def test_patient_and_study_are_the_sources_letter_for_letter(form: str, tmp_path: Path) -> None:
    files = edited(tmp_path, with_much_said)
    made, source = written(form, read_series(files), tmp_path / "made.dcm"), pydicom.dcmread(files[0])
    assert made.SpecificCharacterSet == "ISO_IR 192"
    for keyword in (
        "PatientName", "PatientID", "IssuerOfPatientID", "PatientAge", "PatientWeight", "PatientBirthDate",
        "StudyDescription", "AccessionNumber", "PatientIdentityRemoved", "DeidentificationMethod",
        "ClinicalTrialProtocolID", "StudyDate", "StudyTime", "StudyInstanceUID", "StudyID",
    ):  # fmt: skip
        assert made.get(keyword) == source.get(keyword), keyword
    assert "\\".join(made.PatientID) == "A\\17"
    assert made.IssuerOfPatientIDQualifiersSequence[0].UniversalEntityID == "1.2.276.0.76"
    assert made.OtherPatientIDsSequence[0].PatientID == "Ü-4"
    assert made.OtherPatientIDsSequence[0].IssuerOfPatientID == "Köln"
    assert made.IssuerOfAccessionNumberSequence[0].LocalNamespaceEntityID == "RIS"


@pytest.mark.parametrize("form", MADE)
def test_an_age_that_no_reader_may_rely_on_is_left_out(form: str, tmp_path: Path) -> None:
    def change(dataset: pydicom.Dataset) -> None:
        dataset.add_new("PatientAge", "AS", "42")  # years, months?
        dataset.add_new("PatientWeight", "DS", "71.5")

    made = written(form, read_series(edited(tmp_path, change)), tmp_path / "made.dcm")
    assert "PatientAge" not in made
    assert made.PatientWeight == 71.5


@pytest.mark.parametrize("form", MADE)
def test_a_scan_that_was_deidentified_somehow_says_that_the_method_is_not_known(form: str, tmp_path: Path) -> None:
    def change(dataset: pydicom.Dataset) -> None:
        dataset.PatientIdentityRemoved, dataset.DeidentificationMethod = "YES", ""

    made = written(form, read_series(edited(tmp_path, change)), tmp_path / "made.dcm")
    assert (made.PatientIdentityRemoved, made.DeidentificationMethod) == ("YES", "not stated by the source images")


@pytest.mark.parametrize("form", MADE)
def test_what_the_source_does_not_say_is_not_said(form: str, tmp_path: Path) -> None:
    made = written(form, read_series(edited(tmp_path, lambda dataset: None)), tmp_path / "made.dcm")
    assert "IssuerOfPatientID" not in made and "PatientIdentityRemoved" not in made and "PatientAge" not in made
    assert "AccessionNumber" in made and "ReferringPhysicianName" in made


def test_what_need_not_be_there_is_repeated_where_it_is_in_order(tmp_path: Path) -> None:
    def odd(dataset: pydicom.Dataset) -> None:
        dataset.PatientAge, dataset.PatientWeight, dataset.DeidentificationMethod = "42", "72", ""

    made = written("segmentation", read_series(edited(tmp_path, odd)), tmp_path / "made.dcm")
    assert "PatientAge" not in made and "DeidentificationMethod" not in made and made.PatientWeight == 72


@pytest.mark.parametrize("form", MADE)
def test_every_attribute_that_must_be_there_is_there(form: str, tmp_path: Path) -> None:
    """By the tables of PS3.3 that highdicom brings: types 1 and 2 of the mandatory modules, on the first level."""
    tables = resources.files("highdicom") / "_standard"
    modules = json.loads((tables / "iod_module_map.json").read_text())[form]
    attributes = json.loads((tables / "module_attribute_map.json").read_text())
    made = written(form, read_series(edited(tmp_path, lambda dataset: None)), tmp_path / "made.dcm")
    missing = {
        attribute["keyword"]
        for module in modules
        if module["usage"] == "M" and module["key"] != "sr-document-content"  # a tree, of which dciodvfy judges
        for attribute in attributes[module["key"]]
        if not attribute["path"] and attribute["type"] in ("1", "2") and attribute["keyword"] not in made
    }
    assert missing == set()


@pytest.mark.parametrize(
    ("charset", "name"), [(None, "M\xfcller".encode("latin-1")), ("ISO_IR 192", b"M\xfcller"), ("ISO_IR 6", b"\xff")]
)
def test_text_that_cannot_be_decoded_is_told_without_quoting_it(
    tmp_path: Path, charset: str | None, name: bytes
) -> None:
    files = edited(tmp_path, lambda dataset: setattr(dataset, "PatientName", "X" * len(name)))
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.pop("SpecificCharacterSet", None)
        if charset:
            dataset.SpecificCharacterSet = charset
        dataset.save_as(path)
        path.write_bytes(path.read_bytes().replace(b"X" * len(name), name))
    remarks = read_series(files).warnings
    assert [remark.code for remark in remarks] == ["undecodable_text"]
    assert "PatientName cannot be decoded" in remarks[0].text and "ller" not in remarks[0].text
    with pytest.raises(VolumeError, match="PatientName cannot be decoded"):
        read_series(files, strict=True)


# --- results of enhanced objects, wherever their groups stand ---------------------------------------------------------


@pytest.mark.parametrize("measures", ["shared", "frame", "object"])
@pytest.mark.parametrize("orientation", ["shared", "frame", "object"])
@pytest.mark.parametrize("form", ["segmentation", "comprehensive-3d-sr", "rt-structure-set"])
def test_results_of_an_enhanced_object_are_made_wherever_its_groups_stand(
    measures: Any, orientation: Any, form: str, tmp_path: Path
) -> None:
    files = edited(tmp_path, lambda dataset: None)
    source = write_enhanced(tmp_path / "object.dcm", sorted(files), measures=measures, orientation=orientation)
    series = read_series([source])
    made = written(form, series, tmp_path / "made.dcm")
    if form == "segmentation":
        groups = made.SharedFunctionalGroupsSequence[0]
        np.testing.assert_allclose(groups.PixelMeasuresSequence[0].PixelSpacing, (4.6, 4.0))
        assert groups.PixelMeasuresSequence[0].SliceThickness == 20
        np.testing.assert_allclose(
            groups.PlaneOrientationSequence[0].ImageOrientationPatient,
            [*series.slices[0].plane.along_row, *series.slices[0].plane.along_column],
        )
        assert made.NumberOfFrames == 3
        for frame in made.PerFrameFunctionalGroupsSequence:
            derived = frame.DerivationImageSequence[0].SourceImageSequence[0]
            number = int(derived.ReferencedFrameNumber)
            place = series.slices[[one.frame for one in series.slices].index(number - 1)].plane.position
            np.testing.assert_allclose(frame.PlanePositionSequence[0].ImagePositionPatient, place)
