"""Worklists over UPS-RS: a real gateway performs the workitems of a manager, with Orthanc as the archive."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE
from pynetdicom.sop_class import UnifiedProcedureStepPull, UnifiedProcedureStepPush  # type: ignore[attr-defined]

from semiseg.errors import InputError
from server.gateway.config import read_config
from server.gateway.destinations import DicomwebDestination, DimseDestination
from server.gateway.ups_workitem import Workitem, is_below
from tests.gateway.harness import make_offline_config, running_gateway
from tests.gateway.peers import fake_storage_scp
from tests.gateway.ups_manager import PATIENT, UpsManager, serve_over_dimse, ups_manager
from tests.gateway.ups_tables import (
    PERFORMED,
    PROGRESS,
    code_item,
    find_violation,
    input_information_item,
    missing_attributes,
)
from tests.gateway.worklist_harness import (
    STEP,
    assert_no_patient_data,
    make_worklist_config,
    store_study,
    wait_until_ended,
    worklist_config,
)
from tests.outputs.orthanc import Orthanc
from tests.polling import wait_until
from tests.server.harness import RunningServer


def performed(manager: UpsManager, uid: str) -> Dataset:
    (item,) = manager.items[uid][PERFORMED].value
    return item


def test_workitem_is_claimed_segmented_delivered_and_completed_with_all_that_the_final_state_needs(
    archive: Orthanc, server: RunningServer, tmp_path: Path
) -> None:
    """GW-16: the way of IHE AIW-I, and a second opinion over DIMSE."""
    objects = store_study(archive, tmp_path / "in", "workitem one")
    stored_before = archive.instances(str(objects[0].StudyInstanceUID))
    with ups_manager() as manager:
        uid = manager.create([input_information_item(objects, url=archive.url)])
        other = manager.create([input_information_item(objects, url=archive.url)], label="Print")
        config = make_worklist_config(tmp_path, server.url, archive.url, manager)
        with running_gateway(config, tmp_path / "gateway") as gateway:
            wait_until_ended(manager, uid, "COMPLETED", gateway)
            assert_no_patient_data(gateway)
            assert [line["event"] for line in gateway.audit() if line.get("workitem")] == [
                "workitem claimed",
                "inputs fetched",
                "decided",
                "workitem completed",
            ]
            metrics = httpx.get(f"{gateway.web}/metrics", trust_env=False).text
            assert 'semiseg_gateway_workitems_ended_total{end="completed",worklist="WORKLIST"} 1.0' in metrics
            assert 'semiseg_gateway_worklist_up{worklist="WORKLIST"} 1.0' in metrics
            # No rule looks at the inputs of a workitem: the rule "all MR" would have sent them once more.
            assert len(gateway.audit("segmented")) == 1 and not gateway.audit("complete")
        assert manager.states(uid) == ["IN PROGRESS", "COMPLETED"] and manager.state(other) == "SCHEDULED"
        assert not [event for _, event in manager.history if event.startswith("0x")]
        done = performed(manager, uid)
        assert [code.CodeValue for code in done.PerformedWorkitemCodeSequence] == ["SEG"]
        assert done.PerformedStationNameCodeSequence[0].CodeValue == "SEMISEG"
        assert done.PerformedProcedureStepStartDateTime <= done.PerformedProcedureStepEndDateTime
        software = {one.ConceptNameCodeSequence[0].CodeMeaning: one.TextValue for one in done[0x00741212].value}
        assert "model threshold" in software["Algorithm Name"] and "semiseg" in software["Algorithm Version"]
        assert_outputs_are_in(archive, done, str(objects[0].StudyInstanceUID), len(stored_before))
        with serve_over_dimse(manager) as port:
            entity = AE()
            entity.add_requested_context(UnifiedProcedureStepPull)
            association = entity.associate("127.0.0.1", port)
            status, seen = association.send_n_get([], UnifiedProcedureStepPush, uid, meta_uid=UnifiedProcedureStepPull)
            association.release()
        assert status.Status == 0x0000 and seen is not None
        assert seen.ProcedureStepState == "COMPLETED" and not missing_attributes(seen, "COMPLETED")
        assert seen[PROGRESS].value[0].ProcedureStepProgress == 100


def assert_outputs_are_in(archive: Orthanc, done: Dataset, study: str, before: int) -> None:
    references = []
    for output in done.OutputInformationSequence:
        assert output.TypeOfInstances == "DICOM" and output.StudyInstanceUID == study
        url = output.WADORSRetrievalSequence[0].RetrieveURL
        assert url == f"{archive.url}/studies/{study}/series/{output.SeriesInstanceUID}"
        answer = httpx.get(f"{url}/instances", headers={"Accept": "application/dicom+json"}, trust_env=False)
        there = {one["00080018"]["Value"][0] for one in answer.json()}
        named = {str(one.ReferencedSOPInstanceUID) for one in output.ReferencedSOPSequence}
        assert named == there
        references += list(named)
    assert len(references) == len(set(references)) == 2  # a segmentation and a report
    assert len(archive.instances(study)) == before + 2


def test_manager_speaks_the_standard() -> None:
    """The tests' manager follows the table of states (PS3.4 CC.1.1-2), so the gateway is held to the right thing."""
    with ups_manager() as manager:
        uid = manager.create([])
        ours, other = "1.2.3", "1.2.4"
        assert manager.change_state("1.9", ours, "IN PROGRESS") == 0xC307
        assert manager.change_state(uid, "", "IN PROGRESS") == 0xC301
        assert manager.change_state(uid, ours, "COMPLETED") == 0xC310
        assert manager.change_state(uid, ours, "SCHEDULED") == 0xC303
        assert manager.change_state(uid, ours, "IN PROGRESS") == 0x0000
        assert manager.change_state(uid, ours, "IN PROGRESS") == 0xC302
        assert manager.change_state(uid, other, "IN PROGRESS") == 0xC301
        assert manager.change_state(uid, ours, "COMPLETED") == 0xC304
        assert manager.update(uid, other, Dataset()) == 0xC301
        forbidden = Dataset()
        forbidden.PatientName = "Somebody"
        assert manager.update(uid, ours, forbidden) == 0x0106
        item = Dataset()
        item.ProcedureStepCancellationDateTime = "20260101120000"
        item.ProcedureStepDiscontinuationReasonCodeSequence = [code_item("110513", "DCM", "Discontinued")]
        changes = Dataset()
        setattr(changes, PROGRESS, [item])
        assert not find_violation(changes) and manager.update(uid, ours, changes) == 0x0000
        assert manager.change_state(uid, ours, "CANCELED") == 0x0000
        assert manager.change_state(uid, ours, "CANCELED") == 0xB304
        assert manager.change_state(uid, ours, "COMPLETED") == 0xC300
        assert manager.update(uid, ours, changes) == 0xC300


