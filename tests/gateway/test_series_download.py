"""`semiseg collect --archive`: series of a real archive become a dataset, and part of a series is never kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pydicom
import pytest

from semiseg.dataset import load_dataset
from semiseg.errors import InputError
from semiseg.volumes.nifti import read_labels
from server.gateway.series_download import ArchiveQuery, DownloadResult, download_series
from tests.collection.clinical_data import write_labels_as_rtstruct, write_labels_as_seg, write_scan
from tests.command_line import run_semiseg
from tests.gateway.dicomweb_peer import DicomwebRequestHandler, EncodedInstances, dicomweb_peer, multipart_body
from tests.gateway.harness import write_study
from tests.outputs.orthanc import Orthanc, running_orthanc


def stored(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(file) for file in sorted(folder.rglob("*.dcm"))]


@pytest.fixture(scope="module")
def archive(require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Three studies of MR, two of them with outlines; one of them older, and one with another description."""
    folder = tmp_path_factory.mktemp("archive")
    for seed, (description, day) in enumerate(
        (("T1 axial", "20250301"), ("T1 axial", "20260301"), ("Scout", "20260302"))
    ):
        series, labels = write_scan(folder / f"source/{seed}/scan", seed + 1, description=description)
        if seed < 2:
            write = write_labels_as_seg if seed else write_labels_as_rtstruct
            write(folder / f"source/{seed}/label.dcm", series, labels)
        for file in sorted((folder / f"source/{seed}").rglob("*.dcm")):
            one = pydicom.dcmread(file)
            one.StudyDate = day
            one.save_as(file, enforce_file_format=True)
    (folder / "orthanc").mkdir()
    with running_orthanc(require_program("Orthanc"), folder / "orthanc") as running:
        running.store(stored(folder / "source"))
        yield running


def test_series_and_their_labels_become_a_dataset_and_are_downloaded_once(
    archive: Orthanc, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    src, data = tmp_path / "downloads", tmp_path / "data"
    typed = ["collect", src, "--out", data, "--archive", f"{archive.url}/", "--modality", "MR", "--series", "t1*"]
    assert run_semiseg(*typed) == 0
    assert "4 series downloaded" in " ".join(capsys.readouterr().err.split())
    dataset = load_dataset(data)
    assert len(dataset.cases) == 2
    for case in dataset.cases.values():
        assert case.label is not None and read_labels(case.label).array.any()
    assert run_semiseg(*typed, "--add") == 0
    told = capsys.readouterr()
    assert "0 series downloaded" in " ".join(told.err.split())
    assert "0 labelled and 0 unlabelled scans collected, 2 were there." in " ".join(told.out.split())


def test_older_studies_and_other_descriptions_stay_in_the_archive(archive: Orthanc, tmp_path: Path) -> None:
    query = ArchiveQuery(archive.url, ("mr",), ("T1*",), date(2026, 1, 1))
    assert download_series(query, tmp_path / "src") == DownloadResult(2, 0)
    assert {one.StudyDate for one in stored(tmp_path / "src")} == {"20260301"}
    assert (tmp_path / "src").stat().st_mode & 0o077 == 0
    with pytest.raises(InputError, match="has no series of the selected modality"):
        download_series(ArchiveQuery(archive.url, ("CT",)), tmp_path / "ct")
    assert not (tmp_path / "ct").exists()


def test_wrong_use_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", tmp_path / "data")
    assert run_semiseg("collect", tmp_path / "src", *out, "--since", "2026-01-01") == 2
    assert run_semiseg("collect", tmp_path / "src", *out, "--archive", "http://127.0.0.1:9/dicom-web") == 2
    assert run_semiseg("collect", tmp_path / "src", *out, "--archive", "http://127.0.0.1:9", "--modality", "MR") == 1
    for address in ("pacs.example/dicom-web", "ftp://x/y", "http://[::1"):
        assert run_semiseg("collect", tmp_path / "src", *out, "--archive", address, "--modality", "MR") == 2
    (tmp_path / "data").mkdir()
    (tmp_path / "data/there").touch()
    assert run_semiseg("collect", tmp_path / "src", *out, "--archive", "http://127.0.0.1:9", "--modality", "MR") == 2
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("is not an address such as") == 3
    assert "exists already; --add extends a dataset" in told, "before anything is asked for"
    assert "name it with --archive" in told
    assert "Name the modality" in told
    assert "did not answer the query for series (ConnectionError)" in told


def of_another_series(answer: DicomwebRequestHandler, files: EncodedInstances) -> None:
    other = next(other for other in answer.peer.studies.values() if other is not files)
    answer.answer(multipart_body([*files, other[0]]))


FAULTS: dict[str, Callable[[DicomwebRequestHandler, EncodedInstances], None]] = {
    "fewer than counted": lambda answer, files: answer.answer(multipart_body(files[:2])),
    "one twice, one not": lambda answer, files: answer.answer(multipart_body([*files[1:], files[1]])),
    "no closing boundary": lambda answer, files: answer.answer(multipart_body(files, closed=False), length=-1),
    "HTTP 206": lambda answer, files: answer.answer(multipart_body(files), 206),
    "not DICOM": lambda answer, files: answer.answer(multipart_body([*files[1:], b"text" * 50])),
    "another series": of_another_series,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_part_of_a_series_is_never_kept_and_the_next_call_goes_on(tmp_path: Path, fault: str) -> None:
    with dicomweb_peer() as peer:
        for name in ("good", "bad", "other"):
            write_study(tmp_path / name, name, shape=(12, 10, 4))
        good, bad, other = (peer.add(tmp_path / name) for name in ("good", "bad", "other"))
        peer.responders[bad] = FAULTS[fault]
        query = ArchiveQuery(peer.url, ("MR",))
        result = download_series(query, tmp_path / "src")
        assert (result.new, result.there, len(result.failures)) == (2, 0, 1)
        assert "returned" in result.failures[0] or "did not answer" in result.failures[0]
        assert {one.StudyInstanceUID for one in stored(tmp_path / "src")} == {good, other}
        assert len(list((tmp_path / "src").iterdir())) == 2, "nothing else is left behind"
        del peer.responders[bad]
        assert download_series(query, tmp_path / "src") == DownloadResult(1, 2)
        assert len(stored(tmp_path / "src")) == 12
