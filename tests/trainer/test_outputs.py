"""Students with further outputs: deep supervision for every method, and networks from outside that return several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from semiseg.dataset import Dataset
from tests.trainer.factories import (
    ALL_METHODS,
    THREE_LEVEL_NETWORK,
    build_method,
    load_run_weights,
    make_batch,
    make_recipe_for,
    make_tiny_plan,
    make_tiny_recipe,
    train_on_cpu,
    write_phantoms,
)
from trainer.engine import load_trained_network
from trainer.errors import RecipeError
from trainer.losses import supervised_loss
from trainer.methods.method import Method
from trainer.networks.outputs import DeepSupervisionNetwork, further_outputs
from trainer.stages import StageSequence
from trainer.targets import ExclusiveClasses

DYNUNET = {"kind": "dynunet", "channels": [4, 6, 8]}
SEVERAL = {"kind": "custom", "function": "tests.trainer.test_outputs:several", "several_outputs": True}


class Several(nn.Module):
    """Logits, and in training a copy of half their size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.coarse = nn.Conv3d(inputs, outputs, 2, stride=2)

    def forward(self, x: Tensor) -> Any:
        return (self.layer(x), self.coarse(x)) if self.training else self.layer(x)


def several(inputs: int, outputs: int) -> nn.Module:
    return Several(inputs, outputs)


def stages_of(method: Method) -> StageSequence:
    torch.manual_seed(0)
    return StageSequence(method)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantoms(tmp_path_factory.mktemp("data"))


FOUR_LEVELS = {**THREE_LEVEL_NETWORK, "channels": [4, 6, 8, 8], "strides": [[2, 2, 2], [2, 2, 2], [1, 1, 1]]}


@pytest.mark.parametrize(("student", "sizes"), [(THREE_LEVEL_NETWORK, [4]), (DYNUNET, [4]), (FOUR_LEVELS, [4, 2])])
def test_the_loss_of_coarser_levels_written_out(student: dict[str, Any], sizes: list[int]) -> None:
    changes = {"student": student, "deep_supervision": 0.7, "batch": 2}
    stages = stages_of(build_method(make_tiny_recipe("supervised", changes)))
    networks, batch = stages.build(), make_batch(2, 0)
    network = networks["student"]
    assert isinstance(network, DeepSupervisionNetwork)
    with further_outputs(network) as heard:
        logits = network(batch.images)
    ((_, coarse),) = heard
    assert [tuple(c.shape[2:]) for c in coarse] == [(size,) * 3 for size in sizes]
    expected = supervised_loss(logits, batch.labels, ExclusiveClasses(2))
    for level, found in enumerate(coarse, start=1):
        step = 8 // sizes[level - 1]
        small = functional.interpolate(batch.labels[:, None].float(), scale_factor=1 / step, mode="nearest-exact")
        expected = expected + 0.7 * 0.5**level * supervised_loss(found, small[:, 0].long(), ExclusiveClasses(2))
    torch.testing.assert_close(stages.loss(networks, batch, stages.step_plan(0))["total"], expected)


OWN_OUTPUTS = ("urpc", "mcnet", "mn_2d", "cfr_ft")


@pytest.mark.parametrize("method", OWN_OUTPUTS)
def test_methods_with_outputs_of_their_own_refuse_deep_supervision(method: str) -> None:
    with pytest.raises(RecipeError, match=f"deep_supervision: {method} .*; leave it out"):
        build_method(make_recipe_for(method, {"student": THREE_LEVEL_NETWORK, "deep_supervision": 1.0}))


@pytest.mark.parametrize("method", [name for name in ALL_METHODS if name not in OWN_OUTPUTS])
def test_every_method_trains_with_deep_supervision_and_exports_the_bare_network(
    dataset: Dataset, tmp_path: Path, method: str
) -> None:
    changes = {"patch": [16, 16, 16], "updates": 4, "student": THREE_LEVEL_NETWORK, "deep_supervision": 1.0, "batch": 4}
    switches: dict[str, Any] = {"partner": {**THREE_LEVEL_NETWORK, "residual_units": 1}} if method == "dual" else {}
    recipe = make_recipe_for(method, changes, **switches)
    plan = make_tiny_plan(dataset, recipe)
    train_on_cpu(dataset, recipe, tmp_path / "run")
    _, network = load_trained_network(tmp_path / "run")
    assert not any("heads" in name for name in load_run_weights(tmp_path / "run"))
    assert network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, plan.stages.last.targets.channels, 16, 16, 16)


# A first stage comes before the student, bcp pastes patches, and the student of dualfete sees no labels.
WITHOUT = ("bcp", "comparative", "contrastive", "cfr", "atlas", "committee", "dualfete", *OWN_OUTPUTS)


