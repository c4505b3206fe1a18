"""`semiseg label`: the server as a process, and the commands that look after its labels."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest

from semiseg.dataset import load_dataset
from semiseg.volumes.nifti import read_labels, write_nifti
from server.labelling.store import LabelStore
from tests.bundles import make_threshold_bundle
from tests.datasets import AFFINE, random_labels
from tests.fork_server import run_semiseg
from tests.polling import wait_until
from tests.processes import START_SECONDS, RunningProcess
from tests.server.labelling.datasets import write_labelled_dataset


class LabelProcess(RunningProcess):
    """A process of `semiseg label` and its address."""

    def __init__(self, *arguments: object) -> None:
        self.url = ""
        self._listening = threading.Event()
        super().__init__(["label", *map(str, arguments)], os.environ)

    def on_line(self, line: str) -> None:
        if "listening on " in line:
            self.url = line.split("listening on ")[1].split(",")[0]
            self._listening.set()

    def on_exit(self) -> None:
        self._listening.set()

    def wait(self) -> LabelProcess:
        assert self._listening.wait(START_SECONDS) and self.url, self.output
        wait_until(lambda: httpx.get(f"{self.url}/livez", trust_env=False).status_code == 200)
        return self


def label(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_semiseg("label", *map(str, arguments))


def save(url: str, image: str, seed: int, folder: Path) -> int:
    write_nifti(folder / "drawn.nii.gz", random_labels(seed), AFFINE)
    files = {"label": ("drawn.nii.gz", (folder / "drawn.nii.gz").read_bytes())}
    form = {"params": json.dumps({"client_id": "anna"})}
    answer = httpx.put(f"{url}/datastore/label", params={"image": image}, data=form, files=files, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()["version"]


def test_labels_outlast_a_killed_server_and_are_applied_to_the_dataset(tmp_path: Path) -> None:
    data = write_labelled_dataset(tmp_path / "data")
    bundle = make_threshold_bundle(tmp_path / "bundle").folder
    server = LabelProcess("--data", data, "--bundle", bundle, "--port", "0", "--threads", "1").wait()
    try:
        assert server.url.startswith("http://127.0.0.1:")
        assert save(server.url, "s5", 50, tmp_path) == 1
        form = {"params": (None, "{}")}
        answer = httpx.post(f"{server.url}/infer/threshold?image=s6", files=form, timeout=120, trust_env=False)
        assert answer.status_code == 200
        assert '"route": "/infer/{name}"' in httpx.get(f"{server.url}/logs/", trust_env=False).text
        second = label("--data", data, "--port", "0")
        assert second.returncode == 2 and "Another process works in the folder" in second.stderr
    finally:
        server.kill()
    assert "s5" not in server.output.replace(str(tmp_path), "") and "Traceback" not in server.output

    server = LabelProcess("--data", data, "--port", "0").wait()
    try:
        assert save(server.url, "s5", 51, tmp_path) == 2
    finally:
        assert server.stop() == 0
    listed = label("--data", data, "history")
    assert listed.returncode == 0, listed.stderr
    assert [line.split(" 20")[0] for line in listed.stdout.splitlines()] == [
        "s5 1 label final",
        "s5 2 label final",
        "s6 1 label original",
    ]
    assert listed.stdout.splitlines()[2].endswith("model threshold")
    applied = label("--data", data, "apply")
    assert applied.returncode == 0 and "version 2 by anna" in applied.stdout and "1 label(s) written" in applied.stdout
    assert np.array_equal(read_labels(load_dataset(data).cases["s5"].label).array, random_labels(51))
    (data / "labelling" / "labels" / "s5" / "000001.nii.gz").write_bytes(b"altered")
    altered = label("--data", data, "history", "s5")
    assert altered.returncode == 2 and "was altered" in altered.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--data", "nowhere"), "is not a folder"),
        (("--data", "{data}", "--bundle", "nowhere"), "no bundle folder"),
        (("--data", "{data}", "--host", "0.0.0.0"), "could change the labels"),
        (("--data", "{data}", "--split", "nowhere"), "cannot be read"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_listens(tmp_path: Path, arguments, words) -> None:
    data = write_labelled_dataset(tmp_path / "data")
    run = label(*(one.format(data=data) for one in arguments), "--port", "0")
    assert run.returncode == 2 and words in run.stderr, run.stderr
    assert "listening" not in run.stdout and "Traceback" not in run.stderr


def test_a_model_that_never_changed_cannot_be_taken_back(tmp_path: Path) -> None:
    data = write_labelled_dataset(tmp_path / "data")
    never = label("--data", data, "rollback")
    assert never.returncode == 2 and "never changed" in never.stderr


def test_the_models_are_listed_and_taken_back(tmp_path: Path) -> None:
    from server.labelling.model_history import ModelHistory

    data = write_labelled_dataset(tmp_path / "data")
    history = ModelHistory(data / "labelling")
    for number in (1, 2):
        history.add(
            f"training/000{number}/bundle", sha256="ab", round=f"000{number}", who="anna", why="It is not worse."
        )
    back = label("--data", data, "rollback")
    assert back.returncode == 0 and "In use is training/0001/bundle." in back.stdout
    lines = label("--data", data, "models").stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["1", "training/0001/bundle"],
        ["2", "training/0002/bundle"],
        ["3", "training/0001/bundle"],
    ]


def test_training_needs_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from semiseg.errors import InputError
    from server.labelling import startup

    options = startup.LabelOptions(write_labelled_dataset(tmp_path / "data"), train=True)
    monkeypatch.setattr(startup, "can_train", lambda: False)
    with startup.open_datastore(options) as store, pytest.raises(InputError, match="extras `train` and `export`"):
        startup.make_training(options, store)
    without = startup.LabelOptions(options.data)
    with startup.open_datastore(without) as store:
        assert startup.make_training(without, store) is None


def test_annotators_whose_server_is_killed_send_again_and_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    """Two annotators save one label after the other; the server is killed four times and started again each time."""
    data = write_labelled_dataset(tmp_path / "data")
    unsent = {"anna": list(range(100, 140)), "ben": list(range(200, 240))}
    images = {"anna": "s5", "ben": "s6"}
    contents = {}
    for seed in (seed for seeds in unsent.values() for seed in seeds):
        write_nifti(tmp_path / "drawn.nii.gz", random_labels(seed), AFFINE)
        contents[seed] = (tmp_path / "drawn.nii.gz").read_bytes()

    def annotate(who: str, url: str) -> None:
        form = {"params": json.dumps({"client_id": who})}
        with httpx.Client(trust_env=False, timeout=60) as client:
            while unsent[who]:
                files = {"label": ("drawn.nii.gz", contents[unsent[who][0]])}
                try:
                    answer = client.put(f"{url}/datastore/label", params={"image": images[who]}, data=form, files=files)
                except httpx.TransportError:
                    return  # the server is gone; the label is sent again to the next one
                assert answer.status_code == 200, answer.text
                del unsent[who][0]

    for attempt in range(5):
        server = LabelProcess("--data", data, "--port", "0", "--no-training").wait()
        threads = [threading.Thread(target=annotate, args=(who, server.url)) for who in unsent]
        left = sum(map(len, unsent.values()))
        for thread in threads:
            thread.start()
        if attempt < 4:
            wait_until(lambda before=left: sum(map(len, unsent.values())) <= before - 3)
            server.kill()
        for thread in threads:
            thread.join()
    assert server.stop() == 0 and unsent == {"anna": [], "ben": []}
    store = LabelStore(data / "labelling")
    assert store.check() == []
    for who, first in (("anna", 100), ("ben", 200)):
        records = store.history(images[who])
        assert len(records) == 40, "a label that was sent again became a second version"
        for k, record in enumerate(records):
            assert record.who == who and np.array_equal(
                read_labels(store.file_of(record)).array, random_labels(first + k)
            )
