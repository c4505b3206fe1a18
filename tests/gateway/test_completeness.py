"""When a study is complete, and what it is not taken for while something of it is missing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydantic import ValidationError
from pynetdicom import AE
from pynetdicom.sop_class import MRImageStorage  # type: ignore[attr-defined]

from server.gateway.config import Completeness
from server.gateway.instance_store import parse_count
from server.gateway.study_tracker import StudyTracker
from tests.gateway.harness import make_offline_config, running_gateway, write_study
from tests.gateway.test_instance_store import Clock, Facts
from tests.polling import wait_until


class Watched:
    """Studies whose instances are counted, on a clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rule: Completeness | None = None) -> None:
        self.clock = Clock(monkeypatch)
        self.facts = Facts(study=0)
        self.reasons: list[str] = []
        self.studies = StudyTracker(rule or Completeness(quiet_seconds=60, counted_seconds=5))

    def comes(self, announced: int | None = None) -> None:
        self.studies.instance_arriving("study", announced)
        self.facts.counts["study"] += 1

    def after(self, seconds: float) -> list[str]:
        """Reasons for which the study was complete so far."""
        self.clock.now += seconds
        self.studies.process_complete(self.facts, lambda _, why: self.reasons.append(why))
        return self.reasons


@pytest.mark.parametrize("announced", [4, 31])
def test_number_that_more_came_than_it_says_is_believed_no_longer(
    monkeypatch: pytest.MonkeyPatch, announced: int
) -> None:
    watched = Watched(monkeypatch)
    for _ in range(32):
        watched.comes(announced)
        assert watched.after(0.4) == []
    assert watched.after(59) == []
    assert watched.after(1) == [f"nothing has arrived for 60 s, 32 of {announced} announced instances have arrived"]