def test_two_gateways_and_a_rival_over_dimse_share_a_worklist_and_nothing_is_done_twice(
    archive: Orthanc, server: RunningServer, tmp_path: Path
) -> None:
    """GW-17: lost races are silent."""
    with ups_manager() as manager, serve_over_dimse(manager) as port:
        items = []
        for number in range(6):
            objects = store_study(archive, tmp_path / f"in{number}", f"shared {number}")
            items.append(manager.create([input_information_item(objects, url=archive.url)]))
        rival = threading.Thread(target=_take_by_dimse, args=(port, items[::-1][:2]), daemon=True)
        first = make_worklist_config(tmp_path / "a", server.url, archive.url, manager)
        second = make_worklist_config(tmp_path / "b", server.url, archive.url, manager)
        with (
            running_gateway(first, tmp_path / "a" / "gateway") as one,
            running_gateway(second, tmp_path / "b" / "gateway") as two,
        ):
            rival.start()
            rival.join(60)
            rivals = [uid for uid in items if manager.items[uid].get("TransactionUID") == "1.2.840.1"]
            ours = [uid for uid in items if uid not in rivals]
            wait_until(lambda: all(manager.state(uid) == "COMPLETED" for uid in ours), describe=lambda: manager.history)
            wait_until(lambda: not one.status()["workitems"] and not two.status()["workitems"])
            done = one.audit("workitem completed") + two.audit("workitem completed")
            assert len(done) == len(ours)
            assert not one.audit("workitem lost") and not two.audit("workitem lost")
        assert all(manager.states(uid) == ["IN PROGRESS", "COMPLETED"] for uid in ours)
        assert all(manager.states(uid) == ["IN PROGRESS"] for uid in rivals)


def _take_by_dimse(port: int, items: list[str]) -> None:
    """A rival performer (UPS Pull SCU of pynetdicom)."""
    entity = AE()
    entity.add_requested_context(UnifiedProcedureStepPull)
    association = entity.associate("127.0.0.1", port)
    for uid in items:
        told = Dataset()
        told.TransactionUID, told.ProcedureStepState = "1.2.840.1", "IN PROGRESS"
        association.send_n_action(told, 1, UnifiedProcedureStepPush, uid, meta_uid=UnifiedProcedureStepPull)
    association.release()


