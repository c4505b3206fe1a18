"""Contours of structure sets are read as the pixels that they enclose, or refused by name and type."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from semiseg.collection.labels_rtstruct import RtstructReader, describe_rtstruct
from semiseg.errors import VolumeError
from semiseg.volumes.dicom_geometry import lps_to_ras
from semiseg.volumes.dicom_series import DicomSeries
from tests.collection.centre_contours import centre_contours, simplify_contour
from tests.collection.clinical_data import (
    NAMES,
    Case,
    make_rtstruct,
    save_rtstruct,
    trace_contours,
)


def world(series: DicomSeries, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Voxel indices (N, 3) as LPS mm."""
    to_lps = lps_to_ras(series.volume.affine)
    return np.asarray(points @ to_lps[:3, :3].T + to_lps[:3, 3])


def ring(centre: tuple[float, float], radius: float, k: float, count: int = 600) -> NDArray[np.float64]:
    angle = np.arange(count) * 2 * math.pi / count
    flat = [centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle), np.full(count, k)]
    return np.column_stack(flat)


def test_contours_are_filled_by_their_area_and_holes_are_left_out(case: Case, tmp_path: Path) -> None:
    series, _ = case
    middle, k = (12.3, 10.4), 6
    struct = make_rtstruct(series, {"shell": [world(series, ring(middle, r, k)) for r in (8.6, 4.2)]})
    opened = RtstructReader(save_rtstruct(struct, tmp_path), series.volume, "")
    i, j = np.indices(series.volume.shape[:2])
    distance = np.hypot(i - middle[0], j - middle[1])
    expected = np.zeros(series.volume.shape, dtype=bool)
    expected[:, :, k] = (distance < 8.6) & (distance >= 4.2)
    np.testing.assert_array_equal(opened.mask("shell"), expected)


def test_a_contour_belongs_to_the_slice_within_half_a_slice_distance(axial: Case, tmp_path: Path) -> None:
    series, _ = axial
    struct = make_rtstruct(
        series, {"near": [world(series, ring((12, 10), 5, 3.4))], "far": [world(series, ring((12, 10), 5, 3.5))]}
    )
    opened = RtstructReader(save_rtstruct(struct, tmp_path), series.volume, "")
    assert np.flatnonzero(opened.mask("near").any(axis=(0, 1))).tolist() == [3]
    with pytest.raises(VolumeError, match=r"'far' has a contour on no slice of the scan \(at slice 4.50 of 12\)"):
        opened.mask("far")


@pytest.mark.parametrize(("off", "told"), [(0.05, False), (0.3, True)])
def test_a_contour_that_lies_in_no_plane_is_remarked_on(off: float, told: bool, axial: Case, tmp_path: Path) -> None:
    """PS3.3 C.8.8.6.3: the points of a CLOSED_PLANAR contour lie in one plane."""
    series, _ = axial
    bent = ring((12, 10), 5, 4.0)
    bent[7, 2] += off
    opened = RtstructReader(
        save_rtstruct(make_rtstruct(series, {"bent": [world(series, bent)]}), tmp_path), series.volume, ""
    )
    assert np.flatnonzero(opened.mask("bent").any(axis=(0, 1))).tolist() == [4]
    remarks = opened.notes("bent")
    assert [("not planar" in one, "up to" in one) for one in remarks] == [(True, True)] * told


@pytest.mark.parametrize("k", [-1.0, 12.0, 400.0])
def test_a_contour_off_every_slice_is_refused_by_name(k: float, axial: Case, tmp_path: Path) -> None:
    series, _ = axial
    struct = make_rtstruct(series, {"lost": [world(series, ring((12, 10), 5, 4)), world(series, ring((12, 10), 5, k))]})
    with pytest.raises(VolumeError, match="'lost' has a contour on no slice"):
        RtstructReader(save_rtstruct(struct, tmp_path), series.volume, "").mask("lost")


def test_a_contour_across_the_slices_is_refused(axial: Case, tmp_path: Path) -> None:
    series, _ = axial
    across = ring((5, 5), 3, 10)[:, [2, 0, 1]]
    struct = make_rtstruct(series, {"coronal": [world(series, across)]})
    with pytest.raises(VolumeError, match="'coronal' has a contour on no slice"):
        RtstructReader(save_rtstruct(struct, tmp_path), series.volume, "").mask("coronal")


