"""Instances on the disk, and when a study of them is complete."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pydicom
import pytest

from semiseg.errors import InputError
from server.gateway.audit import AuditLog
from server.gateway.config import Completeness
from server.gateway.instance_store import DiskFull, InstanceStore, InvalidInstance, delete
from server.gateway.study_tracker import StudyTracker
from server.gateway.uid_hasher import UidHasher
from tests.gateway.harness import write_study


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    write_study(tmp_path / "study", "inbox")
    return sorted((tmp_path / "study").iterdir())


@pytest.fixture
def instance_store(tmp_path: Path) -> InstanceStore:
    (tmp_path / "state").mkdir()
    return InstanceStore(tmp_path / "state", UidHasher(tmp_path / "state" / "key"), 0)


def coming(instance_store: InstanceStore, file: Path) -> Path:
    return Path(shutil.copy(file, instance_store.incoming / file.name))


def test_instance_is_kept_as_it_came_under_names_that_say_nothing(
    instance_store: InstanceStore, files: list[Path]
) -> None:
    """GW-01, GW-09."""
    arrival = instance_store.add(coming(instance_store, files[0]), "MR 1/2")
    assert (arrival.new, arrival.differs) == (True, False)
    (kept,) = instance_store.instances(arrival.study)
    assert kept.read_bytes() == files[0].read_bytes()
    header = pydicom.dcmread(files[0])
    assert header.StudyInstanceUID not in str(kept) and header.SOPInstanceUID not in str(kept)
    assert instance_store.senders(arrival.study) == ["MR 1/2"]
    assert instance_store.has_instance(header.SOPInstanceUID) and not instance_store.has_instance("1.2.3")
    assert list(instance_store.incoming.iterdir()) == []


def test_a_series_of_which_another_study_holds_a_part_is_known(
    instance_store: InstanceStore, files: list[Path]
) -> None:
    first = instance_store.add(coming(instance_store, files[0]), "A")
    series = pydicom.dcmread(files[0]).SeriesInstanceUID
    assert not instance_store.is_in_other_study(first.study, series)
    other = pydicom.dcmread(files[1])
    other.StudyInstanceUID = "1.2.3.4"
    other.save_as(instance_store.incoming / "other")
    second = instance_store.add(instance_store.incoming / "other", "A")
    assert instance_store.is_in_other_study(first.study, series) and instance_store.is_in_other_study(
        second.study, series
    )
    assert not instance_store.is_in_other_study(first.study, "1.2.3")
    assert instance_store.senders(second.study) == ["A"] and len(instance_store.instances(second.study)) == 1
    assert series not in "".join(path.name for path in (instance_store.studies / second.study).iterdir())


def test_instance_that_comes_twice_is_there_once_and_the_first_one_stays(
    instance_store: InstanceStore, files: list[Path]
) -> None:
    first = instance_store.add(coming(instance_store, files[0]), "A")
    again = instance_store.add(coming(instance_store, files[0]), "B")
    assert (again.new, again.differs) == (False, False)
    other = pydicom.dcmread(files[0])
    other.PatientComments = "another object of the same UID"
    other.save_as(instance_store.incoming / "other")
    assert instance_store.add(instance_store.incoming / "other", "B").differs
    (kept,) = instance_store.instances(first.study)
    assert kept.read_bytes() == files[0].read_bytes()
    assert instance_store.senders(first.study) == ["A", "B"]


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_instance_without_its_uids_is_refused_and_gone(
    instance_store: InstanceStore, files: list[Path], keyword: str
) -> None:
    one = pydicom.dcmread(files[0])
    delattr(one, keyword)
    one.save_as(instance_store.incoming / "one")
    with pytest.raises(InvalidInstance, match=keyword):
        instance_store.add(instance_store.incoming / "one", "A")
    (instance_store.incoming / "none").write_bytes(b"no DICOM")
    with pytest.raises(InvalidInstance, match="not a DICOM file"):
        instance_store.add(instance_store.incoming / "none", "A")
    assert list(instance_store.incoming.iterdir()) == list(instance_store.studies.iterdir()) == []


def test_study_that_is_arriving_is_not_deleted(instance_store: InstanceStore, files: list[Path]) -> None:
    study = instance_store.add(coming(instance_store, files[0]), "A").study
    assert not instance_store.remove(study, lambda: True, overwrite=False)
    assert instance_store.instances(study)
    assert instance_store.remove(study, lambda: False, overwrite=True)
    assert instance_store.study_names() == [] and list(instance_store.incoming.iterdir()) == []


def test_full_disk_refuses_before_anything_is_kept(tmp_path: Path, files: list[Path]) -> None:
    (tmp_path / "state").mkdir()
    instance_store = InstanceStore(tmp_path / "state", UidHasher(tmp_path / "state" / "key"), 2**60)
    with pytest.raises(DiskFull):
        instance_store.add(coming(instance_store, files[0]), "A")
    assert list(instance_store.incoming.iterdir()) == list(instance_store.studies.iterdir()) == []


def test_names_are_the_same_after_a_restart_and_others_elsewhere(tmp_path: Path) -> None:
    one, again, other = UidHasher(tmp_path / "key"), UidHasher(tmp_path / "key"), UidHasher(tmp_path / "other")
    assert one.hash("1.2.3") == again.hash("1.2.3") != other.hash("1.2.3")
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(InputError, match="restore it from a backup"):
        UidHasher(tmp_path / "key")


def test_what_is_deleted_is_overwritten_where_that_is_wanted(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"patient" * 1000)
    with file.open("rb") as still_open:
        delete(file, overwrite=True)
        assert still_open.read() == bytes(7000)
    assert not file.exists()
    delete(file, overwrite=True)


class Clock:
    """Seconds that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("server.gateway.study_tracker.time.monotonic", lambda: self.now)


