"""The backends that are timed, each from a volume (1, X, Y, Z) in memory to its mask (X, Y, Z) in memory.

All have the same network, window, overlap, Gaussian blending and number of threads.
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
from semiseg.inference.sliding_window import SlidingWindow
from semiseg.inference.timing import Timing
from semiseg.inference.window_passes import argmax_labels
from semiseg.inference.windows import window_weights

BATCHES = (1, 4)
COMPILED = (False, True)
TRIES = 2
SEVERAL = 6
TRIAL = (1, 1, 1)  # steps of half a window per axis: MONAI's setting is chosen on 8 windows
SLOW = 10.0  # duration of a pass, in seconds, above which a single pass is timed


class Backend(Protocol):
    """A program that segments a volume.

    Attributes:
        name: Name in the table.
    """

    name: str

    def mask(self, volume: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the class with the largest logit of each voxel."""


@dataclass
class SemisegBackend:
    """The sliding window of this package with one of its engines."""

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
        """Return the time of the network alone per window, with as many windows pending as the engine allows."""
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
    """``monai.inferers.sliding_window_inference`` with the torch network."""

    name: str
    network: nn.Module
    window: Triple
    batch: int
    channels_last: bool

    @torch.inference_mode()
    def mask(self, volume: NDArray[np.float32]) -> NDArray[np.uint8]:
        """See :class:`Backend`."""
        from monai.inferers.utils import sliding_window_inference

        # By default MONAI gives every voxel of a window a weight of at least 1/1000. Near the border of a volume, where
        # only corners of windows contribute, this blending differs from that by a product of three Gaussians.
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
    """The loop of nnU-Net v2's predictor with the torch network, without mirroring."""

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
    """Return True if nnU-Net v2, which is not a dependency of semiseg, is installed."""
    return importlib.util.find_spec("nnunetv2") is not None


def semiseg_backends(case: BenchmarkCase, folder: Path, threads: int) -> Iterator[SemisegBackend]:
    """Yield every CPU engine, with the precisions for which this CPU has instructions."""
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
    """Return MONAI with the settings of its tutorials."""
    return MonaiBackend("MONAI", case.network(), case.window, 1, channels_last=False)


def fastest_monai(case: BenchmarkCase) -> tuple[MonaiBackend, dict[str, float]]:
    """Return MONAI with its fastest settings for this case, and each setting's milliseconds per window.

    The times are from array to mask.
    """
    tried: dict[str, MonaiBackend] = {}
    torch.compiler.reset()  # after another window size, torch would compile for any size, which is slower
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
    # Times are from array to mask, as in the benchmark: the fastest network does not always give the fastest pass.
    x, y, z = (side + k * side // 2 for side, k in zip(case.window, TRIAL, strict=True))
    part = np.resize(case.volume(), (1, x, y, z))
    windows = prod(k + 1 for k in TRIAL)
    for name, backend in tried.items():
        try:
            seconds[name] = _median_seconds(lambda one=backend: one.mask(part), TRIES) / windows
        except Exception as error:  # without a C++ compiler torch.compile fails in many ways
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
