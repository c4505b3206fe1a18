"""The OpenVINO engine for processors; it is the only engine that runs 8-bit graphs fast (with VNNI or AMX)."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.engines.engine import Engine
from semiseg.errors import EngineError, InputError
from semiseg.system.processors import usable_processors


@dataclass(frozen=True)
class _Running:
    """A started inference request and the windows that it reads."""

    request: Any
    windows: NDArray[np.float32]


class OpenVinoEngine(Engine):
    """Engine that runs an ONNX graph on the CPU, compiled for each shape of windows.

    The returned logits are views of OpenVINO's memory, valid for as long as :meth:`Engine.run` specifies.
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, model: Path, *, threads: int | None = None, bf16: bool = False) -> None:
        """Load ``model``; it is compiled when the first windows of a shape are run.

        Args:
            model: Path of the graph, with one input (B, C, X, Y, Z) float32 and one output (B, K, X, Y, Z).
            threads: Number of CPU threads; by default all that this process may use.
            bf16: If True, compute in bfloat16 if the processor supports it (AVX-512 BF16, AMX); otherwise compute in
                the precision of the graph.

        Raises:
            EngineError: The graph is damaged, or has an operator that OpenVINO lacks.
            InputError: OpenVINO is not installed.
        """
        self._library = import_openvino()
        self._core = _core()
        threads = threads or usable_processors()
        # Two windows at a time, each on half of the threads, are faster than one on all threads, because the small
        # layers of a UNet do not use many threads well. While one window is blended, the other one runs.
        self._settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": min(2, threads),
            # By default OpenVINO computes in bfloat16 if the processor supports it.
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        }
        try:
            self._model = self._core.read_model(str(model))
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot load {model}: {_reason(error)}") from error
        self._compiled: dict[tuple[int, ...], Any] = {}
        self._lock = threading.Lock()
        self._own = threading.local()

    def run(self, windows: NDArray[np.float32]) -> _Running:
        """See :meth:`Engine.run`; the network runs in OpenVINO's own threads."""
        request = self._next_request(windows.shape)
        windows = np.ascontiguousarray(windows, dtype=np.float32)
        try:
            request.wait()
            request.start_async([windows], share_inputs=True)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed on windows of shape {windows.shape}: {_reason(error)}") from error
        return _Running(request, windows)

    def logits(self, handle: Any) -> NDArray[np.float32]:
        """See :meth:`Engine.logits`."""
        if not isinstance(handle, _Running):
            return np.asarray(handle, dtype=np.float32)
        self.wait(handle)
        return np.asarray(handle.request.get_output_tensor(0).data)

    def wait(self, handle: Any) -> None:
        """See :meth:`Engine.wait`."""
        if not isinstance(handle, _Running):
            return
        try:
            handle.request.wait()
        except RuntimeError as error:
            raise EngineError(
                f"OpenVINO failed on windows of shape {handle.windows.shape}: {_reason(error)}"
            ) from error

    def _next_request(self, shape: tuple[int, ...]) -> Any:
        """Return the next of this thread's requests for windows of ``shape``; one is read while the others run."""
        requests = vars(self._own).setdefault("requests", {})
        if shape not in requests:
            compiled = self._compile(shape)
            requests[shape] = deque(compiled.create_infer_request() for _ in range(self.max_pending + 1))
        requests[shape].rotate()
        return requests[shape][0]

    def _compile(self, shape: tuple[int, ...]) -> Any:
        with self._lock:
            if shape not in self._compiled:
                try:
                    fixed = self._model.clone()
                    fixed.reshape(self._library.PartialShape(list(shape)))  # a static shape runs faster
                    self._compiled[shape] = self._core.compile_model(fixed, "CPU", self._settings)
                except RuntimeError as error:
                    raise EngineError(
                        f"OpenVINO cannot run this graph on windows of shape {shape}: {_reason(error)}"
                    ) from error
            return self._compiled[shape]


def import_openvino() -> Any:
    """Import the ``openvino`` module.

    Raises:
        InputError: The module is not installed, or its libraries cannot be loaded.
    """
    # On import, OpenVINO sends telemetry over the internet, unless its telemetry package cannot be imported.
    with _hidden("openvino_telemetry"):
        try:
            import openvino
        except (ImportError, OSError) as error:
            raise InputError(f"OpenVINO cannot be loaded ({_reason(error)}); install the `serve` extra.") from None
    return openvino


@lru_cache(maxsize=1)
def _core() -> Any:
    """Return the process's only core; OpenVINO unloads its libraries with the last core, while threads still run."""
    return import_openvino().Core()


@contextlib.contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Make the import of a module fail inside the context."""
    modules: dict[str, Any] = sys.modules
    before = modules.get(name)
    modules[name] = None
    try:
        yield
    finally:
        if before is None:
            del modules[name]
        else:
            modules[name] = before


def _reason(error: BaseException) -> str:
    """Return the reason from OpenVINO's message, which begins with source locations and ends with the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("bad_alloc" in line or "allocate" in line for line in lines):
        return "there is not enough memory for them"
    told = [line for line in lines if not line.startswith(("Exception from", "Check '", "While validating"))]
    return (told or lines or [type(error).__name__])[-1].rstrip(".")
