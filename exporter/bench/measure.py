"""Measurement of time, memory and the share of the machine's peak performance, as ratios within one run."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from math import prod
from pathlib import Path
from statistics import median

import numpy as np
import torch

from exporter.bench.backends import (
    Backend,
    NnUnetBackend,
    eager_monai,
    fastest_monai,
    is_nnunet_installed,
    semiseg_backends,
)
from exporter.bench.benchmark_case import OVERLAP, BenchmarkCase, convolution_flops
from semiseg.engines.hardware import BF16_INSTRUCTIONS, INT8_INSTRUCTIONS
from semiseg.errors import InputError
from semiseg.inference.windows import starts_along
from semiseg.system.memory import peak_memory, reset_peak_memory, resident_memory
from semiseg.system.processors import load_average, processor_flags, processor_name, usable_processors

MATRIX = 4096
Say = Callable[[str], None]


@dataclass(frozen=True)
class BackendTiming:
    """Results of a backend in one case.

    Attributes:
        name: Name of the backend.
        seconds: Seconds of each round.
        ratio: Median over the rounds of the seconds of MONAI at its fastest over those of the backend, which is the
            speed-up against MONAI.
        equal: Share of voxels with the same class as MONAI's.
        outside: Share of the time spent outside the network, whose own time is measured in the same round; None for
            backends of others.
        of_matmul: FLOP/s of the convolutions over those of a matrix product on the same threads; None for backends of
            others.
    """

    name: str
    seconds: list[float]
    ratio: float
    equal: float
    outside: float | None = None
    of_matmul: float | None = None


@dataclass(frozen=True)
class BenchmarkResult:
    """Results of one case.

    Attributes:
        case: The case.
        windows: Number of windows of the volume.
        gflop: Operations of the convolutions per window, in GFLOP.
        monai_ms: Milliseconds per window of MONAI, by setting.
        timed: Results of the backends.
    """

    case: BenchmarkCase
    windows: int
    gflop: float
    monai_ms: dict[str, float]
    timed: list[BackendTiming]


def run_benchmark(case: BenchmarkCase, threads: int, say: Say) -> BenchmarkResult:
    """Time all backends in turn, ``case.rounds`` times."""
    torch.set_num_threads(threads)
    volume = case.volume()
    with tempfile.TemporaryDirectory() as folder:
        mine = list(semiseg_backends(case, Path(folder), threads))
        peer, settings = fastest_monai(case)
        say(f"MONAI's best setting: {peer.name}")
        everyone: list[Backend] = [peer, *mine]
        if is_nnunet_installed():
            everyone.append(NnUnetBackend(case.network(), case.classes, case.window))
        seconds: dict[str, list[float]] = {one.name: [] for one in everyone}
        alone: dict[str, list[float]] = {one.name: [] for one in mine}
        equal: dict[str, float] = {}
        product: list[float] = []
        for one in everyone:  # a warm-up pass, in which MONAI also compiles for its last, smaller batch
            one.mask(volume)
        for _ in range(case.rounds):
            reference = None
            product.append(matmul_flops())
            for one in everyone:
                since = time.perf_counter()
                mask = one.mask(volume)
                seconds[one.name].append(time.perf_counter() - since)
                reference = mask if reference is None else reference
                equal[one.name] = float(np.mean(mask == reference))
            for each in mine:
                alone[each.name].append(each.window_seconds())
            say("  ".join(f"{name} {found[-1]:.1f} s" for name, found in seconds.items()))
    count = window_count(case)
    flop = convolution_flops(case)
    timed = []
    for name, found in seconds.items():
        ratio = median(a / b for a, b in zip(seconds[peer.name], found, strict=True))
        outside = speed = None
        if name in alone:
            outside = median(1 - count * a / s for a, s in zip(alone[name], found, strict=True))
            speed = median(flop / a / p for a, p in zip(alone[name], product, strict=True))
        timed.append(BackendTiming(name, found, ratio, equal[name], outside, speed))
    return BenchmarkResult(case, count, flop / 1e9, settings, timed)


def window_count(case: BenchmarkCase) -> int:
    """Return the number of windows of the volume."""
    return prod(len(starts_along(n, w, OVERLAP)) for n, w in zip(case.shape, case.window, strict=True))


def matmul_flops() -> float:
    """Return the FLOP/s of a float32 product of two 4096 x 4096 matrices on torch's threads, the best of three."""
    a, b = torch.randn(MATRIX, MATRIX), torch.randn(MATRIX, MATRIX)
    found = []
    for _ in range(3):
        since = time.perf_counter()
        torch.mm(a, b)
        found.append(time.perf_counter() - since)
    return float(2 * MATRIX**3 / min(found))


def measure_memory(case: BenchmarkCase, who: str, threads: int) -> tuple[int, float]:
    """Measure the memory and time of one pass over the volume, in a process of its own.

    Args:
        case: The case.
        who: Backend: ``ours`` (OpenVINO fp32) or ``monai`` (eager, batch 1).
        threads: Number of CPU threads.

    Returns:
        The peak of the resident bytes above those before the pass, and the seconds of the pass.

    Raises:
        InputError: The system does not report a process's peak memory.
    """
    if peak_memory() is None:
        raise InputError("The memory of a pass is measured on Linux only: other systems do not report the peak.")
    asked = json.dumps({"case": asdict(case), "who": who, "threads": threads})
    code = "import sys; from exporter.bench.measure import measure_memory_here; measure_memory_here(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, asked], stdout=subprocess.PIPE, text=True, check=True)
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return int(answer["bytes"]), float(answer["seconds"])


def measure_memory_here(asked: str) -> None:
    """Run a warm-up window, then the volume, in the child of :func:`measure_memory`; print the result as JSON."""
    wanted = json.loads(asked)
    shape, window = (tuple(wanted["case"].pop(key)) for key in ("shape", "window"))
    case = BenchmarkCase(shape=shape, window=window, **wanted["case"])
    torch.set_num_threads(wanted["threads"])
    with tempfile.TemporaryDirectory() as folder:
        one = (
            next(semiseg_backends(case, Path(folder), wanted["threads"]))
            if wanted["who"] == "ours"
            else eager_monai(case)
        )
        volume = case.volume()
        one.mask(volume[:, : window[0], : window[1], : window[2]].copy())
        before = resident_memory() or 0
        reset_peak_memory()
        since = time.perf_counter()
        one.mask(volume)
        seconds = time.perf_counter() - since
        sys.stdout.write(json.dumps({"bytes": (peak_memory() or 0) - before, "seconds": seconds}) + "\n")


def machine_info(threads: int) -> dict[str, object]:
    """Return the processor, threads, load and package versions of the measurement."""
    packages = ("torch", "monai", "onnxruntime", "openvino", "numpy", *(["nnunetv2"] if is_nnunet_installed() else []))
    flags, load = processor_flags(), load_average()
    return {
        "processor": processor_name(),
        "instructions": sorted(
            name for name in ("avx2", "avx512f", *INT8_INSTRUCTIONS, *BF16_INSTRUCTIONS) if name in flags
        ),
        "cores": usable_processors(),
        "threads": threads,
        "load before": None if load is None else round(load, 2),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }
