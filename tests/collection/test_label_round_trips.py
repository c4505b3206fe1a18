"""Outlines come back voxel for voxel on the grid of their series, whichever way the series runs."""

from __future__ import annotations

from pathlib import Path

import highdicom as hd
import nibabel.orientations as nio
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from semiseg.collection.labels_nifti import LabelMapReader
from semiseg.collection.labels_rtstruct import RtstructReader, describe_rtstruct
from semiseg.collection.labels_seg import SegReader, describe_seg
from semiseg.errors import VolumeError
from semiseg.volumes.dicom_geometry import lps_to_ras
from semiseg.volumes.dicom_series import read_series
from semiseg.volumes.nifti import write_nifti
from semiseg.volumes.volume import Volume, reorient
from tests.collection.clinical_data import (
    ALGORITHM,
    NAMES,
    Case,
    write_labels_as_rtstruct,
    write_labels_as_seg,
)


def test_every_voxel_of_a_seg_comes_back(case: Case, tmp_path: Path) -> None:
    series, labels = case
    write_labels_as_seg(tmp_path / "seg.dcm", series, labels)
    assert describe_seg(tmp_path / "seg.dcm").names == tuple(NAMES)
    opened = SegReader(tmp_path / "seg.dcm", series.volume)
    for name, value in NAMES.items():
        assert (labels == value).any()
        np.testing.assert_array_equal(opened.mask(name), labels == value)


def test_every_voxel_of_a_structure_set_comes_back(case: Case, tmp_path: Path) -> None:
    series, labels = case
    write_labels_as_rtstruct(tmp_path / "rt.dcm", series, labels)
    assert describe_rtstruct(tmp_path / "rt.dcm").names == tuple(NAMES)
    opened = RtstructReader(tmp_path / "rt.dcm", series.volume, series.instances[0].FrameOfReferenceUID)
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
    opened = LabelMapReader(tmp_path / "label.nii.gz", series.volume, NAMES, strict=True)
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
    opened = SegReader(tmp_path / "mixed.dcm", series.volume)
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
    opened = SegReader(tmp_path / "part.dcm", series.volume)
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
    mask = SegReader(path, series.volume).mask("liver")
    np.testing.assert_array_equal(mask, np.transpose(values, (2, 1, 0)) >= kept)


def test_every_voxel_of_a_labelmap_seg_comes_back(axial: Case, tmp_path: Path) -> None:
    series, labels = axial
    path = seg_of_kind("LABELMAP", axial, np.transpose(labels, (2, 1, 0)).copy(), tmp_path)
    assert describe_seg(path).names == tuple(NAMES)
    opened = SegReader(path, series.volume)
    for name, value in NAMES.items():
        np.testing.assert_array_equal(opened.mask(name), labels == value)


def test_a_seg_on_another_grid_is_refused_with_what_differs(axial: Case, tmp_path: Path) -> None:
    series, labels = axial
    write_labels_as_seg(tmp_path / "seg.dcm", series, labels)
    grid = series.volume

    def told(change: NDArray[np.float64], shape: tuple[int, int, int] = grid.shape) -> str:
        other = Volume(np.zeros(shape, np.int16), grid.affine @ change)
        with pytest.raises(VolumeError) as refused:
            SegReader(tmp_path / "seg.dcm", other)
        return str(refused.value)

    aside, finer, turned = np.eye(4), np.diag([0.5, 0.5, 1, 1]), np.eye(4)
    aside[0, 3] = 0.4
    turned[:2, :2] = [[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]]
    assert "lie up to 0.40 of a voxel away" in told(aside)
    assert "measure 3.7 x 4.3 mm and the scan's 1.85 x 2.15 x 8 mm" in told(finer)
    assert "lies on another grid" in told(turned)
    assert "reaches from voxel" in told(np.eye(4), (20, 22, 12))


def test_an_image_that_lies_where_a_label_is_expected_is_refused(axial: Case, tmp_path: Path) -> None:
    series, labels = axial
    write_nifti(tmp_path / "image.nii.gz", series.volume.array, series.volume.affine)
    with pytest.raises(VolumeError, match="are not labels"):
        LabelMapReader(tmp_path / "image.nii.gz", series.volume, NAMES, strict=False)
    write_nifti(tmp_path / "label.nii.gz", labels, series.volume.affine)
    with pytest.raises(VolumeError, match=r"value\(s\) 3, which --labels does not name"):
        LabelMapReader(tmp_path / "label.nii.gz", series.volume, {"liver": 1, "spleen": 2}, strict=True)
    assert LabelMapReader(tmp_path / "label.nii.gz", series.volume, {"liver": 1}, strict=False).unknown_values == [2, 3]
    write_nifti(tmp_path / "short.nii.gz", labels[1:], series.volume.affine)
    with pytest.raises(VolumeError, match="it has 25 x 22 x 12 voxels, the scan 26 x 22 x 12"):
        LabelMapReader(tmp_path / "short.nii.gz", series.volume, NAMES, strict=True)


def test_a_real_seg_lies_on_the_real_series_it_names(semiseg_data: Path) -> None:
    folder = semiseg_data / "dicom_odd/dcmqi_23x38x3"
    series = read_series(sorted((folder / "image").iterdir()))
    described = describe_seg(folder / "seg/label.seg")
    assert described.instances == {i.SOPInstanceUID for i in series.instances}
    mask = SegReader(folder / "seg/label.seg", series.volume).mask("Liver")
    assert mask.any() and not mask.all()
    seg = hd.seg.segread(folder / "seg/label.seg")
    uids = [i.SOPInstanceUID for i in series.instances]
    pixels = seg.get_pixels_by_source_instance(
        uids, assert_missing_frames_are_empty=True, combine_segments=False, ignore_spatial_locations=True
    )
    np.testing.assert_array_equal(mask, np.transpose(pixels[..., 0], (2, 1, 0)))
