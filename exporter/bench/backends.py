"""Who is timed: a volume (1, X, Y, Z) in memory to its mask (X, Y, Z) in memory, by ourselves and by others.

All with the same network, window, overlap and Gaussian blending, on the same threads.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exporter.bench.benchmark_case import OVERLAP, BenchmarkCase, write_graph
from semiseg.bundle.variant import Precision
from semiseg.engines.engine import Engine
from semiseg.engines.hardware import BF16_INSTRUCTIONS, has_instructions
from semiseg.engines.onnx import OnnxEngine
from semiseg.engines.openvino import OpenVinoEngine
from semiseg.engines.slab import Triple
from semiseg.inference.segmenter import argmax_labels
from semiseg.inference.sliding_window import SlidingWindow, Timing
from semiseg.inference.windows import window_weights

BATCHES = (1, 4)
COMPILED = (False, True)
TRIES = 2
SEVERAL = 6
TRIAL = (1, 1, 1)  # steps of half a window: 8 windows choose MONAI's setting
SLOW = 10.0  # seconds after which one timed pass has to do


class Backend(Protocol):
    """Draws masks."""

    name: str

    def mask(self, volume: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The largest class of each voxel."""


@dataclass
class SemisegBackend:
    """The sliding window of this package over one of its engines."""

    name: str
    engine: Engine
    case: BenchmarkCase

    def mask(self, volume: NDArray[np.float32]) -> NDArray[np.uint8]:
        """See :class:`Backend`."""
        out = np.zeros(volume.shape[1:], np.uint8)
        window = SlidingWindow(self.case.window, (OVERLAP,) * 3, "gaussian", 1, self.case.classes, "none")
        for part in window.blend(self.engine, volume, timing=Timing()):
            out[part.place] = argmax_labels(part.sums)
        return out

    def window_seconds(self) -> float:
        """The network alone, per window, with as many in flight as the engine wants."""
        x, y, z = self.case.window
        window = self.case.volume()[None, :, :x, :y, :z]

        def several() -> None:
            flying: deque[Any] = deque()
            for _ in range(SEVERAL):
                flying.append(self.engine.run(window))
                if len(flying) > self.engine.max_pending:
                    self.engine.logits(flying.popleft())
            for handle in flying:
                self.engine.logits(handle)

        return _median_seconds(several, 2 * TRIES) / SEVERAL


@dataclass
class MonaiBackend:
    """``monai.inferers.sliding_window_inference`` over the torch network."""

    name: str
    network: nn.Module
    window: Triple
    batch: int
    channels_last: bool

    @torch.inference_mode()
    def mask(self, volume: NDArray[np.float32]) -> NDArray[np.uint8]:
        """See :class:`Backend`."""
        from monai.inferers.utils import sliding_window_inference

        # Left to itself MONAI gives every voxel of a window a thousandth at least, which near the border of a volume,
        # where windows show only their corners, is another blending than the product of three Gaussians.
        weights = torch.from_numpy(window_weights(self.window, "gaussian").copy())
        logits = sliding_window_inference(
            torch.from_numpy(volume[None]),
            self.window,
            self.batch,
            self._run,
            overlap=OVERLAP,
            mode="gaussian",
            roi_weight_map=weights,
        )
        assert isinstance(logits, Tensor)
        return np.asarray(logits[0].argmax(dim=0).to(torch.uint8).numpy())

    def _run(self, windows: Tensor) -> Tensor:
        if self.channels_last:
            windows = windows.to(memory_format=torch.channels_last_3d)
        answer: Tensor = self.network(windows)
        return answer


