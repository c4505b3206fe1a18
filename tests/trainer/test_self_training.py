"""Self-training: rounds, restarts, and pseudo-labels that are the last round's predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainer.factories import (
    build_method,
    load_run_weights,
    make_batch,
    make_tiny_recipe,
    train_and_interrupt,
    train_on_cpu,
    weights_equal,
    write_phantoms,
)
from trainer.errors import RunError
from trainer.losses import supervised_loss
from trainer.methods.self_training import SelfTraining
from trainer.pseudo_labels import PseudoLabels


def self_training(changes: dict[str, Any] | None = None, *, unlabelled: int = 12, **switches: Any) -> SelfTraining:
    method = build_method(
        make_tiny_recipe("self_training", {"batch": 4, **(changes or {})}, **switches), unlabelled=unlabelled
    )
    assert isinstance(method, SelfTraining)
    return method


def test_the_updates_are_shared_by_the_rounds() -> None:
    method = self_training({"updates": 10}, rounds=3, first=0.4)
    assert [method.round_at(k)[0] for k in range(10)] == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert [k for k in range(10) if method.refreshes_pseudo_labels(k)] == [4, 6, 8]
    assert [k for k in range(10) if method.restarts(k)] == [4, 6, 8]
    assert not any(self_training({"updates": 10}, restart=False).restarts(k) for k in range(10))


def test_the_schedule_starts_anew_in_every_round() -> None:
    method = self_training({"updates": 8}, first=0.5)
    rates = [method.step_plan(k).rates["student"] for k in range(8)]
    assert rates[:4] == rates[4:]
    assert rates[0] == 0.01
    assert rates[3] < rates[0]


def test_without_unlabelled_scans_there_are_no_rounds() -> None:
    method = self_training({"updates": 8}, unlabelled=0)
    assert {method.step_plan(k).stage for k in range(8)} == {"labelled"}


def test_pseudo_labels_are_learned_like_labels() -> None:
    method = self_training({"updates": 8}, weight=0.5, first=0.5)
    torch.manual_seed(0)
    networks = method.build()
    batch = make_batch(2, 2)
    batch.labels[2:] = 1
    losses = method.loss(networks, batch, method.step_plan(6))
    logits = networks["student"](batch.images)
    labelled = supervised_loss(logits[:2], batch.labels[:2], method.targets)
    pseudo = supervised_loss(logits[2:], batch.labels[2:], method.targets)
    torch.testing.assert_close(losses["total"], labelled + 0.5 * pseudo)
    gradient = torch.autograd.grad(pseudo, list(networks["student"].parameters()), allow_unused=True)
    assert max(float(g.abs().max()) for g in gradient if g is not None) > 1e-6


def test_a_run_uses_its_own_predictions_and_removes_them_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_phantoms(tmp_path / "data")
    seen: list[tuple[int, str, frozenset[int]]] = []
    write = PseudoLabels.write

    def watch(self: PseudoLabels, step: int, source: str, case_id: str, labels: np.ndarray) -> None:
        seen.append((step, case_id, frozenset(np.unique(labels).tolist())))
        assert source == "self_training"
        write(self, step, source, case_id, labels)

    monkeypatch.setattr(PseudoLabels, "write", watch)
    train_on_cpu(dataset, make_tiny_recipe("self_training", {"batch": 4}, rounds=2, first=0.5), tmp_path / "run")
    assert {step for step, _, _ in seen} == {4, 6}
    assert len(seen) == 2 * 4, "each unlabelled scan, once a round"
    assert all(values <= {0, 1, 2, 3} for _, _, values in seen)
    assert not (tmp_path / "run" / "pseudo").exists()


@pytest.mark.parametrize("stop", [3, 4, 5, 7])
def test_resuming_inside_any_round_ends_with_the_same_weights(
    tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_phantoms(tmp_path / "data")
    recipe = make_tiny_recipe("self_training", {"batch": 4, "checkpoint_every": 1}, rounds=2, first=0.5)
    train_on_cpu(dataset, recipe, tmp_path / "whole", cache=tmp_path / "cache")
    train_and_interrupt(dataset, recipe, tmp_path / "broken", stop + 1, cache=tmp_path / "cache")
    train_on_cpu(dataset, recipe, tmp_path / "broken", cache=tmp_path / "cache", resume=True)
    assert weights_equal(load_run_weights(tmp_path / "whole"), load_run_weights(tmp_path / "broken"))


def test_pseudo_labels_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    (tmp_path / "4").mkdir()
    np.save(tmp_path / "4" / "a.npy", np.ones((2, 2, 2), np.uint8))
    assert (PseudoLabels(tmp_path).read(4, "self_training", ["a"])["a"] == 1).all()


def test_missing_pseudo_labels_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="pseudo-labels of step 4"):
        PseudoLabels(tmp_path).read(4, "self_training", ["a"])
