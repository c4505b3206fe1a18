"""A U-Net with a ResNet-50 encoder on slices, the second 2D network of M&N's ablation (table 4, "ResUNet").

It is MONAI's FlexibleUNet, whose encoder has the tensor names of the usual ResNet-50, so that ImageNet weights in
safetensors fit. The released code does not include this network; the paper only states that its encoder is pretrained
and its decoder trained from scratch.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from trainer.monai_modules import FlexibleUNet
from trainer.networks.encoders import load_encoder_weights, run_padded
from trainer.networks.rgb_input import RGB_CHANNELS

WEIGHTS = "model.safetensors"


class ResUNet(nn.Module):
    """A U-Net for slices of any size, which are padded with their border values to multiples of 32."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.network = FlexibleUNet(
            in_channels=RGB_CHANNELS, out_channels=outputs, backbone="resnet50", pretrained=False, spatial_dims=2
        )

    @property
    def encoder(self) -> nn.Module:
        """The ResNet-50."""
        return self.network.encoder

    def forward(self, slices: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, outputs, H, W)."""
        return run_padded(self.network, slices)


def load_encoder(network: ResUNet, folder: Path) -> None:
    """Load ResNet-50 weights (``model.safetensors``, names as in the usual implementations) into the encoder.

    Raises:
        RecipeError: There is no such file, or it is damaged, or its weights are not a ResNet-50's.
    """
    load_encoder_weights(network.encoder, folder / WEIGHTS, load_file, ("fc.",), "a ResNet-50's")
