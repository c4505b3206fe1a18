"""Graphs in lower precision: what of them is, what they compute, and that one that strays is not written."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from cli.app import main
from exporter.errors import ExportError
from exporter.export import FILES, ExportResult, export, find_parity_scans
from exporter.half_precision import HALF_PRECISION_OPS, convert_to_half
from exporter.onnx import export_onnx
from exporter.parity import central_window, gate_failure, measure_parity
from exporter.precision import to_half, to_int8
from semiseg.bundle.bundle import open_bundle
from semiseg.bundle.manifest import Manifest
from semiseg.bundle.variant import Precision
from semiseg.engines.engine import Engine
from semiseg.engines.hardware import BF16_INSTRUCTIONS, INT8_INSTRUCTIONS, has_instructions
from semiseg.engines.onnx import OnnxEngine
from semiseg.engines.openvino import OpenVinoEngine
from tests.runs import TinyRun
from trainer.engine import TorchEngine, load_trained_network

SIZE = (16, 16, 16)
ENGINES = [OnnxEngine, pytest.param(OpenVinoEngine, marks=pytest.mark.package("openvino"))]
OPENVINO = importlib.util.find_spec("openvino") is not None


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small UNet with random weights."""
    from monai.networks.nets import UNet

    torch.manual_seed(0)
    network = UNet(3, 1, 3, (8, 16, 32), (2, 2), num_res_units=1)
    target = tmp_path_factory.mktemp("graph") / "model.onnx"
    export_onnx(network.eval(), target, inputs=1, window=SIZE, divisor=(4, 4, 4))
    return target


