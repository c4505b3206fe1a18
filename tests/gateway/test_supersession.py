"""Slices that come after the result of their series: a result that supersedes the earlier one, or a decision."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from server.gateway.supersession import mark_superseding
from tests.gateway.harness import assert_expected_segments, dimse_destination, make_config, running_gateway, write_study
from tests.outputs.orthanc import Orthanc, running_orthanc
from tests.polling import wait_until
from tests.ports import free_port
from tests.server.harness import RunningServer

FORMS = ["seg", "sr", "rtstruct"]
MODALITIES = {"seg": "SEG", "sr": "SR", "rtstruct": "RTSTRUCT"}


def in_two_parts(tmp_path: Path, name: str) -> tuple[str, Path, Path]:
    """A study, a folder with four of its six slices, and one with all."""
    study = write_study(tmp_path / "all", name)
    files = sorted((tmp_path / "all").iterdir(), key=lambda file: pydicom.dcmread(file).InstanceNumber)
    (tmp_path / "part").mkdir()
    for file in files[:4]:
        shutil.copy(file, tmp_path / "part")
    return study, tmp_path / "part", tmp_path / "all"


def objects(archive: Orthanc, study: str, modality: str) -> list[Dataset]:
    """What the archive has of a study."""
    found = []
    for row in archive.instances(study, modality):
        one = Dataset()
        one.StudyInstanceUID, one.SeriesInstanceUID = study, row["0020000E"]["Value"][0]
        one.SOPInstanceUID = row["00080018"]["Value"][0]
        found.append(archive.fetch(one))
    return found


def test_late_slices_make_a_result_that_supersedes_the_earlier_one(
    server: RunningServer, archive: Orthanc, send: Callable[..., Any], tmp_path: Path
) -> None:
    study, part, whole = in_two_parts(tmp_path, "superseded")
    rules = [{"name": "all MR", "modality": "MR", "output_formats": FORMS, "to": ["archive"]}]
    config = make_config(tmp_path, server.url, destinations=dimse_destination(archive.dicom_port), rules=rules)
    with running_gateway(config, tmp_path / "gateway") as gateway:
        assert send(gateway, part).returncode == 0
        wait_until(lambda: len(gateway.audit("delivered")) == 1, describe=lambda: gateway.output[-3000:])
        first = {form: objects(archive, study, MODALITIES[form])[0] for form in FORMS}
        assert send(gateway, whole).returncode == 0
        wait_until(lambda: len(gateway.audit("delivered")) == 2, describe=lambda: gateway.output[-3000:])
        line = gateway.audit("segmented")[-1]
        assert line["supersedes"] == [gateway.audit("segmented")[0]["job"]]
    for form in FORMS:
        both = objects(archive, study, MODALITIES[form])
        (later,) = [one for one in both if one.SOPInstanceUID != first[form].SOPInstanceUID]
        assert len(both) == 2
        assert later.SeriesDescription.endswith("(2, supersedes 1) RESEARCH USE ONLY")
        assert "supersedes" not in first[form].SeriesDescription
        assert (first[form].InstanceNumber, later.InstanceNumber) == (1, 2)
        (related,) = later.RelatedSeriesSequence
        assert related.SeriesInstanceUID == first[form].SeriesInstanceUID
        if form == "seg":
            assert_expected_segments(later, whole)
            assert "supersedes result 1" in later.ImageComments
        elif form == "sr":
            (document,) = later.PredecessorDocumentsSequence
            (series,) = document.ReferencedSeriesSequence
            assert document.StudyInstanceUID == study
            assert series.SeriesInstanceUID == first[form].SeriesInstanceUID
            assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first[form].SOPInstanceUID
            assert any("supersedes result 1" in item.get("TextValue", "") for item in later.ContentSequence)
        else:
            (reference,) = later.PredecessorStructureSetSequence
            assert reference.ReferencedSOPInstanceUID == first[form].SOPInstanceUID


def test_late_slices_wait_for_a_decision_where_that_is_wanted(
    server: RunningServer, archive: Orthanc, send: Callable[..., Any], tmp_path: Path
) -> None:
    study, part, whole = in_two_parts(tmp_path, "decided")
    config = make_config(
        tmp_path,
        server.url,
        destinations=dimse_destination(archive.dicom_port),
        completeness={"quiet_seconds": 1.0, "late": "hold"},
    )
    with running_gateway(config, tmp_path / "gateway") as gateway:
        assert send(gateway, part).returncode == 0
        wait_until(lambda: len(gateway.audit("delivered")) == 1, describe=lambda: gateway.output[-3000:])
        assert send(gateway, whole).returncode == 0
        wait_until(lambda: gateway.status()["studies_in_trouble"], describe=lambda: gateway.output[-3000:])
        (trouble,) = gateway.status()["studies_in_trouble"]
        assert "more instances after a result was made" in trouble["why"]
        assert len(gateway.audit("segmented")) == 1
        gateway.command("complete", trouble["study"])
        wait_until(lambda: len(gateway.audit("delivered")) == 2, describe=lambda: gateway.output[-3000:])
        assert gateway.audit("segmented")[-1]["supersedes"]
        wait_until(lambda: gateway.status()["studies_in_trouble"] == [], describe=lambda: gateway.output[-3000:])
        assert len(archive.instances(study, "SEG")) == 2


def test_no_result_before_the_study_is_complete_where_that_is_wanted(
    server: RunningServer, archive: Orthanc, send: Callable[..., Any], tmp_path: Path
) -> None:
    """Slices may come in as many parts as they like; somebody's word completes the study."""
    import httpx

    study, part, whole = in_two_parts(tmp_path, "word")
    config = make_config(
        tmp_path, server.url, destinations=dimse_destination(archive.dicom_port), completeness={"quiet_seconds": None}
    )
    with running_gateway(config, tmp_path / "gateway") as gateway:
        assert send(gateway, part).returncode == 0
        assert send(gateway, whole).returncode == 0
        answer = httpx.post(f"{gateway.web}/studies/{study}/complete", trust_env=False)
        assert answer.status_code == 202
        wait_until(lambda: len(gateway.audit("delivered")) == 1, describe=lambda: gateway.output[-3000:])
        assert len(gateway.audit("segmented")) == 1 and gateway.audit("segmented")[0]["supersedes"] == []
        assert len(archive.instances(study, "SEG")) == 1


