"""Which series of a study is taken: the one that is named, or the only one that fits, never one of several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from semiseg.errors import VolumeError
from semiseg.phantoms.anatomy import make_phantom
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.dicom_series import read_series
from semiseg.volumes.read_options import ReadOptions
from semiseg.volumes.scan import open_scan
from semiseg.volumes.series_rules import SeriesRule
from semiseg.volumes.volume import Volume, reorient

FRAME = "1.2.826.0.1.3680043.8.498.77"


@pytest.fixture(scope="module")
def image() -> Volume:
    return make_phantom(5, (24, 20, 10), (3.9, 4.6, 5.0)).image


@pytest.fixture
def study(image: Volume, tmp_path: Path) -> Path:
    """Axial T1 and T2 on one grid, a sagittal T2 on its own, a scout of three planes, a CT, a screenshot, a report."""
    folder = tmp_path / "study"
    sagittal = Volume(*reorient(image.array, image.affine, "PIR"))
    halved = Volume(image.array // 2, image.affine)
    write(folder / "t1", image, "AX T1 SE")
    write(folder / "t2", halved, "AX T2 TSE")
    write(folder / "sag", sagittal, "SAG T2 TSE")
    for k, path in enumerate(write(folder / "scout", image, "3-plane loc")):
        put(path, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
        if k >= 3:
            path.unlink()
    write(folder / "ct", image, "AX CT", modality="CT")
    for path in write(folder / "shot", image, "screenshot")[1:]:
        path.unlink()
    (shot,) = (folder / "shot").iterdir()
    ds = pydicom.dcmread(shot)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = bytes(ds.Rows * ds.Columns * 3)
    ds.save_as(shot)
    return folder


def write(folder: Path, volume: Volume, description: str, **more: Any) -> list[Path]:
    files = write_dicom_series(folder, volume, description=description, **more)
    for path in files:
        put(path, FrameOfReferenceUID=FRAME)
    return files


def put(path: Path, **values: object) -> None:
    dataset = pydicom.dcmread(path)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


def uid_of(folder: Path) -> str:
    return str(pydicom.dcmread(next(folder.iterdir()), stop_before_pixels=True).SeriesInstanceUID)


def read(study: Path, rule: SeriesRule, series_uid: str | None = None) -> str:
    return read_series(sorted(p for p in study.rglob("*") if p.is_file()), rule=rule, series_uid=series_uid).description


@pytest.mark.parametrize(
    ("rule", "chosen"),
    [
        ({"modality": "CT"}, "AX CT"),
        ({"orientation": "sagittal"}, "SAG T2 TSE"),
        ({"modality": "MR", "orientation": "axial", "description": ["*t1*"]}, "AX T1 SE"),
        ({"modality": "mr", "orientation": "axial", "not_description": ["*T1*"]}, "AX T2 TSE"),
        ({"slice_gap": [3.5, 4.5]}, "SAG T2 TSE"),
        ({"pixel_spacing": [4.9, 5.1]}, "SAG T2 TSE"),
        ({"least_slices": 11}, "SAG T2 TSE"),
        ({"description": ["3-plane*"], "not_image_type": []}, None),  # the reader refuses what the rule lets through
    ],
)
def test_the_only_series_that_fits_is_taken(study: Path, rule: dict[str, Any], chosen: str | None) -> None:
    if chosen is None:
        assert read(study, SeriesRule(**rule)) == "3-plane loc"
    else:
        assert read(study, SeriesRule(**rule)) == chosen


def test_each_series_gets_its_reason(study: Path) -> None:
    scan = open_scan(study, {"T1": SeriesRule(modality="MR", description=("*t1*",))})
    reasons = {decision.description: (decision.channel, decision.reason) for decision in scan.decisions}
    assert reasons["AX T1 SE"] == ("T1", "It is the only one of 6 image series that fits.")
    assert reasons["AX CT"] == (None, "Left out: its modality is CT and not MR.")
    assert reasons["SAG T2 TSE"] == (None, "Left out: its description 'SAG T2 TSE' matches none of *t1*.")
    assert len(scan.decisions) == 6
    default = open_scan(study, {"x": SeriesRule()}, ReadOptions(series=uid_of(study / "sag")))
    reasons = {decision.description: decision.reason for decision in default.decisions}
    assert reasons["SAG T2 TSE"] == "It was requested by its UID."
    assert reasons["AX T1 SE"] == "Left out: another series was requested by its UID."


def test_several_that_fit_are_listed_and_none_is_taken(study: Path) -> None:
    """VOL-05."""
    with pytest.raises(VolumeError, match=r"hold 3 image series that fit; name one of them: .*AX T1 SE.*AX T2 TSE"):
        read(study, SeriesRule(modality="MR"))
    with pytest.raises(VolumeError, match=r"hold 4 image series that fit; .*AX CT") as caught:
        read(study, SeriesRule())
    assert "3-plane" not in str(caught.value)
    assert "screenshot" not in str(caught.value)


def test_when_none_fits_the_reasons_are_told(study: Path) -> None:
    """VOL-05."""
    with pytest.raises(VolumeError, match="None of the 6 image series fits") as caught:
        read(study, SeriesRule(orientation="coronal"))
    for reason in ("its slices are axial and not coronal", "its slices are sagittal", "its Image Type says LOCALIZER"):
        assert reason in str(caught.value)
    with pytest.raises(VolumeError, match=r"\(CT, AX CT\) does not fit: its modality is CT and not MR\."):
        read(study / "ct", SeriesRule(modality="MR"))


def test_a_uid_overrides_the_rule_but_not_the_modality(study: Path) -> None:
    assert read(study, SeriesRule(modality="MR", orientation="axial"), uid_of(study / "sag")) == "SAG T2 TSE"
    with pytest.raises(VolumeError, match="its modality is CT and not MR"):
        read(study, SeriesRule(modality="MR"), uid_of(study / "ct"))


def channels(**patterns: str) -> dict[str, SeriesRule]:
    return {name: SeriesRule(modality="MR", description=(pattern,)) for name, pattern in patterns.items()}


def test_each_channel_gets_its_series_and_the_first_gives_the_grid(study: Path, image: Volume) -> None:
    scan = open_scan(study, channels(T2="AX T2*", T1="*t1*"))
    assert list(scan.channels) == ["T2", "T1"]
    assert scan.series is not None and scan.series.description == "AX T2 TSE"
    np.testing.assert_array_equal(scan.channels["T1"].array // 2, scan.channels["T2"].array)
    assert scan.warnings == ()
    assert {decision.channel for decision in scan.decisions} == {"T1", "T2", None}


def test_a_channel_on_another_grid_is_resampled_within_one_frame_of_reference(study: Path) -> None:
    scan = open_scan(study, channels(T1="*t1*", SAG="SAG*"))
    (remark,) = scan.warnings
    assert remark.code == "resampled_channel"
    assert (
        "'SAG' was resampled onto the grid of 'T1' (they share the frame of reference); it covers 100%" in remark.text
    )
    # Both series show one phantom, so the voxels of the one lie on those of the other.
    np.testing.assert_allclose(scan.channels["SAG"].array, scan.channels["T1"].array, atol=0.51)


def test_channels_of_two_frames_of_reference_need_somebodys_word(study: Path) -> None:
    other = generate_uid()
    for path in (study / "t2").iterdir():
        put(path, FrameOfReferenceUID=other)
    wanted = channels(T1="*t1*", T2="AX T2*")
    with pytest.raises(VolumeError, match=r"'T1' and 'T2' are in different frames of reference.*`--aligned`"):
        open_scan(study, wanted)
    assert open_scan(study, wanted, ReadOptions(aligned=True)).warnings == ()  # one grid: nothing had to be resampled


def test_channels_may_come_in_files_of_their_own(study: Path, tmp_path: Path) -> None:
    both = {"T1": study / "t1", "T2": sorted((study / "t2").iterdir())}
    scan = open_scan(both, channels(T2="*", T1="*"))
    assert list(scan.channels) == ["T2", "T1"]
    with pytest.raises(VolumeError, match=r"takes the channel\(s\) T1, FLAIR; missing: FLAIR; unknown: T2\."):
        open_scan(both, channels(T1="*", FLAIR="*"))


def test_named_channels_are_read_from_their_series(study: Path) -> None:
    uids = f"A={uid_of(study / 'sag')}, B={uid_of(study / 't1')}"
    scan = open_scan(study, channels(A="nothing*", B="nothing*"), ReadOptions(series=uids))
    assert scan.series is not None and scan.series.description == "SAG T2 TSE"
    for wrong in ("1.2.3", "A=1.2.3,A=1.2.4", "C=1.2.3", "A="):
        with pytest.raises(VolumeError, match=r"Give the series of each channel|does not name the series of a channel"):
            open_scan(study, channels(A="*", B="*"), ReadOptions(series=wrong))


def test_one_series_does_not_serve_two_channels(study: Path) -> None:
    with pytest.raises(VolumeError, match="fits the channels 'A', 'B'; each needs a separate series"):
        open_scan(study, channels(A="*t1*", B="AX T1*"))


def test_a_uid_for_each_slice_is_named_for_what_it_is(tmp_path: Path) -> None:
    files = write_dicom_series(tmp_path / "series", make_phantom(7, (12, 10, 8), (8.0, 8.0, 12.0)).image)
    for k, path in enumerate(files):
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID = f"1.2.3.{k}"
        dataset.save_as(path)
    with pytest.raises(VolumeError, match="Each of the 8 images has a Series Instance UID of its own") as caught:
        read_series(files)
    assert len(str(caught.value)) < 400
