"""The TensorRT plan: without TensorRT the bundle stays whole; with it, the calls are those that 10 and 11 ask for.

TensorRT cannot be installed where these tests run, so its package is stood in for by one that writes down what it was
asked. Whether a plan computes the right thing is for a machine with a GPU to show.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter.errors import ExportError, MissingToolError
from exporter.tensorrt import TIMING_CACHE, WORKSPACE, add_plan, require_tensorrt
from semiseg.bundle.bundle import MANIFEST, MODEL, PLAN, Bundle, open_bundle, sha256_of, write_bundle
from semiseg.bundle.card import CARD
from semiseg.bundle.manifest import Manifest, PlanKey
from semiseg.bundle.variant import Variant
from semiseg.engines.onnx import OnnxEngine
from semiseg.engines.tensorrt import precision_of
from tests.bundles import make_threshold_bundle
from tests.fake_tensorrt import PLAN_BYTES, FakeTensorRT, install_fake_tensorrt
from tests.fork_server import run_semiseg
from tests.runs import TinyRun

HERE = bool(importlib.util.find_spec("tensorrt")) and torch.cuda.is_available()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- without TensorRT ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(HERE, reason="this machine has TensorRT and a GPU")
def test_asking_for_a_plan_without_tensorrt_ends_with_2_one_sentence_and_a_whole_bundle(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    done = run_semiseg("export", tiny_run.folder, "--out", out, "--trt", cwd=Path(__file__).parents[2])
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("semiseg: ") and line.endswith("The ONNX bundle is complete without it.")
    assert "on onnxruntime: proved on 3 windows of" in done.stdout and "TensorRT" not in done.stdout
    assert open_bundle(out).manifest.plan is None
    assert sorted(p.name for p in out.iterdir()) == [CARD, MANIFEST, MODEL] and [
        p.name for p in tmp_path.iterdir()
    ] == ["bundle"]


@pytest.mark.parametrize("error", [ImportError("libnvinfer.so.10: not found\nmore"), OSError("no"), RuntimeError("")])
def test_a_package_whose_libraries_are_missing_is_a_missing_tool(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "tensorrt.py"
    broken.write_text(f"raise {type(error).__name__}({str(error)!r})")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(MissingToolError, match="TensorRT is not installed") as caught:
        require_tensorrt()
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


# --- with a stand-in ------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., FakeTensorRT]:
    return install_fake_tensorrt(monkeypatch, tmp_path / "tools")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_threshold_bundle(tmp_path / "models" / "bundle", channels=("t1", "t2"), window=(16, 24, 8))


def test_a_plan_is_added_with_the_key_of_the_machine_it_is_for(
    machine: Callable[..., FakeTensorRT], bundle: Bundle
) -> None:
    machine("10.9.0")
    graph = bundle.model.read_bytes()
    found = add_plan(bundle, batch=8)
    assert found.manifest.plan == PlanKey(
        onnx=bundle.sha256, tensorrt="10.9.0", gpu="NVIDIA L4", driver="580.95.05", window=(16, 24, 8), batch=8
    )
    assert (bundle.folder / PLAN).read_bytes() == b"the plan" and found.model.read_bytes() == graph
    opened = open_bundle(bundle.folder).manifest
    assert opened.files == {MODEL: bundle.sha256, PLAN: sha256_of(bundle.folder / PLAN)}
    assert opened.model_copy(update={"plan": None, "files": bundle.manifest.files}) == bundle.manifest


@pytest.mark.parametrize(("version", "flags"), [("10.0.1", 1 << 1), ("10.15.0", 1 << 1), ("11.4.1", 0)])
def test_the_network_is_strongly_typed_by_a_flag_in_10_and_by_nature_in_11(
    machine: Callable[..., FakeTensorRT], bundle: Bundle, version: str, flags: int
) -> None:
    asked = machine(version)
    add_plan(bundle)
    assert asked.arguments("create_network") == [(flags,)]


def test_the_profile_spans_batches_from_one_up_at_the_default_window(
    machine: Callable[..., FakeTensorRT], bundle: Bundle
) -> None:
    asked = machine()
    add_plan(bundle, batch=6)
    most = (6, 2, 16, 24, 8)
    assert asked.arguments("set_shape") == [("windows", (1, 2, 16, 24, 8), most, most)]
    assert len(asked.arguments("add_profile")) == 1
    assert asked.arguments("memory") == [("workspace", WORKSPACE)]
    assert asked.arguments("parse") == [(str(bundle.model),)]
    order = [name for name, _ in asked.calls]
    assert order.index("set_shape") < order.index("add_profile") < order.index("build")


def test_the_timings_of_one_build_serve_the_next(machine: Callable[..., FakeTensorRT], bundle: Bundle) -> None:
    first = machine()
    add_plan(bundle)
    assert first.arguments("create_cache") == [(b"",)]
    assert (bundle.folder.parent / TIMING_CACHE).read_bytes() == b"timings"
    second = machine()
    add_plan(open_bundle(bundle.folder))
    assert second.arguments("create_cache") == [(b"timings",)]
    (arguments,) = second.arguments("set_cache")
    assert arguments[1:] == (("ignore_mismatch", True),)
    assert sorted(p.name for p in bundle.folder.iterdir()) == [MANIFEST, MODEL, PLAN]


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"parses": False}, "TensorRT 10.9.0 cannot read the graph: problem 0; problem 1"),
        ({"builds": False}, "TensorRT 10.9.0 could not build the graph"),
    ],
)
def test_a_failed_build_leaves_the_bundle_as_it_was(
    machine: Callable[..., FakeTensorRT], bundle: Bundle, how: dict[str, bool], sentence: str
) -> None:
    before = contents(bundle.folder.parent)
    machine("10.9.0", **how)
    with pytest.raises(ExportError, match=sentence):
        add_plan(bundle)
    assert contents(bundle.folder.parent) == before


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 9\n", "#!/bin/sh\n", "#!/bin/sh\necho no devices\n"])
def test_a_driver_that_does_not_answer_leaves_the_bundle_as_it_was(
    machine: Callable[..., FakeTensorRT], bundle: Bundle, tmp_path: Path, script: str
) -> None:
    machine()
    (tmp_path / "tools" / "nvidia-smi").write_text(script)
    before = contents(bundle.folder)
    with pytest.raises(MissingToolError, match="nvidia-smi lists no GPU"):
        add_plan(bundle)
    assert contents(bundle.folder) == before


@pytest.mark.parametrize("version", ["8.6.1", "9.3.0", "12.0.0"])
def test_other_versions_are_refused(machine: Callable[..., FakeTensorRT], bundle: Bundle, version: str) -> None:
    before = contents(bundle.folder.parent)
    machine(version)
    with pytest.raises(MissingToolError, match=f"TensorRT {version} is not supported; versions 10 and 11 are"):
        add_plan(bundle)
    assert contents(bundle.folder.parent) == before


def test_a_machine_without_a_gpu_is_told_where_plans_are_built(
    machine: Callable[..., FakeTensorRT], bundle: Bundle, tmp_path: Path
) -> None:
    asked = machine()
    (tmp_path / "tools" / "nvidia-smi").unlink()
    with pytest.raises(MissingToolError, match=r"lists no GPU.*The ONNX bundle is complete without it\."):
        add_plan(bundle)
    assert not asked.calls


def test_a_plan_of_an_earlier_graph_does_not_survive_a_new_export(
    machine: Callable[..., FakeTensorRT], bundle: Bundle
) -> None:
    machine()
    add_plan(bundle)
    fresh = make_threshold_bundle(bundle.folder)
    assert fresh.manifest.plan is None and not (bundle.folder / PLAN).exists()


# --- what is built, and what it is called ----------------------------------------------------------------------------


def with_half(bundle: Bundle) -> Bundle:
    """The bundle with an fp16 graph beside the fp32 one."""

    def fill(folder: Path) -> Manifest:
        for name in (MODEL, "model.fp16.onnx"):
            (folder / name).write_bytes(bundle.model.read_bytes())
        variants = (Variant(precision="fp32", file=MODEL), Variant(precision="fp16", file="model.fp16.onnx"))
        return bundle.manifest.model_copy(update={"variants": variants})

    return write_bundle(bundle.folder, fill)


def test_a_plan_is_built_from_the_half_precision_graph(machine: Callable[..., FakeTensorRT], bundle: Bundle) -> None:
    asked = machine(format="Channel major FP16 format where channel % 8 == 0")
    found = add_plan(with_half(bundle))
    assert asked.arguments("parse") == [(str(bundle.folder / "model.fp16.onnx"),)]
    assert asked.config.profiling_verbosity == "detailed"
    assert found.manifest.plan is not None
    assert (found.manifest.plan.precision, found.manifest.plan.onnx) == (
        "fp16",
        found.manifest.files["model.fp16.onnx"],
    )


@pytest.mark.parametrize("told", ["Row major linear FP32", "Float"])
def test_a_plan_that_computes_in_fp32_is_not_called_fp16(
    machine: Callable[..., FakeTensorRT], bundle: Bundle, told: str
) -> None:
    machine(format=told)
    half = with_half(bundle)
    before = contents(bundle.folder)
    with pytest.raises(ExportError, match="built from the fp16 graph, and its convolutions compute in fp32"):
        add_plan(half)
    assert contents(bundle.folder) == before


@pytest.mark.parametrize(
    ("told", "name"),
    [("Half", "fp16"), ("Row major linear BF16 format", "bf16"), ("Thirty-two wide channel Int8 format", "int8")],
)
def test_the_inspectors_words_are_understood(machine: Callable[..., FakeTensorRT], told: str, name: str) -> None:
    trt = machine(format=told).module()
    assert precision_of(trt, PLAN_BYTES, (1, 2, 16, 24, 8), "windows") == name


def test_a_plan_has_to_pass_the_gate_like_any_graph(machine: Callable[..., FakeTensorRT], bundle: Bundle) -> None:
    scans = [np.random.default_rng(k).random((2, 16, 24, 8), dtype=np.float32) for k in range(3)]
    fp32 = OnnxEngine(bundle.model, threads=1)
    named = bundle.manifest.model_copy(update={"variants": (Variant(precision="fp32", file=MODEL),)})
    machine(network=lambda windows: fp32.run(windows))
    found = add_plan(Bundle(bundle.folder, named), scans=scans)
    (parity,) = found.manifest.variants[0].parity
    assert (parity.engine, parity.windows, parity.least_dice) == ("tensorrt", 3, 1.0)
    machine(network=lambda windows: fp32.run(windows)[:, ::-1])
    before = contents(bundle.folder)
    with pytest.raises(ExportError, match=r"run by tensorrt on 3 windows.*The plan was not added to the bundle\."):
        add_plan(Bundle(bundle.folder, named), scans=scans)
    assert contents(bundle.folder) == before
