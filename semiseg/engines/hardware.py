"""What this machine's processor and GPU offer to the engines."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from semiseg.system.processors import processor_flags

# What a cap on the instruction set leaves of what matters here. oneDNN, which computes the convolutions of OpenVINO and
# of torch, reads this variable; a machine without these instructions is tried out with it. Names it does not list
# (AVX512_CORE_FP16 and above) leave all of it.
ISA_CAP_VARIABLE = "ONEDNN_MAX_CPU_ISA"
_LEFT_BY_CAP: dict[str, tuple[str, ...]] = {
    "SSE41": (),
    "AVX": (),
    "AVX2": (),
    "AVX2_VNNI": ("avx_vnni",),
    "AVX2_VNNI_2": ("avx_vnni",),
    "AVX512_CORE": (),
    "AVX512_CORE_VNNI": ("avx_vnni", "avx512_vnni"),
    "AVX512_CORE_BF16": ("avx_vnni", "avx512_vnni", "avx512_bf16"),
}
INT8_INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8")
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")


def has_instructions(flags: tuple[str, ...]) -> bool:
    """Whether the processor has one of these instruction sets, and may use it."""
    here = processor_flags()
    left = _LEFT_BY_CAP.get(os.environ.get(ISA_CAP_VARIABLE, "").upper())
    return not (here if left is None else here.intersection(left)).isdisjoint(flags)


@dataclass(frozen=True)
class Gpu:
    """The first NVIDIA GPU and the version of its driver."""

    name: str
    driver: str


def detect_gpu() -> Gpu | None:
    """The machine's GPU as nvidia-smi tells it; None where there is none, or nvidia-smi does not answer."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        name, driver = answer.stdout.splitlines()[0].rsplit(",", 1)
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None
    return Gpu(name.strip(), driver.strip())
