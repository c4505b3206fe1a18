"""The TensorRT engine against a stand-in: right memory, right shapes, and sentences where a plan does not suit."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from semiseg.bundle.bundle import PLAN, Bundle, write_bundle
from semiseg.bundle.manifest import Manifest, PlanKey
from semiseg.engines.openvino import OpenVinoEngine
from semiseg.engines.tensorrt import TensorRtEngine
from semiseg.errors import EngineError
from semiseg.inference.engine_selection import choose_engine
from tests.bundles import make_threshold_bundle
from tests.fake_tensorrt import PLAN_BYTES, FakeTensorRT, install_fake_tensorrt

WINDOW = (16, 24, 8)


def three(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([windows[:, :1], -windows[:, 1:], windows[:, :1] + windows[:, 1:]], axis=1)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., FakeTensorRT]:
    return install_fake_tensorrt(monkeypatch, tmp_path / "tools")


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    (tmp_path / "model.plan").write_bytes(PLAN_BYTES)
    return tmp_path / "model.plan"


def windows(batch: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((batch, 2, *WINDOW), dtype=np.float32)


def test_windows_go_to_the_device_and_their_logits_come_back(machine: Callable[..., FakeTensorRT], plan: Path) -> None:
    machine(network=three)
    engine = TensorRtEngine(plan)
    for batch in (1, 4, 1, 3):
        given = windows(batch, batch)
        np.testing.assert_array_equal(engine.logits(engine.run(np.asfortranarray(given))), three(given))


def test_threads_have_memory_of_their_own(machine: Callable[..., FakeTensorRT], plan: Path) -> None:
    machine(network=three)
    engine = TensorRtEngine(plan)
    with ThreadPoolExecutor(4) as pool:
        right = pool.map(lambda seed: np.array_equal(engine.run(windows(2, seed)), three(windows(2, seed))), range(40))
        assert all(right)


def test_windows_that_the_plan_does_not_take_are_a_sentence(machine: Callable[..., FakeTensorRT], plan: Path) -> None:
    machine(network=three)
    engine = TensorRtEngine(plan)
    for given in (windows(5), windows(1)[..., :4]):
        with pytest.raises(EngineError, match="The TensorRT plan does not take windows of shape"):
            engine.run(given)


@pytest.mark.package("openvino")
def test_a_plan_that_does_not_load_is_a_sentence(machine: Callable[..., FakeTensorRT], plan: Path) -> None:
    machine(loads=False)
    with pytest.raises(
        EngineError, match=r"^TensorRT 10\.9\.0 cannot load .*build it again with `semiseg export --trt`\.$"
    ):
        TensorRtEngine(plan)


# --- which machine uses it ------------------------------------------------------------------------------------------


def bundle_with_plan(folder: Path, **changes: str) -> Bundle:
    plain = make_threshold_bundle(folder, channels=("t1", "t2"), window=WINDOW)
    key = PlanKey(
        **{  # type: ignore[arg-type]
            "onnx": plain.sha256, "tensorrt": "10.9.0", "gpu": "NVIDIA L4", "driver": "580.95.05", "window": WINDOW,
            "batch": 4, **changes,
        }
    )  # fmt: skip

    def fill(scratch: Path) -> Manifest:
        (scratch / "model.onnx").write_bytes(plain.model.read_bytes())
        (scratch / PLAN).write_bytes(PLAN_BYTES)
        return plain.manifest.model_copy(update={"plan": key, "files": {}})

    return write_bundle(folder, fill)


def test_the_machine_that_a_plan_was_built_on_uses_it(machine: Callable[..., FakeTensorRT], tmp_path: Path) -> None:
    machine(network=three)
    found = choose_engine(bundle_with_plan(tmp_path / "bundle"))
    assert isinstance(found.engine, TensorRtEngine) and found.selected.engine == "tensorrt"


@pytest.mark.package("openvino")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gpu": "NVIDIA A100"}, "the plan was built for NVIDIA A100 with driver 580.95.05, and this is NVIDIA L4"),
        (
            {"driver": "535.1"},
            "the plan was built for NVIDIA L4 with driver 535.1, and this is NVIDIA L4 with 580.95.05",
        ),
        ({"tensorrt": "10.3.0"}, "the plan was built by TensorRT 10.3.0, and this is 10.9.0"),
        ({"onnx": "0" * 64}, "the plan was built from another graph"),
    ],
)
def test_any_other_machine_passes_it_over_and_says_why(
    machine: Callable[..., FakeTensorRT], tmp_path: Path, changes: dict[str, str], reason: str
) -> None:
    machine(network=three)
    found = choose_engine(bundle_with_plan(tmp_path / "bundle", **changes), threads=1)
    assert isinstance(found.engine, OpenVinoEngine)
    assert found.candidates[0].engine == "tensorrt" and found.candidates[0].reason.startswith(reason)


@pytest.mark.package("openvino")
def test_a_plan_that_does_not_load_is_passed_over_too(machine: Callable[..., FakeTensorRT], tmp_path: Path) -> None:
    machine(loads=False)
    found = choose_engine(bundle_with_plan(tmp_path / "bundle"), threads=1)
    assert isinstance(found.engine, OpenVinoEngine) and "cannot load" in found.candidates[0].reason


def test_without_a_gpu_there_is_nothing_to_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semiseg.inference.engine_selection.detect_gpu", lambda: None)
    monkeypatch.setattr("semiseg.inference.engine_selection.is_cuda_available", lambda: False)
    found = choose_engine(bundle_with_plan(tmp_path / "bundle"), threads=1)
    assert found.candidates[0].reason == "no NVIDIA GPU on this machine"
    assert found.engine.device == "cpu"
