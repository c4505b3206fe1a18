"""Nothing in a dataset tells whose scans it holds; the one file that does is kept for its owner."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pydicom
import pytest

from semiseg.collection import CollectOptions, collect
from semiseg.errors import DatasetError, InputError
from tests.collection.clinical_data import (
    find_case_id,
    find_lines,
    make_rtstruct,
    read_tree,
    trace_contours,
    write_scan,
)


def test_no_byte_of_the_dataset_tells_whose_scans_they_are(clinic: Path, tmp_path: Path) -> None:
    """TRN-03."""
    originals: set[str] = set()
    for path in clinic.rglob("*.dcm"):
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        originals |= {str(e.value) for e in header.iterall() if e.VR in ("UI", "PN", "DA", "TM", "DT") and e.value}
        originals |= {str(header.get(k)) for k in ("PatientID", "SeriesDescription") if header.get(k)}
        originals |= {path.name, path.stem}
    originals |= {str(clinic), "elsewhere", "deep", "MRN", "Phantom^", "20260101"}
    originals -= {"ISO_IR 192"}
    collected = collect(clinic, tmp_path / "data")
    content = read_tree(tmp_path / "data").lower()
    told = sorted(o for o in originals if len(o) >= 3 and o.lower().encode() in content)
    assert len(originals) > 60
    assert told == []
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"dataset.json", "imagesTr", "labelsTr"}
    assert b"MRN-771" in collected.mapping.read_bytes()


def test_packed_files_hold_neither_a_name_nor_a_time(clinic: Path, tmp_path: Path) -> None:
    collect(clinic, tmp_path / "data")
    for path in (tmp_path / "data").rglob("*.nii.gz"):
        start = path.read_bytes()[:10]
        assert start[3] == 0 and start[4:8] == b"\0\0\0\0"  # RFC 1952: no FNAME, no MTIME


def test_mapping_and_report_are_for_their_owner_alone(clinic: Path, tmp_path: Path) -> None:
    collected = collect(clinic, tmp_path / "data")
    assert collected.mapping == tmp_path / "data-mapping.csv"
    for path in (collected.mapping, *collected.report):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.parent == tmp_path
    document = json.loads(collected.report[1].read_text())
    assert document["counts"]["labelled scan"] == 2


def test_the_same_mapping_gives_the_same_ids_again(clinic: Path, tmp_path: Path) -> None:
    first = collect(clinic, tmp_path / "data")
    before = first.mapping.read_text()
    shutil.rmtree(tmp_path / "data")
    write_scan(clinic / "0-first-in-the-alphabet", 9, patient="new")
    again = collect(clinic, tmp_path / "data")
    assert again.known == 3
    assert set(before.splitlines()) < set(again.mapping.read_text().splitlines())
    assert find_case_id(again, "0-first-in-the-alphabet") == "case_0004"


def test_a_file_that_is_no_mapping_is_not_touched(clinic: Path, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("precious\n")
    with pytest.raises(DatasetError, match="not a mapping of semiseg collect"):
        collect(clinic, tmp_path / "data", mapping=tmp_path / "other.csv")
    assert (tmp_path / "other.csv").read_text() == "precious\n"
    with pytest.raises(InputError, match="must not lie in the dataset"):
        collect(clinic, tmp_path / "data", mapping=tmp_path / "data/mapping.csv")


def test_ids_do_not_follow_the_order_of_the_source(tmp_path: Path) -> None:
    for seed in range(1, 13):
        write_scan(tmp_path / f"src/{seed:02d}", seed)
    collected = collect(tmp_path / "src", tmp_path / "data", CollectOptions(labels={"liver": 1}))
    ids = [find_case_id(collected, f"{seed:02d}") for seed in range(1, 13)]
    assert sorted(ids) == [f"case_{n:04d}" for n in range(1, 13)]
    assert ids != sorted(ids)  # by chance once in 479 001 600 times


def test_scans_of_one_patient_are_told(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_scan(tmp_path / f"src/{seed}", seed, patient="one" if seed < 3 else "two")
    collected = collect(tmp_path / "src", tmp_path / "data", CollectOptions(labels={"liver": 1}))
    (note,) = find_lines(collected, "note", "patient")
    assert note.source == "one"
    assert all(find_case_id(collected, folder) in note.reason for folder in ("1", "2"))


def test_a_structure_that_is_called_after_a_patient_is_refused(tmp_path: Path) -> None:
    series, labels = write_scan(tmp_path / "src/1", 1, patient="Meier")
    contours = trace_contours(labels == 1, series.volume.affine)
    make_rtstruct(series, {"liver Meier": contours}).save_as(tmp_path / "src/rt.dcm", enforce_file_format=True)
    with pytest.raises(InputError, match="'liver Meier': the name of a structure holds a patient's name"):
        collect(tmp_path / "src", tmp_path / "data")
    assert not (tmp_path / "data").exists()
    collect(tmp_path / "src", tmp_path / "data", CollectOptions(labels={"liver": 1, "liver Meier": 1}))
    assert b"Meier" not in read_tree(tmp_path / "data")
