"""Every engine is held to the NumPy result: the same logits, the same slab, the same mask."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from semiseg.engines.engine import Engine, apply_activation
from semiseg.engines.onnx import OnnxEngine
from semiseg.engines.openvino import OpenVinoEngine
from semiseg.engines.slab import Activation, SlabPlan
from semiseg.inference.segmenter import Segmenter, SlidingWindowOptions
from semiseg.inference.windows import window_weights
from tests.networks import NumpyEngine, threshold_manifest
from trainer.engine import TorchEngine

RNG = np.random.default_rng(7)
KERNEL = RNG.normal(size=(3, 2)).astype(np.float32)
BIAS = RNG.normal(size=3).astype(np.float32)
WINDOW = (5, 4, 6)


def line(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """A 1x1x1 convolution from 2 channels to 3."""
    return np.asarray(np.einsum("kc,bcxyz->bkxyz", KERNEL, windows) + BIAS[None, :, None, None, None], np.float32)


def onnx_engine(folder: Path, device: str = "cpu") -> Engine:
    shape = ("x", "y", "z")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["windows", "kernel", "bias"], ["logits"])],
        "line",
        [helper.make_tensor_value_info("windows", TensorProto.FLOAT, ["batch", 2, *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, *shape])],
        [numpy_helper.from_array(KERNEL.reshape(3, 2, 1, 1, 1), "kernel"), numpy_helper.from_array(BIAS, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "line.onnx")
    if device == "openvino":
        return OpenVinoEngine(folder / "line.onnx", threads=2)
    return OnnxEngine(folder / "line.onnx", threads=1, device=device)


def torch_engine(folder: Path, device: str = "cpu") -> Engine:
    del folder
    network = torch.nn.Conv3d(2, 3, 1)
    network.load_state_dict({"weight": torch.tensor(KERNEL).reshape(3, 2, 1, 1, 1), "bias": torch.tensor(BIAS)})
    return TorchEngine(network, device)


MAKERS: dict[str, Callable[[Path], Engine]] = {
    "numpy": lambda _: NumpyEngine(line),
    "onnx": onnx_engine,
    "openvino": lambda folder: onnx_engine(folder, "openvino"),
    "torch": torch_engine,
}
# On a machine with a GPU the same tests hold the engines there to the same result.
if torch.cuda.is_available():
    MAKERS["torch-cuda"] = lambda folder: torch_engine(folder, "cuda")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        MAKERS["onnx-cuda"] = lambda folder: onnx_engine(folder, "cuda")


@pytest.fixture(params=[pytest.param(n, marks=pytest.mark.package(n) if n == "openvino" else ()) for n in MAKERS])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    return MAKERS[request.param](tmp_path)


def tolerance(engine: Engine) -> float:
    """CUDA convolves in TF32: ten bits of a number."""
    return 1e-5 if engine.device == "cpu" else 1e-2


def windows_of(batch: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(batch, 2, *WINDOW)).astype(np.float32)


def blended(engine: Engine, slab: Any, planes: int, rows: int) -> NDArray[np.float32]:
    return np.concatenate([part.copy() for part in engine.completed(slab, planes, rows)], axis=1)


def slab_by_hand(
    shape: tuple[int, ...], activation: Activation, placed: list[tuple[NDArray[np.float32], tuple[int, int, int]]]
) -> NDArray[np.float64]:
    out = np.zeros(shape)
    for window, (x, y, z) in placed:
        logits = line(window[None]).astype(np.float64)[0]
        if activation == "softmax":
            logits = np.exp(logits) / np.exp(logits).sum(axis=0)
        elif activation == "sigmoid":
            logits = 1 / (1 + np.exp(-logits))
        out[:, x : x + 5, y : y + 4, z : z + 6] += logits * window_weights(WINDOW, "gaussian")
    return out


@pytest.mark.parametrize("batch", [1, 3])
def test_logits_are_those_of_the_network(engine: Engine, batch: int) -> None:
    windows = windows_of(batch)
    found = engine.logits(engine.run(windows))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, line(windows), atol=tolerance(engine))


def test_windows_need_not_lie_in_order_in_memory(engine: Engine) -> None:
    windows = np.asfortranarray(windows_of(2))
    np.testing.assert_allclose(engine.logits(engine.run(windows)), line(windows), atol=tolerance(engine))


# Two rows that share two of five planes, and in each two bands that share a voxel.
PLAN = SlabPlan(shape=(8, 7, 8), window=WINDOW, outer=0, middle=1, carried=2)
ROWS, BANDS, ALONG = (0, 3), (0, 3), (0, 2)


@pytest.mark.parametrize("activation", ["none", "softmax", "sigmoid"])
def test_the_blended_slab_is_the_sum_computed_by_hand(engine: Engine, activation: Activation) -> None:
    weights = window_weights(WINDOW, "gaussian")
    slab = engine.open_slab(PLAN, 3, activation)
    placed: list[tuple[NDArray[np.float32], tuple[int, int, int]]] = []
    parts = []
    for x, y in itertools.product(ROWS, BANDS):
        # A padded batch: its third window stands for nothing.
        windows = windows_of(3, seed=10 * x + y)
        handle = engine.run(windows)
        for row, z in enumerate(ALONG):
            engine.accumulate(slab, handle, row, (x, y, z), weights)
            placed.append((windows[row], (x, y, z)))
        planes, rows = 3 if x == 0 else 5, 3 if y == 0 else 4
        done = blended(engine, slab, planes, rows)
        assert done.shape == (3, planes, rows, 8) and done.dtype == np.float32
        parts.append(((slice(x, x + planes), slice(y, y + rows)), done.copy()))
        engine.advance(slab, planes, rows)
    expected = slab_by_hand((3, *PLAN.shape), activation, placed)
    for (x, y), done in parts:
        np.testing.assert_allclose(done, expected[:, x, y], atol=tolerance(engine))
    # Nothing is left for the volume after this one.
    np.testing.assert_allclose(blended(engine, slab, 5, 4), 0, atol=0)


def test_logits_that_are_known_are_added_like_those_of_the_network(engine: Engine) -> None:
    weights = window_weights(WINDOW, "gaussian")
    windows = windows_of(1)
    sums = []
    for handle in (engine.run(windows), engine.wrap_logits(line(windows))):
        slab = engine.open_slab(PLAN, 3, "softmax")
        engine.accumulate(slab, handle, 0, (0, 0, 1), weights)
        sums.append(blended(engine, slab, 5, 4))
    assert np.ptp(sums[0]) > 0
    np.testing.assert_allclose(sums[0], sums[1], atol=tolerance(engine))


def test_handles_hold_while_the_network_is_at_the_next_windows(engine: Engine) -> None:
    waiting = []
    for seed in range(3 * (engine.max_pending + 1)):
        waiting.append((seed, engine.run(windows_of(2, seed=seed))))
        if len(waiting) > engine.max_pending:
            oldest, handle = waiting.pop(0)
            np.testing.assert_allclose(engine.logits(handle), line(windows_of(2, seed=oldest)), atol=tolerance(engine))


def test_two_slabs_of_one_engine_do_not_meet(engine: Engine) -> None:
    weights = window_weights(WINDOW, "gaussian")
    a, b = engine.open_slab(PLAN, 3, "none"), engine.open_slab(PLAN, 3, "softmax")
    windows = windows_of(2)
    handle = engine.run(windows)
    engine.accumulate(a, handle, 0, (0, 0, 0), weights)
    engine.accumulate(b, handle, 1, (0, 0, 0), weights)
    for slab, row, activation in ((a, 0, "none"), (b, 1, "softmax")):
        expected = slab_by_hand((3, 5, 4, 8), activation, [(windows[row], (0, 0, 0))])  # type: ignore[arg-type]
        np.testing.assert_allclose(blended(engine, slab, 5, 4), expected, atol=tolerance(engine))


@pytest.mark.parametrize("average", ["logits", "probs"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_every_engine_draws_the_mask_that_numpy_draws(
    engine: Engine, activation: Activation, average: str, tmp_path: Path
) -> None:
    """INF-02."""
    manifest = threshold_manifest(tmp_path / "bundle", window=WINDOW, activation=activation, average=average)
    if activation == "sigmoid":  # three regions
        third = manifest.segments[0].model_copy(update={"name": "third", "label": 3})
        manifest = manifest.model_copy(update={"segments": (*manifest.segments, third)})
    array = np.random.default_rng(3).normal(size=(2, 13, 9, 11)).astype(np.float32)
    reference = Segmenter(manifest, NumpyEngine(line), SlidingWindowOptions(batch=3)).segment_preprocessed(array)
    found = Segmenter(manifest, engine, SlidingWindowOptions(batch=3)).segment_preprocessed(array)
    assert len(np.unique(reference)) > 1
    assert np.mean(found == reference) > 0.999


def test_softmax_and_sigmoid_of_large_logits_do_not_overflow() -> None:
    logits = np.asarray([[-1e4, 0, 1e4], [1e4, 0, -1e4]], np.float32)
    with np.errstate(over="raise", invalid="raise"):
        np.testing.assert_allclose(apply_activation(logits, "softmax"), [[0, 0.5, 1], [1, 0.5, 0]])
        np.testing.assert_allclose(apply_activation(logits, "sigmoid"), [[0, 0.5, 1], [1, 0.5, 0]])
        np.testing.assert_array_equal(apply_activation(logits, "none"), logits)
