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

from tests.gateway.dicomweb_peer import body, chunked, dicomweb_peer
from tests.gateway.stand import running_gateway, write_study
from tests.gateway.ups_manager import PATIENT, Answer, hang, login_page, ups_manager
from tests.gateway.ups_tables import PROGRESS, input_of, missing_for, payload
from tests.gateway.worklists import assert_nothing_of_the_patient, ended, gateway_config, stored, worklist
from tests.outputs.archive import Archive
from tests.server.running import RunningServer
from tests.waiting import until


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


def test_workitem_that_has_ended_is_not_begun_again(archive: Archive, server: RunningServer, tmp_path: Path) -> None:
    objects = stored(archive, tmp_path / "in", "not begun again")
    with ups_manager() as manager:
        nowhere = "http://127.0.0.1:9/dicom-web"
        uid = manager.create([input_of(objects, url=nowhere)])
        config = gateway_config(tmp_path, server.url, nowhere, manager, to=archive.url, more={"fetch_hours": 1e-4})
        with running_gateway(config, tmp_path / "gateway") as gateway:
            ended(manager, uid, "CANCELED", gateway)
            (job,) = gateway.status()["dead_letters"]
            refused = gateway.try_command("retry", job["id"])
            assert refused.returncode == 2 and "have the manager schedule it anew" in refused.stderr
            assert "left as it is" in gateway.command("retry", "--all")
            assert [one["id"] for one in gateway.status()["dead_letters"]] == [job["id"]]


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