@pytest.mark.parametrize("method", [name for name in ALL_METHODS if name not in WITHOUT])
def test_deep_supervision_reaches_every_method_that_shows_the_student_labelled_patches(method: str) -> None:
    changes = {"student": THREE_LEVEL_NETWORK, "deep_supervision": 1.0, "patch": [16, 16, 16], "updates": 8}
    switches: dict[str, Any] = {"partner": {**THREE_LEVEL_NETWORK, "residual_units": 1}} if method == "dual" else {}
    stages = stages_of(build_method(make_recipe_for(method, changes, **switches)))
    networks = stages.build()
    step_plan = stages.step_plan(0)
    stages.prepare(networks, step_plan, 0)
    batch = make_batch(step_plan.composition.labelled, step_plan.composition.unlabelled, side=16)
    assert "deep" in stages.loss(networks, batch, step_plan)


def test_a_student_whose_decoder_nobody_knows_is_refused() -> None:
    two_levels = {"kind": "unet", "channels": [4, 6]}
    changes = {"student": two_levels, "deep_supervision": 1.0, "patch": [32, 32, 32]}
    method = build_method(make_tiny_recipe("supervised", changes))
    with pytest.raises(RecipeError, match=r"deep_supervision: the student \(unet\) does not name the coarser levels"):
        method.build()


@pytest.mark.parametrize(
    ("student", "sizes"),
    [
        ({"kind": "vnet"}, [16, 8, 4]),
        ({"kind": "resnet_vnet"}, [16, 8, 4]),
        ({"kind": "unet3d", "channels": [4, 6, 8]}, [16]),
        ({"kind": "unet3d", "channels": [4, 6, 8, 8]}, [16, 8]),
        ({"kind": "segresnet", "filters": 8, "blocks_down": [1, 1, 1]}, [16]),
        ({"kind": "unetr", "feature_size": 4, "hidden_size": 12, "mlp_dim": 16, "heads": 2}, [16, 8, 4]),
        pytest.param({"kind": "swinunetr", "feature_size": 12}, [16, 8, 4, 2], marks=pytest.mark.long),
    ],
)
def test_the_levels_that_a_decoder_names_halve_the_size_one_after_the_other(
    student: dict[str, Any], sizes: list[int]
) -> None:
    method = build_method(
        make_tiny_recipe("supervised", {"student": student, "deep_supervision": 1.0, "patch": [32, 32, 32]})
    )
    network = method.build()["student"]
    with further_outputs(network) as heard:
        network(torch.zeros(2, 1, 32, 32, 32))
    ((_, coarse),) = heard
    assert [tuple(c.shape) for c in coarse] == [(2, 3, size, size, size) for size in sizes]


def test_nothing_is_computed_for_nobody() -> None:
    network = DeepSupervisionNetwork(nn.Conv3d(1, 2, 1), [("", 2)], 2)
    network.heads[0] = None  # type: ignore[assignment]
    assert network(torch.zeros(1, 1, 2, 2, 2)).shape == (1, 2, 2, 2, 2)


def test_a_network_from_outside_may_return_several_outputs(dataset: Dataset, tmp_path: Path) -> None:
    changes = {"patch": [8, 8, 8], "updates": 3, "student": SEVERAL, "deep_supervision": 0.5}
    train_on_cpu(
        dataset, make_tiny_recipe("mean_teacher", {**changes, "batch": 4}), tmp_path / "run", cache=tmp_path / "cache"
    )
    plain = make_tiny_recipe("mean_teacher", {**changes, "batch": 4, "deep_supervision": 0.0})
    train_on_cpu(dataset, plain, tmp_path / "plain", cache=tmp_path / "cache")
    found, without = load_run_weights(tmp_path / "run"), load_run_weights(tmp_path / "plain")
    assert not torch.equal(found["network.coarse.weight"], without["network.coarse.weight"]), "its second output learns"
    _, network = load_trained_network(tmp_path / "run")
    assert network(torch.zeros(1, 1, 8, 8, 8)).shape[2:] == (8, 8, 8)


def test_a_method_may_ask_for_a_strong_view_of_each_patch(dataset: Dataset, tmp_path: Path) -> None:
    from trainer.cases import prepare_cases
    from trainer.patches import BatchComposition, PatchSampler, PatchSource, load_batches

    brighter = {"gamma_probability": 0.0, "brightness": 2.0, "intensity_probability": 1.0}
    recipe = make_tiny_recipe("supervised", {"strong_augmentation": brighter})
    plan = make_tiny_plan(dataset, recipe)
    cases = prepare_cases(dataset, plan.split.labelled, plan.unlabelled, plan.segments, plan.preprocessing, tmp_path)
    draws = PatchSampler(recipe, cases, plan.split.labelled, plan.unlabelled)
    requests = [draws.requests(0, BatchComposition(2, 2), BatchComposition(0, 0))]
    made = {
        views: next(load_batches(PatchSource(recipe, cases, 2, "edge", views=views), requests, 0, 0, False))
        for views in ((), ("strong",))
    }
    assert torch.equal(made[()].images, made[("strong",)].images), "the patch itself is the same"
    apart = made[("strong",)].views["strong"] - made[("strong",)].images
    assert float(apart.flatten(1).std(dim=1).max()) < 1e-5, "each patch was made brighter or darker as a whole"
    assert float(apart.abs().max()) > 0.1
    parts = list(replace(made[("strong",)], labelled=2).parts(2))
    assert torch.equal(parts[1].views["strong"], made[("strong",)].views["strong"][1::2])
