"""Inference engine for torch modules, used by validation and `semiseg evaluate RUN`; all arrays stay on the device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from semiseg.bundle.bundle import read_manifest
from semiseg.bundle.manifest import Manifest
from semiseg.engines.engine import Engine, Start
from semiseg.engines.slab import Activation, Slab, SlabPlan
from trainer.checkpoints import RUN, RunFolder, load_weights
from trainer.network_configs import AnyNetworkConfig, parse_network_config


class TorchEngine(Engine):
    """Engine that runs a torch module and blends its windows on the module's device."""

    name = "torch"

    def __init__(self, network: nn.Module, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self.device = self._device.type
        self.network = network.to(self._device).eval()

    @torch.inference_mode()
    def run(self, windows: NDArray[np.float32]) -> Tensor:
        """See :meth:`Engine.run`."""
        return self.network(torch.from_numpy(np.ascontiguousarray(windows)).to(self._device)).float()

    def logits(self, handle: Any) -> NDArray[np.float32]:
        """See :meth:`Engine.logits`."""
        return np.asarray(handle.cpu().numpy())

    def wrap_logits(self, logits: NDArray[np.float32]) -> Tensor:
        """See :meth:`Engine.wrap_logits`."""
        return torch.from_numpy(logits).to(self._device)

    def open_slab(self, plan: SlabPlan, outputs: int, activation: Activation) -> Any:
        """See :meth:`Engine.open_slab`; the sums are tensors on the device."""
        return _DeviceSlab(plan, outputs, activation, lambda shape: torch.zeros(shape, device=self._device))

    @torch.inference_mode()
    def accumulate(self, slab: Any, handle: Any, row: int, start: Start, weights: NDArray[np.float32]) -> None:
        """See :meth:`Engine.accumulate`."""
        if slab.weights is None:
            slab.weights = torch.from_numpy(weights.copy()).to(self._device)
        values = handle[row]
        if slab.activation == "softmax":
            values = torch.softmax(values, dim=0)
        elif slab.activation == "sigmoid":
            values = torch.sigmoid(values)
        for target, part, place in slab.parts(values, start):
            target.addcmul_(part, slab.weights[place[1:]])

    def completed(self, slab: Any, planes: int, rows: int) -> Iterator[NDArray[np.float32]]:
        """See :meth:`Engine.completed`."""
        for part in slab.completed(planes, rows):
            yield part.cpu().numpy()

    @torch.inference_mode()
    def advance(self, slab: Any, planes: int, rows: int) -> None:
        """See :meth:`Engine.advance`."""
        slab.advance(planes, rows)


class _DeviceSlab(Slab):
    """Slab that also keeps the blending weights of the window on the device."""

    weights: Tensor | None = None


def network_config_from_manifest(manifest: Manifest) -> AnyNetworkConfig:
    """Return the ``student`` section of the recipe, which the manifest contains."""
    return parse_network_config(manifest.provenance.student)


def network_from_manifest(manifest: Manifest) -> nn.Module:
    """Build the network that a manifest describes, with random weights."""
    return network_config_from_manifest(manifest).build(len(manifest.channels), manifest.outputs, manifest.patch)


def load_trained_network(run: Path) -> tuple[Manifest, nn.Module]:
    """Load the manifest of a finished run and its exported module, in evaluation mode.

    Raises:
        BundleError: The folder is not a run folder.
        RunError: The run has not finished, or its weights do not fit the network.
    """
    manifest = read_manifest(run / RUN)
    return manifest, load_weights(RunFolder(run).student, network_from_manifest(manifest)).eval()


def open_run(run: Path, device: str | None = None) -> tuple[Manifest, TorchEngine]:
    """Open a finished run for :class:`semiseg.inference.segmenter.Segmenter`; see :func:`load_trained_network`."""
    manifest, network = load_trained_network(run)
    return manifest, TorchEngine(network, device or ("cuda" if torch.cuda.is_available() else "cpu"))
