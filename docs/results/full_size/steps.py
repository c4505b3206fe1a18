"""One training step of the papers' large networks: seconds and memory.

    python docs/results/full_size/steps.py sam|unetr|mn [--device cuda] [--precision bf16] [--steps 2]

``sam``: SAM ViT-B, one canvas of 1024 pixels a side, LoRA of rank 4 (CFR). ``unetr``: UNETR, four crops of 96 voxels,
the comparative objective on the features (comparative pre-training). ``mn``: the 3D UNet of M&N, one patch of
160x160x64. Weights are random, scans are noise; each run is a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainer.losses import supervised_loss
from trainer.network_configs import count_parameters, parse_network_config
from trainer.networks.features import features_out
from trainer.sam import SamSettings, build_sam
from trainer.slice_similarity import comparative_loss, slice_positions_in_patch, take_slices
from trainer.targets import ExclusiveClasses

Step = Callable[[], Tensor]


def sam(device: torch.device) -> tuple[nn.Module, Step]:
    network = build_sam(SamSettings(), 1, 2).to(device)
    image = torch.randn(1, 1, 1024, 1024, device=device)
    labels = (image[:, 0] > 1).long()
    return network, lambda: supervised_loss(network(image), labels, ExclusiveClasses(1))


def unetr(device: torch.device) -> tuple[nn.Module, Step]:
    section = parse_network_config({"kind": "unetr", "position": "perceptron"})
    network = section.build(1, 2, (96, 96, 96)).to(device)
    images = torch.randn(4, 1, 96, 96, 96, device=device)
    scans = torch.tensor([0, 0, 1, 1], device=device)

    def step() -> Tensor:
        with features_out(network, section.module_name("compared")) as found:
            network(images)
        at = slice_positions_in_patch(found[0].shape[2], 4, 4, 0.5).to(device)
        slices = take_slices(found[0], 0, at, scans)
        return comparative_loss(slices.similarity(0.1), slices.triplets("all"))

    return network, step


def mn(device: torch.device) -> tuple[nn.Module, Step]:
    network = parse_network_config({"kind": "unet3d"}).build(1, 2, (160, 160, 64)).to(device)
    image = torch.randn(1, 1, 160, 160, 64, device=device)
    labels = (image[:, 0] > 1).long()
    return network, lambda: supervised_loss(network(image), labels, ExclusiveClasses(1))


NETWORKS = {"sam": sam, "unetr": unetr, "mn": mn}


def main() -> None:
    """See the file's first lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    network, step = NETWORKS[options.network](device)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4)
    print(
        f"{options.network}: {count_parameters(network):,} parameters, "
        f"{sum(p.numel() for p in trained):,} of them train"
    )
    for _ in range(options.steps):
        marks = [time.perf_counter()]
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.precision == "bf16"):
            loss = step()
        _wait(device, marks)
        loss.backward()
        _wait(device, marks)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        _wait(device, marks)
        forward, backward, update = (after - before for before, after in itertools.pairwise(marks))
        print(f"  forward {forward:.1f} s, backward {backward:.1f} s, update {update:.2f} s")
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if device.type == "cuda":
        gigabytes = torch.cuda.max_memory_allocated() / 2**30
    print(f"  largest memory {gigabytes:.1f} GiB, {torch.get_num_threads()} threads, {options.precision}")


def _wait(device: torch.device, marks: list[float]) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
    marks.append(time.perf_counter())


if __name__ == "__main__":
    main()
