"""Seconds per step of comparative and of contrastive pre-training: from one matrix of cosines, and from loops.

    python docs/results/comparative/steps.py [--side 48] [--size paper|small] [--rounds 3] [--loops 1]

Each step is the whole of it: four crops of noise through a UNETR, the objective on the features of ``encoder4`` (or on
the logits), backward, and a step of AdamW. The loops are what the released code does: every cosine anew, 1,152 of them
for Eq. 2, 332,352 for Eq. 3 as released. All take turns in one process.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from trainer.network_configs import count_parameters, parse_network_config
from trainer.networks.features import features_out
from trainer.slice_similarity import (
    SliceFeatures,
    comparative_loss,
    contrastive_loss,
    slice_positions_in_patch,
    take_slices,
)

TEMPERATURE = 0.1
SCANS = torch.tensor([0, 0, 1, 1])
SIZES = {"paper": {}, "small": {"hidden_size": 192, "mlp_dim": 768, "heads": 6}}
Objective = Callable[[SliceFeatures], Tensor]


def triplets(s: SliceFeatures) -> list[tuple[int, int, int]]:
    return [(int(r), int(a), int(d)) for r, a, d in s.triplets("all").nonzero()]


def looped_comparative(s: SliceFeatures) -> Tensor:
    """Two cosines a triplet."""
    total = s.values.new_zeros(s.values.shape[1])
    for r, a, d in triplets(s):
        close = functional.cosine_similarity(s.values[r], s.values[a], dim=-1) / TEMPERATURE
        far = functional.cosine_similarity(s.values[r], s.values[d], dim=-1) / TEMPERATURE
        total = total + functional.softplus(far - close)
    return total.mean()


def looped_contrastive(s: SliceFeatures) -> Tensor:
    """For each triplet a cosine, and one for each entry of the list of dissimilar slices.

    Each triplet goes backward to the features at once: all 332,352 cosines do not fit into 20 GB together.
    """
    listed = triplets(s)
    values = s.values.detach().requires_grad_(True)
    for r, a, _ in listed:
        close = functional.cosine_similarity(values[r], values[a], dim=-1) / TEMPERATURE
        below = close.exp()
        for _, _, d in listed:
            below = below + (functional.cosine_similarity(values[r], values[d], dim=-1) / TEMPERATURE).exp()
        (below.log() - close).mean().backward()
    assert values.grad is not None
    return (s.values * values.grad).sum()  # not the loss, but its gradient


OBJECTIVES: dict[str, Objective] = {
    "comparative (Eq. 2)": lambda s: comparative_loss(s.similarity(TEMPERATURE), s.triplets("all")),
    "contrastive (Eq. 3)": lambda s: contrastive_loss(s.similarity(TEMPERATURE), s.triplets("all"), released=False),
    "contrastive (as released)": lambda s: contrastive_loss(
        s.similarity(TEMPERATURE), s.triplets("all"), released=True
    ),
    "comparative, loops": looped_comparative,
}
LOOPED = "contrastive, loops"


def main() -> None:
    """See the file's first lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=48)
    parser.add_argument("--size", choices=SIZES, default="paper")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loops", type=int, default=1, help="steps of the contrastive loops; they take long")
    parser.add_argument("--stage", choices=("features", "output"), default="features")
    options = parser.parse_args()
    section = parse_network_config({"kind": "unetr", "position": "perceptron", **SIZES[options.size]})
    torch.manual_seed(0)
    network = section.build(1, 2, (options.side,) * 3)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=1e-5)
    images = torch.randn(4, 1, *(options.side,) * 3)
    parts = min(4, options.side // 8)

    def step(objective: Objective) -> tuple[float, float]:
        """Seconds of the step and of its objective, forward."""
        begun = time.perf_counter()
        if options.stage == "features":
            with features_out(network, section.module_name("compared")) as found:
                network(images)
            compared = found[0]
        else:
            compared = network(images)
        slices = take_slices(compared, 0, slice_positions_in_patch(compared.shape[2], parts, 4, 0.5), SCANS)
        between = time.perf_counter()
        loss = objective(slices)
        spent = time.perf_counter() - between
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return time.perf_counter() - begun, spent

    step(OBJECTIVES["comparative (Eq. 2)"])
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in (*OBJECTIVES, LOOPED)}
    for _ in range(options.rounds):
        for name, objective in OBJECTIVES.items():
            seconds[name].append(step(objective))
    for _ in range(options.loops):
        seconds[LOOPED].append(step(looped_contrastive))
    print(
        f"UNETR of {count_parameters(network):,} parameters, four crops of {options.side} voxels a side, on the "
        f"{options.stage}, {torch.get_num_threads()} threads"
    )
    base = statistics.median(whole for whole, _ in seconds["comparative (Eq. 2)"])
    for name, times in seconds.items():
        if times:
            whole, own = (statistics.median(t[k] for t in times) for k in (0, 1))
            print(f"  {name}: {whole:.2f} s a step, of it {own:.3f} s the objective; {whole / base:.2f} of the first")
    print(f"  largest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


if __name__ == "__main__":
    main()
