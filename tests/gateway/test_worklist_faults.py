"""Worklists whose manager, archive or gateway misbehaves, or whose workitems are canceled in the middle."""

from __future__ import annotations

import json
import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pydicom
import pytest
from pydicom.dataset import Dataset

from tests.gateway.dicomweb_peer import dicomweb_peer, multipart_body, send_chunked
from tests.gateway.harness import running_gateway, write_study
from tests.gateway.ups_manager import PATIENT, UpsRequestHandler, never_respond, respond_with_login_page, ups_manager
from tests.gateway.ups_tables import PROGRESS, input_information_item, missing_attributes, parse_payload
from tests.gateway.worklist_harness import (
    assert_no_patient_data,
    make_worklist_config,
    store_study,
    wait_until_ended,
    worklist_config,
)
from tests.outputs.orthanc import Orthanc
from tests.polling import wait_until
from tests.server.harness import RunningServer


@pytest.mark.parametrize("how", ["state", "reason", "gone"])
def test_workitem_that_the_manager_cancels_in_the_middle_is_stopped(
    archive: Orthanc, server: RunningServer, tmp_path: Path, how: str
) -> None:
    """GW-18: the results, which wait for an archive that is not there, are not delivered any more."""
    objects = store_study(archive, tmp_path / "in", f"stopped {how}")
    with ups_manager() as manager:
        uid = manager.create([input_information_item(objects, url=archive.url)])
        config = make_worklist_config(tmp_path, server.url, archive.url, manager, to="http://127.0.0.1:9/dicom-web")
        with running_gateway(config, tmp_path / "gateway") as gateway:
            wait_until(lambda: gateway.status()["held_up"], describe=lambda: gateway.output)
            wait_until(lambda: gateway.status()["workitems"][0]["trouble"])
            assert "could not be delivered to archive yet" in gateway.status()["workitems"][0]["why"]
            wait_until(lambda: "could not be delivered to archive yet" in gateway.command("status"))
            if how == "state":
                manager.set_state(uid, "CANCELED")
            elif how == "reason":
                item = Dataset()
                item.ReasonForCancellation = "It was the wrong patient"
                manager.items[uid][PROGRESS].value = [item]
            else:
                del manager.items[uid]
            wait_until(lambda: not gateway.status()["workitems"], describe=lambda: (gateway.output, manager.history))
            jobs = gateway.status()["jobs"]
            assert jobs["deliver"]["waiting"] == jobs["deliver"]["running"] == 0 and jobs["deliver"]["cancelled"] == 1
            event = "workitem canceled" if how == "reason" else "workitem lost"
            assert len(gateway.audit(event)) == 1
        if how == "reason":
            assert manager.states(uid) == ["IN PROGRESS", "CANCELED"]
            assert not missing_attributes(manager.items[uid], "CANCELED")
        assert not [event for _, event in manager.history if event.startswith("0x") and event != "0xC307"]


def test_workitem_that_the_manager_gives_to_somebody_else_is_let_go(
    archive: Orthanc, server: RunningServer, tmp_path: Path
) -> None:
    """GW-18"""
    objects = store_study(archive, tmp_path / "in", "given away")
    with ups_manager() as manager:
        uid = manager.create([input_information_item(objects, url=archive.url)])
        config = make_worklist_config(tmp_path, server.url, archive.url, manager, to="http://127.0.0.1:9/dicom-web")
        with running_gateway(config, tmp_path / "gateway") as gateway:
            wait_until(lambda: gateway.status()["held_up"], describe=lambda: gateway.output)
            manager.items[uid].TransactionUID = "1.2.3"
            wait_until(lambda: not gateway.status()["workitems"], describe=lambda: gateway.output)
            assert "another performer" in gateway.audit("workitem lost")[0]["why"]
        assert manager.state(uid) == "IN PROGRESS" and manager.items[uid].TransactionUID == "1.2.3"


