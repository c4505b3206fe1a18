"""Other processors: the libraries' own switches that make them leave out instructions that this one has.

oneDNN, which computes for OpenVINO and torch, has ONEDNN_MAX_CPU_ISA, and semiseg heeds it too; torch's own loops have
ATEN_CPU_CAPABILITY, MKL has MKL_ENABLE_INSTRUCTIONS. ONNX Runtime has no switch: it takes what the processor has.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.conditions.condition import Condition, Launcher

_PLAIN = {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
_CAPS: dict[str, dict[str, str]] = {
    "SSE41": _PLAIN,
    "AVX2": _AVX2,
    "AVX2_VNNI": _AVX2,
    "AVX512_CORE": {},
    "AVX512_CORE_VNNI": {},
    "AVX512_CORE_BF16": {},
    "AVX512_CORE_FP16": {},
    "AVX512_CORE_AMX": {},
}


def processors() -> list[Condition]:
    """All conditions of this file."""
    return [
        Condition(f"cpu-{cap.lower().replace('_', '-')}", f"oneDNN without instructions beyond {cap}", _capped(cap))
        for cap in _CAPS
    ]


def _capped(cap: str) -> Callable[[Path], Launcher]:
    def make(folder: Path) -> Launcher:
        return Launcher(environ={"ONEDNN_MAX_CPU_ISA": cap, **_CAPS[cap]})

    return make
