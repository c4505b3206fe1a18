"""Masks of a trained network by every graph of its bundle, against MONAI's sliding window over the torch network.

python docs/results/inference/trained.py RUN BUNDLE DATA [WINDOW]

RUN is a finished run, BUNDLE what was exported from it, DATA its dataset; its test scans are segmented, without
cleaning, with windows of WINDOW (such as 32x32x32) or of the bundle's own size. Printed: the share of voxels with
the class that MONAI gives with the same weights of a window, and the Dice of each segment over all scans together; and
the same for MONAI with its own weights.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray

from cli.models import parse_window
from semiseg.bundle.bundle import open_bundle
from semiseg.bundle.manifest import Manifest
from semiseg.dataset import find_split, load_dataset, read_channels, read_split
from semiseg.engines.engine import Engine
from semiseg.engines.onnx import OnnxEngine
from semiseg.engines.openvino import OpenVinoEngine
from semiseg.inference.sliding_window import SlidingWindow
from semiseg.inference.timing import Timing
from semiseg.inference.window_passes import argmax_labels
from semiseg.inference.windows import padding_for, window_weights
from trainer.engine import load_trained_network


def main(run: Path, folder: Path, data: Path, asked: str | None) -> None:
    """See the module."""
    manifest, network = load_trained_network(run)
    bundle = open_bundle(folder)
    window = parse_window(asked) or manifest.window
    dataset = load_dataset(data)
    split = find_split(dataset, None)
    assert split is not None
    engines: dict[str, Engine] = {}
    for variant in bundle.manifest.variants:
        engines[f"{variant.precision} on OpenVINO"] = OpenVinoEngine(bundle.folder / variant.file, threads=1)
        engines[f"{variant.precision} on ONNX Runtime"] = OnnxEngine(bundle.folder / variant.file, threads=1)
    how = SlidingWindow(window, manifest.overlaps, manifest.blending, 1, manifest.outputs, "none")
    weights = torch.from_numpy(window_weights(window, manifest.blending).copy())
    names = [*engines, "MONAI's own weights"]
    equal = dict.fromkeys(names, 0)
    both = {name: np.zeros((3, manifest.outputs)) for name in names}  # intersection, ours, MONAI's
    voxels = windows = 0
    for case_id in read_split(dataset, split).test:
        array = manifest.preprocessing.apply(read_channels(dataset.case(case_id), dataset.channels)).array
        padded = np.pad(array, [(0, 0), *padding_for(array.shape[1:], window)], mode="edge")
        masks: dict[str, NDArray[Any]] = {name: np.zeros(padded.shape[1:], np.uint8) for name in engines}
        for name, engine in engines.items():
            timing = Timing()
            for part in how.blend(engine, padded, timing=timing):
                masks[name][part.place] = argmax_labels(part.sums)
        reference = by_monai(network, padded, window, manifest, weights)
        masks["MONAI's own weights"] = by_monai(network, padded, window, manifest, None)
        voxels += reference.size
        for name, found in masks.items():
            equal[name] += int((found == reference).sum())
            for k in range(manifest.outputs):
                a, b = found == k, reference == k
                both[name][:, k] += (a & b).sum(), a.sum(), b.sum()
        windows += timing.windows
    print(f"{len(read_split(dataset, split).test)} scans, {windows} windows of {window}, {voxels} voxels")
    for name in names:
        dice = [2 * both[name][0, k] / both[name][1:, k].sum() for k in range(1, manifest.outputs)]
        told = ", ".join(f"{segment.name} {d:.5f}" for segment, d in zip(manifest.segments, dice, strict=True))
        print(f"{name}: {equal[name] / voxels:.5%} of voxels, Dice {told}; least {min(dice):.5f}")


def by_monai(
    network: torch.nn.Module,
    array: NDArray[np.float32],
    window: tuple[int, int, int],
    manifest: Manifest,
    weights: torch.Tensor | None,
) -> NDArray[np.int64]:
    """MONAI's sliding window, with given weights of a window or its own."""
    with torch.inference_mode():
        logits = sliding_window_inference(
            torch.from_numpy(array[None]),
            window,
            1,
            network,
            overlap=manifest.overlaps,
            mode=manifest.blending,
            roi_weight_map=weights,
        )
    assert isinstance(logits, torch.Tensor)
    return np.asarray(logits[0].argmax(dim=0).numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else None)
