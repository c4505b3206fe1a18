"""`semiseg compare` as a user runs it: it trains, goes on where it stopped, and one failure does not lose the rest."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.trainer.tiny import phantoms, recipe_of


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    phantoms(folder / "data", cases=8, labelled=2, test=2, development=1)
    document = recipe_of("supervised", {"updates": 4, "batch": 4, "patch": [16, 16, 8]}).model_dump(mode="json")
    document["methods"] = {"bcp": {"pretrain": 0.5}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document))
    return folder


def compare(place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli.app", "compare", "--data", str(place / "data"), "--recipe"]
    command += [str(place / "recipe.yaml"), "--labelled", "2", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_a_comparison_trains_judges_and_goes_on(place: Path) -> None:
    out = place / "out"
    changes = ("--set", "bcp:patch=[16, 16, 16]", "--set", "methods.bcp.box=0.5")
    first = compare(place, "--methods", "supervised,bcp", "--out", str(out), *changes)
    assert first.returncode == 0, first.stderr
    assert "trained 2 of 2" in first.stderr
    assert "minus supervised" in first.stdout
    told = [yaml.safe_load((out / "runs" / f"{m}-2-seed0" / "recipe.yaml").read_text()) for m in ("supervised", "bcp")]
    assert [r["recipe"]["patch"] for r in told] == [[16, 16, 8], [16, 16, 16]], "a change may be for one method"
    assert all(r["recipe"]["methods"]["bcp"]["box"] == 0.5 for r in told)
    weights = (out / "runs" / "bcp-2-seed0" / "student.safetensors").stat().st_mtime_ns
    again = compare(place, "--methods", "supervised,bcp,cps", "--out", str(out), *changes)
    assert again.returncode == 0, again.stderr
    assert "bcp-2-seed0: there already" in again.stderr
    assert (out / "runs" / "bcp-2-seed0" / "student.safetensors").stat().st_mtime_ns == weights
    other = compare(place, "--methods", "supervised", "--out", str(out), "--updates", "12", *changes)
    assert other.returncode == 2
    assert "supervised-2-seed0 in" in other.stderr
    assert "made with another recipe, split, budget or --set" in other.stderr
    with (out / "test.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [r["method"] for r in rows] == ["supervised", "bcp", "cps"]
    assert all(0 <= float(r["dice"]) <= 1 for r in rows)
    assert (out / "test.png").stat().st_size > 1000


def test_a_run_that_cannot_work_is_named_and_the_others_are_compared(place: Path) -> None:
    out = place / "broken"
    done = compare(
        place, "--methods", "supervised,magicnet", "--out", str(out), "--on", "development", "--updates", "3"
    )
    assert done.returncode == 1
    assert "failed: magicnet-2-seed0" in done.stderr
    assert "methods.magicnet.cubes" in done.stderr.replace("\n", " ")
    with (out / "development.csv").open() as stream:
        assert [r["method"] for r in csv.DictReader(stream)] == ["supervised"]


def test_a_budget_of_minutes_becomes_updates(place: Path) -> None:
    out = place / "minutes"
    done = compare(place, "--methods", "supervised", "--out", str(out), "--minutes", "0.1", "--on", "development")
    assert done.returncode == 0, done.stderr
    recipe = yaml.safe_load((out / "runs" / "supervised-2-seed0" / "recipe.yaml").read_text())["recipe"]
    assert recipe["updates"] >= 8
    assert recipe["updates"] % 8 == 0
    assert f"supervised: {recipe['updates']} updates in 0.1 min" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--methods", "mn,mn"), "mn is named twice"),
        (("--methods", "mn", "--seeds", "a"), "--seeds takes whole numbers"),
        (("--methods", "mn", "--set", "mm:updates=3"), "--set mm:... is for a method that is not compared"),
        (("--methods", "mn", "--updates", "4", "--minutes", "1"), "not both"),
    ],
)
def test_wrong_use_is_one_sentence(place: Path, options: tuple[str, ...], words: str) -> None:
    done = compare(place, "--out", str(place / "none"), *options)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
