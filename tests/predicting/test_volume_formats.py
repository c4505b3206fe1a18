"""One scan in every format gives one mask, in Python, on the command line and over HTTP; strict holds for all."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

import semiseg
from cli.app import main
from semiseg.client import Client
from semiseg.errors import VolumeError
from semiseg.volumes.formats.registry import scan_parts
from semiseg.volumes.nifti import read_labels
from semiseg.volumes.seg_nrrd import read_seg_nrrd
from tests.bundles import SEGMENTS, expected_mask, make_threshold_bundle, scan_array
from tests.server.harness import RunningServer, running_server
from tests.volumes.volume_files import make_metaimage, make_nrrd

ARRAY = scan_array((20, 14, 11))
AFFINE = np.array([[-0.8, 0.0, 0.0, 40.0], [0.0, -0.9, 0.0, 30.0], [0.0, 0.0, 2.5, -15.0], [0, 0, 0, 1]])
IN_LPS = {
    "sizes": "20 14 11",
    "space": "left-posterior-superior",
    "space directions": "(0.8,0,0) (0,0.9,0) (0,0,2.5)",
    "space origin": "(-40,-30,-15)",
}
TAGS = {
    "DimSize": "20 14 11",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "-40 -30 -15",
    "ElementSpacing": "0.8 0.9 2.5",
}


def data(array: NDArray[np.integer] = ARRAY) -> bytes:
    return array.astype("<i2").tobytes(order="F")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """The files of one scan, by format."""
    folder = tmp_path_factory.mktemp("scans")
    (folder / "m.raw").write_bytes(data())
    nib.save(nib.Nifti1Pair(ARRAY, AFFINE), folder / "pair.hdr")
    nib.save(nib.MGHImage(ARRAY, AFFINE.astype(np.float32)), folder / "f.mgz")
    with zipfile.ZipFile(folder / "z.zip", "w") as archive:
        archive.write(make_metaimage(folder / "m.mhd", TAGS, file="m.raw"), "a/m.mhd")
        archive.write(folder / "m.raw", "a/m.raw")
    return {
        "nrrd": [make_nrrd(folder / "a.nrrd", IN_LPS, data())],
        "nhdr": [make_nrrd(folder / "a.nhdr", {**IN_LPS, "data file": "m.raw"}), folder / "m.raw"],
        "mha": [make_metaimage(folder / "a.mha", TAGS, data())],
        "mhd": [folder / "m.mhd", folder / "m.raw"],
        "pair": [folder / "pair.hdr", folder / "pair.img"],
        "mgz": [folder / "f.mgz"],
        "zip": [folder / "z.zip"],
    }


FORMATS = ["nrrd", "nhdr", "mha", "mhd", "pair", "mgz", "zip"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_threshold_bundle(tmp_path_factory.mktemp("bundle") / "bundle").folder


@pytest.fixture(scope="module")
def model(bundle: Path) -> semiseg.Predictor:
    return semiseg.load_model(bundle, threads=1)


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(bundle, tmp_path_factory.mktemp("server")) as server:
        yield server
        assert server.leftovers() == []


@pytest.mark.parametrize("form", FORMATS)
def test_the_mask_lies_on_the_scan_of_any_format(
    form: str, model: semiseg.Predictor, scans: dict[str, list[Path]], tmp_path: Path
) -> None:
    """OUT-01."""
    prediction = model.predict(scans[form][0])
    np.testing.assert_array_equal(prediction.array, expected_mask(ARRAY))
    np.testing.assert_allclose(prediction.affine, AFFINE, atol=1e-5)
    assert prediction.report.series is None
    for name in ("mask.nii.gz", "mask.nrrd", "mask.seg.nrrd"):
        written = read_labels(prediction.save(tmp_path / name))
        np.testing.assert_array_equal(written.array, expected_mask(ARRAY))
        np.testing.assert_allclose(written.affine, AFFINE, atol=1e-5)
    assert [one.name for one in read_seg_nrrd(tmp_path / "mask.seg.nrrd")[1]] == [one.name for one in SEGMENTS]


@pytest.mark.parametrize("form", FORMATS)
def test_the_server_reads_what_the_command_line_reads(
    form: str, server: RunningServer, scans: dict[str, list[Path]], tmp_path: Path
) -> None:
    answer = server.segment(*scans[form], fields={"output_format": "seg-nrrd"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-nrrd"
    assert 'filename="segmentation.seg.nrrd"' in answer.headers["content-disposition"]
    (tmp_path / "mask.seg.nrrd").write_bytes(answer.content)
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.seg.nrrd").array, expected_mask(ARRAY))


def test_a_header_alone_is_refused_and_says_what_is_missing(
    server: RunningServer, scans: dict[str, list[Path]]
) -> None:
    answer = server.segment(scans["mhd"][0])
    assert answer.status_code == 422 and "the data file that the header names does not exist" in answer.text
    answer = server.segment(scans["pair"][0])
    assert answer.status_code == 415 and "one half of a .hdr/.img pair" in answer.text
    answer = server.segment(scans["pair"][1])
    assert answer.status_code == 415


def test_a_header_cannot_read_the_servers_files(server: RunningServer, tmp_path: Path) -> None:
    """SRV-02."""
    for name in ("/etc/passwd", "../../../etc/passwd"):
        answer = server.segment(make_metaimage(tmp_path / "a.mhd", TAGS, file=name))
        assert answer.status_code == 422 and "only a file in the header's own folder is read" in answer.text
        assert "root" not in answer.text.replace("header", "")


CONTRADICTORY = {**IN_LPS, "space": None, "space dimension": "3"}


def test_a_remark_on_a_header_reaches_the_person_in_every_way(
    bundle: Path, model: semiseg.Predictor, server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """VOL-09."""
    path = make_nrrd(tmp_path / "a.nrrd", CONTRADICTORY, data())
    sentence = "The header does not define left and right"
    assert any(text.startswith(sentence) for text in model.predict(path).warnings)
    with pytest.raises(VolumeError, match=rf"a\.nrrd: {sentence}"):
        model.predict(path, strict=True)
    answer = server.segment(path, fields={"output_format": "json"})
    assert "no_orientation" in [remark["code"] for remark in answer.json()["remarks"]]
    assert [code for code, _ in json.loads(answer.headers["X-Semiseg-Remarks"])][:1] == ["no_orientation"]
    answer = server.segment(path, fields={"strict": "true"})
    assert answer.status_code == 422 and sentence in answer.text
    with pytest.raises(SystemExit) as end:
        main(["predict", str(bundle), str(path), "--out", str(tmp_path / "m.seg.nrrd"), "--threads", "1"])
    assert end.value.code in (0, None) and f"note: {sentence}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["predict", str(bundle), str(path), "--out", str(tmp_path / "m.nii"), "--strict", "--threads", "1"])
    assert end.value.code == 2 and sentence in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["inspect", str(path)])
    assert f"Read with a warning: {sentence}" in capsys.readouterr().out


def test_overlapping_regions_are_saved_for_slicer(tmp_path: Path, scans: dict[str, list[Path]]) -> None:
    bundle = make_threshold_bundle(tmp_path / "bundle", activation="sigmoid")
    prediction = semiseg.load_model(bundle.folder, threads=1).predict(scans["mha"][0])
    stored, segments = read_seg_nrrd(prediction.save(tmp_path / "mask.seg.nrrd"))
    assert len(segments) == 2
    for k, segment in enumerate(segments):
        np.testing.assert_array_equal(segment.mask(stored), prediction.array[k])


def test_a_dataset_of_another_format_is_evaluated_and_its_masks_kept(model: semiseg.Predictor, tmp_path: Path) -> None:
    for folder in ("imagesTr", "labelsTr", "masks"):
        (tmp_path / folder).mkdir()
    make_nrrd(tmp_path / "imagesTr/s.nrrd", IN_LPS, data())
    make_metaimage(tmp_path / "labelsTr/s.mha", TAGS, data(expected_mask(ARRAY).astype(np.int16)))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "low": 1, "high": 2}}))
    dataset = semiseg.load_dataset(tmp_path)
    evaluation = semiseg.evaluate(model.segmenter.segment, dataset, ["s"], keep=tmp_path / "masks")
    assert "1.000" in evaluation.table().markdown()
    np.testing.assert_array_equal(read_labels(tmp_path / "masks/s.nii.gz").array, expected_mask(ARRAY))


def test_the_client_takes_the_data_files_of_a_header_along_and_no_name_of_a_pair(
    server: RunningServer, scans: dict[str, list[Path]], tmp_path: Path
) -> None:
    slices = tmp_path / "slices"
    slices.mkdir()
    for z in range(11):
        (slices / f"z{z:02d}.raw").write_bytes(data(ARRAY[:, :, z]))
    detached = {
        "one file": scans["mhd"][0],
        "nrrd": scans["nhdr"][0],
        "a pair": scans["pair"][0],
        "a file each slice": make_nrrd(slices / "a.nhdr", {**IN_LPS, "data file": "z%02d.raw 0 10 1"}),
        "a folder": slices,
    }
    with Client(server.url) as client:
        for what, path in detached.items():
            (tmp_path / "mask.nii.gz").write_bytes(client.ask(path, "nifti").body)
            np.testing.assert_array_equal(
                read_labels(tmp_path / "mask.nii.gz").array, expected_mask(ARRAY), err_msg=what
            )
    assert set(scan_parts(scans["pair"][0])) == {"scan.hdr", "scan.img"}
    assert scan_parts(scans["mha"][0]) == {} and scan_parts(slices / "z00.raw") == {}