@pytest.mark.parametrize("conflict", [400, 409])
def test_manager_that_forgets_a_claim_is_claimed_from_again_and_the_work_goes_on(
    archive: Orthanc, server: RunningServer, tmp_path: Path, conflict: int
) -> None:
    objects = store_study(archive, tmp_path / "in", f"forgotten {conflict}")
    with ups_manager() as manager:
        manager.conflict = conflict
        uid = manager.create([input_information_item(objects, url=archive.url)])
        config = make_worklist_config(tmp_path, server.url, archive.url, manager, to="http://127.0.0.1:9/dicom-web")
        with running_gateway(config, tmp_path / "gateway") as gateway:
            wait_until(lambda: gateway.status()["held_up"], describe=lambda: gateway.output)
            with manager.lock:
                manager.items[uid].ProcedureStepState, manager.items[uid].TransactionUID = "SCHEDULED", ""
            wait_until(lambda: manager.states(uid) == ["IN PROGRESS", "IN PROGRESS"], describe=lambda: manager.history)
            assert gateway.audit("workitem claim forgotten") and len(gateway.audit("segmented")) == 1


@pytest.mark.parametrize("answer", [never_respond, respond_with_login_page])
def test_manager_that_is_not_well_is_waited_for_and_harms_nobody(
    archive: Orthanc, server: RunningServer, tmp_path: Path, answer: Callable[[UpsRequestHandler], bool]
) -> None:
    objects = store_study(archive, tmp_path / "in", f"waits {answer.__name__}")
    with ups_manager() as sick, ups_manager() as well:
        sick.before = answer
        uid = well.create([input_information_item(objects, url=archive.url)])
        later = sick.create([input_information_item(objects, url=archive.url)])
        config = make_worklist_config(tmp_path, server.url, archive.url, well)
        config["worklists"].append(worklist_config(sick, archive.url, name="SICK", answer_seconds=1.0))
        with running_gateway(config, tmp_path / "gateway") as gateway:
            wait_until_ended(well, uid, "COMPLETED", gateway)
            wait_until(lambda: gateway.status()["worklists"][1]["trouble"], describe=lambda: gateway.output)
            words = "did not answer in time" if answer is never_respond else "not DICOM JSON"
            assert words in gateway.status()["worklists"][1]["trouble"]
            assert words in httpx.get(gateway.web, trust_env=False).text
            assert words in gateway.try_command("check").stdout
            assert_no_patient_data(gateway)
            sick.before = lambda _: False
            wait_until_ended(sick, later, "COMPLETED", gateway)
            wait_until(lambda: not gateway.status()["worklists"][1]["trouble"])


def test_gateway_that_is_killed_at_any_time_goes_on_and_does_nothing_twice(
    archive: Orthanc, server: RunningServer, tmp_path: Path
) -> None:
    """GW-17: after the claim whose answer was not seen, in the middle, and after the end whose answer was not seen."""
    objects = store_study(archive, tmp_path / "in", "killed")
    study = str(objects[0].StudyInstanceUID)
    with ups_manager() as manager:
        uid = manager.create([input_information_item(objects, url=archive.url)])
        config = make_worklist_config(tmp_path, server.url, archive.url, manager)
        reached = threading.Event()

        def silent_after(state: str) -> Callable[[UpsRequestHandler], bool]:
            def before(answer: UpsRequestHandler) -> bool:
                if answer.command == "PUT" and state.encode() in answer.body and not reached.is_set():
                    told = parse_payload(answer.body)
                    assert manager.change_state(uid, str(told.TransactionUID), str(told.ProcedureStepState)) == 0
                    reached.set()
                    return never_respond(answer)
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
            wait_until(lambda: gateway.audit("workitem completed"), describe=lambda: (gateway.output, manager.history))
            wait_until(lambda: not gateway.status()["workitems"])
            assert len(gateway.audit("segmented")) == 1 and len(gateway.audit("workitem completed")) == 1
            assert not list((gateway.state / "worklists").glob("*.json"))
        assert manager.states(uid) == ["IN PROGRESS", "COMPLETED"]
        assert len(archive.instances(study, "SEG")) == 1