def test_earlier_result_that_was_not_delivered_yet_is_not_delivered_any_more(
    server: RunningServer, require_program: Callable[[str], str], send: Callable[..., Any], tmp_path: Path
) -> None:
    study, part, whole = in_two_parts(tmp_path, "not yet")
    ports = free_port(), free_port()
    config = make_config(tmp_path, server.url, destinations=dimse_destination(ports[1]))
    with running_gateway(config, tmp_path / "gateway") as gateway:
        assert send(gateway, part).returncode == 0
        gateway.wait_for("failed")
        assert send(gateway, whole).returncode == 0
        wait_until(lambda: gateway.audit("superseded"), describe=lambda: gateway.output[-3000:])
        (tmp_path / "orthanc").mkdir()
        with running_orthanc(require_program("Orthanc"), tmp_path / "orthanc", ports=ports) as archive:
            wait_until(lambda: gateway.audit("delivered"), describe=lambda: gateway.output[-3000:])
            wait_until(lambda: not gateway.status()["held_up"], describe=lambda: gateway.output[-3000:])
            (seg,) = objects(archive, study, "SEG")
            assert_expected_segments(seg, whole)


@pytest.mark.parametrize("description", ["x" * 64, "", "A model RESEARCH USE ONLY"])
def test_description_has_room_and_marking_again_changes_nothing(tmp_path: Path, description: str) -> None:
    write_study(tmp_path / "study", "described")
    first, later = sorted((tmp_path / "study").iterdir())[:2]
    one: Dataset = pydicom.dcmread(later)
    one.SeriesDescription = description
    one.save_as(later)
    mark_superseding([later], [first], 12)
    content = later.read_bytes()
    marked = pydicom.dcmread(later).SeriesDescription
    assert len(marked) <= 64 and "(12, supersedes 11)" in marked and marked.endswith("RESEARCH USE ONLY")
    mark_superseding([later], [first], 12)
    assert later.read_bytes() == content
