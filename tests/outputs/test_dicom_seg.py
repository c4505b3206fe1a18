"""A SEG says voxel for voxel what the segmentation said, on the series it was drawn on."""

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
from scipy.spatial.transform import Rotation

from semiseg.errors import VolumeError
from semiseg.outputs.dicom_common import Algorithm, write_dicom
from semiseg.outputs.dicom_seg import segmentation_to_seg
from semiseg.phantoms.anatomy import SEGMENTS, make_phantom
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.dicom_series import DicomSeries, read_series
from semiseg.volumes.segmentation import Segment, Segmentation
from semiseg.volumes.volume import Volume, reorient

ALGORITHM = Algorithm(name="phantom abdomen", version="1.2", model_sha256="ab" * 32)


@pytest.fixture(scope="module", params=["axial", "oblique sagittal"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[DicomSeries, Segmentation]:
    """A series and the phantom's labels on its grid."""
    phantom = make_phantom(21, (30, 26, 12), (3.2, 3.6, 8.0))
    image, affine = phantom.image.array, phantom.image.affine
    labels = phantom.labels.array
    if request.param != "axial":
        image, turned = reorient(image, affine, "ASR")
        labels, _ = reorient(labels, affine, "ASR")
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_euler("xyz", (11, 23, -8), degrees=True).as_matrix()
        affine = turn @ turned
    series = read_series(write_dicom_series(tmp_path_factory.mktemp("series"), Volume(image, affine)))
    # The reader sorts along the normal: bring the labels to its order of slices.
    if not np.array_equal(series.volume.array, image):
        labels = labels[:, :, ::-1]
    return series, Segmentation(SEGMENTS, np.ascontiguousarray(labels), series.volume.affine)


def overlapping(segmentation: Segmentation) -> Segmentation:
    whole = segmentation.array > 0
    core = segmentation.array == 1
    segments = (Segment(name="whole", label=1), Segment(name="core", label=2), Segment(name="nothing", label=3))
    return Segmentation(segments, np.stack([whole, core, whole & False]), segmentation.affine)


def empty(segmentation: Segmentation) -> Segmentation:
    return replace(segmentation, array=np.zeros_like(segmentation.array))


FORMS: dict[str, Callable[[Segmentation], Segmentation]] = {
    "exclusive": lambda s: s,
    "overlapping": overlapping,
    "empty": empty,
    "one segment": lambda s: Segmentation((SEGMENTS[1],), np.where(s.array == 2, 2, 0).astype(np.uint8), s.affine),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_every_voxel_comes_back_from_a_written_seg(
    form: str, case: tuple[DicomSeries, Segmentation], tmp_path: Path
) -> None:
    """OUT-01."""
    series, segmentation = case[0], FORMS[form](case[1])
    write_dicom(tmp_path / "seg.dcm", segmentation_to_seg(segmentation, series, algorithm=ALGORITHM))
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    assert seg.SegmentationType == "BINARY"
    assert [seg.get_segment_description(n).SegmentLabel for n in seg.segment_numbers] == [
        s.name for s in segmentation.segments
    ]
    uids = [i.SOPInstanceUID for i in series.instances]
    pixels = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True, combine_segments=False)
    for k in range(len(segmentation.segments)):
        np.testing.assert_array_equal(np.transpose(pixels[..., k], (2, 1, 0)), segmentation.mask(k))


def test_only_frames_with_content_are_stored(tmp_path: Path) -> None:
    phantom = make_phantom(21, (32, 26, 12), (3.2, 3.6, 8.0))  # frames of whole bytes
    series = read_series(write_dicom_series(tmp_path, phantom.image))
    segmentation = Segmentation(SEGMENTS, phantom.labels.array, series.volume.affine)
    seg = segmentation_to_seg(segmentation, series, algorithm=ALGORITHM)
    filled = sum(int(segmentation.mask(k).any(axis=(0, 1)).sum()) for k in range(3))
    assert seg.NumberOfFrames == filled < 3 * segmentation.shape[2]


@pytest.mark.parametrize(("columns", "rows", "slices"), [(13, 9, 1), (13, 9, 2), (13, 9, 4), (15, 9, 2), (15, 9, 3)])
def test_frames_within_bytes_are_as_many_as_ohif_unpacks(columns: int, rows: int, slices: int, tmp_path: Path) -> None:
    """cornerstone3D refuses Pixel Data with a byte of padding, and misplaces voxels where frames of whole bytes fit."""
    image = make_phantom(5, (columns, rows, 6), (4.0, 4.0, 10.0)).image
    series = read_series(write_dicom_series(tmp_path / "series", image))
    labels = np.zeros(series.volume.shape, dtype=np.uint8)
    labels[2:7, 3:8, :slices] = 1
    segmentation = Segmentation(SEGMENTS, labels, series.volume.affine)
    write_dicom(tmp_path / "seg.dcm", segmentation_to_seg(segmentation, series, algorithm=ALGORITHM))
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    length = int(np.ceil(columns * rows * seg.NumberOfFrames / 8))
    assert len(seg.PixelData) == length != seg.NumberOfFrames * int(np.ceil(columns * rows / 8))
    uids = [instance.SOPInstanceUID for instance in series.instances]
    pixels = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True, combine_segments=True)
    np.testing.assert_array_equal(np.transpose(pixels, (2, 1, 0)), labels)


def test_a_seg_lies_where_its_series_lies(case: tuple[DicomSeries, Segmentation]) -> None:
    series, segmentation = case
    seg = segmentation_to_seg(segmentation, series, algorithm=ALGORITHM)
    volume = hd.seg.Segmentation.from_dataset(seg).get_volume(segment_numbers=[1], combine_segments=False)
    index = np.argwhere(np.asarray(volume.array)[..., 0] > 0).mean(axis=0)
    lps = volume.affine @ (*index, 1)
    expected = series.volume.affine @ (*np.argwhere(segmentation.mask(0)).mean(axis=0), 1)
    np.testing.assert_allclose(lps[:3] * (-1, -1, 1), expected[:3], atol=0.01)


def test_the_seg_names_patient_study_source_and_maker(case: tuple[DicomSeries, Segmentation]) -> None:
    """OUT-01, OUT-04."""
    series, segmentation = case
    seg = segmentation_to_seg(segmentation, series, algorithm=ALGORITHM)
    source = series.instances[0]
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg[keyword].value == source[keyword].value
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    assert seg.Modality == "SEG"
    assert seg.Manufacturer == "semiseg"
    assert seg.SeriesDescription == "phantom abdomen RESEARCH USE ONLY"
    (reference,) = seg.ReferencedSeriesSequence
    assert reference.SeriesInstanceUID == series.uid
    referenced = {i.ReferencedSOPInstanceUID for i in reference.ReferencedInstanceSequence}
    assert referenced == {i.SOPInstanceUID for i in series.instances}
    liver = seg.SegmentSequence[0]
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert liver.SegmentAlgorithmType == "AUTOMATIC"
    identification = liver.SegmentationAlgorithmIdentificationSequence[0]
    assert (identification.AlgorithmName, identification.AlgorithmVersion) == ("phantom abdomen", "1.2")
    assert "ab" * 32 in identification.AlgorithmParameters


def test_a_long_model_name_does_not_push_the_notice_out(case: tuple[DicomSeries, Segmentation]) -> None:
    """OUT-04."""
    long = replace(ALGORITHM, name="n" * 200, version="v" * 200)
    seg = segmentation_to_seg(case[1], case[0], algorithm=long)
    assert seg.SeriesDescription.endswith("RESEARCH USE ONLY")
    assert len(seg.SeriesDescription) == 64


def test_the_same_work_has_the_same_identity_and_other_work_another(case: tuple[DicomSeries, Segmentation]) -> None:
    """OUT-03."""
    series, segmentation = case

    def made(segmentation: Segmentation = segmentation, algorithm: Algorithm = ALGORITHM) -> pydicom.Dataset:
        return segmentation_to_seg(segmentation, series, algorithm=algorithm)

    first, again = made(), made()
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert first[keyword].value == again[keyword].value
    clock = {"InstanceCreationTime", "ContentTime", "InstanceCreationDate", "ContentDate"}
    clock.add("ContributingEquipmentSequence")  # says when highdicom contributed
    assert {e.keyword for e in first if e != again.get(e.tag)} <= clock
    others = [made(algorithm=replace(ALGORITHM, model_sha256="cd" * 32)), made(overlapping(segmentation))]
    assert len({first.SOPInstanceUID, *(o.SOPInstanceUID for o in others)}) == 3


def test_names_in_any_script_survive_and_stay_out_of_warnings(
    case: tuple[DicomSeries, Segmentation], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    series, segmentation = case
    slices = copy.deepcopy(series.slices)
    for instance in (one.header for one in slices):
        instance.PatientName = "Ὀδυσσεύς^Λαέρτου"
        instance.PatientSex, instance.PatientBirthDate = "unknown", "around 800 BC"
        del instance.AccessionNumber, instance.SliceThickness
    segments = (Segment(name="肝臓", label=1), *segmentation.segments[1:])
    seg = segmentation_to_seg(
        replace(segmentation, segments=segments), replace(series, slices=slices), algorithm=ALGORITHM
    )
    write_dicom(tmp_path / "seg.dcm", seg)
    read = pydicom.dcmread(tmp_path / "seg.dcm")
    assert str(read.PatientName) == "Ὀδυσσεύς^Λαέρτου"
    assert read.PatientSex == "unknown"
    assert read.SegmentSequence[0].SegmentLabel == "肝臓"
    assert not [w for w in recwarn if "Ὀδ" in str(w.message) or "800" in str(w.message)]


def test_another_grid_and_a_source_without_identity_are_refused(case: tuple[DicomSeries, Segmentation]) -> None:
    series, segmentation = case
    shifted = segmentation.affine.copy()
    shifted[0, 3] += 1
    for wrong in (replace(segmentation, affine=shifted), replace(segmentation, array=segmentation.array[:-1])):
        with pytest.raises(VolumeError, match="must be on the grid of its series"):
            segmentation_to_seg(wrong, series, algorithm=ALGORITHM)
    slices = copy.deepcopy(series.slices)
    for instance in (one.header for one in slices):
        instance.FrameOfReferenceUID = ""
    with pytest.raises(VolumeError, match="lack FrameOfReferenceUID"):
        segmentation_to_seg(segmentation, replace(series, slices=slices), algorithm=ALGORITHM)


@pytest.mark.parametrize("form", list(FORMS))
def test_dciodvfy_finds_no_error(
    form: str, case: tuple[DicomSeries, Segmentation], tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    """OUT-02."""
    series, segmentation = case[0], FORMS[form](case[1])
    write_dicom(tmp_path / "seg.dcm", segmentation_to_seg(segmentation, series, algorithm=ALGORITHM))
    assert_valid(require_program("dciodvfy"), tmp_path / "seg.dcm")


@pytest.mark.parametrize("folder", ["mr_hippocrop_study1", "mr_t1w_head_slab"])
def test_a_seg_of_a_real_series_is_valid_too(
    folder: str, semiseg_data: Path, tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    series = read_series(sorted((semiseg_data / "dicom" / folder).iterdir()))
    mask = np.zeros(series.volume.shape, dtype=np.uint8)
    mask[5:20, 8:30, 4:20] = 1
    segmentation = Segmentation((SEGMENTS[0],), mask, series.volume.affine)
    write_dicom(tmp_path / "seg.dcm", segmentation_to_seg(segmentation, series, algorithm=ALGORITHM))
    assert_valid(require_program("dciodvfy"), tmp_path / "seg.dcm")
    uids = [i.SOPInstanceUID for i in series.instances]
    pixels = hd.seg.segread(tmp_path / "seg.dcm").get_pixels_by_source_instance(
        uids, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(np.transpose(pixels[..., 0], (2, 1, 0)), mask)


def assert_valid(program: str, path: Path) -> None:
    result = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    said = (result.stdout + result.stderr).splitlines()
    assert any("Segmentation" in line for line in said), said
    assert [line for line in said if line.startswith("Error")] == []


def test_each_image_of_a_tilted_series_gets_the_mask_of_its_own_place(
    semiseg_data: Path, tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    series = read_series(sorted((semiseg_data / "dicom/ct_head_ge_tilt_irregular").iterdir()))
    assert series.grid is not None
    # A ball in the patient, drawn on the corrected volume and, as the truth, on every slice as it was taken.
    centre, radius = middle_of(series.volume), 30.0
    index = np.ogrid[tuple(slice(size) for size in series.volume.shape)]
    to_centre = np.c_[series.volume.affine[:3, :3], series.volume.affine[:3, 3] - centre]
    squares = sum((sum(a * i for a, i in zip(row, index, strict=False)) + row[3]) ** 2 for row in to_centre)
    ball = (squares < radius**2).astype(np.uint8)
    segmentation = Segmentation((SEGMENTS[0],), ball, series.volume.affine)
    path = tmp_path / "seg.dcm"
    remarks = [remark.text for remark in series.warnings]
    write_dicom(path, segmentation_to_seg(segmentation, series, algorithm=ALGORITHM, remarks=remarks))
    assert_valid(require_program("dciodvfy"), path)
    seg = hd.seg.segread(path)
    assert "(gantry tilt)" in seg.ImageComments
    uids = [instance.SOPInstanceUID for instance in series.instances]
    largest = np.pi * radius**2 / np.prod(series.volume.spacing[:2])
    masks = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)[..., 0]
    for instance, mask in zip(series.instances, masks, strict=True):
        truth = on_image(instance, centre, radius)
        # A slice up to half a plane's distance from its plane shows the ball a little larger or smaller.
        assert np.logical_xor(mask, truth).sum() < 0.06 * largest
    assert masks.any(axis=(1, 2)).sum() >= 10


def middle_of(volume: Volume) -> np.ndarray:
    return (volume.affine @ [*((n - 1) / 2 for n in volume.shape), 1])[:3]


def on_image(instance: pydicom.Dataset, centre: np.ndarray, radius: float) -> np.ndarray:
    """Pixels (rows, columns) of an image whose centres lie in a ball (RAS mm), by PS3.3 equation C.7.6.2.1-1."""
    along_row, along_column = (np.array(instance.ImageOrientationPatient[k : k + 3], dtype=float) for k in (0, 3))
    rows, columns = np.arange(instance.Rows)[:, None, None], np.arange(instance.Columns)[None, :, None]
    between_rows, between_columns = map(float, instance.PixelSpacing)
    first = np.array(instance.ImagePositionPatient, dtype=float)
    places = first + rows * between_rows * along_column + columns * between_columns * along_row
    return np.linalg.norm(places * (-1, -1, 1) - centre, axis=-1) < radius


@pytest.mark.parametrize("source", ["dcmqi_23x38x3/multiframe/mf.dcm", "pydicom_data/eCT_Supplemental.dcm"])
def test_a_seg_of_a_multi_frame_object_refers_to_its_frames(
    source: str, semiseg_data: Path, tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    file = semiseg_data / "dicom_odd" / source
    series = read_series([file])
    mask = np.random.default_rng(0).integers(0, 3, series.volume.shape).astype(np.uint8)
    mask[..., 0] = 0  # a frame without content is left out
    segmentation = Segmentation(SEGMENTS[:2], mask, series.volume.affine)
    write_dicom(tmp_path / "seg.dcm", segmentation_to_seg(segmentation, series, algorithm=ALGORITHM))
    assert_valid(require_program("dciodvfy"), tmp_path / "seg.dcm")
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    frames = [one.frame + 1 for one in series.slices if one.frame is not None]
    pixels = seg.get_pixels_by_source_frame(
        pydicom.dcmread(file).SOPInstanceUID, frames, combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(np.transpose(pixels, (2, 1, 0)), mask)


@pytest.mark.parametrize("form", ["exclusive", "one segment", "empty"])
def test_a_label_map_says_the_same_in_one_frame_a_slice(
    form: str, case: tuple[DicomSeries, Segmentation], tmp_path: Path
) -> None:
    series, segmentation = case[0], FORMS[form](case[1])
    made = segmentation_to_seg(segmentation, series, algorithm=ALGORITHM, segmentation_type="labelmap")
    write_dicom(tmp_path / "seg.dcm", made)
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    assert (seg.SOPClassUID, seg.SegmentationType) == ("1.2.840.10008.5.1.4.1.1.66.7", "LABELMAP")
    assert seg.NumberOfFrames <= len(series.slices)
    uids = [instance.SOPInstanceUID for instance in series.instances]
    pixels = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    numbers = np.zeros_like(segmentation.array)
    for number, segment in enumerate(segmentation.segments, start=1):
        numbers[segmentation.array == segment.label] = number
    np.testing.assert_array_equal(np.transpose(pixels, (2, 1, 0)), numbers)
    assert made.SOPInstanceUID != segmentation_to_seg(segmentation, series, algorithm=ALGORITHM).SOPInstanceUID


@pytest.mark.parametrize("form", ["exclusive", "overlapping"])
def test_a_fractional_seg_holds_the_probabilities(
    form: str, case: tuple[DicomSeries, Segmentation], tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    series, segmentation = case[0], FORMS[form](case[1])
    kinds = len(segmentation.segments)
    shares = np.random.default_rng(2).integers(0, 256, (kinds, *segmentation.shape)).astype(np.uint8)
    shares[:, :, :, 2] = 0  # a frame without content is left out
    segmentation = replace(segmentation, probabilities=shares)
    made = segmentation_to_seg(segmentation, series, algorithm=ALGORITHM, segmentation_type="fractional")
    write_dicom(tmp_path / "seg.dcm", made)
    assert_valid(require_program("dciodvfy"), tmp_path / "seg.dcm")
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    assert (seg.SegmentationType, seg.SegmentationFractionalType) == ("FRACTIONAL", "PROBABILITY")
    assert (seg.MaximumFractionalValue, seg.NumberOfFrames) == (255, kinds * (len(series.slices) - 1))
    uids = [instance.SOPInstanceUID for instance in series.instances]
    pixels = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True, rescale_fractional=False)
    np.testing.assert_array_equal(np.transpose(pixels, (3, 2, 1, 0)), shares)
    again = segmentation_to_seg(segmentation, series, algorithm=ALGORITHM, segmentation_type="fractional")
    binary = segmentation_to_seg(segmentation, series, algorithm=ALGORITHM)
    assert made.SOPInstanceUID == again.SOPInstanceUID != binary.SOPInstanceUID


def test_a_fractional_seg_needs_probabilities(case: tuple[DicomSeries, Segmentation]) -> None:
    with pytest.raises(VolumeError, match="has no probabilities"):
        segmentation_to_seg(case[1], case[0], algorithm=ALGORITHM, segmentation_type="fractional")


def test_regions_are_no_label_map(case: tuple[DicomSeries, Segmentation]) -> None:
    with pytest.raises(VolumeError, match="Overlapping regions cannot be a label map"):
        segmentation_to_seg(overlapping(case[1]), case[0], algorithm=ALGORITHM, segmentation_type="labelmap")


def test_a_segment_without_a_code_gets_one_of_a_private_scheme(
    case: tuple[DicomSeries, Segmentation], tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    series, segmentation = case
    uncoded = replace(segmentation, segments=(Segment(name="Lobus A", label=1), *segmentation.segments[1:]))
    write_dicom(tmp_path / "seg.dcm", segmentation_to_seg(uncoded, series, algorithm=ALGORITHM))
    assert_valid(require_program("dciodvfy"), tmp_path / "seg.dcm")
    first, second = hd.seg.segread(tmp_path / "seg.dcm").SegmentSequence[:2]
    code = first.SegmentedPropertyTypeCodeSequence[0]
    assert (code.CodingSchemeDesignator, code.CodeMeaning) == ("99SEMISEG", "Lobus A")
    assert code.CodeValue == Segment(name="lobus a", label=7).coded_type.value, "the name decides, and nothing else"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "SCT"
