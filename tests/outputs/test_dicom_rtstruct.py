"""A structure set says the same as the segmentation, on the images it refers to."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from scipy.spatial.transform import Rotation

from semiseg.collection.labels_rtstruct import RtstructReader, describe_rtstruct
from semiseg.errors import VolumeError
from semiseg.outputs.contours import mask_contours
from semiseg.outputs.dicom_common import Algorithm, write_dicom
from semiseg.outputs.dicom_rtstruct import segmentation_to_rtstruct
from semiseg.phantoms.anatomy import SEGMENTS, make_phantom
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.dicom_series import DicomSeries, read_series
from semiseg.volumes.segmentation import Segment, Segmentation
from semiseg.volumes.volume import Volume, reorient

ALGORITHM = Algorithm(name="phantom abdomen", version="1.2", model_sha256="ab" * 32)


@pytest.fixture(scope="module", params=["axial", "oblique sagittal"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[DicomSeries, Segmentation]:
    """A series, and the phantom's labels on its grid with a hole in one and an empty one."""
    phantom = make_phantom(21, (30, 26, 12), (3.2, 3.6, 8.0))
    image, affine, labels = phantom.image.array, phantom.image.affine, phantom.labels.array.copy()
    if request.param != "axial":
        image, turned = reorient(image, affine, "ASR")
        labels, _ = reorient(labels, affine, "ASR")
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_euler("xyz", (11, 23, -8), degrees=True).as_matrix()
        affine = turn @ turned
    series = read_series(write_dicom_series(tmp_path_factory.mktemp("series"), Volume(image, affine)))
    if not np.array_equal(series.volume.array, image):
        labels = labels[:, :, ::-1]
    labels = np.ascontiguousarray(labels)
    liver = np.argwhere(labels == 1)
    labels[tuple(liver[len(liver) // 2])] = 0
    return series, Segmentation((*SEGMENTS, Segment(name="nothing", label=9)), labels, series.volume.affine)


def written(case: tuple[DicomSeries, Segmentation], path: Path) -> pydicom.Dataset:
    struct = segmentation_to_rtstruct(case[1], case[0], algorithm=ALGORITHM)
    write_dicom(path, struct)
    return struct


def test_every_structure_comes_back_voxel_for_voxel(case: tuple[DicomSeries, Segmentation], tmp_path: Path) -> None:
    """OUT-01."""
    series, segmentation = case
    struct = written(case, tmp_path / "rt.dcm")
    described = describe_rtstruct(tmp_path / "rt.dcm")
    assert described.names == tuple(s.name for s in segmentation.segments if s.name != "nothing")
    assert described.instances == {i.SOPInstanceUID for i in series.instances}
    read = RtstructReader(tmp_path / "rt.dcm", series.volume, series.frame_of_reference)
    for k, segment in enumerate(segmentation.segments[:-1]):
        np.testing.assert_array_equal(read.mask(segment.name), segmentation.mask(k), segment.name)
        assert all("has no contour on" in remark for remark in read.notes(segment.name)), "no matter of convention"
    assert [r.ROIName for r in struct.StructureSetROISequence] == [s.name for s in segmentation.segments]
    assert "ContourSequence" not in struct.ROIContourSequence[-1]


def test_each_contour_lies_in_the_plane_of_its_image(case: tuple[DicomSeries, Segmentation], tmp_path: Path) -> None:
    struct = written(case, tmp_path / "rt.dcm")
    images = {i.SOPInstanceUID: i for i in case[0].instances}
    count = 0
    for roi in struct.ROIContourSequence[:-1]:
        for contour in roi.ContourSequence:
            image = images[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            row, column = (np.array(image.ImageOrientationPatient[k : k + 3], dtype=float) for k in (0, 3))
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            away = (points - np.array(image.ImagePositionPatient, dtype=float)) @ np.cross(row, column)
            assert np.abs(away).max() < 1e-3
            count += 1
    assert count > 10


def test_dciodvfy_finds_no_error(
    case: tuple[DicomSeries, Segmentation], tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    """OUT-02."""
    written(case, tmp_path / "rt.dcm")
    result = subprocess.run(
        [require_program("dciodvfy"), str(tmp_path / "rt.dcm")], capture_output=True, text=True, check=False
    )
    said = (result.stdout + result.stderr).splitlines()
    assert any("RTStructureSet" in line for line in said), said
    assert [line for line in said if line.startswith("Error")] == []


def test_the_same_series_and_model_give_the_same_object(case: tuple[DicomSeries, Segmentation], tmp_path: Path) -> None:
    first, second = (written(case, tmp_path / f"{k}.dcm") for k in range(2))
    assert first == second
    assert "RESEARCH USE ONLY" in first.SeriesDescription
    assert first.ApprovalStatus == "UNAPPROVED"
    assert first.PatientID == case[0].instances[0].PatientID


def test_contours_of_a_tilted_series_lie_on_its_own_slices(semiseg_data: Path, tmp_path: Path) -> None:
    series = read_series(sorted((semiseg_data / "dicom/ct_head_ge_tilt_irregular").iterdir()))
    mask = np.zeros(series.volume.shape, dtype=np.uint8)
    mask[200:300, 250:350, 20:50] = 1
    segmentation = Segmentation((SEGMENTS[0],), mask, series.volume.affine)
    struct = segmentation_to_rtstruct(segmentation, series, algorithm=ALGORITHM)
    contours = struct.ROIContourSequence[0].ContourSequence
    assert len(contours) == series.on_slices(mask).any(axis=(0, 1)).sum() > 5
    to_index = np.linalg.inv(series.volume.affine)
    images = {i.SOPInstanceUID: i for i in series.instances}
    for contour in contours:
        points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
        image = images[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        row, column = (np.array(image.ImageOrientationPatient[k : k + 3], dtype=float) for k in (0, 3))
        away = (points - np.array(image.ImagePositionPatient, dtype=float)) @ np.cross(row, column)
        assert np.abs(away).max() < 1e-3
        # In voxels of the corrected volume the corners are those of the box, to the half pixel that a slice may be off.
        index = (points * (-1, -1, 1)) @ to_index[:3, :3].T + to_index[:3, 3]
        np.testing.assert_allclose(np.abs(index[:, 0] - 249.5), 50, atol=0.51)
        np.testing.assert_allclose(np.abs(index[:, 1] - 299.5), 50, atol=0.51)


def test_another_grid_is_refused(case: tuple[DicomSeries, Segmentation]) -> None:
    moved = case[1].affine.copy()
    moved[0, 3] += 1
    with pytest.raises(VolumeError, match="is on another grid"):
        segmentation_to_rtstruct(Segmentation(case[1].segments, case[1].array, moved), case[0], algorithm=ALGORITHM)


def test_contours_of_many_points_are_written_whole(case: tuple[DicomSeries, Segmentation], tmp_path: Path) -> None:
    comb = np.zeros((3000, 3), dtype=bool)
    comb[:, 0] = True
    comb[::2, 1] = True
    (curve,) = mask_contours(comb)
    assert len(curve) > 3000
    struct = written(case, tmp_path / "rt.dcm")
    points = [f"{v:.4f}" for v in np.column_stack([curve, np.zeros(len(curve))]).ravel()]
    struct.ROIContourSequence[0].ContourSequence[0].ContourData = points
    write_dicom(tmp_path / "large.dcm", struct)
    back = pydicom.dcmread(tmp_path / "large.dcm").ROIContourSequence[0].ContourSequence[0]
    assert back["ContourData"].VR == "DS" and len(back.ContourData) == len(points)