@pytest.mark.parametrize("what", ["cancel", "purge"])
def test_operator_who_stops_a_workitem_has_the_manager_told(
    archive: Orthanc, server: RunningServer, tmp_path: Path, what: str
) -> None:
    objects = store_study(archive, tmp_path / "in", f"operator {what}")
    with ups_manager() as manager:
        uid = manager.create([input_information_item(objects, url=archive.url)])
        config = make_worklist_config(tmp_path, server.url, archive.url, manager, to="http://127.0.0.1:9/dicom-web")
        with running_gateway(config, tmp_path / "gateway") as gateway:
            wait_until(lambda: gateway.status()["held_up"], describe=lambda: gateway.output)
            (job,) = gateway.status()["held_up"]
            gateway.command(what, job["id"] if what == "cancel" else job["study"])
            item = wait_until_ended(manager, uid, "CANCELED", gateway)
            assert "operator" in item[PROGRESS].value[0].ReasonForCancellation


def test_workitem_that_has_ended_is_not_begun_again(archive: Orthanc, server: RunningServer, tmp_path: Path) -> None:
    objects = store_study(archive, tmp_path / "in", "not begun again")
    with ups_manager() as manager:
        nowhere = "http://127.0.0.1:9/dicom-web"
        uid = manager.create([input_information_item(objects, url=nowhere)])
        config = make_worklist_config(
            tmp_path, server.url, nowhere, manager, to=archive.url, more={"fetch_hours": 1e-4}
        )
        with running_gateway(config, tmp_path / "gateway") as gateway:
            wait_until_ended(manager, uid, "CANCELED", gateway)
            (job,) = gateway.status()["dead_letters"]
            refused = gateway.try_command("retry", job["id"])
            assert refused.returncode == 2 and "have the manager schedule it" in refused.stderr
            assert "left as it is" in gateway.command("retry", "--all")
            assert [one["id"] for one in gateway.status()["dead_letters"]] == [job["id"]]


def test_workitem_whose_worklist_is_gone_from_the_configuration_is_in_the_status(
    archive: Orthanc, server: RunningServer, tmp_path: Path
) -> None:
    """GW-18"""
    objects = store_study(archive, tmp_path / "in", "worklist gone")
    with ups_manager() as manager:
        uid = manager.create([input_information_item(objects, url=archive.url)])
        config = make_worklist_config(tmp_path, server.url, archive.url, manager, to="http://127.0.0.1:9/dicom-web")
        with running_gateway(config, tmp_path / "gateway") as gateway:
            wait_until(lambda: gateway.status()["held_up"], describe=lambda: gateway.output)
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
            wait_until_ended(manager, uid, "CANCELED", gateway)
            backup = tmp_path / "backup"
            gateway.command("backup", str(backup))
            assert (backup / "worklists").is_dir()


def test_request_to_cancel_is_heard_as_an_event_and_honoured(
    archive: Orthanc, server: RunningServer, tmp_path: Path
) -> None:
    """GW-18: as PS3.18 11.8 has it, over the event channel; new workitems are seen at once as well."""
    objects = store_study(archive, tmp_path / "in", "event")
    with ups_manager() as manager:
        config = make_worklist_config(
            tmp_path,
            server.url,
            archive.url,
            manager,
            to="http://127.0.0.1:9/dicom-web",
            more={"events": True, "every_seconds": 3600.0},
        )
        with running_gateway(config, tmp_path / "gateway") as gateway:
            wait_until(lambda: gateway.status()["worklists"][0]["events"], describe=lambda: gateway.output)
            wait_until(lambda: manager.channels.get("SEMISEG"), describe=lambda: gateway.output)
            uid = manager.create([input_information_item(objects, url=archive.url)])
            assert manager.request_cancel("1.2.3") == 0xC307
            assert manager.report(uid, 1) == 1
            wait_until(lambda: gateway.status()["held_up"], describe=lambda: gateway.output)
            accept = {"Accept": "application/dicom+json"}
            asked = httpx.post(f"{manager.url}/workitems/{uid}/cancelrequest", headers=accept, trust_env=False)
            assert asked.status_code == 202
            item = wait_until_ended(manager, uid, "CANCELED", gateway)
            assert "manager's request" in item[PROGRESS].value[0].ReasonForCancellation
            assert gateway.audit("workitem cancel requested")
            manager.channels["SEMISEG"][0].write(b"\x88\x00")  # the manager closes the channel, and is called again
            manager.channels["SEMISEG"][0].flush()
            wait_until(lambda: sum(path.startswith("subscribers") for _, path in manager.asked) > 1)


