"""The ONNX Runtime engine, which runs on every supported machine."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.engines.engine import Engine
from semiseg.errors import EngineError, InputError
from semiseg.system.nvidia import nvidia_driver
from semiseg.system.processors import usable_processors

RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


class OnnxEngine(Engine):
    """Engine that runs an ONNX graph on the CPU or, with ``onnxruntime-gpu`` and CUDA, on a GPU."""

    def __init__(self, model: Path, *, threads: int | None = None, device: str = "auto") -> None:
        """Load ``model``.

        Args:
            model: Path of the graph, with one input (B, C, X, Y, Z) float32 and one output (B, K, X, Y, Z).
            threads: Number of CPU threads; by default all that this process may use.
            device: ``auto`` uses CUDA if it is available; ``cpu`` or ``cuda`` requires that device.

        Raises:
            EngineError: The graph is damaged, or has an operator that this ONNX Runtime lacks.
            InputError: ONNX Runtime is not installed or installed twice, or CUDA was requested and is not available.
        """
        runtime = import_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or usable_processors()
        options.log_severity_level = 3
        available = runtime.get_available_providers()
        if device == "cuda" and "CUDAExecutionProvider" not in available:
            raise InputError(
                "This ONNX Runtime has no CUDA; install the `gpu` extra instead of `serve`, or use the CPU."
            )
        cuda = device != "cpu" and "CUDAExecutionProvider" in available
        providers: list[Any] = ["CPUExecutionProvider"]
        if cuda:
            settings = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
            providers.insert(0, ("CUDAExecutionProvider", settings))
        try:
            self._session = runtime.InferenceSession(str(model), options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions have no more specific common base class
            raise EngineError(f"ONNX Runtime cannot load {model}: {_first_line(error)}") from error
        # If CUDA does not start, ONNX Runtime falls back to the CPU without an error.
        running = self._session.get_providers()[0]
        if device == "cuda" and running != "CUDAExecutionProvider":
            raise InputError("ONNX Runtime could not start CUDA on this machine; see its log above, or use the CPU.")
        self.name = "onnxruntime"
        self.device = "cuda" if running == "CUDAExecutionProvider" else "cpu"
        self._input = self._session.get_inputs()[0].name

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`Engine.run`; ONNX Runtime computes synchronously, so the handle is the logits."""
        try:
            (logits,) = self._session.run(None, {self._input: np.ascontiguousarray(windows, dtype=np.float32)})
        except Exception as error:  # see above
            raise EngineError(
                f"ONNX Runtime failed on windows of shape {windows.shape}: {_first_line(error)}"
            ) from error
        return np.asarray(logits, dtype=np.float32)

    def logits(self, handle: Any) -> NDArray[np.float32]:
        """See :meth:`Engine.logits`."""
        return np.asarray(handle, dtype=np.float32)


def import_onnxruntime() -> Any:
    """Import the ``onnxruntime`` module, which exactly one installed package must provide.

    Raises:
        InputError: Neither ``onnxruntime`` nor ``onnxruntime-gpu`` is installed, or both are.
    """
    present = installed_runtimes()
    if len(present) > 1:
        raise InputError(
            "Both onnxruntime and onnxruntime-gpu are installed and overwrite each other's files; "
            "`pip uninstall onnxruntime onnxruntime-gpu`, then install the `serve` extra (CPU) or the `gpu` extra."
        )
    if not present:
        raise InputError("ONNX Runtime is missing; install the `serve` extra (CPU) or the `gpu` extra of semiseg.")
    # Otherwise its Linux builds send telemetry to Microsoft and keep a device id in the home folder.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def is_cuda_available() -> bool:
    """Return True if this ONNX Runtime was built for CUDA and the machine has an NVIDIA driver."""
    if nvidia_driver() is None or len(installed_runtimes()) != 1:
        return False
    return "CUDAExecutionProvider" in import_onnxruntime().get_available_providers()


def installed_runtimes() -> list[str]:
    """Return the installed packages that provide the ``onnxruntime`` module."""
    found = []
    for name in RUNTIMES:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found


def _first_line(error: Exception) -> str:
    if "bad_alloc" in str(error) or "Failed to allocate memory" in str(error):
        return "there is not enough memory for them"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
