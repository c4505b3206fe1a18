"""A study sent by a modality comes back into the archive as a segmentation, and nothing else does."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest

from tests.gateway.harness import (
    RunningGateway,
    assert_expected_segments,
    dcmtk_program,
    make_config,
    running_gateway,
    storescu,
    write_study,
)
from tests.outputs.orthanc import Orthanc, running_orthanc
from tests.polling import paths_in, wait_until
from tests.ports import free_port
from tests.server.harness import RunningServer


@pytest.fixture
def gateway(server: RunningServer, archive: Orthanc, tmp_path: Path) -> Iterator[RunningGateway]:
    config = make_config(
        tmp_path,
        server.url,
        destinations={
            "archive": {"type": "dimse", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": archive.dicom_port},
            "web": {"type": "dicomweb", "url": archive.url},
        },
        rules=[
            {"name": "T1", "modality": "MR", "description": ["T1*"], "to": ["archive"]},
            {
                "name": "all forms",
                "description": ["forms"],
                "output_formats": ["seg", "rtstruct", "sr", "overlay"],
                "to": ["web"],
            },
        ],
    )
    with running_gateway(config, tmp_path / "gateway") as running:
        yield running


def test_study_sent_by_storescu_comes_back_as_a_seg(
    require_program: Callable[[str], str], gateway: RunningGateway, archive: Orthanc, tmp_path: Path
) -> None:
    """GW-06."""
    study = write_study(tmp_path / "study", "first")
    sent = storescu(dcmtk_program(require_program, "storescu"), gateway.dicom_port, tmp_path / "study")
    assert sent.returncode == 0, sent.stderr
    wait_until(lambda: archive.instances(study, "SEG"), describe=lambda: gateway.output)
    (found,) = archive.instances(study, "SEG")
    seg = archive.fetch_first(study, "SEG")
    assert_expected_segments(seg, tmp_path / "study")
    seg.save_as(tmp_path / "seg.dcm")
    judged = subprocess.run([require_program("dciodvfy"), str(tmp_path / "seg.dcm")], capture_output=True, text=True)
    assert "Error" not in judged.stderr, judged.stderr
    assert found["0020000E"] != pydicom.dcmread(next((tmp_path / "study").iterdir())).SeriesInstanceUID
    events = [line["event"] for line in gateway.audit()]
    for event in ("started", "received", "complete", "decided", "segmented", "delivered"):
        assert event in events, events
    text = gateway.output + (gateway.state / "audit.jsonl").read_text()
    assert "first" not in text and study not in text


def test_all_forms_go_out_by_stow(
    require_program: Callable[[str], str], gateway: RunningGateway, archive: Orthanc, tmp_path: Path
) -> None:
    study = write_study(tmp_path / "study", "second", description="forms")
    assert storescu(dcmtk_program(require_program, "storescu"), gateway.dicom_port, tmp_path / "study").returncode == 0
    wait_until(lambda: archive.modalities(study) >= {"SEG", "RTSTRUCT", "SR"} if archive.instances(study) else False)
    wait_until(lambda: gateway.status()["jobs"]["deliver"]["done"] == 1)
    (done,) = gateway.audit("delivered")
    assert done["instances"] == len(archive.instances(study)) == 3 + 6


def test_archive_sends_a_study_itself_and_gets_its_seg_back(
    require_program: Callable[[str], str], server: RunningServer, tmp_path: Path
) -> None:
    """A workstation finds the study in the archive (C-FIND) and has it moved to us (C-MOVE)."""
    ours, ports = free_port(), (free_port(), free_port())
    modalities = {"semiseg": ["SEMISEG", "127.0.0.1", ours], "workstation": ["WORKSTATION", "127.0.0.1", 1]}
    (tmp_path / "orthanc").mkdir()
    study = write_study(tmp_path / "study", "moved")
    with running_orthanc(
        require_program("Orthanc"), tmp_path / "orthanc", ports=ports, more={"DicomModalities": modalities}
    ) as archive:
        archive.store([pydicom.dcmread(file) for file in (tmp_path / "study").iterdir()])
        destination = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": archive.dicom_port, "commitment": True}
        config = make_config(
            tmp_path,
            server.url,
            dimse={"port": ours, "senders": [{"ae_title": "ORTHANC", "addresses": ["127.0.0.1"]}]},
            destinations={"archive": {"type": "dimse", **destination}},
        )
        with running_gateway(config, tmp_path / "gateway") as gateway:
            asked = ["-S", "-aet", "WORKSTATION", "-aec", "ORTHANC", "-k", "QueryRetrieveLevel=STUDY"]
            asked += ["-k", f"StudyInstanceUID={study}", "127.0.0.1", str(archive.dicom_port)]
            found = subprocess.run([dcmtk_program(require_program, "findscu"), *asked], capture_output=True, text=True)
            assert study in found.stdout + found.stderr
            moved = subprocess.run(
                [dcmtk_program(require_program, "movescu"), "-aem", "SEMISEG", *asked], capture_output=True, text=True
            )
            assert moved.returncode == 0, moved.stderr
            wait_until(lambda: gateway.audit("delivered"), describe=lambda: gateway.output)
            assert_expected_segments(archive.fetch_first(study, "SEG"), tmp_path / "study")
            assert gateway.audit("received")[0]["sender"] == "ORTHANC"


def test_nothing_of_a_patient_is_in_logs_or_names(
    require_program: Callable[[str], str], gateway: RunningGateway, tmp_path: Path
) -> None:
    """GW-09."""
    mark = "XQZMARKED"
    write_study(tmp_path / "study", mark, description=f"{mark} series")
    for file in (tmp_path / "study").iterdir():
        one = pydicom.dcmread(file)
        one.AccessionNumber = one.StudyID = one.StudyDescription = one.InstitutionName = one.PatientComments = mark
        one.save_as(file)
    assert storescu(dcmtk_program(require_program, "storescu"), gateway.dicom_port, tmp_path / "study").returncode == 0
    wait_until(lambda: gateway.audit("decided"), describe=lambda: gateway.output)
    study = gateway.audit("decided")[0]["study"]
    job = gateway.command("show", study).split()[2]
    assert mark in gateway.command("show", job)  # who asks is told why no rule took it
    names = " ".join(str(path.relative_to(gateway.state)) for path in paths_in(gateway.state))
    assert mark not in gateway.output + (gateway.state / "audit.jsonl").read_text() + names
