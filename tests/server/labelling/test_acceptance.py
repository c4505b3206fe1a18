"""A new model replaces the one in use only if it is not worse, by criteria that were fixed before; and the way back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from semiseg.errors import InputError
from semiseg.evaluation.evaluator import evaluate
from semiseg.evaluation.metrics import SegmentScore
from semiseg.evaluation.result import Evaluation, ScoreRow
from semiseg.volumes.nifti import write_nifti
from semiseg.volumes.volume import Volume
from server.labelling.acceptance import AcceptanceCriteria, decide, select_holdout
from server.labelling.model_history import ModelHistory
from tests.bundles import SEGMENTS, expected_mask
from tests.datasets import AFFINE, random_image, write_dataset

CRITERIA = AcceptanceCriteria()


def figures(dice: dict[str, tuple[float, float]], failed: tuple[str, ...] = ()) -> Evaluation:
    def row(case: str, segment: str, value: float) -> ScoreRow:
        score = SegmentScore(value, value, 0, 0, 0, 1, 1)
        return ScoreRow(case, segment, score, error="it is damaged." if case in failed else None)

    rows = tuple(
        row(case, name, value) for case, pair in dice.items() for name, value in zip(("a", "b"), pair, strict=True)
    )
    return Evaluation("", ("a", "b"), rows)


GOOD = figures({f"t{k}": (0.9, 0.9) for k in range(5)})


def decided(candidate, current, *, labels=GOOD, criteria=CRITERIA, replaces=True, **more):
    return decide(
        criteria, judged_because="", candidate=candidate, current=current, labels=labels, replaces=replaces, **more
    )


def test_a_better_and_an_equal_model_are_accepted_with_their_evidence() -> None:
    before = figures({f"v{k}": (0.7, 0.7) for k in range(4)})
    decision = decided(figures({f"v{k}": (0.8, 0.74) for k in range(4)}), before)
    assert decision.accepted and decision.reasons[0] == "The new model is used."
    assert decision.differences["all"]["mean"] == pytest.approx(0.07)
    assert decision.differences["a"] == {"mean": 0.1, "low": 0.1, "high": 0.1, "scans": 4}
    assert decision.current["v0"] == {"a": 0.7, "b": 0.7} and decision.judged_on == ("v0", "v1", "v2", "v3")
    assert decided(before, before).accepted


def test_a_worse_model_is_refused_with_the_figures() -> None:
    before = figures({f"v{k}": (0.8, 0.8) for k in range(4)})
    decision = decided(figures({f"v{k}": (0.75, 0.75) for k in range(4)}), before)
    assert not decision.accepted and decision.reasons[0] == "The new model is not used."
    assert (
        "worse than the model in use by more than 0.02: the difference of the mean Dice on 4 scans is -0.050"
        in decision.reasons[1]
    )


def test_a_model_that_is_better_on_the_whole_may_not_lose_a_segment() -> None:
    before = figures({f"v{k}": (0.7, 0.7) for k in range(4)})
    decision = decided(figures({f"v{k}": (0.9, 0.6) for k in range(4)}), before)
    assert not decision.accepted and decision.reasons[1].startswith("b is worse by more than 0.05")


def test_the_interval_counts_where_the_criteria_say_so() -> None:
    before = figures({f"v{k}": (0.7, 0.7) for k in range(4)})
    uneven = figures({f"v{k}": (0.7 + d, 0.7 + d) for k, d in enumerate((0.2, 0.2, -0.15, -0.1))})
    assert decided(uneven, before).accepted
    strict = AcceptanceCriteria(interval=True)
    refused = decided(uneven, before, criteria=strict)
    assert not refused.accepted and "may be worse" in refused.reasons[1] and "95% interval" in refused.reasons[1]


def test_the_first_model_is_accepted_and_a_later_one_needs_scans_that_judge() -> None:
    assert decided(None, None, replaces=False).accepted
    decision = decided(None, None)
    assert not decision.accepted and "There are 0 scans to compare the models on" in decision.reasons[1]


def test_a_model_that_leaves_a_segment_empty_or_fails_is_refused() -> None:
    before = figures({f"v{k}": (0.8, 0.8) for k in range(3)})
    empty = figures({f"v{k}": (0.8, 0.0) for k in range(3)})
    assert not decided(empty, before).accepted
    nothing = figures({f"v{k}": (math.nan, math.nan) for k in range(3)})
    assert not decided(nothing, before).accepted
    broken = decided(figures({f"v{k}": (0.9, 0.9) for k in range(3)}, failed=("v1",)), before)
    assert not broken.accepted and broken.failures == {"v1": "it is damaged."}


def test_every_nth_labelled_scan_is_held_back_and_stays_so() -> None:
    labelled = [f"s{k}" for k in range(9)]
    assert select_holdout(labelled, AcceptanceCriteria(hold_back_every=4)) == ["s3", "s7"]
    assert select_holdout([*labelled, "x", "y", "z"], AcceptanceCriteria(hold_back_every=4)) == ["s3", "s7", "z"]
    assert select_holdout(labelled, AcceptanceCriteria(hold_back_every=0)) == []


@pytest.mark.parametrize("poison", ["shifted", "mirrored", "of another scan"])
def test_a_poisoned_label_is_named_and_the_model_not_used(tmp_path: Path, poison: str) -> None:
    """The model segments as the other labels teach it, as one that is trained on several good labels does."""
    dataset = write_dataset(tmp_path, 6)
    for k in range(6):
        label = expected_mask(random_image(k))
        if k == 4 and poison == "shifted":
            label = np.roll(label, 4, axis=2)
        if k == 4 and poison == "mirrored":
            label = label[::-1]
        if k == 4 and poison == "of another scan":
            label = expected_mask(random_image(99))
        write_nifti(tmp_path / "labelsTr" / f"s{k}.nii.gz", label, AFFINE)

    def segment(channels):
        from semiseg.volumes.segmentation import Segmentation

        volume: Volume = next(iter(channels.values()))
        return Segmentation(SEGMENTS, expected_mask(volume.array), volume.affine)

    labels = evaluate(segment, dataset, tuple(dataset.cases))
    decision = decided(GOOD, GOOD, labels=labels)
    assert not decision.accepted and min(decision.labels, key=lambda one: one.new).image == "s4"
    assert decision.reasons[1].startswith("The label of s4 disagrees most")
    assert decided(GOOD, GOOD, labels=labels, criteria=AcceptanceCriteria(least_agreement=0)).accepted


def test_a_poisoned_label_among_those_that_judge_is_named_too() -> None:
    """Both models seem to be bad on it, so the comparison alone would not show it."""
    judges = figures({"v0": (0.9, 0.9), "v1": (0.2, 0.3), "v2": (0.9, 0.9)})
    decision = decided(judges, judges)
    assert not decision.accepted and decision.reasons[1].startswith("The label of v1 disagrees most")


def test_the_way_back_to_an_earlier_model(tmp_path: Path) -> None:
    history, first = ModelHistory(tmp_path), tmp_path / "first"
    assert history.bundle_in_use(first) == first and history.bundle_in_use(None) is None
    with pytest.raises(InputError, match="never changed"):
        history.roll_back("anna")
    for number in (1, 2):
        history.add(f"training/000{number}/bundle", sha256="ab", round=f"000{number}", who="anna", why="better")
    assert history.bundle_in_use(first) == tmp_path / "training" / "0002" / "bundle"
    assert history.roll_back("ben").bundle == "training/0001/bundle"
    assert history.roll_back("ben", 2).round == "0002"
    assert history.roll_back("ben", 0).bundle == "" and history.bundle_in_use(first) == first
    assert history.roll_back("ben").bundle == "training/0002/bundle"
    assert [entry.number for entry in ModelHistory(tmp_path).entries()] == list(range(1, 7))
    with pytest.raises(InputError, match="from 1 to 6"):
        history.roll_back("ben", 9)


def test_the_only_model_is_taken_back_to_the_one_before_all_changes(tmp_path: Path) -> None:
    history = ModelHistory(tmp_path)
    history.add("training/0001/bundle", sha256="ab", round="0001", who="anna", why="first")
    assert history.roll_back("ben").bundle == "" and history.bundle_in_use(None) is None


def test_a_label_that_the_new_model_has_learned_by_heart_is_found_by_the_model_in_use() -> None:
    unseen = figures({"t0": (0.7, 0.8), "t1": (0.6, 0.9), "t2": (0.1, 0.2), "t3": (0.8, 0.7)})
    decision = decided(GOOD, GOOD, unseen=unseen)
    assert (
        not decision.accepted
        and "The label of t2 disagrees most: its Dice with the model in use" in decision.reasons[1]
    )
    by_image = {one.image: one for one in decision.labels}
    assert by_image["t2"].in_use == pytest.approx(0.15) and by_image["t2"].new == 0.9 and by_image["t4"].in_use is None


def test_a_label_that_somebody_has_confirmed_is_not_doubted() -> None:
    unseen = figures({"t0": (0.7, 0.8), "t1": (0.6, 0.9), "t2": (0.1, 0.2), "t3": (0.8, 0.7)})
    decision = decided(GOOD, GOOD, unseen=unseen, confirmed=("t2",))
    assert decision.accepted and [one.image for one in decision.labels if one.confirmed] == ["t2"]
