"""`semiseg suggest` as a user runs it, and the committees it asks."""

from __future__ import annotations

import csv
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cli.app import main
from semiseg.dataset import Dataset
from semiseg.volumes.segmentation import Segment, Segmentation
from tests.datasets import write_dataset
from tests.fork_server import run_semiseg
from tests.trainer.factories import make_tiny_recipe, train_on_cpu, write_phantoms
from trainer.errors import RunError
from trainer.first_scans import EVIDENCE_NOTE
from trainer.suggestion import (
    NetworkCommittee,
    agreement_warning,
    load_committee,
    measure_disagreement,
    unlabelled_scans,
)

AFFINE = np.eye(4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantoms(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    out = {}
    for method, seed in (("mn", 0), ("mean_teacher", 0), ("supervised", 0), ("supervised", 1)):
        run = folder / f"{method}{seed}"
        train_on_cpu(data, make_tiny_recipe(method, {"seed": seed, "batch": 4}), run, cache=folder / "cache")
        out[run.name] = run
    return out


@pytest.mark.parametrize(
    ("names", "voters", "words"),
    [
        (["mn0"], {"2D", "3D"}, "networks of one mn run"),
        (["mean_teacher0"], {"student", "student on a noisy scan"}, "one mean_teacher run"),
        (["supervised0"], {"student", "student on a noisy scan"}, "one supervised run"),
        (["supervised0", "supervised1"], {"supervised0", "supervised1"}, "students of 2 runs"),
    ],
)
def test_committees(runs: dict[str, Path], names: list[str], voters: set[str], words: str) -> None:
    committee = load_committee([runs[n] for n in names], "cpu")
    assert set(committee.members) == voters
    assert words in committee.description


class ConstantVoter:
    """A voter with one answer for every scan."""

    def __init__(self, segments: tuple[Segment, ...], array: np.ndarray) -> None:
        self.answer = Segmentation(segments, array, AFFINE)

    def segment(self, channels: object) -> Segmentation:
        """Its answer."""
        return self.answer


def test_disagreement_is_one_minus_dice_over_pairs_and_segments(data: Dataset, runs: dict[str, Path]) -> None:
    manifest = load_committee([runs["supervised0"]], "cpu").manifest
    first, second = manifest.segments[:2]
    arrays = [np.zeros((4, 4, 4), np.uint8) for _ in range(3)]
    arrays[0][:2] = first.label
    arrays[1][:2] = first.label
    arrays[2][1:3] = first.label  # Dice 1/2 with the other two
    committee = NetworkCommittee(
        dict(zip("abc", (ConstantVoter(manifest.segments, a) for a in arrays), strict=True)), "", manifest
    )  # type: ignore[arg-type]
    (vote,) = measure_disagreement(committee, data, [next(iter(data.cases))])
    assert vote.by_segment[first.name] == pytest.approx((0 + 0.5 + 0.5) / 3)
    assert math.isnan(vote.by_segment[second.name]), "nobody finds it"
    assert vote.disagreement == pytest.approx(1 / 3)


def test_networks_that_agree_almost_everywhere_are_told_to_say_little() -> None:
    assert "agree almost everywhere (median disagreement 0.0030)" in agreement_warning([0.001, 0.003, 0.2, math.nan])
    assert agreement_warning([0.03, 0.05]) == agreement_warning([math.nan]) == ""


def test_the_same_committee_votes_the_same_again(data: Dataset, runs: dict[str, Path]) -> None:
    ids = unlabelled_scans([runs["supervised0"]], data, ())[:2]
    found = [
        [v.disagreement for v in measure_disagreement(load_committee([runs["supervised0"]], "cpu"), data, ids)]
        for _ in range(2)
    ]
    assert found[0] == found[1]


def test_runs_that_segment_other_things_cannot_vote_together(tmp_path: Path, runs: dict[str, Path]) -> None:
    other = write_phantoms(tmp_path / "data")
    changed = make_tiny_recipe("supervised", {"segments": {other.segments[0].name: {"colour": [1, 2, 3]}}})
    train_on_cpu(other, changed, tmp_path / "run")
    with pytest.raises(RunError, match="cannot form a committee"):
        load_committee([runs["supervised0"], tmp_path / "run"], "cpu")


def suggest(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_semiseg("suggest", *arguments)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_the_command_ranks_the_unlabelled_scans_and_draws_the_first(
    data: Dataset, runs: dict[str, Path], tmp_path: Path
) -> None:
    done = suggest(str(runs["mn0"]), "--data", str(data.folder), "--out", str(tmp_path / "out"), "--count", "2")
    assert done.returncode == 0, done.stderr
    assert "Disagreement (1 - Dice) of the networks of one mn run (3D, 2D)" in done.stdout
    rows = table(tmp_path / "out" / "suggestions.csv")
    assert {r["scan"] for r in rows} == set(unlabelled_scans([runs["mn0"]], data, ()))
    values = [float(r["disagreement"]) for r in rows]
    assert values == sorted(values, reverse=True)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == [
        f"0{k + 1}-{rows[k]['scan']}.png" for k in (0, 1)
    ]


def test_a_dataset_without_any_label_or_run_has_its_first_scans_chosen(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", 0, 9)
    done = suggest(str(data.folder), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "chosen among 9 by their images alone (no split file keeps scans for the test)" in done.stdout
    assert EVIDENCE_NOTE in done.stdout
    rows = table(tmp_path / "out" / "suggestions.csv")
    assert {r["scan"] for r in rows} == set(data.cases)
    chosen = [r for r in rows if r["rank"]]
    assert [r["rank"] for r in chosen] == ["1", "2", "3", "4"]
    assert all(r["nearest"] in {c["scan"] for c in chosen} for r in rows)
    assert sum(int(r["represents"]) for r in chosen) == len(rows) - 4 - sum(r["unlike_all"] == "yes" for r in rows)
    pictures = sorted(p.name for p in (tmp_path / "out").glob("*.png"))
    assert pictures == [f"0{r['rank']}-{r['scan']}.png" for r in chosen]
    for row in chosen:
        assert f"{row['rank']}  {row['scan']}  nearest to " in done.stdout


@pytest.mark.parametrize("with_train", [True, False])
def test_scans_that_a_split_keeps_for_judging_are_never_named(tmp_path: Path, with_train: bool) -> None:
    split = {"test": ["s0", "s1"], "development": ["s2"]}
    train = {"train": ["s3", "s4", "s5", "s6"]} if with_train else {}
    data = write_dataset(tmp_path / "data", 8, split={**split, **train})
    done = suggest(str(data.folder), "--out", str(tmp_path / "out"), "--count", "3")
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path / "out" / "suggestions.csv")
    assert {r["scan"] for r in rows} == {"s3", "s4", "s5", "s6"} | (set() if with_train else {"s7"})
    assert not any(name in done.stdout for name in ("s0", "s1", "s2"))


def test_the_first_scans_can_be_chosen_among_some(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", 0, 6)
    done = suggest(str(data.folder), "--out", str(tmp_path / "out"), "--scans", "s1, s3,s5", "--count", "2")
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path / "out" / "suggestions.csv")
    assert {r["scan"] for r in rows} == {"s1", "s3", "s5"}
    assert sum(bool(r["rank"]) for r in rows) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--count", "9"), "9 scans were requested, but there are only 4 to choose from"),
        (("--scans", "nobody"), "no scan called 'nobody'"),
        (("--scans", "s1,s0"), "keeps scan 's0' for judging"),
        (("--data", "elsewhere"), "--data has to be left out"),
        (("another",), "give it alone, or name it with --data"),
    ],
)
def test_a_dataset_that_cannot_be_chosen_from_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    data = write_dataset(tmp_path / "data", 5, split={"test": ["s0"]})
    with pytest.raises(SystemExit) as left:
        main(["suggest", str(data.folder), *options, "--out", str(tmp_path / "out")])
    assert left.value.code in (1, 2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("run", "options", "words"),
    [
        ("none", (), "none"),
        ("mn0", ("--scans", "nobody"), "no scan called 'nobody'"),
        ("mn0", ("--device", "gpu"), "no device 'gpu'"),
    ],
)
def test_wrong_input_is_one_sentence(
    data: Dataset,
    runs: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run: str,
    options: tuple[str, ...],
    words: str,
) -> None:
    arguments = [
        str(runs.get(run, tmp_path / run)),
        *options,
        "--data",
        str(data.folder),
        "--out",
        str(tmp_path / "out"),
    ]
    with pytest.raises(SystemExit) as left:
        main(["suggest", *arguments])
    assert left.value.code in (1, 2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