def test_end_that_the_manager_refuses_stays_in_the_status(
    archive: Orthanc, server: RunningServer, tmp_path: Path
) -> None:
    """GW-18: it does not look as if it were done."""
    objects = store_study(archive, tmp_path / "in", "refused end")

    def refuse(answer: UpsRequestHandler) -> bool:
        if answer.command == "PUT" and b"COMPLETED" in answer.body:
            answer.send(409, Warning=f"299 <service>: {PATIENT}")
            return True
        return False

    with ups_manager() as manager:
        manager.before = refuse
        uid = manager.create([input_information_item(objects, url=archive.url)])
        config = make_worklist_config(tmp_path, server.url, archive.url, manager) | {"retention": {"hours": 0.5 / 3600}}
        with running_gateway(config, tmp_path / "gateway") as gateway:
            wait_until(lambda: "refuses" in str(gateway.status()["workitems"]), describe=lambda: gateway.output)
            wait_until(lambda: "refuses the state COMPLETED with HTTP 409" in gateway.command("status"))
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
            assert_no_patient_data(gateway)
            manager.before = lambda _: False
            wait_until_ended(manager, uid, "COMPLETED", gateway)
            wait_until(lambda: not inputs.exists(), describe=lambda: gateway.output)
            wait_until(lambda: "All is well" in httpx.get(gateway.web, trust_env=False).text, describe=gateway.status)


def test_archive_that_gives_part_of_the_inputs_is_asked_again(
    archive: Orthanc, server: RunningServer, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    write_study(folder, "part of inputs")
    with dicomweb_peer() as peer, ups_manager() as manager:
        study = peer.add(folder)
        objects = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
        uid = manager.create([input_information_item(objects, url=peer.url)])
        config = make_worklist_config(tmp_path, server.url, peer.url, manager, to=archive.url)
        with running_gateway(config, tmp_path / "gateway") as gateway:
            for number, give in enumerate(
                (
                    lambda answer, files: answer.answer(multipart_body(files[:-1])),
                    lambda answer, files: answer.answer(multipart_body(files), 206),
                    lambda answer, files: answer.answer(multipart_body(files, closed=False)),
                    lambda answer, files: send_chunked(answer, files, share=0.5),
                ),
                start=1,
            ):
                peer.responders[study] = give
                failures = len(gateway.audit("failed"))
                wait_until(
                    lambda known=failures: len(gateway.audit("failed")) > known + 1, describe=lambda: gateway.output
                )
                assert not gateway.audit("segmented") and manager.state(uid) == "IN PROGRESS", number
            assert study not in gateway.output
            del peer.responders[study]
            wait_until_ended(manager, uid, "COMPLETED", gateway)
            assert len(gateway.audit("segmented")) == 1


def test_keys_are_sent_from_files_and_redirects_to_another_host_are_not_followed(
    archive: Orthanc, server: RunningServer, tmp_path: Path
) -> None:
    objects = store_study(archive, tmp_path / "in", "keys")
    (tmp_path / "token").write_text("a-token")
    (tmp_path / "key").write_text("a-key")
    with ups_manager() as manager, ups_manager() as thief:
        manager.requester = "SEMISEG"
        uid = manager.create([input_information_item(objects, url=archive.url)])
        more = {"token": str(tmp_path / "token"), "headers": {"X-Api-Key": str(tmp_path / "key")}, "requester": True}
        config = make_worklist_config(tmp_path, server.url, archive.url, manager, more=more)
        moved = {"Location": f"{thief.url}/workitems"}
        manager.before = lambda answer: answer.send(307, **moved) is None
        with running_gateway(config, tmp_path / "gateway") as gateway:
            wait_until(lambda: gateway.status()["worklists"][0]["trouble"], describe=lambda: gateway.output)
            assert "not followed" in gateway.status()["worklists"][0]["trouble"]
            manager.before = lambda _: False
            wait_until_ended(manager, uid, "COMPLETED", gateway)
            assert "a-token" not in gateway.output and "a-key" not in gateway.output
        assert not thief.asked
        assert all(head["Authorization"] == "Bearer a-token" and head["X-Api-Key"] == "a-key" for head in manager.heads)
