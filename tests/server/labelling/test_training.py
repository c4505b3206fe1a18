"""Training from the labelling server, with the real `semiseg train` and `semiseg export` in processes of their own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from semiseg.bundle.bundle import open_bundle
from semiseg.phantoms.writers import write_dataset
from semiseg.system.processes import process_start_id, supports_start_ids
from server.labelling.model_history import ModelHistory
from server.labelling.training import read_config
from server.labelling.training_progress import read_training_progress
from server.labelling.training_round import read_progress, read_request
from tests.polling import wait_until
from tests.server.labelling.datasets import training_config
from tests.server.labelling.harness import RunningLabelServer, label_server

LONG = 600.0
KILL = 9  # only where there are POSIX signals; the test is skipped elsewhere


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "data", cases=5, labelled=2, test=2, shape=(22, 20, 13), spacing=(5.0, 5.0, 8.0))
    return tmp_path / "data"


def status(server: RunningLabelServer) -> dict:
    return server.get("/train/").json()


def start(server: RunningLabelServer) -> dict:
    answer = server.http.post("/train/semiseg", json={"client_id": "anna"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def output(server: RunningLabelServer, number: str = "0001") -> str:
    return (server.datastore.state / "training" / number / "output.log").read_text(encoding="utf-8")


@pytest.mark.timeout(900)
def test_a_training_outlives_the_server_and_its_model_is_used_if_it_is_not_worse(tmp_path: Path, data: Path) -> None:
    options = {"config": training_config(tmp_path, hold_back_every=2, margin=1, segment_margin=1), "labelled": 2}
    with label_server(data, **options) as server:
        assert server.info()["trainers"]["semiseg"]["config"] == {} and server.info()["models"] == {}
        assert server.get("/train/").status_code == 404
        task = start(server)
        assert task["status"] == "RUNNING" and task["id"] == "0001" and task["details"] and "end_ts" not in task
        assert server.http.post("/train/semiseg").status_code == 429
        assert server.http.post("/train/").status_code == 429
        assert server.http.post("/train/other").status_code == 404
        state = server.datastore.state
    with label_server(data, **options) as server:
        running = server.get("/train/", params={"check_if_running": "true"})
        assert running.status_code == 200 and running.json()["status"] == "RUNNING"
        wait_until(lambda: status(server)["status"] != "RUNNING", LONG, lambda: output(server))
        done = status(server)
        assert done["status"] == "DONE", output(server)
        assert done["result"].startswith("The new model is used. There was no previous model")
        assert done["end_ts"] >= done["start_ts"]
        assert server.get("/train/", params={"check_if_running": "true"}).status_code == 404

        request = read_request(state / "training" / "0001")
        assert len(request.labelled) == 1 and len(request.judged_on) == 1 and request.who == "anna"
        decision = json.loads((state / "training" / "0001" / "decision.json").read_text(encoding="utf-8"))
        assert decision["accepted"] and decision["criteria"]["hold_back_every"] == 2
        assert list(decision["candidate"]) == list(request.judged_on)
        assert {one["image"] for one in decision["labels"]} == {*request.labelled, *request.judged_on}

        stats = server.info()["train_stats"]["semiseg"]
        assert stats["epoch"] == stats["total_epochs"] == 4 and stats["total_time"].count(":") == 2 and stats["curve"]
        assert list(server.info()["models"]) == ["tiny"]
        image = server.datastore.waiting()[0]
        assert server.infer("tiny", image=image, output="json").json()["model"] == "tiny"
        entry = ModelHistory(state).current()
        assert entry.sha256 == open_bundle(state / entry.bundle).sha256 and entry.who == "anna"
        assert server.datastore.store.history(image)[0].model_sha256

        assert start(server)["id"] == "0002"
        wait_until(lambda: status(server)["status"] != "RUNNING", LONG, lambda: output(server, "0002"))
        assert status(server)["status"] == "DONE", output(server, "0002")
        assert read_request(state / "training" / "0002").start_from == "training/0001/run"
        assert "init_from: " in (state / "training" / "0002" / "run" / "recipe.yaml").read_text(encoding="utf-8")
        second = json.loads((state / "training" / "0002" / "decision.json").read_text(encoding="utf-8"))
        assert (
            second["accepted"]
            and second["current"] == decision["candidate"]
            and second["differences"]["all"]["scans"] <= 1
        )
        assert [task["id"] for task in server.get("/train/", params={"all": "true"}).json()] == ["0001", "0002"]

        used = server.info()["models"]["tiny"]["description"]
        ModelHistory(state).roll_back("head")
        assert server.info()["models"]["tiny"]["description"] != used  # at once, without a restart
        ModelHistory(state).roll_back("head", 0)
        assert server.info()["models"] == {}


@pytest.mark.timeout(600)
def test_a_training_is_stopped_and_the_next_one_is_another(tmp_path: Path, data: Path) -> None:
    with label_server(data, config=training_config(tmp_path, updates=100_000), labelled=2) as server:
        assert server.http.delete("/train/").status_code == 404
        start(server)
        wait_until(lambda: server.info()["train_stats"]["semiseg"]["epoch"] > 20, LONG, lambda: output(server))
        stats = server.info()["train_stats"]["semiseg"]
        assert stats["total_epochs"] == 100_000 and stats["phase"] == "training" and "total_time" not in stats
        assert stats["seconds_left"] > 0 and "of 100000 updates" in stats["estimate"]
        assert "of 100000 updates" in status(server)["details"][-1]
        stopped = server.http.delete("/train/").json()
        assert (
            stopped["status"] == "STOPPED" and stopped["result"] == "The training was stopped." and stopped["details"]
        )
        folder = server.datastore.state / "training" / "0001"
        progress = read_progress(folder)
        wait_until(lambda: not process_start_id(progress.child) and not process_start_id(progress.pid))
        assert server.http.delete("/train/").status_code == 404 and server.info()["models"] == {}
        assert start(server)["id"] == "0002"
        assert server.http.delete("/train/").json()["status"] == "STOPPED"


@pytest.mark.timeout(600)
@pytest.mark.skipif(not supports_start_ids(), reason="the system does not tell when a process was started")
def test_a_killed_training_is_told_and_goes_on_where_it_was(tmp_path: Path, data: Path) -> None:
    with label_server(data, config=training_config(tmp_path, updates=100_000), labelled=2) as server:
        start(server)
        wait_until(lambda: server.info()["train_stats"]["semiseg"]["epoch"] > 20, LONG, lambda: output(server))
        folder = server.datastore.state / "training" / "0001"
        before = read_progress(folder)
        os.kill(before.pid, KILL)
        wait_until(lambda: status(server)["status"] != "RUNNING")
        assert status(server)["status"] == "ERROR" and "ended without a result" in status(server)["result"]
        assert process_start_id(before.child) == before.child_birth  # the training itself has not noticed
        assert start(server)["id"] == "0001"
        assert not process_start_id(before.child)
        wait_until(lambda: read_progress(folder).child not in (0, before.child))
        reached = server.info()["train_stats"]["semiseg"]["epoch"]
        wait_until(
            lambda: server.info()["train_stats"]["semiseg"]["epoch"] > reached + 20, LONG, lambda: output(server)
        )
        assert server.http.delete("/train/").json()["status"] == "STOPPED"
        steps = [row["step"] for row in map(json.loads, (folder / "run" / "log.jsonl").read_text().splitlines())]
        assert steps == sorted(set(steps))


@pytest.mark.timeout(600)
def test_a_training_that_fails_says_why(tmp_path: Path, data: Path) -> None:
    path = training_config(tmp_path)
    path.write_text(path.read_text() + "\n", encoding="utf-8")
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump(document | {"changes": ["no_such_key=1"]}), encoding="utf-8")
    with label_server(data, config=path, labelled=2) as server:
        start(server)
        wait_until(lambda: status(server)["status"] != "RUNNING", LONG)
        assert status(server)["status"] == "ERROR" and "no_such_key" in status(server)["result"], output(server)


def test_without_a_final_label_there_is_nothing_to_learn_from(tmp_path: Path, data: Path) -> None:
    with label_server(data, config=training_config(tmp_path), labelled=0) as server:
        answer = server.http.post("/train/semiseg")
        assert answer.status_code == 409 and "no final label" in answer.json()["error"]
        assert not (server.datastore.state / "training" / "0001").exists()


def test_the_time_that_is_left_is_measured_and_otherwise_not_claimed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert read_training_progress(run, running=True).estimate == "The remaining time of the training is not known yet."
    run.mkdir()
    (run / "recipe.yaml").write_text("recipe: {updates: 100}\n", encoding="utf-8")

    def log(*rows: dict) -> None:
        (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9', encoding="utf-8")

    def row(update: int, elapsed: float) -> dict:
        return {"step": update, "update": update, "elapsed": elapsed, "total": 1.0}

    log(row(-1, 1.0), row(-1, 2.0))
    assert read_training_progress(run, running=True).seconds_left is None
    log(row(9, 100.0), row(19, 200.0), {"step": 19, "validation_dice": 0.5})
    found = read_training_progress(run, running=True)
    assert found.seconds_left == 800.0 and found.update == 20 and found.best_dice == 0.5
    assert "20 of 100 updates are done; about 13 minutes" in found.estimate
    log(row(9, 100.0), row(19, 200.0), row(20, 5.0), row(30, 25.0))  # resumed at 20, faster
    assert read_training_progress(run, running=True).seconds_left == 138.0
    assert read_training_progress(run, running=False).seconds_left is None


def test_a_configuration_with_a_wrong_key_is_refused(tmp_path: Path) -> None:
    from semiseg.errors import InputError

    (tmp_path / "c.yaml").write_text("acceptance: {margn: 1}\n", encoding="utf-8")
    with pytest.raises(InputError, match="margn"):
        read_config(tmp_path / "c.yaml")
    assert read_config(None).recipe == "default" and read_config(training_config(tmp_path)).recipe.endswith("tiny.yaml")
