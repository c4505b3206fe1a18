"""Detection of the processor's instruction sets and of the GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from semiseg.system.processors import processor_flags

# oneDNN, which computes the convolutions of OpenVINO and of torch, reads this variable, which limits the instruction
# sets; tests use it to imitate a machine without them. The table lists the relevant instruction sets that remain with
# each value. Values that are not listed (AVX512_CORE_FP16 and above) limit none of them.
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
    """Return True if the processor has one of these instruction sets and may use it."""
    here = processor_flags()
    left = _LEFT_BY_CAP.get(os.environ.get(ISA_CAP_VARIABLE, "").upper())
    return not (here if left is None else here.intersection(left)).isdisjoint(flags)


@dataclass(frozen=True)
class Gpu:
    """The first NVIDIA GPU and the version of its driver."""

    name: str
    driver: str


def detect_gpu() -> Gpu | None:
    """Return the GPU that nvidia-smi reports; None if there is none, or if nvidia-smi fails."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        name, driver = answer.stdout.splitlines()[0].rsplit(",", 1)
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None
    return Gpu(name.strip(), driver.strip())
