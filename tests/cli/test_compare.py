"""`semiseg compare` as a user runs it: it trains, goes on where it stopped, and one failure does not lose the rest."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from cli.app import main
from tests.fork_server import ForkingSubprocess
from tests.trainer.factories import make_tiny_recipe, write_phantoms


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    write_phantoms(folder / "data", cases=8, labelled=2, test=2, development=1)
    document = make_tiny_recipe("supervised", {"updates": 4, "batch": 4, "patch": [16, 16, 8]}).model_dump(mode="json")
    document["methods"] = {"bcp": {"pretrain": 0.5}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document))
    return folder


@dataclass(frozen=True)
class Said:
    """What a command left."""

    code: int
    out: str
    err: str


@pytest.fixture
def compare(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """The command in this process; what it trains, it trains in processes of their own."""
    monkeypatch.setattr("cli.comparison_runner.subprocess", ForkingSubprocess)

    def run(*options: str) -> Said:
        fixed = ["compare", "--data", str(place / "data"), "--recipe", str(place / "recipe.yaml"), "--labelled", "2"]
        with pytest.raises(SystemExit) as left:
            main([*fixed, *options])
        out, err = capsys.readouterr()
        return Said(int(left.value.code or 0), out, err)

    return run


def test_a_comparison_trains_judges_and_goes_on(place: Path, compare: Callable[..., Said]) -> None:
    out = place / "out"
    changes = ("--set", "bcp:patch=[16, 16, 16]", "--set", "methods.bcp.box=0.5")
    first = compare("--methods", "supervised,bcp", "--out", str(out), *changes)
    assert first.code == 0, first.err
    assert "trained 2 of 2" in first.err
    assert "minus supervised" in first.out
    told = [yaml.safe_load((out / "runs" / f"{m}-2-seed0" / "recipe.yaml").read_text()) for m in ("supervised", "bcp")]
    assert [r["recipe"]["patch"] for r in told] == [[16, 16, 8], [16, 16, 16]], "a change may be for one method"
    assert all(r["recipe"]["methods"]["bcp"]["box"] == 0.5 for r in told)
    weights = (out / "runs" / "bcp-2-seed0" / "student.safetensors").stat().st_mtime_ns
    again = compare("--methods", "supervised,bcp", "--seeds", "0,1", "--out", str(out), *changes)
    assert again.code == 0, again.err
    assert "bcp-2-seed0: there already" in again.err
    assert (out / "runs" / "bcp-2-seed0" / "student.safetensors").stat().st_mtime_ns == weights
    other = compare("--methods", "supervised", "--out", str(out), "--updates", "12")
    assert other.code == 2
    assert "supervised-2-seed0 in" in other.err
    assert "made with another recipe, split, budget or --set" in other.err
    with (out / "test.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [r["method"] for r in rows] == ["supervised", "bcp"]
    assert [r["seeds"] for r in rows] == ["2", "2"]
    assert all(0 <= float(r["dice"]) <= 1 for r in rows)
    assert (out / "test.png").stat().st_size > 1000


def test_a_method_has_several_rows_under_names_of_their_own(place: Path, compare: Callable[..., Said]) -> None:
    out = place / "rows"
    said = compare("--methods", "supervised,fast=supervised", "--out", str(out), "--set", "fast:optimiser.rate=0.003")
    assert said.code == 0, said.err
    told = {
        m: yaml.safe_load((out / "runs" / f"{m}-2-seed0" / "recipe.yaml").read_text()) for m in ("supervised", "fast")
    }
    assert {t["recipe"]["method"] for t in told.values()} == {"supervised"}
    assert told["fast"]["recipe"]["optimiser"]["rate"] == 0.003 != told["supervised"]["recipe"]["optimiser"]["rate"]
    with (out / "test.csv").open() as stream:
        rows = {r["method"]: r for r in csv.DictReader(stream)}
    assert rows["fast"]["difference"], "a row of another name is compared with supervised, too"
    shutil.rmtree(out / "runs" / "fast-2-seed0" / "cache", ignore_errors=True)
    for file in (out / "runs" / "fast-2-seed0").glob("*.safetensors"):
        file.unlink()
    again = compare("--methods", "supervised,fast=supervised", "--out", str(out), "--set", "fast:optimiser.rate=0.003")
    assert again.code == 0, again.err
    assert "trained 2 of 2: fast-2-seed0: there already" in again.err, "its figures are there"
    other = compare("--methods", "fast=bcp", "--out", str(out), "--set", "fast:optimiser.rate=0.003")
    assert other.code == 2
    assert "fast-2-seed0 in" in other.err
    wrong = compare("--methods", "supervised,a/b=supervised", "--out", str(out))
    assert wrong.code == 2
    assert "a row is NAME=METHOD" in wrong.err
    for methods, complaint in (
        ("fast=supervised,fast=bcp", "fast is named twice"),
        ("supervised=bcp", "supervised is a method, so a row of another one cannot have its name"),
    ):
        wrong = compare("--methods", methods, "--out", str(out))
        assert wrong.code == 2
        assert complaint in wrong.err


@pytest.mark.long
def test_draws_and_folds_have_splits_of_their_own_and_go_on(place: Path, compare: Callable[..., Said]) -> None:
    out = place / "drawn"
    repeated = ("--draws", "2", "--folds", "2", "--jobs", "2")
    options = ("--methods", "supervised", *repeated, "--out", str(out), "--updates", "2")
    done = compare(*options)
    assert done.code == 0, done.err
    assert "trained 4 of 4" in done.err and "of draws" in done.out
    splits = sorted((out / "splits").glob("*.json"))
    assert [file.name for file in splits] == [f"draw{d}-fold{f}.json" for d in (1, 2) for f in (1, 2)]
    with (out / "test.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert (row["draws"], row["seeds"]) == ("2", "1")
    again = compare(*options)
    assert again.code == 0 and "supervised-2-seed0-draw2-fold2: there already" in again.err
    splits[0].write_text(splits[1].read_text())
    other = compare(*options)
    assert other.code == 2 and "holds another split than this comparison would draw" in other.err


@pytest.mark.long
def test_draws_of_the_labelled_scans_keep_the_splits_test_scans(place: Path, compare: Callable[..., Said]) -> None:
    out = place / "draws"
    done = compare("--methods", "supervised", "--draws", "2", "--out", str(out), "--updates", "2")
    assert done.code == 0, done.err
    tested = {file.parent.parent.name: file.read_text() for file in (out / "runs").glob("*/test/scores.json")}
    assert set(tested) == {"supervised-2-seed0-draw1", "supervised-2-seed0-draw2"}
    refused = compare("--methods", "supervised", "--folds", "2", "--on", "development", "--out", str(place / "no"))
    assert refused.code == 2 and "leave --split and --on out" in refused.err


def test_a_run_that_cannot_work_is_named_and_the_others_are_compared(place: Path, compare: Callable[..., Said]) -> None:
    out = place / "broken"
    done = compare(
        "--methods", "supervised,magicnet", "--out", str(out), "--on", "development", "--updates", "3", "--jobs", "2"
    )
    assert done.code == 1
    assert "failed: magicnet-2-seed0" in done.err
    assert "methods.magicnet.cubes" in done.err.replace("\n", " ")
    with (out / "development.csv").open() as stream:
        assert [r["method"] for r in csv.DictReader(stream)] == ["supervised"]


@pytest.mark.long
def test_a_budget_of_minutes_becomes_updates(place: Path, compare: Callable[..., Said]) -> None:
    out = place / "minutes"
    done = compare("--methods", "supervised", "--out", str(out), "--minutes", "0.1", "--on", "development")
    assert done.code == 0, done.err
    recipe = yaml.safe_load((out / "runs" / "supervised-2-seed0" / "recipe.yaml").read_text())["recipe"]
    assert recipe["updates"] >= 8
    assert recipe["updates"] % 8 == 0
    assert f"supervised: {recipe['updates']} updates in 0.1 min" in done.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--methods", "mn,mn"), "mn is named twice"),
        (("--methods", "mn", "--seeds", "a"), "--seeds takes whole numbers"),
        (("--methods", "mn", "--set", "mm:updates=3"), "--set mm:... is for a method that is not compared"),
        (("--methods", "mn", "--updates", "4", "--minutes", "1"), "not both"),
    ],
)
def test_wrong_use_is_one_sentence(
    place: Path, compare: Callable[..., Said], options: tuple[str, ...], words: str
) -> None:
    done = compare("--out", str(place / "none"), *options)
    assert done.code == 2
    assert words in done.err
    assert len(done.err.strip().splitlines()) == 1
