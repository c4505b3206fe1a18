"""Worklists over UPS-RS: a real gateway performs the workitems of a manager, with Orthanc as the archive."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
import yaml
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE
from pynetdicom.sop_class import UnifiedProcedureStepPull, UnifiedProcedureStepPush  # type: ignore[attr-defined]

from semiseg.errors import InputError
from server.gateway.config import read_config
from server.gateway.ups_workitem import is_below
from tests.gateway.dicomweb_peer import body, chunked, dicomweb_peer
from tests.gateway.stand import RunningGateway, alone, configuration, running_gateway, write_study
from tests.gateway.ups_manager import (
    PATIENT,
    PERFORMED,
    PROGRESS,
    Answer,
    Manager,
    coded,
    hang,
    input_of,
    login_page,
    missing_for,
    over_dimse,
    payload,
    ups_manager,
    wrong_in,
)
from tests.outputs.archive import Archive
from tests.server.running import RunningServer
from tests.waiting import until

STEP = {"label": "Segment", "forms": ["seg", "sr"], "to": ["archive"]}


def worklist(manager: Manager, *archives: str, **more: Any) -> dict[str, Any]:
    inputs = [{"url": url, "ae_titles": ["PACS"]} for url in archives]
    return {"url": manager.url, "every_seconds": 0.4, "inputs": inputs, "steps": [STEP], **more}


def gateway_config(
    folder: Path, server: str, archive: str, manager: Manager, *, to: str = "", more: dict[str, Any] | None = None
) -> dict[str, Any]:
    return configuration(
        folder,
        server,
        dimse=None,
        worklists=[worklist(manager, archive, **(more or {}))],
        destinations={"archive": {"web": {"url": to or archive}}},
    )


def stored(archive: Archive, folder: Path, name: str, **options: Any) -> list[pydicom.Dataset]:
    write_study(folder, name, **options)
    objects = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
    archive.store(objects)
    return objects


def performed(manager: Manager, uid: str) -> Dataset:
    (item,) = manager.items[uid][PERFORMED].value
    return item


def ended(manager: Manager, uid: str, state: str, gateway: RunningGateway) -> Dataset:
    until(
        lambda: manager.state(uid) == state,
        told=lambda: (manager.history, gateway.status()["workitems"], gateway.output),
    )
    until(lambda: not gateway.status()["workitems"], told=lambda: gateway.output)
    return manager.items[uid]


def assert_nothing_of_the_patient(gateway: RunningGateway) -> None:
    status = gateway.status()
    told = (
        gateway.output + (gateway.state / "audit.jsonl").read_text() + str((status["worklists"], status["workitems"]))
    )
    assert PATIENT not in told and "SECRET-ID" not in told and "Nobody" not in told


def test_workitem_is_claimed_segmented_delivered_and_completed_with_all_that_the_final_state_needs(
    archive: Archive, server: RunningServer, tmp_path: Path
) -> None:
    """GW-16: the way of IHE AIW-I, and a second opinion over DIMSE."""
    objects = stored(archive, tmp_path / "in", "workitem one")
    stored_before = archive.instances(str(objects[0].StudyInstanceUID))
    with ups_manager() as manager:
        uid = manager.create([input_of(objects, url=archive.url)])
        other = manager.create([input_of(objects, url=archive.url)], label="Print")
        config = gateway_config(tmp_path, server.url, archive.url, manager)
        with running_gateway(config, tmp_path / "gateway") as gateway:
            ended(manager, uid, "COMPLETED", gateway)
            assert_nothing_of_the_patient(gateway)
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
        with over_dimse(manager) as port:
            entity = AE()
            entity.add_requested_context(UnifiedProcedureStepPull)
            association = entity.associate("127.0.0.1", port)
            status, seen = association.send_n_get([], UnifiedProcedureStepPush, uid, meta_uid=UnifiedProcedureStepPull)
            association.release()
        assert status.Status == 0x0000 and seen is not None
        assert seen.ProcedureStepState == "COMPLETED" and not missing_for(seen, "COMPLETED")
        assert seen[PROGRESS].value[0].ProcedureStepProgress == 100


def assert_outputs_are_in(archive: Archive, done: Dataset, study: str, before: int) -> None:
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
        item.ProcedureStepDiscontinuationReasonCodeSequence = [coded("110513", "DCM", "Discontinued")]
        changes = Dataset()
        setattr(changes, PROGRESS, [item])
        assert not wrong_in(changes) and manager.update(uid, ours, changes) == 0x0000
        assert manager.change_state(uid, ours, "CANCELED") == 0x0000
        assert manager.change_state(uid, ours, "CANCELED") == 0xB304
        assert manager.change_state(uid, ours, "COMPLETED") == 0xC300
        assert manager.update(uid, ours, changes) == 0xC300


def test_two_gateways_and_a_rival_over_dimse_share_a_worklist_and_nothing_is_done_twice(
    archive: Archive, server: RunningServer, tmp_path: Path
) -> None:
    """GW-17: lost races are silent."""
    with ups_manager() as manager, over_dimse(manager) as port:
        items = []
        for number in range(6):
            objects = stored(archive, tmp_path / f"in{number}", f"shared {number}")
            items.append(manager.create([input_of(objects, url=archive.url)]))
        rival = threading.Thread(target=_take_by_dimse, args=(port, items[::-1][:2]), daemon=True)
        first = gateway_config(tmp_path / "a", server.url, archive.url, manager)
        second = gateway_config(tmp_path / "b", server.url, archive.url, manager)
        with (
            running_gateway(first, tmp_path / "a" / "gateway") as one,
            running_gateway(second, tmp_path / "b" / "gateway") as two,
        ):
            rival.start()
            rival.join(60)
            rivals = [uid for uid in items if manager.items[uid].get("TransactionUID") == "1.2.840.1"]
            ours = [uid for uid in items if uid not in rivals]
            until(lambda: all(manager.state(uid) == "COMPLETED" for uid in ours), told=lambda: manager.history)
            until(lambda: not one.status()["workitems"] and not two.status()["workitems"])
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
    archive: Archive, server: RunningServer, tmp_path: Path
) -> None:
    objects = stored(archive, tmp_path / "in", "matching")
    good = input_of(objects, url=archive.url)
    with ups_manager() as manager:
        left = [
            manager.create([good], InputReadinessState="UNAVAILABLE"),
            manager.create([good], ScheduledStationNameCodeSequence=[coded("OTHER", "99TEST", "another performer")]),
            manager.create([good], ScheduledProcedureStepExpirationDateTime="20200101000000"),
            manager.create([good], WorklistLabel="READING"),
            manager.create([good], code="OTHER"),
        ]
        elsewhere = manager.create([input_of(objects, url="http://127.0.0.1:9/dicom-web")])
        titled = manager.create([input_of(objects, title="PACS")], ScheduledProcedureStepPriority="HIGH")
        mine = manager.create(
            [good], ScheduledStationNameCodeSequence=[coded("OTHER", "99TEST", "o"), coded("SEMISEG", "99SEMISEG", "s")]
        )
        code = {"value": "SEG", "scheme": "99TEST"}
        more = {"matching": {"WorklistLabel": "AI"}, "steps": [STEP | {"code": code}], "parallel": 1}
        config = gateway_config(tmp_path, server.url, archive.url, manager, more=more)
        manager.page = 2  # a manager that gives few at a time
        with running_gateway(config, tmp_path / "gateway") as gateway:
            ended(manager, titled, "COMPLETED", gateway)
            ended(manager, mine, "COMPLETED", gateway)
            until(lambda: gateway.status()["worklists"][0]["passed_over"])
            (passed,) = gateway.status()["worklists"][0]["passed_over"]
            assert "gateway.yaml does not name" in passed["why"] and elsewhere not in str(passed)
            assert "gateway.yaml does not name" in httpx.get(gateway.web, trust_env=False).text
            found = gateway.try_command("check")
            assert "worklist WORKLIST" in found.stdout and "answers; " in found.stdout, found.stdout
        assert all(manager.state(uid) == "SCHEDULED" for uid in (*left, elsewhere))
        claims = [uid for uid, event in manager.history if event == "IN PROGRESS"]
        assert claims == [titled, mine]  # by priority, one at a time


@pytest.mark.parametrize(
    ("what", "code"), [("no rule fits", "110522"), ("refused by the server", "110521"), ("not there", "110523")]
)
def test_workitem_that_cannot_be_done_is_canceled_with_a_reason(
    archive: Archive, server: RunningServer, tmp_path: Path, what: str, code: str
) -> None:
    """GW-16: and the reason says nothing of the patient."""
    more: dict[str, Any] = {}
    objects = stored(archive, tmp_path / "in", f"canceled {what}", description=PATIENT)
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
        uid = manager.create([input_of(objects, url=archive.url)])
        config = gateway_config(tmp_path, server.url, archive.url, manager, more=more)
        config["rules"].append({"name": "knees", "body_part": ["KNEE"], "to": ["archive"]})
        with running_gateway(config, tmp_path / "gateway") as gateway:
            item = ended(manager, uid, "CANCELED", gateway)
            (progress,) = item[PROGRESS].value
            (reason,) = progress.ProcedureStepDiscontinuationReasonCodeSequence
            assert (reason.CodeValue, reason.CodingSchemeDesignator) == (code, "DCM"), progress
            assert progress.ReasonForCancellation.endswith(".") and PATIENT not in str(progress)
            assert gateway.audit("workitem canceled")[0]["code"] == code
            assert_nothing_of_the_patient(gateway)
        assert not missing_for(item, "CANCELED")
        assert not [event for _, event in manager.history if event.startswith("0x")]


@pytest.mark.parametrize("how", ["state", "reason", "gone"])
def test_workitem_that_the_manager_cancels_in_the_middle_is_stopped(
    archive: Archive, server: RunningServer, tmp_path: Path, how: str
) -> None:
    """GW-18: the results, which wait for an archive that is not there, are not delivered any more."""
    objects = stored(archive, tmp_path / "in", f"stopped {how}")
    with ups_manager() as manager:
        uid = manager.create([input_of(objects, url=archive.url)])
        config = gateway_config(tmp_path, server.url, archive.url, manager, to="http://127.0.0.1:9/dicom-web")
        with running_gateway(config, tmp_path / "gateway") as gateway:
            until(lambda: gateway.status()["held_up"], told=lambda: gateway.output)
            until(lambda: gateway.status()["workitems"][0]["trouble"])
            assert "could not be delivered to archive yet" in gateway.status()["workitems"][0]["why"]
            until(lambda: "could not be delivered to archive yet" in gateway.command("status"))
            if how == "state":
                manager.put(uid, "CANCELED")
            elif how == "reason":
                item = Dataset()
                item.ReasonForCancellation = "It was the wrong patient"
                manager.items[uid][PROGRESS].value = [item]
            else:
                del manager.items[uid]
            until(lambda: not gateway.status()["workitems"], told=lambda: (gateway.output, manager.history))
            jobs = gateway.status()["jobs"]
            assert jobs["deliver"]["waiting"] == jobs["deliver"]["running"] == 0 and jobs["deliver"]["cancelled"] == 1
            event = "workitem canceled" if how == "reason" else "workitem lost"
            assert len(gateway.audit(event)) == 1
        if how == "reason":
            assert manager.states(uid) == ["IN PROGRESS", "CANCELED"]
            assert not missing_for(manager.items[uid], "CANCELED")
        assert not [event for _, event in manager.history if event.startswith("0x") and event != "0xC307"]


def test_workitem_that_the_manager_gives_to_somebody_else_is_let_go(
    archive: Archive, server: RunningServer, tmp_path: Path
) -> None:
    """GW-18"""
    objects = stored(archive, tmp_path / "in", "given away")
    with ups_manager() as manager:
        uid = manager.create([input_of(objects, url=archive.url)])
        config = gateway_config(tmp_path, server.url, archive.url, manager, to="http://127.0.0.1:9/dicom-web")
        with running_gateway(config, tmp_path / "gateway") as gateway:
            until(lambda: gateway.status()["held_up"], told=lambda: gateway.output)
            manager.items[uid].TransactionUID = "1.2.3"
            until(lambda: not gateway.status()["workitems"], told=lambda: gateway.output)
            assert "somebody else" in gateway.audit("workitem lost")[0]["why"]
        assert manager.state(uid) == "IN PROGRESS" and manager.items[uid].TransactionUID == "1.2.3"


@pytest.mark.parametrize("conflict", [400, 409])
def test_manager_that_forgets_a_claim_is_claimed_from_again_and_the_work_goes_on(
    archive: Archive, server: RunningServer, tmp_path: Path, conflict: int
) -> None:
    objects = stored(archive, tmp_path / "in", f"forgotten {conflict}")
    with ups_manager() as manager:
        manager.conflict = conflict
        uid = manager.create([input_of(objects, url=archive.url)])
        config = gateway_config(tmp_path, server.url, archive.url, manager, to="http://127.0.0.1:9/dicom-web")
        with running_gateway(config, tmp_path / "gateway") as gateway:
            until(lambda: gateway.status()["held_up"], told=lambda: gateway.output)
            with manager.lock:
                manager.items[uid].ProcedureStepState, manager.items[uid].TransactionUID = "SCHEDULED", ""
            until(lambda: manager.states(uid) == ["IN PROGRESS", "IN PROGRESS"], told=lambda: manager.history)
            assert gateway.audit("workitem claim forgotten") and len(gateway.audit("segmented")) == 1


@pytest.mark.parametrize("answer", [hang, login_page])
def test_manager_that_is_not_well_is_waited_for_and_harms_nobody(
    archive: Archive, server: RunningServer, tmp_path: Path, answer: Callable[[Answer], bool]
) -> None:
    objects = stored(archive, tmp_path / "in", f"waits {answer.__name__}")
    with ups_manager() as sick, ups_manager() as well:
        sick.before = answer
        uid = well.create([input_of(objects, url=archive.url)])
        later = sick.create([input_of(objects, url=archive.url)])
        config = gateway_config(tmp_path, server.url, archive.url, well)
        config["worklists"].append(worklist(sick, archive.url, name="SICK", answer_seconds=1.0))
        with running_gateway(config, tmp_path / "gateway") as gateway:
            ended(well, uid, "COMPLETED", gateway)
            until(lambda: gateway.status()["worklists"][1]["trouble"], told=lambda: gateway.output)
            words = "did not answer in time" if answer is hang else "no DICOM JSON"
            assert words in gateway.status()["worklists"][1]["trouble"]
            assert words in httpx.get(gateway.web, trust_env=False).text
            assert words in gateway.try_command("check").stdout
            assert_nothing_of_the_patient(gateway)
            sick.before = lambda _: False
            ended(sick, later, "COMPLETED", gateway)
            until(lambda: not gateway.status()["worklists"][1]["trouble"])


def test_gateway_that_is_killed_at_any_time_goes_on_and_does_nothing_twice(
    archive: Archive, server: RunningServer, tmp_path: Path
) -> None:
    """GW-17: after the claim whose answer was not seen, in the middle, and after the end whose answer was not seen."""
    objects = stored(archive, tmp_path / "in", "killed")
    study = str(objects[0].StudyInstanceUID)
    with ups_manager() as manager:
        uid = manager.create([input_of(objects, url=archive.url)])
        config = gateway_config(tmp_path, server.url, archive.url, manager)
        reached = threading.Event()

        def silent_after(state: str) -> Callable[[Answer], bool]:
            def before(answer: Answer) -> bool:
                if answer.command == "PUT" and state.encode() in answer.body and not reached.is_set():
                    told = payload(answer.body)
                    assert manager.change_state(uid, str(told.TransactionUID), str(told.ProcedureStepState)) == 0
                    reached.set()
                    return hang(answer)
                return False

            return before

        for state in ("IN PROGRESS", "COMPLETED"):
            reached.clear()
            manager.before = silent_after(state)
            with running_gateway(config, tmp_path / "gateway") as gateway:
                assert reached.wait(120), (gateway.output, manager.history)
                (claim,) = (gateway.state / "worklists").glob("*.json")
                assert stat.S_IMODE(claim.stat().st_mode) == 0o600
                os.kill(gateway.process.pid, signal.SIGKILL)
                gateway.process.wait(30)
        manager.before = lambda _: False
        with running_gateway(config, tmp_path / "gateway") as gateway:
            until(lambda: gateway.audit("workitem completed"), told=lambda: (gateway.output, manager.history))
            until(lambda: not gateway.status()["workitems"])
            assert len(gateway.audit("segmented")) == 1 and len(gateway.audit("workitem completed")) == 1
            assert not list((gateway.state / "worklists").glob("*.json"))
        assert manager.states(uid) == ["IN PROGRESS", "COMPLETED"]
        assert len(archive.instances(study, "SEG")) == 1


@pytest.mark.parametrize("what", ["cancel", "purge"])
def test_operator_who_stops_a_workitem_has_the_manager_told(
    archive: Archive, server: RunningServer, tmp_path: Path, what: str
) -> None:
    objects = stored(archive, tmp_path / "in", f"operator {what}")
    with ups_manager() as manager:
        uid = manager.create([input_of(objects, url=archive.url)])
        config = gateway_config(tmp_path, server.url, archive.url, manager, to="http://127.0.0.1:9/dicom-web")
        with running_gateway(config, tmp_path / "gateway") as gateway:
            until(lambda: gateway.status()["held_up"], told=lambda: gateway.output)
            (job,) = gateway.status()["held_up"]
            gateway.command(what, job["id"] if what == "cancel" else job["study"])
            item = ended(manager, uid, "CANCELED", gateway)
            assert "operator" in item[PROGRESS].value[0].ReasonForCancellation


def test_workitem_whose_worklist_is_gone_from_the_configuration_is_in_the_status(
    archive: Archive, server: RunningServer, tmp_path: Path
) -> None:
    """GW-18"""
    objects = stored(archive, tmp_path / "in", "worklist gone")
    with ups_manager() as manager:
        uid = manager.create([input_of(objects, url=archive.url)])
        config = gateway_config(tmp_path, server.url, archive.url, manager, to="http://127.0.0.1:9/dicom-web")
        with running_gateway(config, tmp_path / "gateway") as gateway:
            until(lambda: gateway.status()["held_up"], told=lambda: gateway.output)
        without = {key: value for key, value in config.items() if key != "worklists"}
        with running_gateway(without, tmp_path / "gateway") as gateway:
            (workitem,) = gateway.status()["workitems"]
            assert "has no worklist WORKLIST any more" in workitem["trouble"]
            page = httpx.get(gateway.web, trust_env=False).text
            assert "has no worklist WORKLIST any more" in page and "All is well" not in page
            assert any("has no worklist WORKLIST any more" in one["what"] for one in gateway.status()["problems"])
        # No gateway runs: a command reads the claims themselves.
        document = json.loads(gateway.command("status", "--json"))
        assert [one["workitem"] for one in document["workitems"]] == [workitem["workitem"]]
        assert f"{workitem['workitem']}  worklist WORKLIST  is in progress" in gateway.command("status")
        with running_gateway(config, tmp_path / "gateway") as gateway:
            gateway.command("cancel", gateway.status()["held_up"][0]["id"])
            ended(manager, uid, "CANCELED", gateway)
            backup = tmp_path / "backup"
            gateway.command("backup", str(backup))
            assert (backup / "worklists").is_dir()


def test_configuration_of_a_worklist_that_cannot_work_is_refused_with_a_sentence(tmp_path: Path) -> None:
    good = worklist(Manager(), "http://archive/dicom-web") | {"url": "http://manager/ups"}
    rules = {"rules": [{"name": "all MR", "modality": "MR", "to": ["archive"]}]}
    for change, words in (
        ({"inputs": []}, "name the archives of its inputs in `inputs`"),
        ({"steps": [STEP | {"to": ["nowhere"]}]}, "there is no destination nowhere, only archive"),
        ({"steps": [{"label": "a", "rule": "none"}]}, "there is no rule none, only all MR"),
        ({"steps": [{"label": "a", "rule": "all MR", "to": ["archive"]}]}, "one of the two"),
        ({"steps": [{"to": ["archive"]}]}, "name the `label` or the `code`"),
        ({"url": "http://user@manager/ups"}, "without a user"),
    ):
        (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(alone(tmp_path, worklists=[good | change], **rules)))
        with pytest.raises(InputError, match=re.escape(words)):
            read_config(tmp_path / "gateway.yaml")
    (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(alone(tmp_path, worklists=[good, good], **rules)))
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


def test_request_to_cancel_is_heard_as_an_event_and_honoured(
    archive: Archive, server: RunningServer, tmp_path: Path
) -> None:
    """GW-18: as PS3.18 11.8 has it, over the event channel; new workitems are seen at once as well."""
    objects = stored(archive, tmp_path / "in", "event")
    with ups_manager() as manager:
        config = gateway_config(
            tmp_path,
            server.url,
            archive.url,
            manager,
            to="http://127.0.0.1:9/dicom-web",
            more={"events": True, "every_seconds": 3600.0},
        )
        with running_gateway(config, tmp_path / "gateway") as gateway:
            until(lambda: gateway.status()["worklists"][0]["events"], told=lambda: gateway.output)
            until(lambda: manager.channels.get("SEMISEG"), told=lambda: gateway.output)
            uid = manager.create([input_of(objects, url=archive.url)])
            assert manager.request_cancel("1.2.3") == 0xC307
            assert manager.report(uid, 1) == 1
            until(lambda: gateway.status()["held_up"], told=lambda: gateway.output)
            accept = {"Accept": "application/dicom+json"}
            asked = httpx.post(f"{manager.url}/workitems/{uid}/cancelrequest", headers=accept, trust_env=False)
            assert asked.status_code == 202
            item = ended(manager, uid, "CANCELED", gateway)
            assert "manager's request" in item[PROGRESS].value[0].ReasonForCancellation
            assert gateway.audit("workitem cancel requested")
            manager.channels["SEMISEG"][0].write(b"\x88\x00")  # the manager closes the channel, and is called again
            manager.channels["SEMISEG"][0].flush()
            until(lambda: sum(path.startswith("subscribers") for _, path in manager.asked) > 1)


def test_end_that_the_manager_refuses_stays_in_the_status(
    archive: Archive, server: RunningServer, tmp_path: Path
) -> None:
    """GW-18: it does not look as if it were done."""
    objects = stored(archive, tmp_path / "in", "refused end")

    def refuse(answer: Answer) -> bool:
        if answer.command == "PUT" and b"COMPLETED" in answer.body:
            answer.say(409, Warning=f"299 <service>: {PATIENT}")
            return True
        return False

    with ups_manager() as manager:
        manager.before = refuse
        uid = manager.create([input_of(objects, url=archive.url)])
        config = gateway_config(tmp_path, server.url, archive.url, manager) | {"keep": {"hours": 0.5 / 3600}}
        with running_gateway(config, tmp_path / "gateway") as gateway:
            until(lambda: "refuses" in str(gateway.status()["workitems"]), told=lambda: gateway.output)
            until(lambda: "refuses the state COMPLETED with HTTP 409" in gateway.command("status"))
            page = httpx.get(gateway.web, trust_env=False).text
            assert "refuses the state COMPLETED" in page and "All is well" not in page
            (workitem,) = gateway.status()["workitems"]
            inputs = gateway.state / "studies" / workitem["workitem"]
            (told,) = [one for one in gateway.status()["study_list"] if one["study"] == workitem["workitem"]]
            assert told["from"] == ["WORKLIST"] and told["series"] == 1 and "takes 1" in told["decided"]
            for command in (["again", inputs.name, "--decide"], ["complete", inputs.name]):
                run = gateway.try_command(*command)
                assert run.returncode != 0 and "the inputs of a workitem" in run.stderr
            time.sleep(3.0)  # twice as long as it takes until a study that is done with is deleted
            assert inputs.is_dir()
            assert_nothing_of_the_patient(gateway)
            manager.before = lambda _: False
            ended(manager, uid, "COMPLETED", gateway)
            until(lambda: not inputs.exists(), told=lambda: gateway.output)
            until(lambda: "All is well" in httpx.get(gateway.web, trust_env=False).text, told=gateway.status)


def test_archive_that_gives_part_of_the_inputs_is_asked_again(
    archive: Archive, server: RunningServer, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    write_study(folder, "part of inputs")
    with dicomweb_peer() as peer, ups_manager() as manager:
        study = peer.add(folder)
        objects = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
        uid = manager.create([input_of(objects, url=peer.url)])
        config = gateway_config(tmp_path, server.url, peer.url, manager, to=archive.url)
        with running_gateway(config, tmp_path / "gateway") as gateway:
            for number, give in enumerate(
                (
                    lambda answer, files: answer.answer(body(files[:-1])),
                    lambda answer, files: answer.answer(body(files), 206),
                    lambda answer, files: answer.answer(body(files, closed=False)),
                    lambda answer, files: chunked(answer, files, share=0.5),
                ),
                start=1,
            ):
                peer.give[study] = give
                failures = len(gateway.audit("failed"))
                until(lambda known=failures: len(gateway.audit("failed")) > known + 1, told=lambda: gateway.output)
                assert not gateway.audit("segmented") and manager.state(uid) == "IN PROGRESS", number
            assert study not in gateway.output
            del peer.give[study]
            ended(manager, uid, "COMPLETED", gateway)
            assert len(gateway.audit("segmented")) == 1


def test_keys_are_sent_from_files_and_redirects_to_another_host_are_not_followed(
    archive: Archive, server: RunningServer, tmp_path: Path
) -> None:
    objects = stored(archive, tmp_path / "in", "keys")
    (tmp_path / "token").write_text("a-token")
    (tmp_path / "key").write_text("a-key")
    with ups_manager() as manager, ups_manager() as thief:
        manager.requester = "SEMISEG"
        uid = manager.create([input_of(objects, url=archive.url)])
        more = {"token": str(tmp_path / "token"), "headers": {"X-Api-Key": str(tmp_path / "key")}, "requester": True}
        config = gateway_config(tmp_path, server.url, archive.url, manager, more=more)
        moved = {"Location": f"{thief.url}/workitems"}
        manager.before = lambda answer: answer.say(307, **moved) is None
        with running_gateway(config, tmp_path / "gateway") as gateway:
            until(lambda: gateway.status()["worklists"][0]["trouble"], told=lambda: gateway.output)
            assert "not followed" in gateway.status()["worklists"][0]["trouble"]
            manager.before = lambda _: False
            ended(manager, uid, "COMPLETED", gateway)
            assert "a-token" not in gateway.output and "a-key" not in gateway.output
        assert not thief.asked
        assert all(head["Authorization"] == "Bearer a-token" and head["X-Api-Key"] == "a-key" for head in manager.heads)
