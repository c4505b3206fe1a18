"""Models and machines that cannot do it: one sentence each, on every engine, and no mask."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cli.models import open_model
from semiseg.bundle.bundle import Bundle, write_bundle
from semiseg.bundle.manifest import Manifest
from semiseg.engines.engine import Engine
from semiseg.engines.onnx import OnnxEngine
from semiseg.engines.openvino import OpenVinoEngine
from semiseg.errors import EngineError, InputError
from tests.bundles import make_threshold_bundle

ENGINES = [OnnxEngine, pytest.param(OpenVinoEngine, marks=pytest.mark.package("openvino"))]


def graph_of(folder: Path, operator: str, domain: str) -> Path:
    shape = ["batch", 1, "x", "y", "z"]
    graph = helper.make_graph(
        [helper.make_node(operator, ["windows"], ["logits"], domain=domain)],
        "one",
        [helper.make_tensor_value_info("windows", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("somewhere", 1)]
    target = folder / "one.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), target)
    return target


@pytest.mark.parametrize("engine", ENGINES)
def test_an_operator_that_the_engine_lacks_is_named(engine: type[Engine], tmp_path: Path) -> None:
    graph = graph_of(tmp_path, "Segmentify", "somewhere")
    with pytest.raises(EngineError, match=r"^(ONNX Runtime|OpenVINO) cannot load [^\n]*Segmentify[^\n]*$"):
        engine(graph)  # type: ignore[call-arg]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_truncated_graph_is_refused(engine: type[Engine], share: float, tmp_path: Path) -> None:
    whole = make_threshold_bundle(tmp_path / "bundle").model.read_bytes()
    half = tmp_path / "half.onnx"
    half.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(EngineError, match=r"^(ONNX Runtime|OpenVINO) [^\n]+$"):
        made = engine(half)  # type: ignore[call-arg]
        made.logits(made.run(np.zeros((1, 1, 8, 8, 8), np.float32)))


def changed(bundle: Bundle, folder: Path, **changes: object) -> Bundle:
    """The bundle with another manifest, whose sums are right: only the network can say that it lies."""

    def fill(scratch: Path) -> Manifest:
        (scratch / bundle.model.name).write_bytes(bundle.model.read_bytes())
        document = bundle.manifest.model_copy(update={**changes, "files": {}})
        return Manifest.model_validate(document.model_dump())

    return write_bundle(folder, fill)


def test_a_manifest_that_lies_about_its_segments_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    bundle = make_threshold_bundle(tmp_path / "true")
    fewer = changed(bundle, tmp_path / "lie", segments=bundle.manifest.segments[:1])
    with pytest.raises(InputError, match=r"^The network returned shape \(1, 3, .*the manifest specifies \(1, 2, "):
        open_model(fewer.folder, threads=1)


def test_a_manifest_that_lies_about_its_channels_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    bundle = make_threshold_bundle(tmp_path / "true")
    channel, contract = bundle.manifest.channels[0], bundle.manifest.preprocessing
    more = changed(
        bundle,
        tmp_path / "lie",
        channels=(channel, channel.model_copy(update={"name": "second"})),
        preprocessing=contract.model_copy(update={"intensity": contract.intensity * 2}),
    )
    with pytest.raises(EngineError, match=r"^(ONNX Runtime|OpenVINO) [^\n]+\(1, 2, [^\n]+$"):
        open_model(more.folder, threads=1)


def test_too_little_memory_is_a_sentence_and_the_process_goes_on(tmp_path: Path) -> None:
    """INF-04. An address space that has room for the model and not for the scan."""
    pytest.importorskip("resource", reason="only POSIX limits the memory of a process")
    bundle = make_threshold_bundle(tmp_path / "bundle")
    code = """
import resource, sys
from pathlib import Path
import numpy as np
from cli.models import open_model
from semiseg.errors import EngineError
from semiseg.volumes.volume import Volume
segmenter = open_model(Path(sys.argv[1]), threads=1).segmenter
small = {"image": Volume(np.zeros((20, 20, 20), np.float32), np.eye(4))}
large = {"image": Volume(np.broadcast_to(np.float32(0), (900, 900, 400)), np.eye(4))}
segmenter.segment(small)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), resource.RLIM_INFINITY))
try:
    segmenter.segment(large)
except EngineError as error:
    print(error)
print(segmenter.segment(small).array.shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle.folder)], capture_output=True, text=True, check=True, timeout=540
    )
    sentence, shape = done.stdout.splitlines()
    assert sentence.startswith(
        "There is not enough memory here for a scan of 900x900x400 voxels, 3 classes and windows"
    )
    assert shape == "(20, 20, 20)"
