"""Several channels over HTTP: as one 4D file, as a DICOM study, or each under its own name."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from semiseg.client import Client
from semiseg.errors import InputError
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.read_options import ReadOptions
from semiseg.volumes.volume import Volume
from tests.bundles import expected_mask, make_threshold_bundle, scan_array
from tests.server.harness import RunningServer, running_server

SHAPE = (20, 14, 11)
AFFINE = np.array([[-0.8, 0.0, 0.0, 40.0], [0.0, -0.9, 0.0, 30.0], [0.0, 0.0, 2.5, -15.0], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    bundle = make_threshold_bundle(folder / "bundle", channels=("T1", "FLAIR"))
    with running_server(bundle.folder, folder / "process") as server:
        yield server


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Two series in one frame of reference, as a scanner writes them in one study."""
    folder = tmp_path_factory.mktemp("study")
    out = {}
    for k, name in enumerate(("T1", "FLAIR")):
        out[name] = write_dicom_series(folder / name, Volume(scan_array(SHAPE, seed=k), AFFINE), description=name)
        for file in out[name]:
            image = pydicom.dcmread(file)
            image.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.78"
            image.save_as(file)
    return out


def sent(server: RunningServer, parts: list[tuple[str, bytes]], **fields: str):
    files = [(name, (f"{k}", content)) for k, (name, content) in enumerate(parts)]
    return server.http.post(f"{server.url}/segment", files=files, data=fields)


def nifti(array: np.ndarray, affine: np.ndarray = AFFINE) -> bytes:
    return nib.Nifti1Image(array, affine).to_bytes()


def labels_in(answer) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.asanyarray(nib.Nifti1Image.from_bytes(gzip.decompress(answer.content)).dataobj)


def test_each_channel_in_a_nifti_of_its_own(server):
    t1, flair = scan_array(SHAPE), scan_array(SHAPE, seed=1)
    answer = sent(server, [("channel:FLAIR", nifti(flair)), ("channel:T1", nifti(t1))])
    assert np.array_equal(labels_in(answer), expected_mask(t1)), "the network looks at the first channel, T1"


def test_each_channel_in_dicom_files_of_its_own(server, series):
    parts = [(f"channel:{name}", file.read_bytes()) for name, files in series.items() for file in files]
    answer = sent(server, parts)
    assert answer.status_code == 200, answer.text
    seg = pydicom.dcmread(io.BytesIO(answer.content))
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == pydicom.dcmread(series["T1"][0]).SeriesInstanceUID


def test_a_study_is_told_apart_by_uids(server, series):
    parts = [("scan", file.read_bytes()) for files in series.values() for file in files]
    refused = sent(server, parts)
    assert refused.status_code == 422
    assert "2 image series that fit for channel 'T1'" in refused.json()["error"]
    uids = {name: pydicom.dcmread(files[0]).SeriesInstanceUID for name, files in series.items()}
    answer = sent(server, parts, series=",".join(f"{k}={v}" for k, v in uids.items()), output_format="json")
    assert answer.status_code == 200, answer.text
    assert {v["description"]: (v["channel"], v["reason"]) for v in answer.json()["selection"]} == {
        name: (name, "It was requested by its UID.") for name in series
    }


def test_a_missing_channel_is_refused_by_name(server, series):
    alone = sent(server, [("channel:T1", nifti(scan_array(SHAPE)))])
    assert (alone.status_code, "missing: FLAIR" in alone.json()["error"]) == (422, True)
    study = sent(server, [("scan", file.read_bytes()) for file in series["T1"]])
    assert (study.status_code, "T1, FLAIR, each from a separate series" in study.json()["error"]) == (422, True)
    unknown = sent(server, [("channel:T1", nifti(scan_array(SHAPE))), ("channel:PD", nifti(scan_array(SHAPE)))])
    assert "missing: FLAIR; unknown: PD" in unknown.json()["error"]
    both = sent(server, [("scan", nifti(scan_array(SHAPE))), ("channel:T1", nifti(scan_array(SHAPE)))])
    assert (both.status_code, "not both" in both.json()["error"]) == (400, True)


def test_another_grid_needs_the_senders_word(server):
    moved = AFFINE.copy()
    moved[2, 3] += 2.5
    parts = [("channel:T1", nifti(scan_array(SHAPE))), ("channel:FLAIR", nifti(scan_array(SHAPE, seed=1), moved))]
    refused = sent(server, parts)
    assert refused.status_code == 422
    assert "'T1' and 'FLAIR' lie on different grids" in refused.json()["error"]
    answer = sent(server, parts, aligned="true", output_format="json")
    assert answer.status_code == 200, answer.text
    (remark,) = answer.json()["remarks"]
    assert remark["code"] == "resampled_channel" and "covers 91%" in remark["text"]
    assert sent(server, parts, aligned="1").status_code == 400


def test_the_client_sends_channels_too(server, series, tmp_path):
    (tmp_path / "t1.nii").write_bytes(nifti(scan_array(SHAPE)))
    (tmp_path / "flair.nii").write_bytes(nifti(scan_array(SHAPE, seed=1)))
    with Client(server.url) as client:
        files = {"T1": tmp_path / "t1.nii", "FLAIR": tmp_path / "flair.nii"}
        assert client.segment(files, "json")["geometry"]["shape"] == list(SHAPE)
        assert client.segment({name: of[0].parent for name, of in series.items()})[128:132] == b"DICM"
        with pytest.raises(InputError, match="missing: FLAIR"):
            client.ask({"T1": tmp_path / "t1.nii"}, options=ReadOptions(aligned=True))
