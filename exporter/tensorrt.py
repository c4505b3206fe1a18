"""A TensorRT plan from a bundle's graph, built on the machine that will run it.

Follows TensorRT 10 and 11. Precision is in the graph: version 11 has no precision flags any more, and with version 10
the network is built strongly typed, so that both build the same thing.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import torch

from exporter.errors import ExportError, MissingTool
from exporter.onnx import INPUT
from semiseg.bundle.bundle import MODEL, Bundle, write_bundle
from semiseg.bundle.manifest import Manifest, PlanKey
from semiseg.volumes.atomic_file import atomic_file

PLAN = "model.plan"
TIMING_CACHE = "tensorrt-timing.cache"
WORKSPACE = 4 << 30  # bytes that the builder may use for trying out kernels


def require_tensorrt() -> Any:
    """The ``tensorrt`` module, when it and a GPU are here.

    Raises:
        MissingTool: the package, its libraries, or a CUDA device is missing, or the version is not 10 or 11.
    """
    try:
        import tensorrt
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingTool(
            f"TensorRT is not installed ({_first_line(error)}); install the `trt` extra on the GPU machine and run "
            "the export there. The ONNX bundle is complete without it."
        ) from None
    version = str(tensorrt.__version__)
    if version.split(".")[0] not in ("10", "11"):
        raise MissingTool(f"TensorRT {version} is not supported; versions 10 and 11 are.")
    if not torch.cuda.is_available():
        raise MissingTool(
            "This machine has no CUDA device, and a TensorRT plan is built on the GPU that runs it. "
            "The ONNX bundle is complete without it."
        )
    return tensorrt


def add_plan(bundle: Bundle, *, batch: int = 4) -> Bundle:
    """Build a plan for the bundle's default window and batches up to ``batch``, and add it to the bundle.

    Raises:
        MissingTool: see :func:`require_tensorrt`; the bundle is left as it was.
        ExportError: TensorRT cannot parse or build the graph; the bundle is left as it was.
    """
    trt = require_tensorrt()
    plan = build_plan(trt, bundle, batch)

    def fill(folder: Path) -> Manifest:
        for name in bundle.manifest.files:
            if name != PLAN:
                (folder / name).write_bytes((bundle.folder / name).read_bytes())
        (folder / PLAN).write_bytes(plan)
        return bundle.manifest.model_copy(update={"plan": plan_key(trt, bundle, batch)})

    return write_bundle(bundle.folder, fill)


def build_plan(trt: Any, bundle: Bundle, batch: int) -> bytes:
    """Parse the graph and build it, strongly typed, with one optimisation profile over the batch."""
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # the only mode in version 11
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(bundle.folder / MODEL)):
        problems = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ExportError(f"TensorRT {trt.__version__} cannot read the graph: {problems}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    channels, window = len(bundle.manifest.channels), bundle.manifest.window
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, (1, channels, *window), (batch, channels, *window), (batch, channels, *window))
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


def plan_key(trt: Any, bundle: Bundle, batch: int) -> PlanKey:
    """What a plan belongs to: elsewhere it does not load, or is slower than one built there."""
    return PlanKey(
        onnx=bundle.sha256,
        tensorrt=str(trt.__version__),
        gpu=torch.cuda.get_device_name(0),
        driver=driver_version(),
        window=bundle.manifest.window,
        batch=batch,
    )


def driver_version() -> str:
    """The NVIDIA driver's version.

    Raises:
        MissingTool: nvidia-smi is missing or fails.
    """
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        raise MissingTool(f"nvidia-smi does not tell the driver's version: {_first_line(error)}.") from None
    return answer.stdout.splitlines()[0].strip()


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
