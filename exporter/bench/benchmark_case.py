"""A case of the benchmark: a student, a number of classes, a volume and a window; and the student's graphs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exporter.cpu_rewrites import replace_group_norms, replace_transposed_convolutions
from exporter.onnx import export_onnx
from exporter.precision import to_half, to_int8
from semiseg.bundle.variant import Precision
from semiseg.engines.slab import Triple
from semiseg.volumes.volume import format_shape
from trainer.network_configs import AnyNetworkConfig, parse_network_config

STUDENTS: dict[str, dict[str, Any]] = {
    "unet": {"kind": "unet", "channels": [16, 32, 64, 128, 256]},
    "unet-plain": {"kind": "unet", "channels": [16, 32, 64, 128, 256], "residual_units": 0},
    "vnet": {"kind": "vnet"},
    "segresnet": {"kind": "segresnet"},
    "dynunet": {"kind": "dynunet"},
}
OVERLAP = 0.5


@dataclass(frozen=True)
class BenchmarkCase:
    """One row of the table.

    Attributes:
        student: A key of ``STUDENTS``.
        classes: Number of classes, including the background.
        shape, window: Sizes of the volume and of a window in voxels.
        rounds: Number of runs of each backend; the backends run in turn.
    """

    student: str
    classes: int
    shape: Triple
    window: Triple
    rounds: int = 3

    def __str__(self) -> str:
        """A title such as ``unet, 3 classes, 256x256x128, window 96x96x96``."""
        shape, window = (format_shape(sides) for sides in (self.shape, self.window))
        return f"{self.student}, {self.classes} classes, {shape}, window {window}"

    @property
    def recipe(self) -> AnyNetworkConfig:
        """The student's configuration."""
        return parse_network_config(STUDENTS[self.student])

    def network(self) -> nn.Module:
        """Build the student with random weights, which are always the same."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.recipe.build(1, self.classes, self.window).eval()

    def volume(self) -> NDArray[np.float32]:
        """Return smooth random intensities (1, X, Y, Z) with mean 0 and standard deviation 1."""
        rng = np.random.default_rng(0)
        coarse = torch.from_numpy(rng.standard_normal((1, 1, *(max(2, n // 16) for n in self.shape)), np.float32))
        smooth = nn.functional.interpolate(coarse, size=self.shape, mode="trilinear")[0].numpy()
        smooth += 0.1 * rng.standard_normal(smooth.shape, np.float32)
        return np.asarray((smooth - smooth.mean()) / smooth.std(), dtype=np.float32)


def write_graph(case: BenchmarkCase, folder: Path, precision: Precision) -> Path:
    """Write the student's graph in a precision, as :mod:`exporter.export` writes it."""
    network, target, source = case.network(), folder / f"{precision}.onnx", folder / "source.onnx"
    divisor = case.recipe.divisor() if case.recipe.takes_any_size else None

    def export(module: nn.Module, to: Path) -> Path:
        export_onnx(module, to, inputs=1, window=case.window, divisor=divisor)
        return to

    if precision == "fp32":
        return export(replace_group_norms(network), target)
    if precision == "int8":
        volume = case.volume()
        x, y, z = case.window
        windows = [volume[:, :x, :y, :z], volume[:, -x:, -y:, -z:]]
        to_int8(export(replace_transposed_convolutions(replace_group_norms(network)), source), target, windows)
    else:
        to_half(export(network, source), target, precision)
    source.unlink()
    return target


def convolution_flops(case: BenchmarkCase) -> int:
    """Return the number of operations of the convolutions per window; a multiplication and an addition are two."""
    total = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv3d | nn.ConvTranspose3d)
        per_voxel = 2 * module.weight[0].numel()  # per input voxel if transposed, else per output voxel
        voxels = inputs[0] if isinstance(module, nn.ConvTranspose3d) else output
        total += per_voxel * voxels[0].numel()

    network = case.network().to("meta")
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.register_forward_hook(count)
    with torch.inference_mode():
        network(torch.empty(1, 1, *case.window, device="meta"))
    return total
