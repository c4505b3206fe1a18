"""Every command of docs/operations.md's symptoms does what the page says, with a gateway that has the symptom."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest

from docs.generators.document import REPOSITORY
from tests.gateway.dicomweb_peer import DicomwebPeer, dicomweb_peer
from tests.gateway.harness import RunningGateway, dimse_destination, make_config, running_gateway, write_study
from tests.gateway.peers import FakeStorageSCP, fake_storage_scp
from tests.gateway.ups_manager import ups_manager
from tests.gateway.ups_tables import PROGRESS, input_information_item
from tests.gateway.worklist_harness import make_worklist_config
from tests.polling import wait_until
from tests.server.harness import RunningServer

PAGE = "docs/operations.md"


def commands_by_symptom() -> dict[str, list[str]]:
    """The lines of code of each symptom."""
    text = (REPOSITORY / PAGE).read_text(encoding="utf-8")
    section = text.split("\n## What to do, by symptom\n")[1].split("\n## ")[0]
    parts = re.split(r"^### (.*)$", section, flags=re.MULTILINE)
    titles = ["Begin", *parts[1::2]]
    return {
        title: re.findall(r"^ {4,}(\S.*)$", body, re.MULTILINE) for title, body in zip(titles, parts[0::2], strict=True)
    }


SYMPTOMS = commands_by_symptom()


class Case:
    """A gateway with an archive by C-STORE and one that is polled, and what the placeholders stand for."""

    def __init__(
        self,
        gateway: RunningGateway,
        archive: FakeStorageSCP,
        answers: list[int],
        polled: DicomwebPeer,
        send: Callable[..., Any],
        folder: Path,
    ) -> None:
        self.gateway, self.archive, self._answers, self.polled = gateway, archive, answers, polled
        self.try_to_send, self.folder = send, folder
        self.words: dict[str, str] = {}

    def archive_refuses(self) -> None:
        """The archive takes nothing from now on."""
        self._answers[0] = 0xA700

    def send(self, name: str, description: str = "T1 brain", **attributes: str) -> str:
        """Have a study arrive; its UID."""
        uid = write_study(self.folder / name, name, description=description)
        for file in (self.folder / name).iterdir():
            one = pydicom.dcmread(file)
            for keyword, value in attributes.items():
                setattr(one, keyword, value)
            one.save_as(file)
        sent = self.try_to_send(self.gateway, self.folder / name)
        assert (sent.returncode == 0) == ("SeriesInstanceUID" not in attributes), "a bad UID is refused"
        return uid

    def wait_for(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        self.gateway.wait_for(event, count)
        wait_until(lambda: not self.gateway.status()["open_studies"])
        return self.gateway.audit(event)

    def wait_for_state(self, state: str) -> None:
        """Wait until JOB is in a state."""
        wait_until(lambda: json.loads(self.gateway.command("show", self.words["JOB"]))["state"] == state)

    def idle(self) -> None:
        states = ("waiting", "running")
        wait_until(lambda: not any(jobs[one] for jobs in self.gateway.status()["jobs"].values() for one in states))

    def run(self, command: str, *, fails: bool = False) -> str:
        """Run a line of the page."""
        words = [self.words.get(word, word) for word in shlex.split(command)]
        if words[0] != "semiseg":
            return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
        assert words[:2] == ["semiseg", "gateway"]
        run = self.gateway.try_command(*words[2:])
        assert (run.returncode != 0) == fails, (command, run.stdout, run.stderr)
        return run.stdout + run.stderr


@pytest.fixture
def case(server: RunningServer, send: Callable[..., Any], tmp_path: Path) -> Iterator[Case]:
    answers = [0x0000]
    with fake_storage_scp(lambda *_: answers[0]) as archive, dicomweb_peer() as polled:
        config = make_config(
            tmp_path,
            server.url,
            destinations=dimse_destination(archive.port),
            rules=[{"name": "brain", "description": ["*brain*"], "to": ["archive"]}],
            polls=[{"url": polled.url, "every_seconds": 0.2, "name": "PACS"}],
            completeness={"quiet_seconds": 0.5},
        )
        with running_gateway(config, tmp_path / "gateway") as gateway:
            yield Case(gateway, archive, answers, polled, send, tmp_path)


def test_scanner_cannot_connect(case: Case) -> None:
    begin = [line for line in SYMPTOMS["Begin"] if line.startswith("semiseg")]
    assert len(begin) == 2 and SYMPTOMS["The scanner cannot connect"] == begin[:1]
    assert "All is well." in case.run(begin[0])
    case.run(begin[1])  # whether all of them answer; test_check has it in detail
    for message in ("the calling AE title is not among `senders`", "the called AE title is not"):
        source = "".join(path.read_text() for path in (REPOSITORY / "server/gateway").glob("*.py"))
        assert message in (REPOSITORY / PAGE).read_text() and message in source


def test_no_result_came(case: Case) -> None:
    show, cancel, deliver, retry, retry_all = SYMPTOMS["No result came"]
    case.archive_refuses()
    case.words["STUDY"] = case.send("no result", AccessionNumber="ACC-1")
    case.words["JOB"] = case.wait_for("failed")[0]["job"]
    assert "1 refused for archive" in case.run(show)
    case.run(cancel)
    case.wait_for_state("cancelled")
    assert "waits again" in case.run(deliver)
    case.run(cancel)
    case.wait_for_state("cancelled")
    assert "waits again" in case.run(retry)
    case.run(retry_all)
    case.words["STUDY"] = "1.2.3"
    assert "no such study" in case.run(show, fails=True)


def test_wrong_series_was_taken(case: Case) -> None:
    show, explain, decide, cancel = SYMPTOMS["The wrong series was taken"]
    case.words |= {"STUDY": case.send("wrong", "knee"), "FOLDER": str(case.folder / "wrong")}
    case.wait_for("decided")
    assert "- series" in case.run(show) and "Not sent" in case.run(show)
    assert "- rule brain" in case.run(explain)
    case.run(decide)
    wait_until(lambda: case.gateway.audit("decided")[-1].get("again") == 1)
    case.archive_refuses()
    case.send("right")
    case.words["JOB"] = case.wait_for("failed")[0]["job"]
    case.run(cancel)
    case.wait_for_state("cancelled")


def test_do_it_again(case: Case) -> None:
    segment, deliver, decide, series, job, fetch, purge, for_good = SYMPTOMS["Do it again"]
    case.words["STUDY"] = case.send("again", AccessionNumber="ACC-2")
    case.wait_for("delivered")
    case.idle()
    for number, command in enumerate((segment, deliver), start=2):
        case.run(command)
        case.wait_for("delivered", number)
        case.idle()
    # The archive receives an object again only after an attempt that failed, such as one whose confirmation was late.
    failed = [one for one in case.gateway.audit("failed") if one["kind"] == "deliver"]
    assert len(case.gateway.audit("delivered")) == 3 <= len(case.archive.received) <= 3 + len(failed)
    assert len(case.gateway.audit("segmented")) == 2
    case.words["STUDY"] = "ACC-2"
    case.run(decide)
    wait_until(lambda: len(case.gateway.audit("decided")) == 2)
    case.idle()
    case.words["SERIES"] = case.gateway.audit("decided")[0]["decisions"][0]["series"]
    case.run(series)
    case.wait_for("segmented", 3)
    case.wait_for("delivered", 4)
    case.idle()
    case.words["JOB"] = case.gateway.audit("delivered")[-1]["job"]
    case.run(job)
    case.wait_for("delivered", 5)
    write_study(case.folder / "polled", "polled")
    uid = case.words["UID"] = case.polled.add(case.folder / "polled")
    case.wait_for("fetched")
    case.idle()
    case.run(fetch)
    case.wait_for("fetched", 2)
    case.idle()
    case.words["STUDY"] = uid
    case.run(purge)
    case.wait_for("fetched", 3)
    case.idle()
    case.run(for_good)
    case.wait_for("purged", 2)


def test_archive_lost_it(case: Case) -> None:
    (deliver,) = SYMPTOMS["The archive lost it"]
    case.words["STUDY"] = case.send("lost")
    case.wait_for("delivered")
    case.idle()
    case.run(deliver)
    case.wait_for("delivered", 2)
    assert len({one.SOPInstanceUID for one, _ in case.archive.received}) == 1


def test_study_is_held(case: Case) -> None:
    show, complete, purge = SYMPTOMS["A study is held"]
    case.words["STUDY"] = case.send("held", SeriesInstanceUID="1.2.x")
    wait_until(lambda: case.gateway.status()["studies_in_trouble"], describe=lambda: case.gateway.output)
    wait_until(
        lambda: ": held" in case.run(show), describe=lambda: case.run(show)
    )  # commands hear of it within seconds
    case.run(purge)
    case.wait_for("purged")
    uid = case.words["STUDY"] = case.send("late")
    case.wait_for("delivered")
    broken = next((case.folder / "late").iterdir())
    one = pydicom.dcmread(broken)
    one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = "1.2.y"
    one.save_as(broken)
    assert case.try_to_send(case.gateway, case.folder / "late").returncode != 0
    wait_until(lambda: case.gateway.status()["studies_in_trouble"], describe=lambda: case.gateway.output)
    assert "taken as it is" in case.run(complete)
    wait_until(lambda: not case.gateway.status()["studies_in_trouble"])
    assert uid not in case.gateway.output


def _claim_that_is_held_up(gateway: RunningGateway) -> tuple[str, str]:
    """Wait for a claimed workitem whose result is not delivered; its name, and the job that is to deliver it."""
    found: list[tuple[str, str]] = []

    def is_held_up() -> bool:
        told = gateway.status()
        names = {one["workitem"] for one in told["workitems"]}
        found.extend((job["study"], job["id"]) for job in told["held_up"] if job["study"] in names)
        return bool(found)

    wait_until(is_held_up, describe=lambda: gateway.output)
    return found[0]


def test_workitem_does_not_go_on(server: RunningServer, send: Callable[..., Any], tmp_path: Path) -> None:
    status, show, cancel, purge = SYMPTOMS["A workitem does not go on"]
    write_study(tmp_path / "in", "workitem")
    objects = [pydicom.dcmread(file) for file in sorted((tmp_path / "in").iterdir())]
    with fake_storage_scp(lambda *_: 0xA700) as archive, dicomweb_peer() as peer, ups_manager() as manager:
        peer.add(tmp_path / "in")
        config = make_worklist_config(tmp_path, server.url, peer.url, manager) | {
            "destinations": dimse_destination(archive.port)
        }
        with running_gateway(config, tmp_path / "gateway") as gateway:
            case = Case(gateway, archive, [0xA700], peer, send, tmp_path)
            elsewhere = manager.create([input_information_item(objects, url="http://elsewhere.invalid")])
            wait_until(lambda: "is not claimed" in case.run(status), describe=lambda: gateway.output)
            assert "from an archive that gateway.yaml does not list" in case.run(status)
            manager.set_state(elsewhere, "CANCELED")
            for command in (cancel, purge):
                uid = manager.create([input_information_item(objects, url=peer.url)])
                case.words["NAME"], case.words["JOB"] = _claim_that_is_held_up(gateway)
                wait_until(
                    lambda: "could not be delivered to archive yet" in case.run(status), describe=lambda: gateway.output
                )
                told = case.run(show)
                assert case.words["JOB"] in told and "+ series" in told
                case.run(command)
                wait_until(lambda uid=uid: manager.state(uid) == "CANCELED", describe=lambda: gateway.output)
                wait_until(lambda: not gateway.status()["workitems"], describe=lambda: gateway.output)
                reason = manager.items[uid][PROGRESS].value[0].ProcedureStepDiscontinuationReasonCodeSequence[0]
                assert reason.CodeValue == "110513"


@pytest.mark.parametrize("option", ["--keep-old", "--take-new"])
def test_patient_was_corrected(case: Case, option: str) -> None:
    look, *decisions = SYMPTOMS["A patient was corrected, or a study came twice with different contents"]
    case.words["STUDY"] = case.send("corrected")
    case.wait_for("delivered")
    case.send("corrected", PatientName="Right^Renate")
    wait_until(lambda: case.gateway.status()["studies_in_trouble"], describe=lambda: case.gateway.output)
    assert "Patient's Name differ" in case.run(look)
    case.idle()
    (decision,) = [line for line in decisions if option in line]
    case.run(decision)
    case.wait_for("conflict decided")
    if option == "--take-new":
        case.wait_for("delivered", 2)
    assert len(decisions) == 2 and "Renate" not in case.gateway.output


def test_key_is_rotated_disk_is_full_and_version_upgraded(case: Case, require_program: Callable[[str], str]) -> None:
    require_program("openssl")
    new_key, check = SYMPTOMS["Rotate a key"]
    backup, *after = SYMPTOMS["Upgrade"]
    status, purge = SYMPTOMS["A disk is full"]
    assert re.fullmatch(r"[0-9a-f]{64}\n", case.run(new_key))
    assert check == after[0] and status == after[1]
    case.run(check)
    case.words |= {"FOLDER": str(case.folder / "copy"), "STUDY": case.send("deleted")}
    case.wait_for("delivered")
    assert "file(s) of studies and results" in case.run(backup)
    case.run(status)
    case.run(purge)
    case.wait_for("purged")


def test_every_symptom_has_a_test() -> None:
    assert list(SYMPTOMS) == [
        "Begin",
        "The scanner cannot connect",
        "No result came",
        "The wrong series was taken",
        "Do it again",
        "The archive lost it",
        "A study is held",
        "A workitem does not go on",
        "A patient was corrected, or a study came twice with different contents",
        "Rotate a key",
        "Upgrade",
        "A disk is full",
    ]