def test_two_planes_of_contours_on_one_slice_are_refused(axial: Case, tmp_path: Path) -> None:
    series, _ = axial
    planes = [world(series, ring((12, 10), 5, k)) for k in (2.7, 3.0, 3.3)]
    with pytest.raises(VolumeError, match=r"'fine' has contours in planes 4\.80 mm apart that fall on one slice"):
        RtstructReader(save_rtstruct(make_rtstruct(series, {"fine": planes}), tmp_path), series.volume, "").mask("fine")


def test_a_slice_that_was_skipped_in_drawing_is_told(axial: Case, tmp_path: Path) -> None:
    series, _ = axial
    struct = make_rtstruct(series, {"sparse": [world(series, ring((12, 10), 5, k)) for k in (2, 5)]})
    opened = RtstructReader(save_rtstruct(struct, tmp_path), series.volume, "")
    assert opened.mask("sparse").any(axis=(0, 1)).sum() == 2
    assert opened.notes("sparse") == ["'sparse' has no contour on 2 slice(s) between others that have one."]


@pytest.mark.parametrize("kind", ["POINT", "OPEN_PLANAR", "OPEN_NONPLANAR"])
def test_contours_that_enclose_nothing_are_refused_by_name_and_type(kind: str, axial: Case, tmp_path: Path) -> None:
    series, _ = axial
    path = save_rtstruct(make_rtstruct(series, {"marker": [world(series, ring((12, 10), 5, 4))]}, kind), tmp_path)
    described = describe_rtstruct(path)
    assert described.names == () and described.unusable["marker"] == (
        f"'marker' has contours of type {kind} only, which enclose nothing."
    )
    with pytest.raises(VolumeError, match=f"'marker' has a contour of type {kind}"):
        RtstructReader(path, series.volume, "").mask("marker")


def test_a_structure_drawn_in_another_frame_of_reference_is_refused(axial: Case, tmp_path: Path) -> None:
    series, labels = axial
    struct = make_rtstruct(series, {"liver": trace_contours(labels == 1, series.volume.affine)})
    struct.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.3"
    with pytest.raises(VolumeError, match="'liver' was drawn in another frame of reference"):
        RtstructReader(save_rtstruct(struct, tmp_path), series.volume, "1.2.4").mask("liver")


def written_contours(
    series: DicomSeries, labels: NDArray[np.uint8], count: int, folder: Path, aside: float = 0.0
) -> RtstructReader:
    """Contours through pixel centres, with ``count`` decimals, at most ``aside`` of a slice away from their slices."""
    rng = np.random.default_rng(8)
    contours: dict[str, list[NDArray[np.float64]]] = {name: [] for name in NAMES}
    for name, value in NAMES.items():
        for k in np.flatnonzero((labels == value).any(axis=(0, 1))):
            height = k + rng.uniform(-aside, aside)
            for points in centre_contours(labels[:, :, k] == value):
                flat = simplify_contour(points)
                contours[name].append(world(series, np.column_stack([flat, np.full(len(flat), height)])))
    struct = make_rtstruct(series, contours)
    for roi, name in zip(struct.ROIContourSequence, NAMES, strict=True):
        for contour, points in zip(roi.ContourSequence, contours[name], strict=True):
            contour.ContourData = [f"{v:.{count}f}" for v in points.ravel()]
    return RtstructReader(save_rtstruct(struct, folder), series.volume, "")


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
    assert any("read as holes" in remark for remark in opened.notes("kidneys"))


def read_one(
    series: DicomSeries, contours: list[NDArray[np.float64]], kinds: list[str], folder: Path
) -> tuple[NDArray[np.bool_], list[str]]:
    """The pixels of slice 4 that contours (N, 2) of some types enclose, and what is said of them."""
    placed = [world(series, np.column_stack([points, np.full(len(points), 4)])) for points in contours]
    struct = make_rtstruct(series, {"one": placed})
    for contour, kind in zip(struct.ROIContourSequence[0].ContourSequence, kinds, strict=True):
        contour.ContourGeometricType = kind
    path = save_rtstruct(struct, folder)
    assert describe_rtstruct(path).names == ("one",)
    opened = RtstructReader(path, series.volume, "")
    mask = opened.mask("one")
    assert not np.delete(mask, 4, axis=2).any()
    return mask[:, :, 4], opened.notes("one")


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
    with pytest.raises(VolumeError, match=f"'one' has a contour of type {kind}; only CLOSED_PLANAR is read"):
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
