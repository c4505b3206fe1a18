"""Export of a torch module to an ONNX graph with free batch and window sizes, by torch's dynamo exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import onnx
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn

from exporter.errors import ExportError

OPSET = 20
INPUT = "windows"
OUTPUT = "logits"


def export_onnx(
    network: nn.Module,
    target: Path,
    *,
    inputs: int,
    window: tuple[int, int, int],
    divisor: tuple[int, int, int] | None,
) -> None:
    """Write ``network`` to ``target`` as one file, from float32 windows (B, inputs, X, Y, Z) to logits (B, K, X, Y, Z).

    Args:
        network: The exported module, in evaluation mode.
        target: The .onnx file.
        inputs: Number of channels of a window.
        window: Size of a window in voxels; X, Y, Z stay free in the graph, as multiples of ``divisor``.
        divisor: Numbers of which the sides of a window are multiples; None fixes X, Y, Z at ``window``, for networks
            whose structure depends on them.

    Raises:
        ExportError: The exporter does not support an operator, or onnx does not accept the graph.
    """
    # The example has a batch of 2 and unequal sides: a size of 1, or two equal sizes, would be taken for constants.
    example = torch.zeros(2, inputs, *window)
    shapes = {0: torch.export.Dim("batch", min=1, max=64)}
    if divisor is not None:
        x, y, z = (side // d for side, d in zip(window, divisor, strict=True))
        example = torch.zeros(2, inputs, *(d * side for side, d in zip(_unequal(x, y, z), divisor, strict=True)))
        for axis, (name, d) in enumerate(zip("xyz", divisor, strict=True), start=2):
            free = torch.export.Dim(name, min=1, max=256)
            shapes[axis] = d * free if d > 1 else free
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet("torch.onnx"):
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                network.cpu().eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=(shapes,),
                external_data=False,
                verbose=False,
            )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            raise ExportError(f"The network cannot be exported to ONNX: {str(error).splitlines()[0]}") from error
    if program is None:
        raise ExportError("The network cannot be exported to ONNX: the exporter returned nothing.")
    # The exporter records the source line of each node, with paths of this machine, which must not be published.
    ClearMetadataAndDocStringPass()(program.model)
    program.save(str(target))
    try:
        onnx.checker.check_model(str(target), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"The exported graph is not valid ONNX: {str(error).splitlines()[0]}") from error


def _unequal(x: int, y: int, z: int) -> tuple[int, int, int]:
    x, y, z = max(2, x), max(2, y), max(2, z)
    if y == x:
        y += 1
    while z in (x, y):
        z += 1
    return x, y, z


@contextlib.contextmanager
def _quiet(name: str):  # type: ignore[no-untyped-def]
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