def windows(count: int = 6) -> list[NDArray[np.float32]]:
    """Bright balls in noise: something with a shape for the network to see."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in SIZE], indexing="ij"), axis=-1)
    out = []
    for k in range(count):
        rng = np.random.default_rng(k)
        ball = np.linalg.norm(grid - rng.uniform(4, 12, 3), axis=-1) < rng.uniform(3, 6)
        out.append((2.0 * ball + rng.normal(0, 0.5, SIZE))[None].astype(np.float32))
    return out


def logits(engine: Engine, window: NDArray[np.float32]) -> NDArray[np.float32]:
    return engine.logits(engine.run(window[None])).copy()


def dequantised(graph: Path, window: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits of a graph with Q/DQ nodes as they are written down: rounded values in float32, no 8-bit kernels."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"windows": window[None]})[0])


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    typed = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    out = {value.name: value.type.tensor_type.elem_type for value in typed}
    return out | {tensor.name: tensor.data_type for tensor in inferred.graph.initializer}


@pytest.mark.parametrize(("precision", "kind"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
def test_convolutions_are_in_half_precision_and_normalisations_are_not(
    graph: Path, tmp_path: Path, precision: str, kind: int
) -> None:
    to_half(graph, tmp_path / "half.onnx", precision)  # type: ignore[arg-type]
    model = onnx.load(tmp_path / "half.onnx")
    types = types_of(model)
    seen = set()
    for node in model.graph.node:
        if node.op_type != "Cast":
            expected = kind if node.op_type in HALF_PRECISION_OPS else TensorProto.FLOAT
            assert {types[name] for name in (*node.input, *node.output)} == {expected}, node.op_type
            seen.add(node.op_type)
    assert {"Conv", "ConvTranspose", "InstanceNormalization", "PRelu"} <= seen
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    assert (tmp_path / "half.onnx").stat().st_size < 0.7 * graph.stat().st_size


@pytest.mark.parametrize("engine", ENGINES)
def test_half_precision_computes_nearly_the_same(graph: Path, tmp_path: Path, engine: type[Engine]) -> None:
    to_half(graph, tmp_path / "half.onnx", "fp16")
    exact, half = engine(graph, threads=1), engine(tmp_path / "half.onnx", threads=1)  # type: ignore[call-arg]
    for window in windows(3):
        found, expected = logits(half, window), logits(exact, window)
        assert 0 < np.abs(found - expected).max() < 0.02 * np.ptp(expected)


def test_a_tensor_that_both_precisions_read_is_cast_once_and_a_constant_is_kept_in_both() -> None:
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Add", ["x", "c"], ["a"]),
        helper.make_node("Exp", ["a"], ["e"]),
        helper.make_node("Softmax", ["a"], ["s"], axis=1),
        helper.make_node("Mul", ["e", "c"], ["m"]),
        helper.make_node("Add", ["m", "s"], ["y"]),
        helper.make_node("Relu", ["a"], ["z"]),
    ]
    floats = [("x", "input"), ("y", "output"), ("z", "output")]
    graph = helper.make_graph(
        nodes,
        "both",
        [value(n, TensorProto.FLOAT, [1, 4]) for n, how in floats if how == "input"],
        [value(n, TensorProto.FLOAT, [1, 4]) for n, how in floats if how == "output"],
        [helper.make_tensor("c", TensorProto.FLOAT, [4], [0.5, 1.0, 2.0, -1.0])],
    )
    plain = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    given = {"x": np.asarray([[0.1, -0.2, 0.3, 0.4]], np.float32)}
    expected = ReferenceEvaluator(plain).run(None, given)
    half = convert_to_half(plain, TensorProto.FLOAT16)
    onnx.checker.check_model(half, full_check=True)
    assert sum(n.op_type == "Cast" and n.input[0] == "a" for n in half.graph.node) == 1
    assert {t.name: t.data_type for t in half.graph.initializer} == {
        "c": TensorProto.FLOAT,
        "c_half": TensorProto.FLOAT16,
    }
    for a, b in zip(ReferenceEvaluator(half).run(None, given), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_int8_keeps_the_first_and_the_last_convolution_and_nearly_the_logits(
    graph: Path, tmp_path: Path, engine: type[Engine]
) -> None:
    to_int8(graph, tmp_path / "int8.onnx", windows())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["int8.onnx"]
    model = onnx.load(tmp_path / "int8.onnx")
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    quantised = [made_by.get(node.input[1]) == "DequantizeLinear" for node in convolutions]
    assert quantised == [False, *[True] * (len(convolutions) - 2), False]
    scales = [t for t in model.graph.initializer if t.name.endswith("weight_scale")]
    assert any(len(t.dims) == 1 and t.dims[0] > 1 for t in scales), "one scale for each output channel"
    fp32, int8 = engine(graph, threads=1), engine(tmp_path / "int8.onnx", threads=1)  # type: ignore[call-arg]
    # Without 8-bit dot products (VNNI), kernels add pairs of products in 16 bits, where they saturate.
    saturates = not has_instructions(INT8_INSTRUCTIONS)
    for window in windows(9)[6:]:
        found, expected = logits(int8, window), logits(fp32, window)
        assert np.mean(dequantised(tmp_path / "int8.onnx", window).argmax(1) == expected.argmax(1)) > 0.97
        assert np.mean(found.argmax(1) == expected.argmax(1)) > (0.9 if saturates else 0.97)
        assert np.abs(found - expected).max() > 0


def test_int8_of_a_network_too_small_for_it_is_refused(tmp_path: Path) -> None:
    export_onnx(torch.nn.Conv3d(1, 2, 1).eval(), tmp_path / "m.onnx", inputs=1, window=SIZE, divisor=(1, 1, 1))
    with pytest.raises(ExportError, match="at least three convolutions"):
        to_int8(tmp_path / "m.onnx", tmp_path / "int8.onnx", windows())


# --- in the export ---------------------------------------------------------------------------------------------------


def test_the_bundle_holds_every_graph_that_passed_and_its_proofs(tiny_run: TinyRun, tmp_path: Path) -> None:
    """Which graphs pass depends on the processor: OpenVINO computes bf16 in the instructions that there are."""
    exported = export(tiny_run.folder, tmp_path / "bundle", precisions=("fp16", "bf16"))
    manifest = open_bundle(tmp_path / "bundle").manifest
    held = {variant.precision: variant for variant in manifest.variants}
    assert [(v.precision, v.file) for v in manifest.variants] == [(p, FILES[p]) for p in FILES if p in held]
    assert set(manifest.files) == {"MODEL_CARD.md", *(v.file for v in manifest.variants)}
    assert {"fp32", "fp16"} <= held.keys() <= {"fp32", "fp16", "bf16"}
    assert held["fp32"].verified_on("openvino") == OPENVINO and held["fp16"].verified_on("onnxruntime")
    for precision, variant in held.items():
        for engine in {p.engine for p in variant.parity}:
            proofs = [p for p in variant.parity if p.engine == engine]
            assert [p.window for p in proofs] == list(manifest.windows)
            assert [gate_failure(manifest, precision, p) for p in proofs] == [None] * len(proofs)
            assert refusals(exported, precision, engine) == []
    for precision in ("fp16", "bf16"):
        on_openvino = precision in held and held[precision].verified_on("openvino")
        assert on_openvino == passes_on_openvino(tiny_run, manifest, precision, tmp_path)
        assert precision in held or refusals(exported, precision), "whoever asked for it is told why it is not there"


def refusals(exported: ExportResult, precision: str, engine: str = "") -> list[str]:
    """The sentences about a graph, and about one engine's run of it."""
    return [sentence for sentence in exported.refused if f"{precision} graph" in sentence and engine in sentence]


