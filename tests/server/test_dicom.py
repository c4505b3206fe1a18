"""DICOM in, DICOM SEG out: on the series' own grid, referring to its instances, and silent about the patient."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from semiseg.bundle.bundle import Bundle
from semiseg.inference.engine_selection import choose_engine
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.dicom_series import read_series
from semiseg.volumes.volume import Volume
from tests.bundles import expected_mask, make_threshold_bundle, scan_array
from tests.server.harness import RunningServer, running_server

SHAPE = (20, 14, 11)  # columns, rows, slices
AFFINE = np.array([[-0.8, 0.0, 0.0, 40.0], [0.0, -0.9, 0.0, 30.0], [0.0, 0.0, 2.5, -15.0], [0, 0, 0, 1]])
MARK = "XQZMARKED"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_threshold_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="module")
def server(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(bundle.folder, tmp_path_factory.mktemp("server") / "process") as server:
        yield server


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("series")
    volume = Volume(scan_array(SHAPE, seed=21), AFFINE)
    return write_dicom_series(folder, volume, patient_id=f"{MARK}ID", description=f"{MARK} series")


def zipped(files: list[Path], *, prefix: str = "study/") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, prefix + file.name)
    return out.getvalue()


def assert_seg_of(series: list[Path], content: bytes) -> None:
    seg = pydicom.dcmread(io.BytesIO(content))
    assert seg.Modality == "SEG" and "RESEARCH USE ONLY" in seg.SeriesDescription
    sources = [pydicom.dcmread(file) for file in series]  # in the order of the array's third axis
    referenced = {
        i.ReferencedSOPInstanceUID for s in seg.ReferencedSeriesSequence for i in s.ReferencedInstanceSequence
    }
    assert referenced == {source.SOPInstanceUID for source in sources}
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == sources[0].SeriesInstanceUID
    assert seg.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    labels = expected_mask(scan_array(SHAPE, seed=21))
    drawn = np.zeros_like(labels)
    by_position = {round(float(s.ImagePositionPatient[2]), 3): z for z, s in enumerate(sources)}
    frames = seg.pixel_array if seg.NumberOfFrames > 1 else seg.pixel_array[None]
    for frame, item in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        z = by_position[round(float(item.PlanePositionSequence[0].ImagePositionPatient[2]), 3)]
        number = item.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        drawn[:, :, z][frame.T != 0] = number
    assert np.array_equal(drawn, labels)


def test_zip_of_a_series_is_answered_with_a_seg_that_refers_to_its_instances(server, series):
    answer = server.segment(zipped(series), names=["study.zip"])
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom"
    assert_seg_of(series, answer.content)


def test_structures_are_answered_when_asked_for(server, series):
    answer = server.segment(zipped(series), fields={"output_format": "rtstruct"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-disposition"] == 'attachment; filename="structures.dcm"'
    struct = pydicom.dcmread(io.BytesIO(answer.content))
    assert [roi.ROIName for roi in struct.StructureSetROISequence] == ["low", "high"]
    refused = server.segment(
        nib.Nifti1Image(scan_array(SHAPE), AFFINE).to_bytes(), fields={"output_format": "rtstruct"}
    )
    assert (refused.status_code, "refers to the segmented images" in refused.json()["error"]) == (400, True)


def test_a_report_is_answered_when_asked_for_and_refers_to_the_seg(server, series):
    report = pydicom.dcmread(io.BytesIO(server.segment(zipped(series), fields={"output_format": "sr"}).content))
    seg = pydicom.dcmread(io.BytesIO(server.segment(zipped(series), fields={"output_format": "seg"}).content))
    assert report.Modality == "SR"
    referenced = {
        item.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for one in study.ReferencedSeriesSequence
        for item in one.ReferencedSOPSequence
    }
    assert seg.SOPInstanceUID in referenced


def test_files_of_a_series_are_one_scan_in_whatever_order_they_come(server, series):
    shuffled = [series[i] for i in np.random.default_rng(0).permutation(len(series))]
    answer = server.segment(*shuffled)
    assert answer.status_code == 200, answer.text
    assert_seg_of(series, answer.content)


def test_the_same_series_gives_the_same_seg_instance(server, series):
    first, second = (pydicom.dcmread(io.BytesIO(server.segment(zipped(series)).content)) for _ in range(2))
    assert first.SOPInstanceUID == second.SOPInstanceUID


def test_series_can_be_answered_in_nifti_in_its_place_in_the_patient(server, series):
    answer = server.segment(zipped(series), fields={"output_format": "nifti"})
    assert answer.status_code == 200, answer.text
    mask = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
    volume = read_series(series).volume
    assert mask.shape == volume.shape
    assert np.allclose(mask.affine, volume.affine, atol=1e-4)
    assert np.array_equal(np.asanyarray(mask.dataobj), expected_mask(volume.array))


def test_json_says_the_millilitres_of_each_segment_and_who_measured_them(server, series, bundle):
    where_it_runs = choose_engine(bundle).selected.engine_and_device
    answer = server.segment(zipped(series), fields={"output_format": "json"}).json()
    labels = expected_mask(scan_array(SHAPE, seed=21))
    voxel = 0.8 * 0.9 * 2.5 / 1000
    assert [s["name"] for s in answer["segments"]] == ["low", "high"]
    assert [s["ml"] for s in answer["segments"]] == pytest.approx(
        [np.count_nonzero(labels == k) * voxel for k in (1, 2)], abs=1e-6
    )
    assert answer["geometry"]["shape"] == list(SHAPE)
    assert answer["geometry"]["spacing"] == pytest.approx([0.8, 0.9, 2.5])
    assert answer["geometry"]["orientation"] == "LPS"
    assert np.allclose(answer["geometry"]["affine"], AFFINE, atol=1e-4)
    assert answer["notice"] == "RESEARCH USE ONLY"
    assert answer["model"]["name"] == "threshold" and len(answer["model"]["sha256"]) == 64
    assert (answer["model"]["precision"], answer["model"]["engine"]) == ("fp32", where_it_runs)


def test_one_of_two_series_is_chosen_by_its_uid(server, series, tmp_path):
    other = write_dicom_series(tmp_path / "b", Volume(scan_array((8, 9, 5), seed=22), AFFINE), description="other")
    both = zipped(series, prefix="a/")
    packed = io.BytesIO(both)
    with zipfile.ZipFile(packed, "a") as archive:
        for file in other:
            archive.write(file, f"b/{file.name}")
    refused = server.segment(packed.getvalue())
    uid = pydicom.dcmread(other[0]).SeriesInstanceUID
    assert refused.status_code == 422
    assert uid in refused.json()["error"]
    chosen = server.segment(packed.getvalue(), fields={"series": uid, "answer": "json"})
    assert chosen.status_code == 200, chosen.text
    assert chosen.json()["geometry"]["shape"] == [8, 9, 5]
    unknown = server.segment(packed.getvalue(), fields={"series": "1.2.3.4"})
    assert unknown.status_code == 422
    assert "1.2.3.4" in unknown.json()["error"]


def test_what_was_corrected_is_told_in_every_form_and_refused_when_strict(server, series):
    without_one = [*series[:4], *series[5:]]
    answer = server.segment(*without_one, fields={"output_format": "json"})
    assert answer.status_code == 200, answer.text
    (remark,) = answer.json()["remarks"]
    assert remark["code"] == "missing_slices"
    assert "1 slice(s) are missing: between slices 4 and 5 of 10" in remark["text"]
    assert answer.json()["geometry"]["shape"] == list(SHAPE)
    header = pydicom.dcmread(series[0], stop_before_pixels=True)
    assert answer.json()["series"] == {
        "uid": header.SeriesInstanceUID,
        "modality": "MR",
        "description": f"{MARK} series",
        "slices": len(series) - 1,
    }
    seg = server.segment(*without_one)
    assert json.loads(seg.headers["X-Semiseg-Remarks"]) == [["missing_slices", remark["text"]]]
    assert remark["text"] in pydicom.dcmread(io.BytesIO(seg.content)).ImageComments
    strict = server.segment(*without_one, fields={"strict": "true"})
    assert strict.status_code == 422
    assert "missing" in strict.json()["error"]
    whole = server.segment(*series, fields={"strict": "true", "answer": "json"})
    assert whole.status_code == 200 and whole.json()["remarks"] == []
    unclear = server.segment(*series, fields={"strict": "perhaps"})
    assert (unclear.status_code, unclear.json()["error"]) == (400, "The field `strict` must be true or false.")


def test_series_with_a_hole_is_refused(server, series):
    answer = server.segment(*series[:2], *series[7:])
    assert answer.status_code == 422
    assert answer.json()["error"]


def test_log_and_metrics_are_silent_about_the_patient(server, series):
    """SRV-06."""
    assert server.segment(*series, names=[f"{MARK}-{k}.dcm" for k in range(len(series))]).status_code == 200
    assert server.segment(*series[:2], *series[7:]).status_code == 422
    assert server.segment(zipped(series)[:-30]).status_code == 422
    assert "POST" in server.output
    assert MARK not in server.output
    assert MARK not in server.get("/metrics").text


def test_real_series_comes_back_as_a_seg_on_its_slices(server, semiseg_data):
    files = sorted((semiseg_data / "dicom" / "mr_hippocrop_study1").rglob("*.dcm"))
    answer = server.segment(zipped(files))
    assert answer.status_code == 200, answer.text
    seg = pydicom.dcmread(io.BytesIO(answer.content))
    referenced = {
        i.ReferencedSOPInstanceUID for s in seg.ReferencedSeriesSequence for i in s.ReferencedInstanceSequence
    }
    assert referenced == {pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID for f in files}
    assert (seg.Rows, seg.Columns) == pydicom.dcmread(files[0]).pixel_array.shape


def test_nothing_of_these_scans_is_left_on_disk(server, series):
    assert server.segment(zipped(series)).status_code == 200
    assert server.leftovers() == []
