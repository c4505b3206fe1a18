"""CPU seconds of a training update with convolution weights in PyTorch's order and channels-last.

    python docs/results/throughput/memory_format.py

A bare loop on random patches of 40x56x40 voxels, batch 4, one thread, float32, AdamW; the two orders take turns.
"""

from __future__ import annotations

import copy
import time

import torch
from monai.networks.nets.unet import UNet
from torch import nn

from trainer.memory_format import use_memory_format

NETWORKS = {
    "recipe hippocampus, 8..128 channels, first level at full resolution": {
        "channels": (8, 16, 32, 64, 128), "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)), "num_res_units": 0,
    },
    "partner of dual, 16..128 channels, residual": {
        "channels": (16, 32, 64, 128), "strides": (2, 2, 2), "num_res_units": 2,
    },
}  # fmt: skip
ROUNDS, UPDATES = 3, 6


def main() -> None:
    """Print the smallest CPU time of an update of each network, order and round."""
    torch.set_num_threads(1)
    patches, labels = torch.randn(4, 1, 40, 56, 40), torch.randint(0, 3, (4, 40, 56, 40))
    for name, settings in NETWORKS.items():
        torch.manual_seed(0)
        network = UNet(spatial_dims=3, in_channels=1, out_channels=3, norm="instance", **settings)
        networks = {
            order: use_memory_format(copy.deepcopy(network), order) for order in ("contiguous", "channels_last")
        }
        optimisers = {order: torch.optim.AdamW(one.parameters()) for order, one in networks.items()}
        for number in range(1, ROUNDS + 1):
            found = {order: seconds(one, optimisers[order], patches, labels) for order, one in networks.items()}
            ratio = found["contiguous"] / found["channels_last"]
            print(f"{name}: round {number}: " + ", ".join(f"{o} {s:.3f}" for o, s in found.items()) + f": {ratio:.2f}")


def seconds(network: nn.Module, optimiser: torch.optim.Optimizer, patches: torch.Tensor, labels: torch.Tensor) -> float:
    """The smallest CPU time of an update, in seconds, after two that do not count."""
    times = []
    for _ in range(UPDATES + 2):
        started = time.process_time()
        nn.functional.cross_entropy(network(patches), labels).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        times.append(time.process_time() - started)
    return min(times[2:])


if __name__ == "__main__":
    main()
