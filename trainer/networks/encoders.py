"""Functions for U-Nets on slices with a pretrained encoder: padding of slices, and the loading of weights."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from trainer.errors import RecipeError

DIVISOR = 32  # the encoders halve a slice five times


def run_padded(network: Callable[[Tensor], Tensor], slices: Tensor) -> Tensor:
    """Return logits (N, K, H, W) of slices (N, C, H, W), padded with border values to multiples of 32 meanwhile."""
    height, width = slices.shape[-2:]
    missing = (0, -width % DIVISOR, 0, -height % DIVISOR)
    padded = functional.pad(slices, missing, mode="replicate") if any(missing) else slices
    return network(padded)[..., :height, :width]


def load_encoder_weights(
    encoder: nn.Module, path: Path, read: Callable[[Path], Any], beyond: tuple[str, ...], whose: str
) -> None:
    """Load an encoder's weights.

    Args:
        encoder: The encoder.
        path: File of the weights.
        read: Function from a file to its tensors by name.
        beyond: Prefixes of the names of tensors that are not part of the encoder.
        whose: Name of the network for the error, such as ``a ResNet-50's``.

    Raises:
        RecipeError: There is no such file, or it is damaged, or its weights are another network's.
    """
    try:
        tensors = {name: tensor for name, tensor in read(path).items() if not name.startswith(beyond)}
        # num_batches_tracked counts training steps; some files omit it, and nothing here reads it.
        missing, unexpected = encoder.load_state_dict(tensors, strict=False)
    except (OSError, SafetensorError, RuntimeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        raise RecipeError(f"The teacher's weights {path} cannot be loaded: {' '.join(str(error).split())}") from None
    wrong = [name for name in missing if not name.endswith("num_batches_tracked")] + list(unexpected)
    if wrong:
        raise RecipeError(f"The teacher's weights {path} are not {whose}; {wrong[0]} does not fit.")