def passes_on_openvino(run: TinyRun, manifest: Manifest, precision: Precision, folder: Path) -> bool:
    """Whether OpenVINO, computing as a server on this processor does, keeps to the gate in windows of every size."""
    if not OPENVINO or (precision == "bf16" and not has_instructions(BF16_INSTRUCTIONS)):
        return False
    described, network = load_trained_network(run.folder)
    export_onnx(network, folder / "f32.onnx", inputs=1, window=described.window, divisor=described.divisor)
    to_half(folder / "f32.onnx", folder / "again.onnx", precision)  # type: ignore[arg-type]
    engine = OpenVinoEngine(folder / "again.onnx", threads=1, bf16=precision == "bf16")
    scans = [scan.array for scan in find_parity_scans(described, run.folder, data=None, cache=None).parity]
    found = [
        measure_parity(described, TorchEngine(network, "cpu"), engine, (central_window(scan, window) for scan in scans))
        for window in manifest.windows
    ]
    return not any(gate_failure(manifest, precision, parity) for parity in found)


def test_a_processor_without_bfloat16_proves_no_bf16_graph(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO would compute it in float32 there, which is not what it computes where the graph will be run."""
    monkeypatch.setattr("exporter.export.has_instructions", lambda flags: False)
    exported = export(tiny_run.folder, tmp_path / "bundle", precisions=("bf16",))
    assert exported.refused == ("No engine on this machine runs the bf16 graph, so it cannot be tested.",)
    assert [v.precision for v in exported.bundle.manifest.variants] == ["fp32"]


def test_a_graph_that_misses_its_gate_is_left_out_and_the_command_says_by_how_much(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MOD-03."""
    from exporter import export as room

    def strayed(model: Path, target: Path, windows: object) -> None:
        """An int8 graph whose last bias went wrong."""
        del windows
        graph = onnx.load(model)
        manifest, network = load_trained_network(tiny_run.folder)
        bias = [name for name, p in network.named_parameters() if p.ndim == 1 and p.numel() == manifest.outputs][-1]
        for k, tensor in enumerate(graph.graph.initializer):
            if tensor.name == bias:
                values = onnx.numpy_helper.to_array(tensor).copy()
                values[1] += 3.0
                graph.graph.initializer[k].CopyFrom(onnx.numpy_helper.from_array(values, bias))
        onnx.save(graph, target)

    monkeypatch.setattr(room, "to_int8", strayed)
    with pytest.raises(SystemExit) as left:
        main(["export", str(tiny_run.folder), "--out", str(tmp_path / "bundle"), "--precision", "int8,fp16"])
    assert left.value.code == 1
    said = capsys.readouterr()
    assert "The int8 graph does not compute what the network computes" in said.err and "Dice 0." in said.err
    assert "The bundle was written without what failed." in said.err
    assert "fp16, " in said.out and "int8" not in said.out
    names = sorted(p.name for p in (tmp_path / "bundle").iterdir())
    assert names == ["MODEL_CARD.md", "manifest.json", "model.fp16.onnx", "model.onnx"]
    written = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert [v["precision"] for v in written["variants"]] == ["fp32", "fp16"]


def test_an_unknown_precision_is_refused_before_anything_is_done(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["export", str(tiny_run.folder), "--out", str(tmp_path / "bundle"), "--precision", "fp8"])
    assert left.value.code == 2 and "A precision is fp32, fp16, bf16 or int8, not 'fp8'" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
