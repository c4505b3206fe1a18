"""The clock of leases: on Linux the machine's since its start, elsewhere this process's own."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from semiseg.system import boot_clock
from server.jobs.queue import Queue

TELL = "from semiseg.system import boot_clock; print(boot_clock.boot_id(), boot_clock.seconds())"


def told_by_another_process() -> tuple[str, float]:
    run = subprocess.run(
        [sys.executable, "-c", TELL], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    name, reading = run.stdout.split()
    return name, float(reading)


def test_readings_only_rise():
    readings = [boot_clock.seconds() for _ in range(1000)]
    assert readings == sorted(readings)


def test_on_linux_all_processes_of_a_start_of_the_machine_share_clock_and_name():
    if not hasattr(time, "CLOCK_BOOTTIME"):
        pytest.skip("only Linux has this clock")
    before = boot_clock.seconds()
    name, reading = told_by_another_process()
    assert name == boot_clock.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    assert before <= reading <= boot_clock.seconds()


@pytest.fixture
def elsewhere(monkeypatch) -> None:
    """What macOS and Windows have."""
    monkeypatch.delitem(vars(time), "CLOCK_BOOTTIME", raising=False)


@pytest.mark.usefixtures("elsewhere")
def test_elsewhere_the_clock_cannot_be_set_and_its_name_is_this_processs_own(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert abs(boot_clock.seconds() - time.monotonic()) < 60
    assert boot_clock.boot_id() == boot_clock.boot_id()
    assert boot_clock.boot_id() != told_by_another_process()[0]


@pytest.mark.usefixtures("elsewhere")
def test_elsewhere_a_lease_holds_within_the_process_and_is_over_in_the_next_one(tmp_path, monkeypatch):
    with_file = tmp_path / "jobs.sqlite3"
    queue = Queue(with_file)
    queue.put("work", {})
    job = queue.lease("work", 1e9)
    assert Queue(with_file).lease("work", 10) is None  # another user of the same process
    monkeypatch.setattr(boot_clock, "_THIS_PROCESS", "process-the-next-one")
    assert Queue(with_file).lease("work", 10).id == job.id
    assert not queue.end(job, "done", {})  # the first one can no longer end it


def test_file_of_an_earlier_version_goes_on_with_its_leases(tmp_path):
    """The names and readings in a queue's file are the same ones as before."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        pytest.skip("earlier versions ran on Linux only")
    queue = Queue(tmp_path / "jobs.sqlite3")
    queue.put("work", {})
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    queue.lease("work", 100)
    (row,) = queue._database.connection.execute("SELECT boot, due FROM jobs").fetchall()
    assert row["boot"] == Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    assert before + 100 <= row["due"] <= time.clock_gettime(time.CLOCK_BOOTTIME) + 100
