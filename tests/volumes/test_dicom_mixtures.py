"""Series and images that look like one volume and hold several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from semiseg.errors import VolumeError
from semiseg.phantoms.anatomy import make_phantom
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.dicom_series import read_series
from tests.volumes.edited_series import SLICE_COUNT, SliceEdit, cycle_values, edit_slices
from tests.volumes.enhanced_multiframe import write_enhanced

# --- mixtures whose positions do not coincide ---------------------------------------------------------------------

MIXTURES = [
    ("DiffusionBValue", (0.0, 2000.0), "b-value"),
    ("DiffusionBValue", (None, 800.0), "b-value"),
    ("EchoTime", (4.6, 9.2), "Echo Time"),
    ("EchoTime", (2.0, 4.0, 6.0), "Echo Time"),
    ("EchoNumbers", (1, 2), "echo number"),
    ("TemporalPositionIdentifier", (1, 2), "temporal position"),
    ("TriggerTime", (0.0, 400.0), "cardiac phase"),
    ("InversionTime", (100.0, 900.0), "Inversion Time"),
    ("RepetitionTime", (500.0, 3000.0), "Repetition Time"),
    ("FlipAngle", (5.0, 25.0), "Flip Angle"),
    ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]), "Image Type"),
    ("ContrastBolusAgent", (None, "Gd"), "contrast agent"),
    ("SequenceName", ("ep_b0", "ep_b1000"), "sequence name"),
]


@pytest.mark.parametrize(("keyword", "values", "words"), MIXTURES)
def test_images_of_two_kinds_in_turn_are_no_volume(
    files: list[Path], keyword: str, values: tuple[Any, ...], words: str
) -> None:
    edit_slices(files, cycle_values(keyword, *values))
    with pytest.raises(VolumeError, match=f"several images, which differ in {words}"):
        read_series(files)


def test_half_a_volume_of_each_of_two_echoes_is_no_volume(files: list[Path]) -> None:
    edit_slices(files, lambda dataset, k: setattr(dataset, "EchoTime", 5 if k < SLICE_COUNT // 2 else 10))
    with pytest.raises(VolumeError, match="6 with 5, 6 with 10"):
        read_series(files)


ONE_VOLUME = {
    "two passes": cycle_values("AcquisitionNumber", 1, 2),
    "two passes at two times": cycle_values("AcquisitionTime", "101500", "101512"),
    "a time for each slice": lambda dataset, k: setattr(dataset, "AcquisitionTime", f"1015{k:02d}"),
    "a trigger time for each slice": lambda dataset, k: setattr(dataset, "TriggerTime", 31.5 * k),
    "an echo time that is measured": cycle_values("EchoTime", 4.6, 4.6000002),
    "a tube current for each slice": lambda dataset, k: setattr(dataset, "XRayTubeCurrent", 100 + 7 * k),
    "instance numbers by the file": lambda dataset, k: setattr(dataset, "InstanceNumber", (5 * k) % SLICE_COUNT + 1),
}


@pytest.mark.parametrize("what", ONE_VOLUME)
def test_an_acquisition_in_several_passes_is_one_volume(files: list[Path], what: str) -> None:
    before = read_series(files).volume
    edit_slices(files, ONE_VOLUME[what])
    found = read_series(files)
    np.testing.assert_array_equal(found.volume.array, before.array)
    assert found.warnings == ()


@pytest.mark.parametrize(("keyword", "values"), [("KVP", (80, 140)), ("ConvolutionKernel", ("B30f", "B70f"))])
def test_a_ct_may_change_its_technique_from_one_part_to_the_next_but_not_in_turn(
    tmp_path: Path, keyword: str, values: tuple[Any, Any]
) -> None:
    made = make_phantom(7, (26, 22, SLICE_COUNT), (3.6, 4.2, 5.0), modality="CT").image
    files = write_dicom_series(tmp_path / "series", made, modality="CT")
    edit_slices(files, lambda dataset, k: setattr(dataset, keyword, values[k >= 4]))
    assert read_series(files).warnings == ()
    edit_slices(files, cycle_values(keyword, *values))
    with pytest.raises(VolumeError, match="several images, which differ in"):
        read_series(files)


@pytest.mark.parametrize(
    ("group", "keyword", "values", "words"),
    [
        ("MREchoSequence", "EffectiveEchoTime", (3.1, 9.8), "Echo Time"),
        ("MRDiffusionSequence", "DiffusionBValue", (0.0, 1000.0), "b-value"),
        ("MRImageFrameTypeSequence", "ComplexImageComponent", ("MAGNITUDE", "PHASE"), "complex part"),
        ("FrameContentSequence", "TemporalPositionIndex", (1, 2), "temporal position"),
        ("FrameContentSequence", "StackID", ("1", "2"), "stack"),
    ],
)
def test_frames_of_two_kinds_in_turn_are_no_volume(
    files: list[Path], tmp_path: Path, group: str, keyword: str, values: tuple[Any, Any], words: str
) -> None:
    frames = [{group: {keyword: values[k % 2]}} for k in range(SLICE_COUNT)]
    made = write_enhanced(tmp_path / "object.dcm", sorted(files), frames=frames)
    with pytest.raises(VolumeError, match=f"several images, which differ in {words}"):
        read_series([made])


# --- images that hold many slices ---------------------------------------------------------------------------------


def siemens(dataset: pydicom.Dataset, _: int) -> None:
    dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 35)


def united(dataset: pydicom.Dataset, _: int) -> None:
    dataset.private_block(0x0065, "Image Private Header", create=True).add_new(0x50, "DS", "36")


MOSAICS: dict[str, SliceEdit] = {
    "the word": cycle_values("ImageType", ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]),
    "Siemens' number of images": siemens,
    "United Imaging's number of slices": united,
}


@pytest.mark.parametrize("what", MOSAICS)
def test_an_image_of_several_slices_is_refused(files: list[Path], what: str) -> None:
    edit_slices(files, MOSAICS[what])
    with pytest.raises(VolumeError, match="a mosaic: the image holds several slices side by side"):
        read_series(files)


def test_an_mr_image_wider_than_a_magnet_is_refused(files: list[Path]) -> None:
    edit_slices(files, cycle_values("PixelSpacing", [33.0, 33.0]))
    with pytest.raises(VolumeError, match="wider than any magnet"):
        read_series(files)


def test_a_whole_spine_may_be_longer_than_a_magnet_is_wide(files: list[Path]) -> None:
    edit_slices(files, cycle_values("PixelSpacing", [45.0, 15.0]))
    assert read_series(files).volume.spacing[:2] == (15, 45)


def test_an_enhanced_object_may_keep_the_word_mosaic(files: list[Path], tmp_path: Path) -> None:
    expected = read_series(files).volume
    edit_slices(files, MOSAICS["the word"])
    found = read_series([write_enhanced(tmp_path / "object.dcm", sorted(files))])
    np.testing.assert_array_equal(found.volume.array, expected.array)
