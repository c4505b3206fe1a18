"""The torch engine: windows and slab stay on the device. Validation and `semiseg evaluate RUN` use it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from semiseg.bundle.bundle import read_manifest
from semiseg.bundle.manifest import Manifest
from semiseg.engines.engine import Activation, Engine, Start
from trainer.checkpoints import RUN, RunFolder, load_weights
from trainer.students import AnyStudent, read_student


class TorchEngine(Engine):
    """Runs a torch module, and blends its windows on the device that it lives on."""

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

    def open_slab(self, shape: tuple[int, int, int, int], activation: Activation) -> Any:
        """See :meth:`Engine.open_slab`; the slab is a tensor on the device."""
        return _DeviceSlab(torch.zeros(shape, device=self._device), activation)

    @torch.inference_mode()
    def accumulate(self, slab: Any, handle: Any, starts: Sequence[Start], weights: NDArray[np.float32]) -> None:
        """See :meth:`Engine.accumulate`."""
        if slab.weights is None:
            slab.weights = torch.from_numpy(weights.copy()).to(self._device)
        if slab.activation == "softmax":
            handle = torch.softmax(handle, dim=1)
        elif slab.activation == "sigmoid":
            handle = torch.sigmoid(handle)
        for values, (x, y, z) in zip(handle, starts, strict=False):
            _, wx, wy, wz = values.shape
            slab.values[:, x : x + wx, y : y + wy, z : z + wz].addcmul_(values, slab.weights)

    @torch.inference_mode()
    def finish(self, slab: Any, planes: int) -> NDArray[np.float32]:
        """See :meth:`Engine.finish`."""
        done = slab.values[:, :planes].cpu().numpy().copy()
        rest = slab.values.shape[1] - planes
        slab.values[:, :rest] = slab.values[:, planes:].clone()
        slab.values[:, rest:] = 0
        return np.asarray(done)


class _DeviceSlab:
    def __init__(self, values: Tensor, activation: Activation) -> None:
        self.values = values
        self.activation = activation
        self.weights: Tensor | None = None


def student_section(manifest: Manifest) -> AnyStudent:
    """The recipe's ``student`` section, as the manifest keeps it."""
    return read_student(manifest.provenance.student)


def student_of(manifest: Manifest) -> nn.Module:
    """The network that a manifest describes, with random weights."""
    return student_section(manifest).build(len(manifest.channels), manifest.outputs, manifest.patch)


def trained_network(run: Path) -> tuple[Manifest, nn.Module]:
    """A finished run's manifest and exported module, in evaluation mode.

    Raises:
        BundleError: not a run folder.
        RunError: the run has not finished, or its weights do not fit.
    """
    manifest = read_manifest(run / RUN)
    return manifest, load_weights(RunFolder(run).student, student_of(manifest)).eval()


def open_run(run: Path, device: str | None = None) -> tuple[Manifest, TorchEngine]:
    """A finished run ready for :class:`semiseg.inference.segmenter.Segmenter`; see :func:`trained_network`."""
    manifest, network = trained_network(run)
    return manifest, TorchEngine(network, device or ("cuda" if torch.cuda.is_available() else "cpu"))
