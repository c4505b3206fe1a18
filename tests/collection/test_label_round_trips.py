"""Outlines come back voxel for voxel on the grid of their series, whichever way the series runs."""

from __future__ import annotations

import math
from pathlib import Path

import highdicom as hd
import nibabel.orientations as nio
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from semiseg.collection.labels_nifti import NiftiOutlines
from semiseg.collection.labels_rtstruct import RtstructOutlines, describe_rtstruct
from semiseg.collection.labels_seg import SegOutlines, describe_seg
from semiseg.errors import VolumeError
from semiseg.volumes.dicom_geometry import lps_to_ras
from semiseg.volumes.dicom_series import DicomSeries, read_series
from semiseg.volumes.nifti import write_nifti
from semiseg.volumes.volume import Volume, reorient
from tests.collection.centre_contours import centre_contours, straightened
from tests.collection.clinic import (
    ALGORITHM,
    DIRECTIONS,
    outlines_of,
    rtstruct,
    write_labels_as_rtstruct,
    write_labels_as_seg,
    write_scan,
)

NAMES = {"liver": 1, "spleen": 2, "kidneys": 3}
Case = tuple[DicomSeries, NDArray[np.uint8]]


@pytest.fixture(scope="module", params=list(DIRECTIONS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return write_scan(tmp_path_factory.mktemp("series"), 5, request.param)


@pytest.fixture(scope="module")
def axial(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return write_scan(tmp_path_factory.mktemp("axial"), 5)


def world(series: DicomSeries, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Voxel indices (N, 3) as LPS mm."""
    to_lps = lps_to_ras(series.volume.affine)
    return np.asarray(points @ to_lps[:3, :3].T + to_lps[:3, 3])


def ring(centre: tuple[float, float], radius: float, k: float, count: int = 600) -> NDArray[np.float64]:
    angle = np.arange(count) * 2 * math.pi / count
    flat = [centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle), np.full(count, k)]
    return np.column_stack(flat)


def saved(struct: pydicom.Dataset, folder: Path) -> Path:
    struct.save_as(folder / "rt.dcm", enforce_file_format=True)
    return folder / "rt.dcm"


def test_every_voxel_of_a_seg_comes_back(case: Case, tmp_path: Path) -> None:
    series, labels = case
    write_labels_as_seg(tmp_path / "seg.dcm", series, labels)
    assert describe_seg(tmp_path / "seg.dcm").names == tuple(NAMES)
    opened = SegOutlines(tmp_path / "seg.dcm", series.volume)
    for name, value in NAMES.items():
        assert (labels == value).any()
        np.testing.assert_array_equal(opened.mask(name), labels == value)


def test_every_voxel_of_a_structure_set_comes_back(case: Case, tmp_path: Path) -> None:
    series, labels = case
    write_labels_as_rtstruct(tmp_path / "rt.dcm", series, labels)
    assert describe_rtstruct(tmp_path / "rt.dcm").names == tuple(NAMES)
    opened = RtstructOutlines(tmp_path / "rt.dcm", series.volume, series.instances[0].FrameOfReferenceUID)
    for name, value in NAMES.items():
        np.testing.assert_array_equal(opened.mask(name), labels == value)


@pytest.mark.parametrize("axcodes", ["RAS", "LAS", "PSR", "own"])
def test_every_voxel_of_a_nifti_label_comes_back_whatever_the_order_of_its_axes(
    axcodes: str, case: Case, tmp_path: Path
) -> None:
    series, labels = case
    own = "".join(nio.aff2axcodes(series.volume.affine))
    array, affine = reorient(labels, series.volume.affine, own if axcodes == "own" else axcodes)
    write_nifti(tmp_path / "label.nii.gz", array, affine)
    opened = NiftiOutlines(tmp_path / "label.nii.gz", series.volume, NAMES, strict=True)
    for name, value in NAMES.items():
        np.testing.assert_array_equal(opened.mask(name), labels == value)


def test_frames_of_a_seg_may_come_in_any_order(axial: Case, tmp_path: Path) -> None:
    series, labels = axial
    seg = write_labels_as_seg(tmp_path / "seg.dcm", series, labels)
    order = np.random.default_rng(0).permutation(int(seg.NumberOfFrames))
    pixels = seg.pixel_array
    seg.PerFrameFunctionalGroupsSequence = [seg.PerFrameFunctionalGroupsSequence[k] for k in order]
    seg.PixelData = pydicom.pixels.pack_bits(pixels[order], pad=True)
    seg.save_as(tmp_path / "mixed.dcm")
    opened = SegOutlines(tmp_path / "mixed.dcm", series.volume)
    for name, value in NAMES.items():
        np.testing.assert_array_equal(opened.mask(name), labels == value)


def test_a_seg_that_covers_a_part_of_each_slice_lands_in_its_place(axial: Case, tmp_path: Path) -> None:
    series, labels = axial
    cut = labels[4:21, 3:19]
    affine = series.volume.affine.copy()
    affine[:3, 3] = series.volume.affine[:3] @ (4, 3, 0, 1)
    write_labels_as_seg(tmp_path / "seg.dcm", series, labels)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    seg.PixelData = pydicom.pixels.pack_bits(seg.pixel_array[:, 3:19, 4:21], pad=True)
    seg.Rows, seg.Columns = 16, 17
    shift = lps_to_ras(affine)[:3, 3] - lps_to_ras(series.volume.affine)[:3, 3]
    for frame in seg.PerFrameFunctionalGroupsSequence:
        position = frame.PlanePositionSequence[0]
        moved = np.array(position.ImagePositionPatient, dtype=float) + shift
        position.ImagePositionPatient = [f"{v:.6f}" for v in moved]
    seg.save_as(tmp_path / "part.dcm")
    opened = SegOutlines(tmp_path / "part.dcm", series.volume)
    expected = np.zeros_like(labels)
    expected[4:21, 3:19] = cut
    for name, value in NAMES.items():
        np.testing.assert_array_equal(opened.mask(name), expected == value)


def seg_of_kind(kind: str, axial: Case, pixels: NDArray[np.generic], folder: Path, maximum: int = 255) -> Path:
    """A SEG of liver, spleen and kidneys (or of the liver alone) that highdicom writes."""
    series, labels = axial
    write_labels_as_seg(folder / "binary.dcm", series, labels)
    described = pydicom.dcmread(folder / "binary.dcm").SegmentSequence[: pixels.shape[3] if pixels.ndim == 4 else 3]
    sources = []
    for instance in series.instances:
        source = pydicom.Dataset()
        source.update(instance)
        sources.append(source)
    seg = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=kind,
        max_fractional_value=maximum,
        segment_descriptions=[hd.seg.SegmentDescription.from_dataset(item) for item in described],
        series_instance_uid=pydicom.uid.generate_uid(),
        series_number=2,
        sop_instance_uid=pydicom.uid.generate_uid(),
        instance_number=1,
        manufacturer="semiseg tests",
        manufacturer_model_name=ALGORITHM.name,
        software_versions="1",
        device_serial_number="1",
    )
    seg.save_as(folder / "seg.dcm")
    return folder / "seg.dcm"


@pytest.mark.parametrize(("maximum", "kept"), [(255, 128), (100, 50)])
def test_a_fractional_seg_counts_from_half_of_its_maximum(maximum: int, kept: int, axial: Case, tmp_path: Path) -> None:
    series, _ = axial
    values = np.random.default_rng(3).integers(0, maximum + 1, series.volume.shape[::-1])
    path = seg_of_kind("FRACTIONAL", axial, (values / maximum).astype(np.float32)[..., None], tmp_path, maximum)
    mask = SegOutlines(path, series.volume).mask("liver")
    np.testing.assert_array_equal(mask, np.transpose(values, (2, 1, 0)) >= kept)


def test_every_voxel_of_a_labelmap_seg_comes_back(axial: Case, tmp_path: Path) -> None:
    series, labels = axial
    path = seg_of_kind("LABELMAP", axial, np.transpose(labels, (2, 1, 0)).copy(), tmp_path)
    assert describe_seg(path).names == tuple(NAMES)
    opened = SegOutlines(path, series.volume)
    for name, value in NAMES.items():
        np.testing.assert_array_equal(opened.mask(name), labels == value)


def test_a_seg_on_another_grid_is_refused_with_what_differs(axial: Case, tmp_path: Path) -> None:
    series, labels = axial
    write_labels_as_seg(tmp_path / "seg.dcm", series, labels)
    grid = series.volume

    def told(change: NDArray[np.float64], shape: tuple[int, int, int] = grid.shape) -> str:
        other = Volume(np.zeros(shape, np.int16), grid.affine @ change)
        with pytest.raises(VolumeError) as refused:
            SegOutlines(tmp_path / "seg.dcm", other)
        return str(refused.value)

    aside, finer, turned = np.eye(4), np.diag([0.5, 0.5, 1, 1]), np.eye(4)
    aside[0, 3] = 0.4
    turned[:2, :2] = [[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]]
    assert "lie up to 0.40 of a voxel beside" in told(aside)
    assert "measure 3.7 x 4.3 mm and the scan's 1.85 x 2.15 x 8 mm" in told(finer)
    assert "lies on another grid" in told(turned)
    assert "reaches from voxel" in told(np.eye(4), (20, 22, 12))


def test_contours_are_filled_by_their_area_and_holes_are_left_out(case: Case, tmp_path: Path) -> None:
    series, _ = case
    middle, k = (12.3, 10.4), 6
    struct = rtstruct(series, {"shell": [world(series, ring(middle, r, k)) for r in (8.6, 4.2)]})
    opened = RtstructOutlines(saved(struct, tmp_path), series.volume, "")
    i, j = np.indices(series.volume.shape[:2])
    distance = np.hypot(i - middle[0], j - middle[1])
    expected = np.zeros(series.volume.shape, dtype=bool)
    expected[:, :, k] = (distance < 8.6) & (distance >= 4.2)
    np.testing.assert_array_equal(opened.mask("shell"), expected)


def test_a_contour_belongs_to_the_slice_within_half_a_slice_distance(axial: Case, tmp_path: Path) -> None:
    series, _ = axial
    struct = rtstruct(
        series, {"near": [world(series, ring((12, 10), 5, 3.4))], "far": [world(series, ring((12, 10), 5, 3.5))]}
    )
    opened = RtstructOutlines(saved(struct, tmp_path), series.volume, "")
    assert np.flatnonzero(opened.mask("near").any(axis=(0, 1))).tolist() == [3]
    with pytest.raises(VolumeError, match=r"'far' has a contour on no slice of the scan \(at slice 4.50 of 12\)"):
        opened.mask("far")


@pytest.mark.parametrize("k", [-1.0, 12.0, 400.0])
def test_a_contour_off_every_slice_is_refused_by_name(k: float, axial: Case, tmp_path: Path) -> None:
    series, _ = axial
    struct = rtstruct(series, {"lost": [world(series, ring((12, 10), 5, 4)), world(series, ring((12, 10), 5, k))]})
    with pytest.raises(VolumeError, match="'lost' has a contour on no slice"):
        RtstructOutlines(saved(struct, tmp_path), series.volume, "").mask("lost")


def test_a_contour_across_the_slices_is_refused(axial: Case, tmp_path: Path) -> None:
    series, _ = axial
    across = ring((5, 5), 3, 10)[:, [2, 0, 1]]
    struct = rtstruct(series, {"coronal": [world(series, across)]})
    with pytest.raises(VolumeError, match="'coronal' has a contour on no slice"):
        RtstructOutlines(saved(struct, tmp_path), series.volume, "").mask("coronal")


def test_two_planes_of_contours_on_one_slice_are_refused(axial: Case, tmp_path: Path) -> None:
    series, _ = axial
    planes = [world(series, ring((12, 10), 5, k)) for k in (2.7, 3.0, 3.3)]
    with pytest.raises(VolumeError, match=r"'fine' has contours in planes 4\.80 mm apart that fall on one slice"):
        RtstructOutlines(saved(rtstruct(series, {"fine": planes}), tmp_path), series.volume, "").mask("fine")


def test_a_slice_that_was_skipped_in_drawing_is_told(axial: Case, tmp_path: Path) -> None:
    series, _ = axial
    struct = rtstruct(series, {"sparse": [world(series, ring((12, 10), 5, k)) for k in (2, 5)]})
    opened = RtstructOutlines(saved(struct, tmp_path), series.volume, "")
    assert opened.mask("sparse").any(axis=(0, 1)).sum() == 2
    assert opened.remarks("sparse") == ["'sparse' has no contour on 2 slice(s) between others that have one."]


@pytest.mark.parametrize("kind", ["POINT", "OPEN_PLANAR", "OPEN_NONPLANAR"])
def test_contours_that_enclose_nothing_are_refused_by_name_and_type(kind: str, axial: Case, tmp_path: Path) -> None:
    series, _ = axial
    path = saved(rtstruct(series, {"marker": [world(series, ring((12, 10), 5, 4))]}, kind), tmp_path)
    described = describe_rtstruct(path)
    assert described.names == () and described.unusable["marker"] == (
        f"'marker' has contours of type {kind} only, which enclose nothing."
    )
    with pytest.raises(VolumeError, match=f"'marker' has a contour of type {kind}"):
        RtstructOutlines(path, series.volume, "").mask("marker")


def test_a_structure_drawn_in_another_frame_of_reference_is_refused(axial: Case, tmp_path: Path) -> None:
    series, labels = axial
    struct = rtstruct(series, {"liver": outlines_of(labels == 1, series.volume.affine)})
    struct.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.3"
    with pytest.raises(VolumeError, match="'liver' was drawn in another frame of reference"):
        RtstructOutlines(saved(struct, tmp_path), series.volume, "1.2.4").mask("liver")


def written_contours(
    series: DicomSeries, labels: NDArray[np.uint8], count: int, folder: Path, aside: float = 0.0
) -> RtstructOutlines:
    """Contours through pixel centres, with ``count`` decimals, at most ``aside`` of a slice away from their slices."""
    rng = np.random.default_rng(8)
    contours: dict[str, list[NDArray[np.float64]]] = {name: [] for name in NAMES}
    for name, value in NAMES.items():
        for k in np.flatnonzero((labels == value).any(axis=(0, 1))):
            height = k + rng.uniform(-aside, aside)
            for points in centre_contours(labels[:, :, k] == value):
                flat = straightened(points)
                contours[name].append(world(series, np.column_stack([flat, np.full(len(flat), height)])))
    struct = rtstruct(series, contours)
    for roi, name in zip(struct.ROIContourSequence, NAMES, strict=True):
        for contour, points in zip(roi.ContourSequence, contours[name], strict=True):
            contour.ContourData = [f"{v:.{count}f}" for v in points.ravel()]
    return RtstructOutlines(saved(struct, folder), series.volume, "")


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("aside", [0.0, 0.45])
def test_every_voxel_comes_back_from_contours_through_pixel_centres(
    count: int, aside: float, case: Case, tmp_path: Path
) -> None:
    series, labels = case
    labels = labels.copy()
    labels[:, :, 2] = 0
    labels[3:20, 11, 2] = 1  # one row high
    labels[5, 4:15, 2] = 2
    labels[9, 6, 2] = 3  # a single pixel
    labels[10:17, 2:9, 2] = 3
    labels[12:15, 4:7, 2] = 0
    labels[13, 5, 2] = 3  # an island in a hole
    opened = written_contours(series, labels, count, tmp_path, aside)
    for name, value in NAMES.items():
        np.testing.assert_array_equal(opened.mask(name), labels == value, name)
    assert any("read as holes" in remark for remark in opened.remarks("kidneys"))


def read_one(
    series: DicomSeries, contours: list[NDArray[np.float64]], kinds: list[str], folder: Path
) -> tuple[NDArray[np.bool_], list[str]]:
    """The pixels of slice 4 that contours (N, 2) of some types enclose, and what is said of them."""
    placed = [world(series, np.column_stack([points, np.full(len(points), 4)])) for points in contours]
    struct = rtstruct(series, {"one": placed})
    for contour, kind in zip(struct.ROIContourSequence[0].ContourSequence, kinds, strict=True):
        contour.ContourGeometricType = kind
    path = saved(struct, folder)
    assert describe_rtstruct(path).names == ("one",)
    opened = RtstructOutlines(path, series.volume, "")
    mask = opened.mask("one")
    assert not np.delete(mask, 4, axis=2).any()
    return mask[:, :, 4], opened.remarks("one")


def box(left: float, top: float, right: float, bottom: float) -> NDArray[np.float64]:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def test_contours_that_cross_or_repeat_each_other_are_united_and_the_report_is_told(case: Case, tmp_path: Path) -> None:
    series, _ = case
    pair = [box(3, 3, 12, 9), box(8, 5, 18, 14)]
    mask, remarks = read_one(series, [*pair, pair[0][::-1]], ["CLOSED_PLANAR"] * 3, tmp_path)
    expected = np.zeros(mask.shape, dtype=bool)
    expected[3:13, 3:10] = expected[8:19, 5:15] = True
    np.testing.assert_array_equal(mask, expected)
    assert remarks == ["'one' has contours that cross or repeat each other on 1 slice(s); they were united."]


def test_contours_of_type_xor_are_combined_by_exclusive_or_without_a_word(case: Case, tmp_path: Path) -> None:
    series, _ = case
    pair = [box(2.5, 2.5, 12.5, 9.5), box(7.5, 4.5, 18.5, 14.5)]
    mask, remarks = read_one(series, pair, ["CLOSEDPLANAR_XOR"] * 2, tmp_path)
    expected = np.zeros(mask.shape, dtype=bool)
    expected[3:13, 3:10] = True
    expected[8:19, 5:15] ^= True
    np.testing.assert_array_equal(mask, expected)
    assert remarks == []


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (["CLOSEDPLANAR_XOR", "CLOSED_PLANAR"], "'one' has contours of type CLOSED_PLANAR beside CLOSEDPLANAR_XOR on"),
        (["CLOSED_PLANAR", "CLOSED_PLANAR"], "'one' has contours inside others on 1 slice(s); they were read as holes"),
    ],
)
def test_a_hole_whose_type_leaves_it_to_the_reader_is_told(
    kinds: list[str], said: str, axial: Case, tmp_path: Path
) -> None:
    mask, (remark,) = read_one(axial[0], [box(2.5, 2.5, 12.5, 12.5), box(4.5, 4.5, 8.5, 8.5)], kinds, tmp_path)
    assert mask.sum() == 100 - 16
    assert remark.startswith(said)


def test_a_point_beside_closed_contours_is_left_out_and_told(axial: Case, tmp_path: Path) -> None:
    contours = [box(3, 3, 12, 9), np.array([[20.0, 15.0]])]
    mask, remarks = read_one(axial[0], contours, ["CLOSED_PLANAR", "POINT"], tmp_path)
    assert mask.sum() == 70
    assert remarks == ["'one' has 1 contour(s) of type POINT, which enclose nothing; they were left out."]


@pytest.mark.parametrize("kind", ["OPEN_PLANAR", "OPEN_NONPLANAR"])
def test_an_open_contour_beside_closed_ones_is_refused(kind: str, axial: Case, tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match=f"'one' has a contour of type {kind}; CLOSED_PLANAR is read"):
        read_one(axial[0], [box(3, 3, 12, 9), box(14, 3, 18, 9)], ["CLOSED_PLANAR", kind], tmp_path)


@pytest.mark.parametrize(
    "points",
    [
        pytest.param(np.vstack([box(3, 3, 12, 9), box(3, 3, 12, 9)[:1]]), id="first point repeated"),
        pytest.param(np.repeat(box(3, 3, 12, 9), 3, axis=0), id="every point repeated"),
        pytest.param(np.vstack([box(3, 3, 12, 9)] * 2), id="walked twice"),
        pytest.param(box(3, 3, 12, 9)[::-1], id="the other way round"),
    ],
)
def test_points_that_repeat_change_nothing(points: NDArray[np.float64], axial: Case, tmp_path: Path) -> None:
    mask, remarks = read_one(axial[0], [points], ["CLOSED_PLANAR"], tmp_path)
    assert mask.sum() == 70 and mask[3:13, 3:10].all()
    assert remarks == []


def test_contours_too_small_for_a_pixel_are_told(axial: Case, tmp_path: Path) -> None:
    mask, remarks = read_one(axial[0], [box(3.3, 3.3, 3.6, 3.7)], ["CLOSED_PLANAR"], tmp_path)
    assert not mask.any()
    assert remarks == ["'one' has contours on 1 slice(s) that reach no pixel's centre."]


def test_an_image_that_lies_where_a_label_is_expected_is_refused(axial: Case, tmp_path: Path) -> None:
    series, labels = axial
    write_nifti(tmp_path / "image.nii.gz", series.volume.array, series.volume.affine)
    with pytest.raises(VolumeError, match="are no labels"):
        NiftiOutlines(tmp_path / "image.nii.gz", series.volume, NAMES, strict=False)
    write_nifti(tmp_path / "label.nii.gz", labels, series.volume.affine)
    with pytest.raises(VolumeError, match=r"value\(s\) 3, which --labels does not name"):
        NiftiOutlines(tmp_path / "label.nii.gz", series.volume, {"liver": 1, "spleen": 2}, strict=True)
    assert NiftiOutlines(tmp_path / "label.nii.gz", series.volume, {"liver": 1}, strict=False).strange == [2, 3]
    write_nifti(tmp_path / "short.nii.gz", labels[1:], series.volume.affine)
    with pytest.raises(VolumeError, match="it has 25 x 22 x 12 voxels, the scan 26 x 22 x 12"):
        NiftiOutlines(tmp_path / "short.nii.gz", series.volume, NAMES, strict=True)


def test_a_real_seg_lies_on_the_real_series_it_names(semiseg_data: Path) -> None:
    folder = semiseg_data / "dicom_odd/dcmqi_23x38x3"
    series = read_series(sorted((folder / "image").iterdir()))
    described = describe_seg(folder / "seg/label.seg")
    assert described.instances == {i.SOPInstanceUID for i in series.instances}
    mask = SegOutlines(folder / "seg/label.seg", series.volume).mask("Liver")
    assert mask.any() and not mask.all()
    seg = hd.seg.segread(folder / "seg/label.seg")
    uids = [i.SOPInstanceUID for i in series.instances]
    pixels = seg.get_pixels_by_source_instance(
        uids, assert_missing_frames_are_empty=True, combine_segments=False, ignore_spatial_locations=True
    )
    np.testing.assert_array_equal(mask, np.transpose(pixels[..., 0], (2, 1, 0)))
