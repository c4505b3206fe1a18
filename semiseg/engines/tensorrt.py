"""The TensorRT engine, which runs a plan only on the GPU that it was built on."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.engines.engine import Engine
from semiseg.engines.onnx import import_onnxruntime
from semiseg.errors import EngineError, InputError

VERSIONS = ("10", "11")
DEFAULT_STREAM = 0


class TensorRtEngine(Engine):
    """Engine that runs a plan with one optimisation profile over the batch, for the window that it was built for.

    ONNX Runtime's CUDA build, which the `gpu` extra contains anyway, allocates the device memory. Copies and network
    run one after another on the default stream, so that the copy to the host waits for the result.
    """

    name = "tensorrt"
    device = "cuda"

    def __init__(self, plan: Path) -> None:
        """Load ``plan``.

        Raises:
            InputError: TensorRT or ONNX Runtime's CUDA build is not installed.
            EngineError: The plan is damaged, or was built for another GPU or version.
        """
        self._trt = import_tensorrt()
        self._values = import_onnxruntime().OrtValue
        self._runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise EngineError(
                f"TensorRT {self._trt.__version__} cannot load {plan}: it is damaged, or was built by another version "
                "or for another GPU; build it again with `semiseg export --trt`."
            )
        names = [self._engine.get_tensor_name(k) for k in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT]
        self._input, self._output = inputs[0], next(name for name in names if name not in inputs)
        self._own = threading.local()

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`Engine.run`; the handle is the logits in host memory."""
        context, given, found = self._buffers(windows.shape)
        given.update_inplace(np.ascontiguousarray(windows, dtype=np.float32))
        if not context.execute_async_v3(DEFAULT_STREAM):
            raise EngineError(f"TensorRT failed on windows of shape {windows.shape}; its message is in the log above.")
        return np.asarray(found.numpy(), dtype=np.float32)

    def logits(self, handle: Any) -> NDArray[np.float32]:
        """See :meth:`Engine.logits`."""
        return np.asarray(handle, dtype=np.float32)

    def _buffers(self, shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
        """Return this thread's context and buffers for windows of ``shape``; a context serves one call at a time."""
        made = vars(self._own).setdefault("buffers", {})
        if shape not in made:
            context = self._engine.create_execution_context()
            if context is None or not context.set_input_shape(self._input, shape):
                raise EngineError(
                    f"The TensorRT plan does not take windows of shape {shape}; it was built for one window and a "
                    "largest batch. Serve with the bundle's own window, or build the plan again."
                )
            result = tuple(context.get_tensor_shape(self._output))
            given, found = (
                self._values.ortvalue_from_shape_and_type(list(size), np.float32, "cuda", 0) for size in (shape, result)
            )
            context.set_tensor_address(self._input, given.data_ptr())
            context.set_tensor_address(self._output, found.data_ptr())
            made[shape] = (context, given, found)
        context, given, found = made[shape]
        return context, given, found


def import_tensorrt() -> Any:
    """Import the ``tensorrt`` module.

    Raises:
        InputError: The module or its libraries are missing, or its version is neither 10 nor 11.
    """
    try:
        import tensorrt
    except (ImportError, OSError, RuntimeError) as error:
        told = str(error).strip().splitlines()
        raise InputError(f"TensorRT is not installed ({told[0] if told else type(error).__name__})") from None
    version = str(tensorrt.__version__)
    if version.split(".")[0] not in VERSIONS:
        raise InputError(f"TensorRT {version} is not supported; versions 10 and 11 are.")
    return tensorrt


def precision_of(trt: Any, plan: bytes, shape: tuple[int, ...], tensor: str) -> str:
    """Return the precision in which most convolutions of a plan compute: a bundle's precision, or ``unknown``.

    The precision is read from the engine inspector, because it may differ from the requested one. The plan must have
    been built with detailed verbosity.

    Args:
        trt: The ``tensorrt`` module.
        plan: Serialised engine.
        shape: Shape of the windows; the inspector reports formats for concrete shapes only.
        tensor: Name of the input tensor.
    """
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    context.set_input_shape(tensor, shape)
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    layers = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON)).get("Layers", [])
    counts: dict[str, int] = {}
    for layer in layers:
        if isinstance(layer, dict) and "onvolution" in f"{layer.get('LayerType')} {layer.get('ParameterType')}":
            told = " ".join(str(one.get("Format/Datatype", "")) for one in layer.get("Inputs", []))
            counts[_named(told)] = counts.get(_named(told), 0) + 1
    return max(counts, key=lambda name: counts[name]) if counts else "unknown"


def _named(told: str) -> str:
    """Return the precision of TensorRT's format names; ``Row major linear FP16 format`` and ``Half`` are fp16."""
    lowered = told.lower()
    for name, words in (
        ("int8", ("int8",)),
        ("bf16", ("bf16", "bfloat16")),
        ("fp16", ("fp16", "half", "float16")),
        ("fp32", ("fp32", "float")),
    ):
        if any(word in lowered for word in words):
            return name
    return "unknown"
