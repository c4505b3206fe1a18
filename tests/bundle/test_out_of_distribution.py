"""A scan that is not like the training scans is told apart, by name and with figures; one that is like them is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from semiseg.bundle.fingerprint import Fingerprint
from semiseg.bundle.out_of_distribution import out_of_distribution_warnings
from semiseg.volumes.dicom_series import read_series
from semiseg.volumes.nifti import read_nifti
from semiseg.volumes.volume import Volume, reorient


def made(spacing: tuple[float, float, float] = (1, 1, 3), seed: int = 0, offset: float = 0.0) -> Volume:
    array = np.random.default_rng(seed).normal(100 + offset, 20, (40, 36, 20)).astype(np.float32)
    return Volume(array, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]))


@pytest.fixture(scope="module")
def seen() -> Fingerprint:
    scans = [{"MR": made((1, 1, 3 + 0.1 * k), k, 5 * k)} for k in range(5)]
    return Fingerprint.collect(scans, "RAS")


def codes(fingerprint: Fingerprint, volume: Volume) -> dict[str, str]:
    return {remark.code: remark.text for remark in out_of_distribution_warnings(fingerprint, {"MR": volume}, "RAS")}


def test_a_scan_like_the_training_scans_raises_no_doubt(seen: Fingerprint) -> None:
    assert codes(seen, made((1.1, 0.9, 3.6), 9, 12)) == {}
    turned = made((1, 1, 3.2), 9)
    flipped = Volume(*reorient(turned.array, turned.affine, "RAI"))
    assert codes(seen, flipped) == {}, "the way the axes run is put right by the preprocessing"


def test_each_difference_has_its_name_and_figures(seen: Fingerprint) -> None:
    assert codes(seen, made((1, 1, 6), 9))["unfamiliar_spacing"] == (
        "The voxels measure 6 mm head-foot (3 to 3.4 mm in the training scans)."
    )
    far = codes(seen, Volume(made().array[:20], made().affine))
    assert far == {"unfamiliar_field_of_view": "The scan covers 20 mm left-right (40 mm in the training scans)."}
    loud = codes(seen, Volume(made().array * 10, made().affine))["unfamiliar_intensity"]
    assert loud.startswith("The grey values have another range: the darkest voxels have ")
    assert "the brightest voxels have 1" in loud
    sagittal = Volume(*reorient(made().array, made().affine, "PIR"))
    assert codes(seen, sagittal)["unfamiliar_orientation"] == (
        "The slices are sagittal; those of the training scans were axial."
    )


def test_channels_are_told_apart() -> None:
    scans = [{"T1": made(seed=k), "T2": made(seed=k, offset=400)} for k in range(3)]
    fingerprint = Fingerprint.collect(scans, "RAS")
    swapped = {"T1": scans[0]["T2"], "T2": scans[0]["T1"]}
    told = [remark.text for remark in out_of_distribution_warnings(fingerprint, swapped, "RAS")]
    assert len(told) == 2
    assert "voxels of channel 'T1' have" in told[0]
    assert "voxels of channel 'T2' have" in told[1]


def test_a_fingerprint_without_fields_of_view_is_still_read(seen: Fingerprint) -> None:
    document = seen.model_dump(mode="json")
    del document["extent"]
    older = Fingerprint.model_validate(document)
    assert codes(older, Volume(made().array[:20], made().affine)) == {}


def test_real_scans_of_another_kind_are_noticed_by_the_fingerprint_of_hippocampus_crops(semiseg_data: Path) -> None:
    """INF-06."""
    files = sorted((semiseg_data / "hippocampus/imagesTr").iterdir())
    crops = Fingerprint.collect(({"MR": read_nifti(file)} for file in files[::4]), "RAS")
    for file in files[1::12]:
        assert codes(crops, read_nifti(file)) == {}, file.name
    for study in ("mr_hippocrop_study1", "mr_hippocrop_study2"):
        own = read_series(sorted((semiseg_data / "dicom" / study).iterdir())).volume
        assert set(codes(crops, own)) <= {"unfamiliar_orientation"}, study
    head = read_series(sorted((semiseg_data / "dicom/mr_t1w_head_slab").iterdir())).volume
    assert {"unfamiliar_field_of_view", "unfamiliar_spacing"} <= set(codes(crops, head))
    body = read_series(sorted((semiseg_data / "dicom/ct_body_siemens_j2k").iterdir())).volume
    # Their grey values say nothing: those of the crops run from a hundred to a million.
    assert {"unfamiliar_field_of_view", "unfamiliar_spacing"} <= set(codes(crops, body))
