"""Copies, foreign files, rounded positions, several patients, and groups in unusual places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from semiseg.errors import VolumeError
from semiseg.volumes.dicom_series import read_series
from semiseg.volumes.read_options import ReadOptions
from semiseg.volumes.scan import open_scan
from semiseg.volumes.volume import Volume
from tests.volumes.edited_series import SLICE_COUNT, SliceEdit, cycle_values, edit_slices
from tests.volumes.enhanced_multiframe import write_enhanced

# --- copies -------------------------------------------------------------------------------------------------------


def copy_of(path: Path, change: SliceEdit) -> Path:
    dataset = pydicom.dcmread(path)
    change(dataset, 0)
    copy = path.with_name(f"copy_of_{path.name}")
    dataset.save_as(copy)
    return copy


def brighter(dataset: pydicom.Dataset, _: int) -> None:
    dataset.PixelData = (dataset.pixel_array + 1).astype(dataset.pixel_array.dtype).tobytes()


@pytest.mark.parametrize("which", [0, 5])
def test_two_images_of_one_uid_with_other_pixels_are_no_copies(files: list[Path], which: int) -> None:
    files = [*files, copy_of(files[which], brighter)]
    for order in (files, files[::-1]):
        with pytest.raises(VolumeError, match=r"have the same SOP Instance UID but differ"):
            read_series(order)


@pytest.mark.parametrize("keyword", ["InstitutionName", "SOPInstanceUID"])
def test_a_copy_with_another_institution_or_uid_is_left_out(files: list[Path], keyword: str) -> None:
    copy = copy_of(files[3], cycle_values(keyword, generate_uid()))
    found = read_series([*files, copy])
    assert found.volume.shape[2] == SLICE_COUNT
    assert [remark.code for remark in found.warnings] == ["copies"]


# --- files that cannot be DICOM but are named or placed as if ---------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>"])
@pytest.mark.parametrize("name", ["slice_99.dcm", "SLICE99.IMA"])
def test_a_file_that_is_named_like_an_image_and_is_none_is_told(files: list[Path], name: str, content: bytes) -> None:
    (files[0].parent / name).write_bytes(content)
    scan = open_scan(files[0].parent)
    assert [remark.code for remark in scan.warnings] == ["damaged_files"]
    assert "may be slices of the series" in scan.warnings[0].text
    with pytest.raises(VolumeError, match="may be a slice of the series"):
        open_scan(files[0].parent, options=ReadOptions(strict=True))


def test_files_without_an_ending_are_compared_by_their_names(files: list[Path]) -> None:
    folder = files[0].parent
    for k, path in enumerate(files):
        path.rename(folder / f"IM{k:04d}")
    (folder / "README").write_text("A phantom.")
    (folder / "VERSION").write_bytes(b"1")
    assert open_scan(folder, options=ReadOptions(strict=True)).warnings == ()
    (folder / f"IM{SLICE_COUNT:04d}").write_text("not an image")
    assert [remark.code for remark in open_scan(folder).warnings] == ["damaged_files"]


def test_an_empty_file_of_another_kind_is_nothing_lost(files: list[Path]) -> None:
    for name in ("sent.done", "study.lock", "notes.txt"):
        (files[0].parent / name).touch()
    assert open_scan(files[0].parent, options=ReadOptions(strict=True)).warnings == ()


def test_what_scanners_put_beside_images_is_left_out_and_told(files: list[Path]) -> None:
    raw = pydicom.dcmread(files[0])
    raw.SOPClassUID = raw.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66"
    raw.SOPInstanceUID = raw.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for kept in (True, False):
        if not kept:
            del raw.PixelData
        raw.save_as(files[0].with_name("raw.dcm"))
        scan = open_scan(files[0].parent)
        assert scan.grid.shape[2] == SLICE_COUNT
        assert [remark.code for remark in scan.warnings] == ["companions"]
        assert "1 object(s) of the series are not images" in scan.warnings[0].text
        with pytest.raises(VolumeError, match="mixes images with 1 raw data"):
            open_scan(files[0].parent, options=ReadOptions(strict=True))


# --- positions that are rounded -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gap", "decimals"), [(0.625, 1), (0.625, 2), (1.25, 1), (1.6667, 2), (3.3333, 1), (3.3333, 0), (2.5, 0)]
)
@pytest.mark.parametrize("start", [0.0, -113.4, 57.31])
def test_positions_with_few_decimals_are_an_even_stack(
    files: list[Path], gap: float, decimals: int, start: float
) -> None:
    def rounded(dataset: pydicom.Dataset, k: int) -> None:
        x, y, _ = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, f"{start + gap * k:.{decimals}f}"]

    edit_slices(files, rounded)
    found = read_series(files, strict=True)
    assert found.volume.shape[2] == SLICE_COUNT
    assert abs(found.volume.spacing[2] - gap) < 10.0**-decimals / SLICE_COUNT
    middle = found.volume.affine @ [0, 0, (SLICE_COUNT - 1) / 2, 1]
    assert abs(middle[2] - (start + gap * (SLICE_COUNT - 1) / 2)) < 0.5 * 10.0**-decimals


@pytest.mark.parametrize("decimals", [1, 2])
def test_a_slice_that_is_missing_is_noticed_although_positions_are_rounded(files: list[Path], decimals: int) -> None:
    def rounded(dataset: pydicom.Dataset, k: int) -> None:
        x, y, _ = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, f"{0.625 * (k + (k > 6)):.{decimals}f}"]

    edit_slices(files, rounded)
    with pytest.raises(VolumeError, match=r"1 slice\(s\) are missing"):
        read_series(files, strict=True)


def test_positions_in_whole_millimetres_may_hide_a_missing_slice_and_are_not_taken_for_even(files: list[Path]) -> None:
    def whole(dataset: pydicom.Dataset, k: int) -> None:
        x, y, _ = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, str(k + (k > 6))]

    edit_slices(files, whole)
    with pytest.raises(VolumeError, match=r"1 slice\(s\) are missing"):
        read_series(files, strict=True)


# --- whose scan it is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [
        ("PatientID", "MRN-0815", "patients (by Patient ID)"),
        ("PatientName", "SMITH^JOHN", "patients (by name)"),
        ("PatientBirthDate", "19611103", "patients (by date of birth)"),
        ("IssuerOfPatientID", "ELSEWHERE", "patients (by the issuer"),
        ("StudyInstanceUID", "1.2.3", "studies"),
    ],
)
def test_slices_of_two_patients_or_studies_are_refused_without_a_name(
    files: list[Path], keyword: str, value: str, words: str
) -> None:
    for said, everywhere in (("IssuerOfPatientID", "HERE"), ("PatientBirthDate", "19500101")):
        edit_slices(files, cycle_values(said, everywhere))
    edit_slices(files[:1], lambda dataset, _: setattr(dataset, keyword, value))
    with pytest.raises(VolumeError) as caught:
        read_series(files)
    assert f"The slices belong to 2 {words}" in str(caught.value)
    assert keyword == "StudyInstanceUID" or value not in str(caught.value)


@pytest.mark.parametrize("name", ["DOE^JANE^^^", "doe^jane", ""])
def test_one_name_written_in_several_ways_is_one_patient(files: list[Path], name: str) -> None:
    edit_slices(files, cycle_values("PatientName", "DOE^JANE"))
    edit_slices(files[:1], cycle_values("PatientName", name))
    assert read_series(files).warnings == ()


# --- functional groups wherever they stand ------------------------------------------------------------------------


@pytest.mark.parametrize("measures", ["shared", "frame", "object"])
@pytest.mark.parametrize("orientation", ["shared", "frame", "object"])
@pytest.mark.parametrize("rescale", ["shared", "frame", "object", "absent"])
def test_an_enhanced_object_is_read_wherever_its_groups_stand(
    files: list[Path], tmp_path: Path, measures: Any, orientation: Any, rescale: Any
) -> None:
    classic = read_series(files).volume
    made = write_enhanced(
        tmp_path / "object.dcm",
        sorted(files),
        measures=measures,
        orientation=orientation,
        rescale=rescale,
        intercept=-1024,
    )
    found = read_series([made]).volume
    np.testing.assert_array_equal(found.array, classic.array - (0 if rescale == "absent" else 1024))
    np.testing.assert_allclose(found.affine, classic.affine)


def test_a_frames_own_group_counts_before_that_of_all_and_that_before_the_objects(
    files: list[Path], tmp_path: Path
) -> None:
    frames = [{"PixelValueTransformationSequence": {"RescaleSlope": 1, "RescaleIntercept": 7}}] * SLICE_COUNT
    made = write_enhanced(tmp_path / "object.dcm", sorted(files), rescale="shared", intercept=50, frames=frames)
    dataset = pydicom.dcmread(made)
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 900
    dataset.save_as(made)
    classic = read_series(files).volume.array
    np.testing.assert_array_equal(read_series([made]).volume.array, classic + 7)
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.PixelValueTransformationSequence
    dataset.save_as(made)
    np.testing.assert_array_equal(read_series([made]).volume.array, classic + 50)


def test_a_position_of_the_object_is_none_of_its_frames(files: list[Path], tmp_path: Path) -> None:
    made = write_enhanced(tmp_path / "object.dcm", sorted(files))
    dataset = pydicom.dcmread(made)
    dataset.ImagePositionPatient = [0, 0, 0]
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence
    dataset.save_as(made)
    with pytest.raises(VolumeError, match="lacks ImagePositionPatient"):
        read_series([made])


def test_frames_of_which_only_some_say_how_they_are_rescaled_are_refused(files: list[Path], tmp_path: Path) -> None:
    group = {"PixelValueTransformationSequence": {"RescaleSlope": 1, "RescaleIntercept": -1024}}
    frames: list[dict[str, Any]] = [group if k < SLICE_COUNT // 2 else {} for k in range(SLICE_COUNT)]
    with pytest.raises(VolumeError, match="6 of 12 frames have no rescaling of their values"):
        read_series([write_enhanced(tmp_path / "object.dcm", sorted(files), frames=frames)])


# --- objects in parts, rows in reverse ----------------------------------------------------------------------------


def test_a_concatenation_is_read_whole_or_not_at_all(files: list[Path], phantom: Volume, tmp_path: Path) -> None:
    ordered = sorted(files, key=lambda p: pydicom.dcmread(p).ImagePositionPatient[2])
    parts = []
    for number, members in enumerate((ordered[:5], ordered[5:]), start=1):
        path = write_enhanced(tmp_path / f"part{number}.dcm", members)
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.ConcatenationUID, dataset.InConcatenationNumber = "1.2.3.4", number
        dataset.InConcatenationTotalNumber = 2
        dataset.save_as(path)
        parts.append(path)
    np.testing.assert_array_equal(read_series(parts).volume.array, read_series(files).volume.array)
    for part in parts:
        with pytest.raises(VolumeError, match="1 of 2 parts of a concatenation"):
            read_series([part])


@pytest.mark.parametrize(("polarity", "refused"), [("0", False), ("1", True), ("3", True)])
def test_rows_that_a_sequence_stores_in_reverse_are_refused(files: list[Path], polarity: str, refused: bool) -> None:
    def research(dataset: pydicom.Dataset, _: int) -> None:
        block = dataset.private_block(0x0019, "GEMS_ACQU_01", create=True)
        block.add_new(0x9C, "LO", "research/epi_pepolar")
        block.add_new(0xB3, "DS", polarity)

    edit_slices(files, research)
    if refused:
        with pytest.raises(VolumeError, match="epi_pepolar"):
            read_series(files)
    else:
        assert read_series(files).warnings == ()
