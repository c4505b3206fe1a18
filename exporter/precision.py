"""Conversion of a graph to a lower precision, which is stored in the graph, so that all engines compute the same."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, version_converter

from exporter.errors import ExportError
from exporter.half_precision import convert_to_half

BF16_OPSET = 22  # the first opset in which convolutions may be bfloat16
CONVOLUTIONS = ("Conv", "ConvTranspose")


def to_half(model: Path, target: Path, precision: Literal["fp16", "bf16"]) -> None:
    """Write ``model`` in half precision; input, output, normalisation and softmax stay float32.

    See :mod:`exporter.half_precision`.

    Raises:
        ExportError: The graph cannot be converted.
    """
    graph = onnx.load(model)
    try:
        if precision == "bf16":
            graph = version_converter.convert_version(graph, BF16_OPSET)
        half = convert_to_half(graph, TensorProto.FLOAT16 if precision == "fp16" else TensorProto.BFLOAT16)
    except (ValueError, RuntimeError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"The graph cannot be written in {precision}: {error}") from error
    _write(half, target)


def to_int8(model: Path, target: Path, windows: Sequence[NDArray[np.float32]]) -> None:
    """Write ``model`` with 8-bit convolutions between Q/DQ nodes, quantised statically and per output channel.

    The first convolution, which reads the intensities, and the last one, which makes the logits, stay float32.

    Args:
        model: File of the float32 graph.
        target: File of the int8 graph.
        windows: Windows (C, X, Y, Z) of real scans; labels are not needed. The range of each tensor is the mean of its
            ranges on these windows.

    Raises:
        ExportError: There is nothing to quantise, or the graph cannot be quantised.
    """
    quantization = _quantization()
    convolutions = [node for node in onnx.load(model).graph.node if node.op_type in CONVOLUTIONS]
    if len(convolutions) < 3 or not windows:
        raise ExportError("An int8 graph needs a network of at least three convolutions, and windows to calibrate on.")
    prepared = target.with_suffix(".prepared")
    try:
        with _quiet():
            quantization.shape_inference.quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(target),
                _Windows(quantization, windows),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(CONVOLUTIONS),
                nodes_to_exclude=[convolutions[0].name, convolutions[-1].name],
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                extra_options={"CalibMovingAverage": True, "CalibMovingAverageConstant": 1.0 / len(windows)},
            )
    except (ValueError, RuntimeError, KeyError) as error:
        raise ExportError(f"The graph cannot be written in int8: {error}") from error
    finally:
        prepared.unlink(missing_ok=True)
    _write(onnx.load(target), target)


def _quantization() -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    from onnxruntime import quantization
    from onnxruntime.quantization import shape_inference

    quantization.shape_inference = shape_inference
    return quantization


def _Windows(quantization: Any, windows: Sequence[NDArray[np.float32]]) -> Any:  # noqa: N802 - it creates an instance
    """Return a reader that gives the windows one by one to ONNX Runtime's calibration."""

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._rest: Iterator[NDArray[np.float32]] = iter(windows)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            window = next(self._rest, None)
            return None if window is None else {"windows": window[None]}

    return Reader()


def _write(graph: onnx.ModelProto, target: Path) -> None:
    try:
        onnx.checker.check_model(graph, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"The converted graph is not valid ONNX: {str(error).splitlines()[0]}") from error
    onnx.save(graph, target)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the quantiser's output, which it prints and logs to the root logger."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