def test_only_workitems_for_us_that_can_be_performed_are_claimed(
    archive: Orthanc, server: RunningServer, tmp_path: Path
) -> None:
    objects = store_study(archive, tmp_path / "in", "matching")
    good = input_information_item(objects, url=archive.url)
    with ups_manager() as manager:
        left = [
            manager.create([good], InputReadinessState="UNAVAILABLE"),
            manager.create(
                [good], ScheduledStationNameCodeSequence=[code_item("OTHER", "99TEST", "another performer")]
            ),
            manager.create([good], ScheduledProcedureStepExpirationDateTime="20200101000000"),
            manager.create([good], WorklistLabel="READING"),
            manager.create([good], code="OTHER"),
        ]
        elsewhere = manager.create([input_information_item(objects, url="http://127.0.0.1:9/dicom-web")])
        titled = manager.create([input_information_item(objects, title="PACS")], ScheduledProcedureStepPriority="HIGH")
        mine = manager.create(
            [good],
            ScheduledStationNameCodeSequence=[
                code_item("OTHER", "99TEST", "o"),
                code_item("SEMISEG", "99SEMISEG", "s"),
            ],
        )
        code = {"value": "SEG", "scheme": "99TEST"}
        more = {"matching": {"WorklistLabel": "AI"}, "steps": [STEP | {"code": code}], "parallel": 1}
        config = make_worklist_config(tmp_path, server.url, archive.url, manager, more=more)
        manager.page = 2  # a manager that gives few at a time
        with running_gateway(config, tmp_path / "gateway") as gateway:
            wait_until_ended(manager, titled, "COMPLETED", gateway)
            wait_until_ended(manager, mine, "COMPLETED", gateway)
            wait_until(lambda: gateway.status()["worklists"][0]["passed_over"])
            (passed,) = gateway.status()["worklists"][0]["passed_over"]
            assert "gateway.yaml does not list" in passed["why"] and elsewhere not in str(passed)
            assert "gateway.yaml does not list" in httpx.get(gateway.web, trust_env=False).text
            found = gateway.try_command("check")
            assert "worklist WORKLIST" in found.stdout and "answers; " in found.stdout, found.stdout
        assert all(manager.state(uid) == "SCHEDULED" for uid in (*left, elsewhere))
        claims = [uid for uid, event in manager.history if event == "IN PROGRESS"]
        assert claims == [titled, mine]  # by priority, one at a time


@pytest.mark.parametrize(
    ("what", "code"), [("no rule fits", "110522"), ("refused by the server", "110521"), ("not there", "110523")]
)
def test_workitem_that_cannot_be_done_is_canceled_with_a_reason(
    archive: Orthanc, server: RunningServer, tmp_path: Path, what: str, code: str
) -> None:
    """GW-16: and the reason says nothing of the patient."""
    more: dict[str, Any] = {}
    objects = store_study(archive, tmp_path / "in", f"canceled {what}", description=PATIENT)
    if what == "no rule fits":
        more["steps"] = [{"label": "Segment", "rule": "knees"}]
    elif what == "refused by the server":
        series = generate_uid()
        for one in objects:  # slices of two orientations are no volume
            one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            one.SeriesInstanceUID = series
        for one in objects[::2]:
            one.ImageOrientationPatient = [0, 1, 0, 1, 0, 0]
        archive.store(objects)
    else:
        more["fetch_hours"] = 1.0 / 3600
        for one in objects:
            one.SeriesInstanceUID = generate_uid()
    with ups_manager() as manager:
        uid = manager.create([input_information_item(objects, url=archive.url)])
        config = make_worklist_config(tmp_path, server.url, archive.url, manager, more=more)
        config["rules"].append({"name": "knees", "body_part": ["KNEE"], "to": ["archive"]})
        with running_gateway(config, tmp_path / "gateway") as gateway:
            item = wait_until_ended(manager, uid, "CANCELED", gateway)
            (progress,) = item[PROGRESS].value
            (reason,) = progress.ProcedureStepDiscontinuationReasonCodeSequence
            assert (reason.CodeValue, reason.CodingSchemeDesignator) == (code, "DCM"), progress
            assert progress.ReasonForCancellation.endswith(".") and PATIENT not in str(progress)
            assert gateway.audit("workitem canceled")[0]["code"] == code
            assert_no_patient_data(gateway)
        assert not missing_attributes(item, "CANCELED")
        assert not [event for _, event in manager.history if event.startswith("0x")]


def stored_at(**place: str) -> Dataset:
    """An item of the Output Destination Sequence."""
    item, inner = Dataset(), Dataset()
    for keyword, value in place.items():
        setattr(item if keyword == "ReferencedSOPClassUID" else inner, keyword, value)
    name = "DICOMStorageSequence" if "DestinationAE" in place else "STOWRSStorageSequence"
    setattr(item, name, [inner])
    return item


