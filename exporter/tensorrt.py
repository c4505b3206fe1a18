"""Building of a TensorRT plan from a bundle's graph, on the machine that will run it.

TensorRT 10 and 11 are supported. The graph determines the precision: version 11 has no precision flags any more, and
with version 10 the network is built strongly typed, so that both versions build the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import ExportError, MissingToolError
from exporter.onnx import INPUT
from exporter.parity import central_window, gate_failure, measure_parity
from semiseg.bundle.bundle import PLAN, Bundle, write_bundle
from semiseg.bundle.manifest import Manifest, PlanKey
from semiseg.bundle.variant import Precision, Variant
from semiseg.engines.hardware import Gpu, detect_gpu
from semiseg.engines.onnx import OnnxEngine
from semiseg.engines.tensorrt import TensorRtEngine, import_tensorrt, precision_of
from semiseg.errors import EngineError, InputError
from semiseg.inference.engine_selection import variants_of
from semiseg.system.durable_files import atomic_file

TIMING_CACHE = "tensorrt-timing.cache"
WORKSPACE = 4 << 30  # bytes that the builder may use for trying out kernels


def require_tensorrt() -> tuple[Any, Gpu]:
    """Return the ``tensorrt`` module and the GPU.

    Raises:
        MissingToolError: The package, its libraries, or a GPU is missing, or the version is not 10 or 11.
    """
    try:
        trt = import_tensorrt()
    except InputError as error:
        raise MissingToolError(
            f"{str(error).rstrip('.')}; install the `trt` extra on the GPU machine and run the export there. The ONNX "
            "bundle is complete without it."
        ) from None
    found = detect_gpu()
    if found is None:
        raise MissingToolError(
            "nvidia-smi lists no GPU on this machine, and a TensorRT plan is built on the GPU that runs it. "
            "The ONNX bundle is complete without it."
        )
    return trt, found


def add_plan(bundle: Bundle, *, batch: int = 4, scans: Sequence[NDArray[np.float32]] = ()) -> Bundle:
    """Build a plan for the bundle's default window and batches up to ``batch``, and add it to the bundle.

    Args:
        bundle: The bundle.
        batch: The largest batch.
        scans: Preprocessed scans (C, X, Y, Z); the plan has to pass the bundle's gate against the fp32 graph on a
            window of each. Without scans it is not compared.

    Returns:
        The bundle with the plan.

    Raises:
        MissingToolError: See :func:`require_tensorrt`; the bundle is not changed.
        ExportError: TensorRT cannot parse or build the graph, or the plan fails its gate; the bundle is not changed.
    """
    trt, here = require_tensorrt()
    source = plan_source(bundle)
    plan = build_plan(trt, bundle, source, batch)
    _require_precision(trt, plan, bundle, source.precision, batch)
    # The key identifies the machine: elsewhere the plan does not load, or is slower than one built there.
    key = PlanKey(
        onnx=bundle.manifest.files[source.file],
        precision=source.precision,
        tensorrt=str(trt.__version__),
        gpu=here.name,
        driver=here.driver,
        window=bundle.manifest.window,
        batch=batch,
    )

    def fill(folder: Path) -> Manifest:
        for name in bundle.manifest.files:
            if name != PLAN:
                (folder / name).write_bytes((bundle.folder / name).read_bytes())
        (folder / PLAN).write_bytes(plan)
        return bundle.manifest.model_copy(
            update={"plan": key, "variants": _proved(bundle, folder / PLAN, source, scans)}
        )

    return write_bundle(bundle.folder, fill)


def plan_source(bundle: Bundle) -> Variant:
    """Return the graph that a plan is built from: fp16, else bf16, else fp32. GPUs are fast at their convolutions."""
    held = {variant.precision: variant for variant in variants_of(bundle)}
    return next(held[precision] for precision in ("fp16", "bf16", "fp32") if precision in held)


def build_plan(trt: Any, bundle: Bundle, source: Variant, batch: int) -> bytes:
    """Parse the graph and build it, strongly typed, with one optimisation profile over the batch."""
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # the only mode in version 11
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(bundle.folder / source.file)):
        problems = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ExportError(f"TensorRT {trt.__version__} cannot read the graph: {problems}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # needed to read the precision of the plan's layers
    profile = builder.create_optimization_profile()
    most = _shape(bundle, batch)
    profile.set_shape(INPUT, _shape(bundle, 1), most, most)
    config.add_optimization_profile(profile)
    timings = bundle.folder.parent / TIMING_CACHE
    cache = config.create_timing_cache(timings.read_bytes() if timings.exists() else b"")
    config.set_timing_cache(cache, ignore_mismatch=True)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(f"TensorRT {trt.__version__} could not build the graph; its messages are above.")
    with atomic_file(timings) as stream:
        stream.write(bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _require_precision(trt: Any, plan: bytes, bundle: Bundle, asked: Precision, batch: int) -> None:
    """Refuse a plan whose convolutions do not compute in the precision of its graph, such as fp16."""
    found = precision_of(trt, plan, _shape(bundle, batch), INPUT)
    if found not in (asked, "unknown"):
        raise ExportError(
            f"The TensorRT plan was built from the {asked} graph, and its convolutions compute in {found}; it was not "
            "added to the bundle."
        )


def _proved(bundle: Bundle, plan: Path, source: Variant, scans: Sequence[NDArray[np.float32]]) -> tuple[Variant, ...]:
    """Return the bundle's variants, with the plan's parity result added to the one that it was built from."""
    if not scans:
        return bundle.manifest.variants
    manifest = bundle.manifest
    windows = (central_window(scan, manifest.window) for scan in scans)
    try:
        parity = measure_parity(manifest, OnnxEngine(bundle.model, device="cpu"), TensorRtEngine(plan), windows)
    except (EngineError, InputError) as error:
        raise ExportError(f"The TensorRT plan does not run: {error}") from error
    missed = gate_failure(manifest, source.precision, parity)
    if missed:
        raise ExportError(f"{missed} The plan was not added to the bundle.")
    return tuple(
        variant.model_copy(update={"parity": (*(p for p in variant.parity if p.engine != parity.engine), parity)})
        if variant.precision == source.precision
        else variant
        for variant in manifest.variants
    )


def _shape(bundle: Bundle, batch: int) -> tuple[int, ...]:
    return (batch, len(bundle.manifest.channels), *bundle.manifest.window)
