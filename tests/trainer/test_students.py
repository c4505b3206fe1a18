"""Every student: sizes, divisors, the layers that methods look into, and networks from outside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.errors import RecipeError
from trainer.network_configs import parse_network_config
from trainer.networks.features import features_into, features_out

SMALL: dict[str, dict[str, Any]] = {
    "unet": {"kind": "unet", "channels": [4, 8, 8], "residual_units": 0},
    "unet, residual": {"kind": "unet", "channels": [4, 8], "residual_units": 2},
    "unet, thick slices": {"kind": "unet", "channels": [4, 8, 8], "strides": [[2, 2, 1], [2, 2, 2]]},
    "unet3d": {"kind": "unet3d", "channels": [4, 6, 8]},
    "vnet": {"kind": "vnet", "norm": "instance"},
    "resnet_vnet": {"kind": "resnet_vnet", "norm": "instance"},
    "segresnet": {"kind": "segresnet", "filters": 8, "blocks_down": [1, 1, 1]},
    "dynunet": {"kind": "dynunet", "channels": [4, 6, 8], "strides": [[2, 2, 1], [2, 2, 2]]},
    "unetr": {"kind": "unetr", "feature_size": 4, "hidden_size": 12, "mlp_dim": 16, "heads": 2},
    "swinunetr": {"kind": "swinunetr", "feature_size": 12},
}


def patch_for(section: dict[str, Any]) -> tuple[int, int, int]:
    x, y, z = parse_network_config(section).divisor()
    return (2 * x, y, z) if max(x, y, z) >= 32 else (2 * x, 2 * y, 2 * z)


@pytest.mark.parametrize("name", SMALL)
def test_a_student_makes_logits_of_its_patch_and_learns(name: str) -> None:
    student = parse_network_config(SMALL[name])
    patch = patch_for(SMALL[name])
    torch.manual_seed(0)
    network = student.build(2, 3, patch)
    logits = network(torch.randn(2, 2, *patch))
    assert logits.shape == (2, 3, *patch)
    logits.square().mean().backward()
    idle = {n for n, p in network.named_parameters() if p.grad is None}
    assert all("cross_attn" in n for n in idle), "MONAI's transformer carries a cross attention that UNETR does not use"


@pytest.mark.parametrize("name", SMALL)
def test_the_layers_that_methods_look_into_exist(name: str) -> None:
    student = parse_network_config(SMALL[name])
    patch = patch_for(SMALL[name])
    network = student.build(1, 3, patch).eval()
    with (
        torch.no_grad(),
        features_out(network, student.module_name("deepest")) as deepest,
        features_into(network, student.module_name("features"), patch) as features,
    ):
        network(torch.randn(1, 1, *patch))
    assert len(deepest) == len(features) == 1
    assert {name for part in student.encoder() for name, _ in network.get_submodule(part).named_parameters()}
    assert network.get_submodule(student.module_name("compared")) is not network.get_submodule(
        student.module_name("features")
    )
    assert features[0].shape[2:] == patch, "the last features, enlarged to the patch where they are coarser"
    if name not in ("unetr",):
        coarsest = tuple(p // d for p, d in zip(patch, student.divisor(), strict=True))
        assert tuple(deepest[0].shape[2:]) == coarsest


@pytest.mark.parametrize(
    ("section", "divisor"),
    [
        ("unet", (4, 4, 4)),
        ("unet, thick slices", (4, 4, 2)),
        ("dynunet", (4, 4, 2)),
        ("segresnet", (4, 4, 4)),
        ("vnet", (16, 16, 16)),
        ("unetr", (16, 16, 16)),
        ("swinunetr", (32, 32, 32)),
    ],
)
def test_divisors(section: str, divisor: tuple[int, int, int]) -> None:
    assert parse_network_config(SMALL[section]).divisor() == divisor


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"kind": "unet", "channels": [4, 8], "strides": [[2, 2, 2], [2, 2, 2]]}, "needs 1 entries"),
        ({"kind": "dynunet", "kernels": [[3, 3, 3]]}, "needs 5 entries"),
        ({"kind": "segresnet", "blocks_up": [1]}, "needs 3 entries"),
        ({"kind": "unetr", "hidden_size": 100, "heads": 12}, "not a multiple"),
        ({"kind": "vnets"}, "vnets"),
        ({"kind": "custom", "function": "nowhere"}, "package.module:function"),
        ({"kind": "custom", "function": "no.such.module:build"}, "cannot be imported"),
        ({"kind": "custom", "function": "math:build"}, "no function 'build'"),
    ],
)
def test_a_student_that_cannot_be_is_refused(section: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse_network_config(section)


class Thin(nn.Module):
    """A network from outside the project, as a user would write it."""

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(inputs, width, 3, padding=1)
        self.last = nn.Conv3d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, X, Y, Z) -> (N, outputs, X, Y, Z)."""
        out: Tensor = self.last(torch.relu(self.first(x)))
        return out


def thin(inputs: int, outputs: int, width: int = 4, smaller: bool = False) -> nn.Module:
    """What a recipe names."""
    network = Thin(inputs, outputs, width)
    return nn.Sequential(network, nn.MaxPool3d(2)) if smaller else network


OUTSIDE = {"kind": "custom", "function": f"{__name__}:thin", "several_sizes": True}


def test_a_network_from_outside_is_called_with_its_settings() -> None:
    student = parse_network_config({**OUTSIDE, "settings": {"width": 5}, "modules": {"features": "last"}})
    network = student.build(2, 3, (4, 5, 6))
    assert isinstance(network, Thin)
    assert network.first.out_channels == 5
    assert network.training
    assert student.takes_any_size
    assert student.divisor() == (1, 1, 1)
    assert student.module_name("features") == "last"
    with pytest.raises(RecipeError, match="does not name its module with the role `deepest`"):
        student.module_name("deepest")


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"depth": 3}, "unexpected keyword"), ({"smaller": True}, r"shape \[1, 3, 2, 2, 2\] for a patch of \[4, 4, 4\]")],
)
def test_a_network_from_outside_that_does_not_fit_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse_network_config({**OUTSIDE, "settings": settings}).build(1, 3, (4, 4, 4))


def test_what_is_not_a_network_is_refused() -> None:
    with pytest.raises(RecipeError, match="not a torch module"):
        parse_network_config({"kind": "custom", "function": "builtins:divmod"}).build(7, 3, (4, 4, 4))
