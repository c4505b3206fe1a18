"""What a real archive (Orthanc) gives back of our answers is what was put in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from scipy import ndimage

from semiseg.outputs.dicom_common import Algorithm
from semiseg.outputs.dicom_rtstruct import segmentation_to_rtstruct
from semiseg.outputs.dicom_seg import segmentation_to_seg
from semiseg.outputs.dicom_sr import segmentation_to_sr
from semiseg.phantoms.anatomy import SEGMENTS
from semiseg.volumes.dicom_series import read_series
from semiseg.volumes.segmentation import Segmentation
from tests.outputs.orthanc import Orthanc, running_orthanc

ALGORITHM = Algorithm(name="phantom", version="1", model_sha256="ab" * 32)


@pytest.fixture(scope="module")
def archive(require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(require_program("Orthanc"), tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.mark.parametrize(
    "folder",
    [
        "mr_hippocrop_study1",
        "mr_t1w_head_slab",
        pytest.param("ct_head_ge_tilt_irregular", marks=pytest.mark.long),
    ],
)
def test_a_seg_comes_back_frame_by_frame(folder: str, archive: Orthanc, semiseg_data: Path) -> None:
    """OUT-05."""
    files = sorted((semiseg_data / "dicom" / folder).iterdir())
    series = read_series(files)
    noise = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=series.volume.shape), 12)
    mask = np.digitize(noise, np.percentile(noise, (60, 80))).astype(np.uint8)
    mask[..., :2] = 0
    segmentation = Segmentation(SEGMENTS[:2], mask, series.volume.affine)
    made = [
        make(segmentation, series, algorithm=ALGORITHM)
        for make in (segmentation_to_seg, segmentation_to_rtstruct, segmentation_to_sr)
    ]
    images = [pydicom.dcmread(file) for file in files]
    taken = archive.store([*images, *made])
    assert set(taken) == {one.SOPInstanceUID for one in (*images, *made)}
    assert archive.modalities(series.study_uid) >= {series.modality, "SEG", "RTSTRUCT", "SR"}
    seg = hd.seg.Segmentation.from_dataset(archive.fetch(made[0]))
    uids = [instance.SOPInstanceUID for instance in series.instances]
    pixels = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(np.transpose(pixels, (2, 1, 0)), series.on_slices(mask))
    for one in made[1:]:
        back = archive.fetch(one)
        assert (back.SOPInstanceUID, back.Modality) == (one.SOPInstanceUID, one.Modality)


def test_probabilities_come_back_too(archive: Orthanc, semiseg_data: Path) -> None:
    files = sorted((semiseg_data / "dicom/mr_hippocrop_study1").iterdir())
    series = read_series(files)
    mask = np.zeros(series.volume.shape, dtype=np.uint8)
    shares = np.random.default_rng(3).integers(0, 256, (2, *mask.shape)).astype(np.uint8)
    segmentation = Segmentation(SEGMENTS[:2], mask, series.volume.affine, shares)
    made = segmentation_to_seg(segmentation, series, algorithm=ALGORITHM, segmentation_type="fractional")
    archive.store([*(pydicom.dcmread(file) for file in files), made])
    seg = hd.seg.Segmentation.from_dataset(archive.fetch(made))
    uids = [instance.SOPInstanceUID for instance in series.instances]
    pixels = seg.get_pixels_by_source_instance(uids, rescale_fractional=False)
    np.testing.assert_array_equal(np.transpose(pixels, (3, 2, 1, 0)), shares)
    for number, frame in zip((1, 7), archive.frames(made, [1, 7]), strict=True):
        np.testing.assert_array_equal(
            np.frombuffer(frame, np.uint8).reshape(pixels.shape[1:3]), made.pixel_array[number - 1]
        )


def test_the_same_answer_again_is_no_second_object(archive: Orthanc, semiseg_data: Path) -> None:
    """OUT-03, OUT-05."""
    series = read_series(sorted((semiseg_data / "dicom/mr_hippocrop_study2").iterdir()))
    mask = np.zeros(series.volume.shape, dtype=np.uint8)
    mask[5:9, 5:9, 5:9] = 1
    segmentation = Segmentation(SEGMENTS[:1], mask, series.volume.affine)
    for _ in range(2):
        archive.store([segmentation_to_seg(segmentation, series, algorithm=ALGORITHM)])
    answer = archive.http.get(
        f"{archive.url}/studies/{series.study_uid}/instances", headers={"Accept": "application/dicom+json"}
    )
    assert len(answer.json()) == 1
