"""`semiseg train` as it is typed: what it says, and that wrong use ends in one sentence and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cli.app import main
from tests.trainer.factories import make_tiny_recipe, write_phantoms


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("command")
    write_phantoms(made / "data")
    (made / "recipe.yaml").write_text(yaml.safe_dump(make_tiny_recipe("mn").model_dump(mode="json")))
    return made


def train(folder: Path, run: str, *more: str) -> None:
    options = ["--data", folder / "data", "--recipe", folder / "recipe.yaml", "--out", folder / run, "--device", "cpu"]
    with pytest.raises(SystemExit) as end:
        main(["train", *map(str, options), *more])
    if end.value.code:
        raise RuntimeError(f"exit code {end.value.code}")


def test_the_command_ends_with_the_run_folder_and_says_that_nothing_was_validated(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(folder, "run", "--method", "mean_teacher", "--set", "updates=4")
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(folder / "run")]
    words = " ".join(err.split())
    assert "mean_teacher on Phantoms: 2 labelled, 4 unlabelled, 0 validation scans; 4 updates" in words
    assert "not validated: the split has no validation list, so the last iterate is kept" in words
    assert json.loads((folder / "run" / "run.json").read_text())["provenance"]["method"] == "mean_teacher"


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--set", "updaets=3"), "updaets"),
        (("--set", "windows=[[9,9,9]]"), "multiples of [2, 2, 2]"),
        (("--method", "magic"), "There is no method 'magic'"),
        (("--labelled", "99"), "99 labelled scans were requested"),
        (("--recipe", "nothing"), "no recipe file nothing"),
        (("--data", "nowhere"), "nowhere is not a folder"),
        (("--device", "abacus"), "no device 'abacus'"),
        (("--split", "nowhere.json"), "nowhere.json cannot be read"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(RuntimeError, match="exit code 2"):
        train(folder, "refused", "--quiet", *more)
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.strip().splitlines()
    assert line.startswith("semiseg: ")
    assert complaint in line
    assert "Traceback" not in err


def untold(folder: Path, run: str, *more: str) -> int:
    """`semiseg train` with no recipe named."""
    options = ["--data", folder / "data", "--out", folder / run, "--device", "cpu", "--method", "supervised"]
    with pytest.raises(SystemExit) as end:
        main(["train", *map(str, options), *more])
    return int(end.value.code or 0)


def test_without_a_recipe_everything_is_decided_told_and_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert untold(folder, "told", "--dry-run") == 0
    out, err = capsys.readouterr()
    assert "supervised, 2000 steps" in out and "all of it" in out
    assert "for training on a processor" in " ".join(err.split())
    assert not (folder / "told").exists(), "a dry run leaves nothing"
    assert untold(folder, "told", "--set", "updates=2") == 0
    kept = {d["key"]: d for d in json.loads((folder / "told" / "decisions.json").read_text())}
    recipe = yaml.safe_load((folder / "told" / "recipe.yaml").read_text())["recipe"]
    assert recipe["student"] == kept["student"]["value"]
    assert "updates" not in kept and recipe["updates"] == 2
    assert all(d["reason"] for d in kept.values())


def test_a_budget_is_kept_and_a_resumed_run_goes_on_as_it_began(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.time_estimate import TimeEstimator

    with monkeypatch.context() as patch:
        patch.setattr(TimeEstimator, "_step", lambda self, plan, number, cases: 1.0)
        assert untold(folder, "budget", "--budget", "64s") == 0
    recipe = yaml.safe_load((folder / "budget" / "recipe.yaml").read_text())["recipe"]
    assert recipe["updates"] == 64
    assert untold(folder, "budget", "--budget", "2h", "--resume") == 0, "nothing is timed, and it has ended"
    assert untold(folder, "other", "--budget", "soon") == 2
    assert untold(folder, "other", "--budget", "1s") == 2
    assert untold(folder, "other", "--budget", "30m", "--set", "updates=3") == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "A budget is a time such as 30m" in err
    assert "which is too few" in err
    assert "leave one of them out" in err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert untold(folder, "other", "--budget", "30m") == 2
    assert "Several processes would time themselves differently" in " ".join(capsys.readouterr().err.split())