class Facts:
    """Facts about studies that a test sets."""

    def __init__(self, **counts: int) -> None:
        self.counts = counts
        self.lacking, self.fetching = "", False

    def instance_count(self, name: str) -> int:
        return self.counts.get(name, 0)

    def is_being_fetched(self, name: str) -> bool:
        return self.fetching

    def missing_text(self, name: str) -> str:
        return self.lacking

    def conflict_text(self, name: str) -> str:
        return ""


def test_study_is_complete_after_a_quiet_time_or_its_count_or_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """GW-03."""
    clock, facts = Clock(monkeypatch), Facts(counted=1)
    studies = StudyTracker(Completeness(quiet_seconds=10, counted_seconds=3))
    studies.open_stored(["old"], {})
    told: list[tuple[str, str]] = []

    def look() -> list[str]:
        told.clear()
        studies.process_complete(facts, lambda name, why: told.append((name, why)))
        return [name for name, _ in told]

    studies.instance_arriving("quiet", None)
    studies.instance_arriving("counted", 2)
    studies.instance_arriving("said", None)
    assert look() == []
    studies.mark_complete("said", "it was declared complete")
    assert look() == ["said"]
    facts.counts["counted"] = 2
    assert look() == []  # more may come than is announced
    clock.now += 3
    assert look() == ["counted"] and "2 of 2" in told[0][1]
    clock.now += 6
    studies.instance_arriving("quiet", None)
    clock.now += 2
    assert look() == ["old"]
    assert studies.is_open("quiet") and not studies.is_open("said")
    clock.now += 8
    assert look() == ["quiet"] and studies.open_count() == 0
    studies.instance_arriving("said", None)  # late
    assert studies.is_open("said")


def test_study_stays_open_when_nobody_could_write_down_that_it_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    studies = StudyTracker(Completeness(quiet_seconds=1))
    studies.open_stored(["one"], {})
    clock.now += 2

    def fail(name: str, why: str) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        studies.process_complete(Facts(), fail)
    assert studies.is_open("one")

    def arrives(name: str, why: str) -> None:
        studies.instance_arriving(name, None)

    studies.process_complete(Facts(), arrives)
    assert studies.is_open("one")


def test_audit_log_that_grew_is_moved_aside_and_loses_no_line(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "audit.jsonl", largest=300)
    for number in range(20):
        audit.record("event", number=number)
    files = sorted(tmp_path.glob("audit*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    assert len(files) > 2
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert sorted(line["number"] for line in lines) == list(range(20))
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
