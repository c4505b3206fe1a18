"""Time, memory and distance to the machine's limit, always as ratios within one run."""

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
    """A backend in one case.

    Attributes:
        seconds: of each round.
        ratio: the median over the rounds of the peer's seconds over ours: how many times faster than MONAI at its best.
        equal: share of voxels with MONAI's class.
        outside: share of its time that is not the network's, by a network alone beside it; None for others.
        of_matmul: its convolutions' FLOP/s over those of a matrix product on the same threads; None for others.
    """

    name: str
    seconds: list[float]
    ratio: float
    equal: float
    outside: float | None = None
    of_matmul: float | None = None


@dataclass(frozen=True)
class BenchmarkResult:
    """A case, its windows, the GFLOP of one, MONAI's milliseconds per window by setting, and the backends."""

    case: BenchmarkCase
    windows: int
    gflop: float
    monai_ms: dict[str, float]
    timed: list[BackendTiming]


def run_benchmark(case: BenchmarkCase, threads: int, say: Say) -> BenchmarkResult:
    """Time every backend in turn, ``case.rounds`` times."""
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
        for one in everyone:  # a pass that does not count: MONAI compiles for its last, smaller batch once more
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
    """Windows that the volume takes."""
    return prod(len(starts_along(n, w, OVERLAP)) for n, w in zip(case.shape, case.window, strict=True))


def matmul_flops() -> float:
    """FLOP/s of a float32 product of two 4096-cube matrices on torch's threads; the better of three."""
    a, b = torch.randn(MATRIX, MATRIX), torch.randn(MATRIX, MATRIX)
    found = []
    for _ in range(3):
        since = time.perf_counter()
        torch.mm(a, b)
        found.append(time.perf_counter() - since)
    return float(2 * MATRIX**3 / min(found))


def measure_memory(case: BenchmarkCase, who: str, threads: int) -> tuple[int, float]:
    """Peak resident bytes above those before the volume's pass, and its seconds, in a process of its own.

    Args:
        case: what is segmented.
        who: ``ours`` (OpenVINO fp32) or ``monai`` (eager, batch 1).
        threads: of the processor.

    Raises:
        InputError: the system does not tell a process's peak.
    """
    if peak_memory() is None:
        raise InputError("The memory of a pass is measured on Linux only: other systems do not tell a process's peak.")
    asked = json.dumps({"case": asdict(case), "who": who, "threads": threads})
    code = "import sys; from exporter.bench.measure import measure_memory_here; measure_memory_here(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, asked], stdout=subprocess.PIPE, text=True, check=True)
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return int(answer["bytes"]), float(answer["seconds"])


def measure_memory_here(asked: str) -> None:
    """The child of :func:`measure_memory`: one warm window, then the volume; prints what it took."""
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
    """What the figures hold for."""
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
