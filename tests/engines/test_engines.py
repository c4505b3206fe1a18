"""Every engine is held to the NumPy result: the same logits, the same slab, the same mask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from semiseg.engines.engine import Activation, Engine, activated
from semiseg.engines.onnx import OnnxEngine
from semiseg.engines.openvino import OpenVinoEngine
from semiseg.inference.segmenter import Segmenter, Settings
from semiseg.inference.windows import window_weights
from tests.networks import NumpyEngine, manifest_of
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
        return OpenVinoEngine(folder / "line.onnx", threads=1)
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


@pytest.fixture(params=list(MAKERS))
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    return MAKERS[request.param](tmp_path)


def tolerance(engine: Engine) -> float:
    """CUDA convolves in TF32: ten bits of a number."""
    return 1e-5 if engine.device == "cpu" else 1e-2


def windows_of(batch: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(batch, 2, *WINDOW)).astype(np.float32)


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


@pytest.mark.parametrize("activation", ["none", "softmax", "sigmoid"])
def test_the_blended_slab_is_the_sum_computed_by_hand(engine: Engine, activation: Activation) -> None:
    weights = window_weights(WINDOW, "gaussian")
    slab = engine.open_slab((3, 5, 7, 8), activation)
    first, second = windows_of(3, seed=1), windows_of(3, seed=2)
    engine.accumulate(slab, engine.run(first), [(0, 0, 0), (0, 3, 2), (0, 1, 1)], weights)
    # A padded batch: the third window of the second batch stands for nothing.
    engine.accumulate(slab, engine.run(second), [(0, 0, 2), (0, 3, 0)], weights)
    expected = slab_by_hand(
        (3, 5, 7, 8),
        activation,
        [*zip(first, [(0, 0, 0), (0, 3, 2), (0, 1, 1)], strict=True), (second[0], (0, 0, 2)), (second[1], (0, 3, 0))],
    )
    done = engine.finish(slab, 2)
    assert done.shape == (3, 2, 7, 8) and done.dtype == np.float32
    np.testing.assert_allclose(done, expected[:, :2], atol=tolerance(engine))
    # The rest has moved up, and the planes it left are empty for the next windows.
    third = windows_of(1, seed=3)
    engine.accumulate(slab, engine.run(third), [(0, 2, 1)], weights)
    later = slab_by_hand((3, 5, 7, 8), activation, [(third[0], (0, 2, 1))])
    later[:, :3] += expected[:, 2:]
    np.testing.assert_allclose(engine.finish(slab, 5), later, atol=tolerance(engine))
    np.testing.assert_allclose(engine.finish(slab, 5), 0, atol=0)


def test_finished_planes_do_not_change_when_the_slab_goes_on(engine: Engine) -> None:
    slab = engine.open_slab((3, 5, 4, 6), "none")
    weights = window_weights(WINDOW, "constant")
    engine.accumulate(slab, engine.run(windows_of(1)), [(0, 0, 0)], weights)
    done = engine.finish(slab, 2)
    before = done.copy()
    engine.accumulate(slab, engine.run(windows_of(1, seed=5)), [(0, 0, 0)], weights)
    engine.finish(slab, 2)
    np.testing.assert_array_equal(done, before)


def test_two_slabs_of_one_engine_do_not_meet(engine: Engine) -> None:
    weights = window_weights(WINDOW, "gaussian")
    a, b = engine.open_slab((3, *WINDOW), "none"), engine.open_slab((3, *WINDOW), "softmax")
    windows = windows_of(2)
    handle = engine.run(windows)
    engine.accumulate(a, handle, [(0, 0, 0)], weights)
    engine.accumulate(b, handle, [(0, 0, 0)], weights)
    for slab, activation in ((a, "none"), (b, "softmax")):
        expected = slab_by_hand((3, *WINDOW), activation, [(windows[0], (0, 0, 0))])  # type: ignore[arg-type]
        np.testing.assert_allclose(engine.finish(slab, 5), expected, atol=tolerance(engine))


@pytest.mark.parametrize("average", ["logits", "probs"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_every_engine_draws_the_mask_that_numpy_draws(
    engine: Engine, activation: Activation, average: str, tmp_path: Path
) -> None:
    manifest = manifest_of(tmp_path / "bundle", window=WINDOW, activation=activation, average=average)
    if activation == "sigmoid":  # three regions
        third = manifest.segments[0].model_copy(update={"name": "third", "label": 3})
        manifest = manifest.model_copy(update={"segments": (*manifest.segments, third)})
    array = np.random.default_rng(3).normal(size=(2, 13, 9, 11)).astype(np.float32)
    reference = Segmenter(manifest, NumpyEngine(line), Settings(batch=3)).segment_prepared(array)
    found = Segmenter(manifest, engine, Settings(batch=3)).segment_prepared(array)
    assert len(np.unique(reference)) > 1
    assert np.mean(found == reference) > 0.999


def test_softmax_and_sigmoid_of_large_logits_do_not_overflow() -> None:
    logits = np.asarray([[-1e4, 0, 1e4], [1e4, 0, -1e4]], np.float32)
    with np.errstate(over="raise", invalid="raise"):
        np.testing.assert_allclose(activated(logits, "softmax"), [[0, 0.5, 1], [1, 0.5, 0]])
        np.testing.assert_allclose(activated(logits, "sigmoid"), [[0, 0.5, 1], [1, 0.5, 0]])
        np.testing.assert_array_equal(activated(logits, "none"), logits)