class NnUnetBackend:
    """The loop of nnU-Net v2's predictor over the torch network, without mirroring."""

    def __init__(self, network: nn.Module, classes: int, window: Triple) -> None:
        """Give the predictor a network that it has not trained."""
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        self.name = "nnU-Net's predictor"
        self._predictor: Any = nnUNetPredictor(
            tile_step_size=1 - OVERLAP,
            use_gaussian=True,
            use_mirroring=False,
            perform_everything_on_device=False,
            device=torch.device("cpu"),
            verbose=False,
            allow_tqdm=False,
        )
        self._predictor.network = network
        self._predictor.configuration_manager = SimpleNamespace(patch_size=window, previous_stage_name=None)
        self._predictor.label_manager = SimpleNamespace(num_segmentation_heads=classes)

    @torch.inference_mode()
    def mask(self, volume: NDArray[np.float32]) -> NDArray[np.uint8]:
        """See :class:`Backend`."""
        logits = self._predictor.predict_sliding_window_return_logits(torch.from_numpy(volume))
        return np.asarray(logits.argmax(0).to(torch.uint8).numpy())


def is_nnunet_installed() -> bool:
    """Whether nnU-Net v2 is installed; it is not among our dependencies."""
    return importlib.util.find_spec("nnunetv2") is not None


def semiseg_backends(case: BenchmarkCase, folder: Path, threads: int) -> Iterator[SemisegBackend]:
    """Every engine of a processor, with the precisions that it has instructions for."""
    fp32 = write_graph(case, folder, "fp32")
    yield SemisegBackend("OpenVINO fp32", OpenVinoEngine(fp32, threads=threads), case)
    yield SemisegBackend("ONNX Runtime fp32", OnnxEngine(fp32, threads=threads, device="cpu"), case)
    lower: list[Precision] = ["int8", *(["bf16"] if has_instructions(BF16_INSTRUCTIONS) else [])]  # type: ignore[list-item]
    for precision in lower:
        graph = write_graph(case, folder, precision)
        yield SemisegBackend(
            f"OpenVINO {precision}", OpenVinoEngine(graph, threads=threads, bf16=precision == "bf16"), case
        )


def eager_monai(case: BenchmarkCase) -> MonaiBackend:
    """MONAI as its tutorials run it."""
    return MonaiBackend("MONAI", case.network(), case.window, 1, channels_last=False)


def fastest_monai(case: BenchmarkCase) -> tuple[MonaiBackend, dict[str, float]]:
    """The fastest of MONAI's settings for this case, and the milliseconds per window of each, from array to mask."""
    tried: dict[str, MonaiBackend] = {}
    torch.compiler.reset()  # what was compiled for another window would be compiled for any size now, and is slower
    for channels_last, compiled, batch in itertools.product((False, True), COMPILED, BATCHES):
        network = case.network()
        if channels_last:
            network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        if compiled:
            network = torch.compile(network, dynamic=False)  # type: ignore[assignment]
        words = ["compiled" if compiled else "eager", *(["channels last"] if channels_last else []), f"batch {batch}"]
        name = f"MONAI ({', '.join(words)})"
        tried[name] = MonaiBackend(name, network, case.window, batch, channels_last)
    seconds = {}
    # From array to mask, as it will be timed: the fastest network is not always in the fastest pass.
    x, y, z = (side + k * side // 2 for side, k in zip(case.window, TRIAL, strict=True))
    part = np.resize(case.volume(), (1, x, y, z))
    windows = prod(k + 1 for k in TRIAL)
    for name, backend in tried.items():
        try:
            seconds[name] = _median_seconds(lambda one=backend: one.mask(part), TRIES) / windows
        except Exception as error:  # torch.compile needs a C++ compiler, and fails in many ways without
            if "compiled" not in name:
                raise
            sys.stderr.write(f"{name} does not run here: {str(error).strip().splitlines()[0]}\n")
    best = min(seconds, key=lambda name: seconds[name])
    return tried[best], {name: 1e3 * value for name, value in seconds.items()}


def _median_seconds(run: Any, times: int) -> float:
    since = time.perf_counter()
    run()
    if time.perf_counter() - since > SLOW:
        times = 1
    found = []
    for _ in range(times):
        since = time.perf_counter()
        run()
        found.append(time.perf_counter() - since)
    return median(found)
