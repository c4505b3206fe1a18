"""The papers' V-Nets: parameters as the released code has them, sizes, and the layers that methods look into."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.network_configs import count_parameters
from trainer.networks.features import features_into, features_out
from trainer.networks.vnet import ResNetVNet, VNet


@pytest.mark.parametrize(
    ("network", "outputs", "norm", "parameters"),
    [(VNet, 2, "batch", 9_448_866), (VNet, 14, "instance", 9_443_470), (ResNetVNet, 2, "batch", 17_930_354)],
)
def test_they_have_the_papers_number_of_parameters(
    network: type[nn.Module], outputs: int, norm: str, parameters: int
) -> None:
    with torch.device("meta"):
        made = network(1, outputs, norm)
    assert count_parameters(made) == parameters


def test_the_resnet_encoder_has_the_released_codes_parameters() -> None:
    with torch.device("meta"):
        made = ResNetVNet(1, 2)
    assert count_parameters(made.stem) + count_parameters(made.down) == 15_858_384


@pytest.mark.parametrize("network", [VNet, ResNetVNet])
def test_logits_are_the_patchs_size_and_the_named_layers_are_there(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    made = network(2, 3, "instance").eval()
    size = (32, 16, 16)
    with torch.no_grad(), features_out(made, "deepest") as deep, features_into(made, "head", size) as last:
        logits = made(torch.randn(1, 2, *size))
    assert logits.shape == (1, 3, *size)
    assert deep[0].shape == (1, 256, 2, 1, 1)
    assert last[0].shape == (1, 16, *size)
    assert not made._forward_hooks
    assert not made.get_submodule("deepest")._forward_hooks, "nothing stays behind in the network"


def test_dropout_is_off_until_asked_for() -> None:
    torch.manual_seed(0)
    patch = torch.randn(1, 1, 16, 16, 32)
    for rate, same in ((0.0, True), (0.5, False)):
        made = VNet(1, 2, "batch", rate).train()
        with torch.no_grad():
            assert torch.equal(made(patch), made(patch)) is same
