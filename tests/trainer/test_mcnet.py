"""MC-Net: one encoder, several decoders, and the loss written out (Wu et al. 2022)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.factories import (
    build_method,
    make_batch,
    make_recipe_for,
    make_tiny_recipe,
    train_on_cpu,
    write_phantoms,
)
from trainer.engine import load_trained_network
from trainer.errors import RecipeError
from trainer.losses import dice_pooled
from trainer.methods.mcnet import MCNet
from trainer.methods.method import Networks
from trainer.networks.ensemble import NetworkEnsemble
from trainer.networks.shared_encoder import SharedEncoderNetwork

VNET = {"kind": "vnet", "dropout": 0.5}


def mcnet(changes: dict[str, Any] | None = None, **switches: Any) -> MCNet:
    method = build_method(make_tiny_recipe("mcnet", {"batch": 4, **(changes or {})}, **switches))
    assert isinstance(method, MCNet)
    return method


def built(method: MCNet) -> tuple[Networks, SharedEncoderNetwork]:
    torch.manual_seed(0)
    networks = method.build()
    decoders = networks["student"]
    assert isinstance(decoders, SharedEncoderNetwork)
    return networks, decoders


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("detach", [False, True])
def test_the_loss_and_its_gradient_written_out(count: int, detach: bool) -> None:
    method = mcnet(decoders=count, detach=detach, weight=2.0, ramp=0.0, temperature=0.5, cross_entropy=0.3)
    networks, decoders = built(method)
    batch = make_batch(2, 2)
    p = [torch.softmax(member(batch.images), 1) for member in decoders.members()]
    target = torch.movedim(nn.functional.one_hot(batch.labels[:2], 3), -1, 1).float()
    expected = torch.zeros(())
    for one in p:
        expected = expected + 0.5 * dice_pooled(one[:2, 1:], target[:, 1:])
        expected = expected - 0.3 * (target * one[:2].log()).sum(1).mean()
    for i in range(count):
        for j in range(count):
            sharp = p[j] ** 2 / (p[j] ** 2 + (1 - p[j]) ** 2)
            if i != j:
                expected = expected + 2.0 * ((p[i] - (sharp.detach() if detach else sharp)) ** 2).mean()
    loss = method.loss(networks, batch, method.step_plan(0))["total"]
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    weights = list(decoders.parameters())
    for one, other in zip(torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_certain_probabilities_have_finite_gradients() -> None:
    method = mcnet(temperature=0.1)
    y = torch.tensor([300.0, -300.0, 0.0]).view(1, 3, 1, 1, 1).requires_grad_()
    z = torch.tensor([-300.0, 300.0, 0.0]).view(1, 3, 1, 1, 1).requires_grad_()
    method.consistency([torch.softmax(y, 1), torch.softmax(z, 1)]).backward()
    assert y.grad is not None and bool(torch.isfinite(y.grad).all())


def test_all_decoders_have_one_encoder_and_each_its_own_decoder() -> None:
    _, decoders = built(mcnet({"student": VNET}))
    first, *others = decoders.members()
    for other in others:
        assert other.stem is first.stem and other.down is first.down and other.deepest is first.deepest
        assert other.decoder is not first.decoder and other.head is not first.head
    ups = [type(member.decoder.up[0][0]).__name__ for member in decoders.members()]  # type: ignore[index, union-attr]
    assert ups == ["ConvTranspose3d", "Upsample", "Upsample"]
    assert [member.decoder.up[0][0].mode for member in others] == ["trilinear", "nearest"]  # type: ignore[index, union-attr]
    counted = sum(p.numel() for p in decoders.parameters())
    alone = sum(p.numel() for p in first.parameters())
    shared = sum(p.numel() for name in ("stem", "down", "deepest") for p in getattr(first, name).parameters())
    rest = sum(sum(p.numel() for p in other.parameters()) - shared for other in others)
    assert counted == alone + rest, "an optimiser sees each weight once"


@pytest.mark.parametrize(
    "student",
    [
        {"kind": "unet", "channels": [4, 8], "residual_units": 2, "norm": "batch"},
        {"kind": "vnet", "dropout": 0.3},
        {"kind": "unet3d", "channels": [4, 8, 8]},
        {"kind": "segresnet", "filters": 8, "blocks_down": [1, 1]},
        {"kind": "dynunet", "channels": [4, 6, 8]},
        {"kind": "unetr", "feature_size": 4, "hidden_size": 12, "mlp_dim": 16, "heads": 2},
    ],
    ids=lambda s: s["kind"],
)
def test_the_decoders_see_the_features_of_one_call_of_the_encoder(student: dict[str, Any]) -> None:
    method = mcnet({"student": student, "patch": [32, 32, 32], "batch": 2}, differ="start")
    networks, decoders = built(method)
    calls: dict[str, int] = {}
    names = method.decoder_configs()[0].encoder()
    for name in names:
        module = decoders.network.get_submodule(name)
        inner = [m for m in module.modules() if isinstance(m, nn.Conv3d | nn.Linear)]
        for k, leaf in enumerate(inner):

            def count(*_: Any, key: str = f"{name} {k}") -> None:
                calls[key] = calls.get(key, 0) + 1

            leaf.register_forward_hook(count)
    batch = make_batch(1, 1, side=32)
    method.loss(networks, batch, method.step_plan(0))["total"].backward()
    assert calls
    assert set(calls.values()) == {1}, {k: v for k, v in calls.items() if v > 1}
    once = decoders.network(batch.images)
    assert bool(torch.isfinite(once).all()), "afterwards the modules are as they were"
    assert not torch.equal(decoders.network(batch.images + 1), once)


def test_the_first_decoder_is_exported_as_the_student_that_it_is_or_the_mean_of_all(tmp_path: Path) -> None:
    dataset = write_phantoms(tmp_path / "data")
    changes = {"patch": [32, 16, 16], "updates": 2, "student": {"kind": "vnet", "norm": "instance"}, "batch": 2}
    train_on_cpu(dataset, make_recipe_for("mcnet", changes), tmp_path / "first", cache=tmp_path / "cache")
    manifest, network = load_trained_network(tmp_path / "first")
    assert manifest.provenance.student["kind"] == "vnet"
    assert not isinstance(network, NetworkEnsemble)
    train_on_cpu(dataset, make_recipe_for("mcnet", changes, export="mean"), tmp_path / "mean", cache=tmp_path / "cache")
    _, mean = load_trained_network(tmp_path / "mean")
    assert isinstance(mean, NetworkEnsemble)
    x = torch.randn(1, 1, 32, 16, 16)
    own: Tensor = network(x)
    torch.testing.assert_close(mean.members[0](x), own)
    p = torch.stack([torch.softmax(member(x), 1) for member in mean.members]).mean(0)
    torch.testing.assert_close(torch.softmax(mean(x), 1), p)
    assert not torch.allclose(p, torch.softmax(own, 1), atol=1e-3)


def test_the_moving_average_of_the_mean_of_all_follows_each_of_them(tmp_path: Path) -> None:
    """The decoders share their encoder in training, and the exported mean has one for each."""
    dataset = write_phantoms(tmp_path / "data")
    changes = {"patch": [16, 16, 16], "updates": 3, "batch": 2}
    last = make_recipe_for("mcnet", {**changes, "ema": 1e-9}, export="mean")
    train_on_cpu(
        dataset, make_recipe_for("mcnet", changes, export="mean"), tmp_path / "plain", cache=tmp_path / "cache"
    )
    train_on_cpu(dataset, last, tmp_path / "average", cache=tmp_path / "cache")
    plain, average = (load_trained_network(tmp_path / name)[1].state_dict() for name in ("plain", "average"))
    for key, value in plain.items():
        torch.testing.assert_close(average[key], value, msg=key)


def test_a_student_without_an_encoder_is_refused_by_name() -> None:
    student = {"kind": "custom", "function": "tests.trainer.test_students:thin"}
    with pytest.raises(
        RecipeError, match=r"mcnet gives several decoders one encoder, and the student \(custom\) .*student\.encoding"
    ):
        mcnet({"student": student})
