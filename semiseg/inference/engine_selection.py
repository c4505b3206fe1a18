"""Which graph of a bundle this machine runs, on which engine, and why."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace

from semiseg.bundle.bundle import PLAN, Bundle
from semiseg.bundle.variant import Precision, Variant
from semiseg.engines.engine import Engine
from semiseg.engines.hardware import BF16_INSTRUCTIONS, INT8_INSTRUCTIONS, detect_gpu, has_instructions
from semiseg.engines.onnx import OnnxEngine, is_cuda_available
from semiseg.engines.openvino import OpenVinoEngine
from semiseg.engines.tensorrt import TensorRtEngine, import_tensorrt
from semiseg.errors import EngineError, InputError, SemisegError


@dataclass(frozen=True)
class EngineCandidate:
    """A way to run a bundle.

    Attributes:
        engine: its name.
        device: ``cpu`` or ``cuda``.
        precision, sha256: those of the graph.
        reason: why it is taken, or why it is not; part of a sentence.
        open: makes the engine; None where this machine cannot run it so.
    """

    engine: str
    device: str
    precision: Precision
    sha256: str
    reason: str
    open: Callable[[], Engine] | None

    @property
    def engine_and_device(self) -> str:
        """The engine and its device: ``openvino (cpu)``."""
        return f"{self.engine} ({self.device})"


@dataclass(frozen=True)
class EngineSelection:
    """The engine that runs, the candidate that it comes of, and all candidates, best first."""

    engine: Engine
    selected: EngineCandidate
    candidates: tuple[EngineCandidate, ...]


def choose_engine(bundle: Bundle, *, threads: int | None = None, precision: Precision | None = None) -> EngineSelection:
    """Open the fastest way to run ``bundle`` that this machine has and that its proofs allow.

    On a GPU that is the half-precision graph; on a processor OpenVINO, with the 8-bit graph where there are
    instructions for it. A graph in lower precision runs only on an engine on which the export proved it.

    Args:
        bundle: the bundle.
        threads: CPU threads; all by default.
        precision: take this one and no other.

    Raises:
        InputError: ``precision`` is not in the bundle or cannot run here.
        EngineError: the chosen engine cannot load the graph.
    """
    found = list_candidates(bundle, threads)
    failure: SemisegError | None = None
    for place, one in enumerate(found):
        if one.open is None or precision not in (None, one.precision):
            continue
        try:
            return EngineSelection(one.open(), one, tuple(found))
        except (EngineError, InputError) as error:  # a driver that does not start, an operator that is missing
            found[place] = replace(one, open=None, reason=str(error).rstrip("."))
            failure = error
    if failure is not None:
        raise failure
    held = ", ".join(variant.precision for variant in variants_of(bundle))
    told = "; ".join(f"{one.engine}: {one.reason}" for one in found if precision in (None, one.precision))
    raise InputError(
        f"The bundle holds {held} and cannot run{f' in {precision}' if precision else ''} here{told and f' ({told})'}."
    )


def list_candidates(bundle: Bundle, threads: int | None) -> list[EngineCandidate]:
    """Every engine with every graph, best first."""
    held = {variant.precision: variant for variant in variants_of(bundle)}
    out = [_plan(bundle)] if bundle.manifest.plan is not None else []
    order: tuple[tuple[str, str, Precision], ...] = (
        ("onnxruntime", "cuda", "fp16"),
        ("onnxruntime", "cuda", "fp32"),
        ("openvino", "cpu", "int8"),
        ("openvino", "cpu", "bf16"),
        ("openvino", "cpu", "fp32"),
        ("onnxruntime", "cpu", "fp32"),
    )
    for engine, device, precision in order:
        variant = held.get(precision)
        if variant is None:
            continue
        why_not = _why_not(engine, device, variant)
        out.append(
            EngineCandidate(
                engine,
                device,
                precision,
                bundle.manifest.files[variant.file],
                why_not or _why(engine, device, precision),
                None if why_not else _opener(bundle, engine, device, variant, threads),
            )
        )
    return out


def _plan(bundle: Bundle) -> EngineCandidate:
    """The bundle's TensorRT plan, usable on exactly what it was built on."""
    key = bundle.manifest.plan
    assert key is not None
    why_not = None
    here = detect_gpu()
    if here is None:
        why_not = "no NVIDIA GPU on this machine"
    elif (here.name, here.driver) != (key.gpu, key.driver):
        why_not = (
            f"the plan was built for {key.gpu} with driver {key.driver}, and this is {here.name} with {here.driver}; "
            "build one here with `semiseg export --trt`"
        )
    elif key.onnx not in bundle.manifest.files.values():
        why_not = "the plan was built from another graph"
    else:
        try:
            version = str(import_tensorrt().__version__)
        except InputError as error:
            why_not = str(error).rstrip(".")
        else:
            if version != key.tensorrt:
                why_not = f"the plan was built by TensorRT {key.tensorrt}, and this is {version}"
    opener = None if why_not else (lambda: TensorRtEngine(bundle.folder / PLAN))
    return EngineCandidate(
        "tensorrt", "cuda", key.precision, key.onnx, why_not or "its plan was built for this GPU", opener
    )


def variants_of(bundle: Bundle) -> tuple[Variant, ...]:
    """The bundle's graphs; of one made before there were several, the one it has."""
    return bundle.manifest.variants or (Variant(precision="fp32", file=bundle.model.name),)


def _why_not(engine: str, device: str, variant: Variant) -> str | None:
    if device == "cuda" and not is_cuda_available():
        return "no CUDA on this machine"
    if engine == "openvino" and importlib.util.find_spec("openvino") is None:
        return "OpenVINO is not installed"
    if variant.precision == "int8" and not has_instructions(INT8_INSTRUCTIONS):
        return "this processor has no 8-bit instructions (VNNI, AMX)"
    if variant.precision == "bf16" and not has_instructions(BF16_INSTRUCTIONS):
        return "this processor has no bfloat16 instructions (AVX-512 BF16, AMX)"
    # Half precision is the same arithmetic on a GPU; what it costs was proved on the processor's own engines.
    if variant.precision != "fp32" and device == "cpu" and not variant.verified_on(engine):
        return "the export did not prove it on this engine"
    return None


def _why(engine: str, device: str, precision: Precision) -> str:
    if device == "cuda":
        return "a GPU is here"
    if precision == "int8":
        return "this processor has 8-bit instructions, and the export proved the graph on this engine"
    if precision == "bf16":
        return "this processor has bfloat16 instructions, and the export proved the graph on this engine"
    return "the fastest engine for processors" if engine == "openvino" else "the engine that runs everywhere"


def _opener(bundle: Bundle, engine: str, device: str, variant: Variant, threads: int | None) -> Callable[[], Engine]:
    model = bundle.folder / variant.file
    if engine == "openvino":
        return lambda: OpenVinoEngine(model, threads=threads, bf16=variant.precision == "bf16")
    return lambda: OnnxEngine(model, threads=threads, device=device)
