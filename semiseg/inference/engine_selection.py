"""Selection of the graph of a bundle and of the engine that runs it on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace

from semiseg.bundle.bundle import PLAN, Bundle
from semiseg.bundle.variant import Precision, Variant
from semiseg.deprecation import RenamedMember
from semiseg.engines.engine import Engine
from semiseg.engines.hardware import BF16_INSTRUCTIONS, INT8_INSTRUCTIONS, detect_gpu, has_instructions
from semiseg.engines.onnx import OnnxEngine, is_cuda_available
from semiseg.engines.openvino import OpenVinoEngine
from semiseg.engines.tensorrt import TensorRtEngine, import_tensorrt
from semiseg.errors import EngineError, InputError, SemisegError


@dataclass(frozen=True)
class EngineCandidate:
    """A combination of a graph and an engine that can run a bundle.

    Attributes:
        engine: Name of the engine.
        device: Device of the engine, ``cpu`` or ``cuda``.
        precision: Precision of the graph.
        sha256: SHA-256 of the graph.
        reason: Reason why the candidate is suitable or cannot be used, as part of a sentence.
        open: Function that creates the engine; None if this machine cannot run it.
    """

    engine: str
    device: str
    precision: Precision
    sha256: str
    reason: str
    open: Callable[[], Engine] | None

    where = RenamedMember("engine_and_device")

    @property
    def engine_and_device(self) -> str:
        """Engine and device, such as ``openvino (cpu)``."""
        return f"{self.engine} ({self.device})"


@dataclass(frozen=True)
class EngineSelection:
    """The selected engine.

    Attributes:
        engine: The engine, ready to run.
        selected: The candidate that the engine was created from.
        candidates: All candidates, best first.
    """

    engine: Engine
    selected: EngineCandidate
    candidates: tuple[EngineCandidate, ...]

    taken = RenamedMember("selected")


def choose_engine(bundle: Bundle, *, threads: int | None = None, precision: Precision | None = None) -> EngineSelection:
    """Open the fastest graph and engine for ``bundle`` that this machine supports and the export verified.

    On a GPU this is the half-precision graph; on a processor it is OpenVINO, with the 8-bit graph if the processor has
    instructions for it. A graph in lower precision runs only on an engine on which the export verified it.

    Args:
        bundle: The bundle.
        threads: Number of CPU threads; all by default.
        precision: Precision to use; by default the fastest.

    Raises:
        InputError: ``precision`` is not in the bundle or cannot run on this machine.
        EngineError: The selected engine cannot load the graph.

    Examples:
        >>> import semiseg
        >>> selection = semiseg.choose_engine(semiseg.open_bundle("BUNDLE"), threads=1, precision="fp32")
        >>> selection.selected.precision
        'fp32'
    """
    found = list_candidates(bundle, threads)
    failure: SemisegError | None = None
    for place, one in enumerate(found):
        if one.open is None or precision not in (None, one.precision):
            continue
        try:
            return EngineSelection(one.open(), one, tuple(found))
        except (EngineError, InputError) as error:  # e.g. the driver does not start, or an operator is missing
            found[place] = replace(one, open=None, reason=str(error).rstrip("."))
            failure = error
    if failure is not None:
        raise failure
    held = ", ".join(variant.precision for variant in variants_of(bundle))
    told = "; ".join(f"{one.engine}: {one.reason}" for one in found if precision in (None, one.precision))
    raise InputError(
        f"The bundle has {held} and cannot run{f' in {precision}' if precision else ''} here{told and f' ({told})'}."
    )


def list_candidates(bundle: Bundle, threads: int | None) -> list[EngineCandidate]:
    """Return all combinations of engines and graphs, best first."""
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
    """Return the candidate of the bundle's TensorRT plan, which is usable only where it was built."""
    key = bundle.manifest.plan
    assert key is not None
    why_not = None
    here = detect_gpu()
    if here is None:
        why_not = "no NVIDIA GPU on this machine"
    elif (here.name, here.driver) != (key.gpu, key.driver):
        why_not = (
            f"the plan was built for {key.gpu} with driver {key.driver}, and this is {here.name} with {here.driver}; "
            "build a plan on this machine with `semiseg export --trt`"
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
    """Return the bundle's graphs; a bundle of an older version, which does not list variants, has one fp32 graph."""
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
    # On a GPU half precision is the same arithmetic; its accuracy was verified on the processor's engines.
    if variant.precision != "fp32" and device == "cpu" and not variant.verified_on(engine):
        return "the export did not verify it on this engine"
    return None


def _why(engine: str, device: str, precision: Precision) -> str:
    if device == "cuda":
        return "this machine has a GPU"
    if precision == "int8":
        return "this processor has 8-bit instructions, and the export verified the graph on this engine"
    if precision == "bf16":
        return "this processor has bfloat16 instructions, and the export verified the graph on this engine"
    return "the fastest engine for processors" if engine == "openvino" else "the engine that runs on every machine"


def _opener(bundle: Bundle, engine: str, device: str, variant: Variant, threads: int | None) -> Callable[[], Engine]:
    model = bundle.folder / variant.file
    if engine == "openvino":
        return lambda: OpenVinoEngine(model, threads=threads, bf16=variant.precision == "bf16")
    return lambda: OnnxEngine(model, threads=threads, device=device)
