"""Labels are kept whole, in every version, whatever happens to the process that saves them."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from semiseg.errors import InputError
from semiseg.volumes.nifti import read_labels
from server.labelling.store import LabelStore
from tests.datasets import random_labels
from tests.server.labelling.datasets import random_new_label

ANNOTATOR = """
import sys
from pathlib import Path
from server.labelling.store import LabelStore
from tests.server.labelling.datasets import random_new_label
store = LabelStore(Path(sys.argv[1]))
for seed in range(int(sys.argv[2]), int(sys.argv[2]) + 1000):
    record = store.add(f"s{seed % 3}", random_new_label(seed), tag="final", who="anna", info={"seed": seed})
    print(seed, record.version, flush=True)
"""


def test_every_version_is_kept_with_its_history(tmp_path: Path) -> None:
    store = LabelStore(tmp_path)
    first = store.add("s1", random_new_label(1), tag="original", who="model", model="liver", model_sha256="ab")
    second = store.add("s1", random_new_label(2), tag="final", who="anna", info={"client_id": "slicer"})
    third = store.add("s1", random_new_label(3), tag="final", who="ben")
    assert [one.version for one in (first, second, third)] == [1, 2, 3]
    assert [one.state for one in (first, second, third)] == ["draft", "final", "final"]

    again = LabelStore(tmp_path)
    assert again.history("s1") == store.history("s1") and again.newest("s1", "final") == third
    assert np.array_equal(read_labels(again.file_of(second)).array, random_labels(2))
    assert again.newest("s1", "original").model == "liver" and again.newest("s2", "final") is None
    assert again.check() == []


def test_an_auditor_reads_the_records_without_semiseg(tmp_path: Path) -> None:
    LabelStore(tmp_path).add("s1", random_new_label(1), tag="final", who="anna")
    folder = tmp_path / "labels" / "s1"
    record = json.loads((folder / "000001.json").read_text(encoding="utf-8"))
    assert record["who"] == "anna" and record["state"] == "final" and record["when"].endswith("Z")
    assert record["sha256"] == hashlib.sha256((folder / record["file"]).read_bytes()).hexdigest()
    assert record["voxels"]["low"] == int(np.sum(random_labels(1) == 1))


def test_a_label_that_is_sent_again_is_no_second_version(tmp_path: Path) -> None:
    store = LabelStore(tmp_path)
    first = store.add("s1", random_new_label(1), tag="final", who="anna")
    assert store.add("s1", random_new_label(1), tag="final", who="anna") == first
    assert store.add("s1", random_new_label(1), tag="final", who="ben").version == 2
    assert store.add("s1", random_new_label(2), tag="final", who="ben").version == 3
    assert (
        store.add("s1", random_new_label(1), tag="final", who="ben").version == 4
    )  # back to an earlier label is a new version


def test_a_withdrawn_label_is_gone_for_clients_and_stays_on_the_disk(tmp_path: Path) -> None:
    store = LabelStore(tmp_path)
    label = store.add("s1", random_new_label(1), tag="final", who="anna")
    assert store.withdraw("s1", "final", "ben").about == 1
    assert store.withdraw("s1", "final", "ben") is None
    again = LabelStore(tmp_path)
    assert again.newest("s1", "final") is None and again.file_of(label).is_file()
    assert again.add("s1", random_new_label(1), tag="final", who="anna").version == 3


def test_notes_about_a_label_are_added_to_what_was_said_of_it(tmp_path: Path) -> None:
    store = LabelStore(tmp_path)
    store.add("s1", random_new_label(1), tag="final", who="anna", info={"a": 1, "b": 1})
    store.add_info("s1", "final", {"b": 2}, "ben")
    assert LabelStore(tmp_path).info_of(store.newest("s1", "final")) == {"a": 1, "b": 2}
    with pytest.raises(InputError, match="at most"):
        store.add_info("s1", "final", {"long": "x" * 100_000}, "ben")


@pytest.mark.parametrize("tag", ["", "a/b", "../x", ".hidden", "x" * 65])
def test_a_tag_that_could_be_a_path_is_refused(tmp_path: Path, tag: str) -> None:
    with pytest.raises(InputError, match="tag"):
        LabelStore(tmp_path).add("s1", random_new_label(1), tag=tag, who="anna")


@pytest.mark.parametrize("image", ["", "..", ".x", "a/b", "a\\b"])
def test_an_image_id_that_could_be_a_path_is_refused(tmp_path: Path, image: str) -> None:
    with pytest.raises(InputError, match="image id"):
        LabelStore(tmp_path).add(image, random_new_label(1), tag="final", who="anna")
    assert not (tmp_path.parent / "000001.json").exists()


def test_altered_and_missing_files_are_found(tmp_path: Path) -> None:
    store = LabelStore(tmp_path)
    first, second = (store.add("s1", random_new_label(k), tag="final", who="anna") for k in (1, 2))
    store.file_of(first).unlink()
    store.file_of(second).write_bytes(b"other")
    missing, altered = store.check()
    assert missing == f"{store.file_of(first)} is missing."
    assert altered == f"{store.file_of(second)} was altered: its SHA-256 is not that of its record."


def test_a_missing_or_foreign_record_is_reported(tmp_path: Path) -> None:
    store = LabelStore(tmp_path)
    for seed in (1, 2):
        store.add("s1", random_new_label(seed), tag="final", who="anna")
    place = tmp_path / "labels" / "s1"
    (place / "000001.json").rename(tmp_path / "taken")
    with pytest.raises(InputError, match="without gaps"):
        LabelStore(tmp_path)
    (tmp_path / "taken").rename(place / "000001.json")
    (place / "000002.json").write_bytes((place / "000001.json").read_bytes())
    with pytest.raises(InputError, match="another label"):
        LabelStore(tmp_path)


def test_annotators_at_the_same_time_each_get_a_version(tmp_path: Path) -> None:
    store = LabelStore(tmp_path)
    versions: list[int] = []

    def annotate(who: str, first: int) -> None:
        for seed in range(first, first + 10):
            versions.append(store.add("s1", random_new_label(seed), tag="final", who=who).version)

    threads = [threading.Thread(target=annotate, args=(who, k * 100)) for k, who in enumerate(("anna", "ben", "cleo"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == list(range(1, 31))
    again = LabelStore(tmp_path)
    assert again.check() == [] and len({one.sha256 for one in again.history("s1")}) == 30


def test_a_label_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LabelStore(tmp_path)
    store.add("s1", random_new_label(1), tag="final", who="anna")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("server.labelling.store.replace_file", full)
    with pytest.raises(OSError, match="No space"):
        store.add("s1", random_new_label(2), tag="final", who="anna")
    monkeypatch.undo()
    assert store.add("s1", random_new_label(3), tag="final", who="anna").version == 2
    assert LabelStore(tmp_path).check() == []


def test_killed_at_twenty_moments_no_acknowledged_label_is_lost_or_doubled(tmp_path: Path) -> None:
    """The annotator's process is killed (SIGKILL; on Windows TerminateProcess) again and again while it saves."""
    chance = random.Random(4)
    acknowledged: dict[int, int] = {}
    for attempt in range(20):
        command = [sys.executable, "-c", ANNOTATOR, str(tmp_path), str(attempt * 1000)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        time.sleep(chance.uniform(0, 0.02))
        process.kill()
        for line in [*lines, *process.stdout.read().splitlines(keepends=True)]:
            if line.endswith("\n"):
                seed, version = line.split()
                acknowledged[int(seed)] = int(version)
        process.wait()
    store = LabelStore(tmp_path)
    assert store.check() == []
    records = [record for image in store.images() for record in store.history(image)]
    seeds = [record.info["seed"] for record in records]
    assert len(seeds) == len(set(seeds)) and len(acknowledged) >= 60
    for record in records:
        seed = record.info["seed"]
        assert acknowledged.get(seed, record.version) == record.version
        assert np.array_equal(read_labels(store.file_of(record)).array, random_labels(seed))
    assert set(acknowledged) <= set(seeds)
    unknown = [path.name for path in (tmp_path / "labels").rglob("*") if path.name.startswith(".")]
    assert unknown == []