@pytest.mark.parametrize(
    ("asked", "names", "elsewhere"),
    [
        ([], (), False),
        ([{"DestinationAE": "PACS"}], ("pacs",), False),
        ([{"StorageURL": "http://archive/dicom-web/studies"}], ("web",), False),
        ([{"StorageURL": "http://archive/dicom-web"}, {"DestinationAE": "PACS"}], ("web", "pacs"), False),
        ([{"DestinationAE": "OTHER"}], (), True),
        ([{"StorageURL": "http://archive.evil/dicom-web"}, {"DestinationAE": "PACS"}], ("pacs",), True),
        ([{"DestinationAE": "PACS", "ReferencedSOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}], (), True),
    ],
)
def test_destinations_that_a_workitem_asks_for_are_among_the_configured_ones(
    asked: list[dict[str, str]], names: tuple[str, ...], elsewhere: bool
) -> None:
    destinations = {
        "pacs": DimseDestination(ae_title="PACS", host="127.0.0.1", port=104),
        "web": DicomwebDestination(url="http://archive/dicom-web"),
    }
    one = Dataset()
    one.SOPInstanceUID, one.OutputDestinationSequence = "1.2.3", [stored_at(**place) for place in asked]
    assert Workitem.from_json(one.to_json_dict()).outputs(destinations) == (names, elsewhere)


@pytest.mark.parametrize("also", [False, True])
def test_results_go_where_the_workitem_asks_for_them(
    archive: Orthanc, server: RunningServer, tmp_path: Path, also: bool
) -> None:
    objects = store_study(archive, tmp_path / "in", f"destinations {also}")
    study = str(objects[0].StudyInstanceUID)
    with ups_manager() as manager, fake_storage_scp() as other:
        asked = [stored_at(DestinationAE="OTHER"), *([stored_at(DestinationAE="NOBODY")] if also else [])]
        uid = manager.create([input_information_item(objects, url=archive.url)], OutputDestinationSequence=asked)
        config = make_worklist_config(tmp_path, server.url, archive.url, manager)
        config["destinations"]["other"] = {
            "type": "dimse",
            "ae_title": "OTHER",
            "host": "127.0.0.1",
            "port": other.port,
        }
        with running_gateway(config, tmp_path / "gateway") as gateway:
            done = wait_until_ended(manager, uid, "COMPLETED", gateway)
        assert sorted(one.Modality for one, _ in other.received) == ["SEG", "SR"]
        assert len(archive.instances(study, "SEG")) == int(also)
        (performed,) = done.UnifiedProcedureStepPerformedProcedureSequence
        titles = [
            str(place.RetrieveAETitle)
            for output in performed.OutputInformationSequence
            for place in output.get("DICOMRetrievalSequence", [])
        ]
        assert set(titles) == {"OTHER"}


def test_configuration_of_a_worklist_that_cannot_work_is_refused_with_a_sentence(tmp_path: Path) -> None:
    good = worklist_config(UpsManager(), "http://archive/dicom-web") | {"url": "http://manager/ups"}
    rules = {"rules": [{"name": "all MR", "modality": "MR", "to": ["archive"]}]}
    for change, words in (
        ({"inputs": []}, "list the archives of its inputs in `inputs`"),
        ({"steps": [STEP | {"to": ["nowhere"]}]}, "there is no destination nowhere, only archive"),
        ({"steps": [{"label": "a", "rule": "none"}]}, "there is no rule none, only all MR"),
        ({"steps": [{"label": "a", "rule": "all MR", "to": ["archive"]}]}, "give either a `rule`"),
        ({"steps": [{"to": ["archive"]}]}, "give the `label` or the `code`"),
        ({"url": "http://user@manager/ups"}, "without a user"),
    ):
        (tmp_path / "gateway.yaml").write_text(
            yaml.safe_dump(make_offline_config(tmp_path, worklists=[good | change], **rules))
        )
        with pytest.raises(InputError, match=re.escape(words)):
            read_config(tmp_path / "gateway.yaml")
    (tmp_path / "gateway.yaml").write_text(
        yaml.safe_dump(make_offline_config(tmp_path, worklists=[good, good], **rules))
    )
    with pytest.raises(InputError, match="two worklists are called WORKLIST"):
        read_config(tmp_path / "gateway.yaml")


@pytest.mark.parametrize(
    ("address", "below"),
    [
        ("http://archive:80/dicom-web/studies/1", True),
        ("http://ARCHIVE/dicom-web/studies/1", True),
        ("https://archive/dicom-web/studies/1", False),
        ("http://archive:8080/dicom-web/studies/1", False),
        ("http://archive/dicom-webs/studies/1", False),
        ("http://archive/dicom-web/../other/studies/1", False),
        ("http://archive/dicom-web/%2e%2e/other", False),
        ("http://user@archive/dicom-web/studies/1", False),
        ("http://archive.example.org/dicom-web/studies/1", False),
        ("http://archive:notaport/dicom-web/studies/1", False),
        ("file:///dicom-web/studies/1", False),
    ],
)
def test_address_of_an_input_has_to_lie_below_a_configured_archive(address: str, below: bool) -> None:
    assert is_below(address, "http://archive/dicom-web") is below