def test_numbers_that_differ_from_instance_to_instance_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some devices write how many there are so far."""
    watched = Watched(monkeypatch)
    for number in range(1, 9):
        watched.comes(number)
        assert watched.after(0.4) == []
    assert watched.after(20) == []
    assert len(watched.after(40)) == 1


def test_number_is_not_believed_while_its_sender_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    for _ in range(4):
        watched.comes(4)
        watched.studies.transfer_started("study", 1)
    assert watched.after(20) == []
    watched.studies.transfer_ended(1)
    assert watched.after(0) == ["4 of 4 announced instances have arrived"]


def test_true_number_ends_the_wait_early(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    for _ in range(4):
        watched.comes(4)
    assert watched.after(4) == []
    assert watched.after(1) == ["4 of 4 announced instances have arrived"]


@pytest.mark.parametrize(
    ("written", "count"),
    [
        *[("4", 4), (" +32 ", 32), (7, 7), ("0", None), ("-3", None), ("", None), ("four", None), ("1e3", None)],
        *[("4.0", None), ("[4, 32]", None), ("\u0663", None), (True, None), ("9" * 30, None), ({"x": 1}, None)],
    ],
)
def test_number_that_is_none_is_no_hint(written: object, count: int | None) -> None:
    assert parse_count(written) == count


def test_sender_that_broke_off_is_waited_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, Completeness(quiet_seconds=10))
    watched.comes()
    watched.studies.transfer_started("study", 1)
    watched.after(9)
    watched.studies.transfer_ended(1, broken_by="SCANNER")
    assert watched.after(49) == []
    assert watched.after(1) == ["nothing has arrived for 50 s after SCANNER was interrupted"]


def test_sender_that_comes_again_after_it_broke_off_is_waited_for_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, Completeness(quiet_seconds=10))
    for token, broken in ((1, "SCANNER"), (2, "")):
        watched.comes()
        watched.studies.transfer_started("study", token)
        watched.studies.transfer_ended(token, broken_by=broken)
    assert watched.after(10) == ["nothing has arrived for 10 s"]


def test_quiet_time_does_not_run_while_an_archive_is_to_give_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    watched.comes()
    watched.facts.fetching = True
    for _ in range(100):
        assert watched.after(30) == []
    watched.facts.fetching = False
    assert watched.after(29) == []
    assert len(watched.after(31)) == 1


def test_study_that_is_known_to_lack_something_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    watched.comes()
    watched.facts.lacking = "One instance was refused."
    assert watched.after(100) == []
    assert watched.studies.held_reasons() == {"study": "One instance was refused."}
    assert not watched.studies.is_open("study") and watched.studies.open_count() == 0
    watched.comes()
    assert watched.studies.held_reasons() == {}  # the sender may bring the rest
    watched.facts.lacking = ""
    assert len(watched.after(60)) == 1


def test_study_that_lacks_something_is_segmented_where_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, Completeness(quiet_seconds=60, incomplete="segment"))
    watched.comes()
    watched.facts.lacking = "One instance was refused."
    assert watched.after(60) == ["nothing has arrived for 60 s; One instance was refused."]


def test_quiet_completes_nothing_where_only_a_word_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, Completeness(quiet_seconds=None))
    watched.comes()
    assert watched.after(1e6) == []
    watched.studies.mark_complete("study", "it was declared complete")
    assert watched.after(0) == ["it was declared complete"]
    with pytest.raises(ValidationError):
        Completeness(quiet_seconds=0)


@pytest.mark.parametrize(
    "attributes",
    [
        {"NumberOfStudyRelatedInstances": "2"},
        {"NumberOfStudyRelatedInstances": "0"},
        {"NumberOfSeriesRelatedInstances": "2", "ImagesInAcquisition": "3"},
    ],
)
def test_number_that_is_too_small_makes_one_result(tmp_path: Path, attributes: dict[str, str]) -> None:
    write_study(tmp_path / "study", "counted", shape=(20, 18, 8))
    entity = AE(ae_title="SCANNER")
    objects = [pydicom.dcmread(file) for file in sorted((tmp_path / "study").iterdir())]
    entity.add_requested_context(MRImageStorage, objects[0].file_meta.TransferSyntaxUID)
    config = make_offline_config(tmp_path, completeness={"quiet_seconds": 2.0, "counted_seconds": 0.2})
    with running_gateway(config, tmp_path / "gateway") as gateway:
        association = entity.associate("127.0.0.1", gateway.dicom_port, ae_title="SEMISEG")
        for one in objects:
            for keyword, value in attributes.items():
                setattr(one, keyword, value)
            assert association.send_c_store(one).Status == 0
            time.sleep(0.3)
        association.release()
        wait_until(lambda: gateway.audit("complete"), describe=lambda: gateway.output)
        wait_until(lambda: not gateway.status()["open_studies"])
        assert [line["instances"] for line in gateway.audit("complete")] == [8]


def test_gateway_that_is_killed_while_a_sender_sends_waits_for_it(tmp_path: Path, send: Callable[..., Any]) -> None:
    write_study(tmp_path / "study", "killed")
    objects = [pydicom.dcmread(file) for file in sorted((tmp_path / "study").iterdir())]
    entity = AE(ae_title="STORESCU")
    entity.add_requested_context(MRImageStorage, objects[0].file_meta.TransferSyntaxUID)
    completeness = {"quiet_seconds": 60.0, "interrupted_seconds": 600.0}
    config = make_offline_config(tmp_path, completeness=completeness)
    with running_gateway(config, tmp_path / "gateway") as gateway:
        association = entity.associate("127.0.0.1", gateway.dicom_port, ae_title="SEMISEG")
        for one in objects[:3]:
            assert association.send_c_store(one).Status == 0
        gateway.kill()
    config = make_offline_config(tmp_path, completeness=completeness | {"quiet_seconds": 0.5})
    with running_gateway(config, tmp_path / "gateway") as gateway:
        gateway.complete_another_study(tmp_path / "witness")
        assert [line["instances"] for line in gateway.audit("complete")] == [4]
        assert send(gateway, tmp_path / "study", calling="STORESCU").returncode == 0
        gateway.wait_for("complete", 2)
        assert [line["instances"] for line in gateway.audit("complete")] == [4, 6]
