"""Networks with further outputs beside the logits, such as coarser logits for deep supervision.

Such a network is called as any other and returns its logits alone. A loss that needs the further outputs of calls
collects them inside the ``with`` of :func:`further_outputs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from semiseg.deprecation import renamed_attributes
from trainer.networks.features import features_out
from trainer.networks.training_wrapper import TrainingWrapper

Listener = Callable[[Tensor, tuple[Tensor, ...]], None]

if not TYPE_CHECKING:
    __getattr__ = renamed_attributes(__name__, SeveralOutputs="MultiOutputNetwork")


class MultiOutputNetwork(nn.Module):
    """A network whose module returns logits, or, in training, logits and further outputs.

    Attributes:
        network: The module: images (N, C, X, Y, Z) to logits, or to a tuple or list that begins with the logits.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.listeners: list[Listener] = []

    def forward(self, images: Tensor) -> Tensor:
        """The logits (N, K, X, Y, Z)."""
        found = self.outputs(images)
        for listener in self.listeners:
            listener(images, found[1:])
        return found[0]

    def outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """The logits and the further outputs."""
        found = self.network(images)
        return (found,) if isinstance(found, Tensor) else tuple(found)


class DeepSupervisionNetwork(MultiOutputNetwork, TrainingWrapper):
    """A network with a 1x1x1 convolution from each coarser level of its decoder to logits, in training only.

    Dou et al., "3D deeply supervised network", MICCAI 2016; nnU-Net is trained this way. The convolutions are not part
    of the network that is exported.
    """

    def __init__(self, network: nn.Module, levels: Sequence[tuple[str, int]], outputs: int) -> None:
        """Add the convolutions.

        Args:
            network: The network.
            levels: Name of the module whose output is the features of each coarser level, finest first, and number of
                its channels.
            outputs: Number of channels of the logits.
        """
        super().__init__(network)
        self._names = [name for name, _ in levels]
        self.heads = nn.ModuleList(nn.Conv3d(channels, outputs, 1) for _, channels in levels)

    def outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """The logits, and those of the coarser levels if there are listeners."""
        if not self.listeners or not torch.is_grad_enabled():
            logits: Tensor = self.network(images)
            return (logits,)
        with ExitStack() as stack:
            found = [stack.enter_context(features_out(self.network, name)) for name in self._names]
            logits = self.network(images)
        pairs = zip(self.heads, found, strict=True)
        return (logits, *(head(features[0]) for head, features in pairs))


@contextmanager
def further_outputs(network: nn.Module) -> Iterator[list[tuple[Tensor, tuple[Tensor, ...]]]]:
    """Collect the images and further outputs of each call inside the ``with`` of a network that has further outputs."""
    heard: list[tuple[Tensor, tuple[Tensor, ...]]] = []

    def note(images: Tensor, outputs: tuple[Tensor, ...]) -> None:
        if outputs:
            heard.append((images, outputs))

    if not isinstance(network, MultiOutputNetwork):
        yield heard
        return
    network.listeners.append(note)
    try:
        yield heard
    finally:
        network.listeners.remove(note)
