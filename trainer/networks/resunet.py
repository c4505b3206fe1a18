"""A U-Net with a ResNet-50 encoder on slices: the second 2D network of M&N's ablation (table 4, "ResUNet").

MONAI's FlexibleUNet; its encoder has the tensor names of the usual ResNet-50, so ImageNet weights in safetensors fit.
The released code does not hold this network; what the paper says is a pretrained encoder and a decoder from scratch.
"""

from __future__ import annotations

from pathlib import Path

from monai.networks.nets.flexible_unet import FlexibleUNet
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from trainer.errors import RecipeError
from trainer.networks.colours import COLOURS

DIVISOR = 32  # the encoder halves a slice five times
WEIGHTS = "model.safetensors"


class ResUNet(nn.Module):
    """Logits of slices of any size: padded by their border to multiples of 32, and cut again."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.network = FlexibleUNet(
            in_channels=COLOURS, out_channels=outputs, backbone="resnet50", pretrained=False, spatial_dims=2
        )

    @property
    def encoder(self) -> nn.Module:
        """The ResNet-50."""
        return self.network.encoder

    def forward(self, slices: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, outputs, H, W)."""
        height, width = slices.shape[-2:]
        missing = (0, -width % DIVISOR, 0, -height % DIVISOR)
        padded = functional.pad(slices, missing, mode="replicate") if any(missing) else slices
        return self.network(padded)[..., :height, :width]


def load_encoder(network: ResUNet, folder: Path) -> None:
    """Load ResNet-50 weights (``model.safetensors``, names as in the usual implementations) into the encoder.

    Raises:
        RecipeError: no such file, damaged, or not a ResNet-50's.
    """
    path = folder / WEIGHTS
    try:
        tensors = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("fc.")}
        # num_batches_tracked counts training steps; some files leave it out, and nothing here reads it.
        missing, unexpected = network.encoder.load_state_dict(tensors, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RecipeError(f"The teacher's weights {path} cannot be loaded: {' '.join(str(error).split())}") from None
    wrong = [name for name in missing if not name.endswith("num_batches_tracked")] + list(unexpected)
    if wrong:
        raise RecipeError(f"The teacher's weights {path} are not a ResNet-50's; {wrong[0]} does not fit.")
