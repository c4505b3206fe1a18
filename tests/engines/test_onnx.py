"""ONNX Runtime: what is wrong with the graph or the installation is said in a sentence."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from semiseg.bundle.bundle import Bundle
from semiseg.engines.onnx import OnnxEngine, import_onnxruntime, installed_runtimes
from semiseg.errors import EngineError, InputError
from tests.bundles import make_threshold_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_threshold_bundle(tmp_path_factory.mktemp("onnx") / "bundle", at_full_intensity="fails")


def pretend_installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if pip had installed these of the two packages that provide ``onnxruntime``."""

    def version(name: str) -> str:
        if name in names:
            return "1.31.1"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text and "Traceback" not in text
    return text


def test_exactly_one_runtime_is_installed_here() -> None:
    assert len(installed_runtimes()) == 1
    assert import_onnxruntime() is onnxruntime


def test_two_runtimes_in_one_environment_are_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    with pytest.raises(InputError) as caught:
        OnnxEngine(bundle.model)
    text = one_sentence(caught.value)
    assert "overwrite each other's files" in text and "pip uninstall onnxruntime onnxruntime-gpu" in text


def test_a_missing_runtime_names_the_extras_that_bring_one(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch)
    with pytest.raises(InputError) as caught:
        OnnxEngine(bundle.model)
    assert "`serve` extra (CPU) or the `gpu` extra" in one_sentence(caught.value)


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-gpu"])
def test_either_runtime_alone_is_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, name)
    assert import_onnxruntime() is onnxruntime


def test_cuda_of_a_build_without_it_is_refused_and_not_replaced_by_the_cpu(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(InputError, match="This ONNX Runtime has no CUDA; install the `gpu` extra"):
        OnnxEngine(bundle.model, device="cuda")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_cuda_that_does_not_start_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    # The CUDA build on a machine without a GPU lists CUDA, takes the CPU in silence and says so only when asked.
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda _: ["CPUExecutionProvider"])
    with pytest.raises(InputError, match="could not start CUDA on this machine"):
        OnnxEngine(bundle.model, device="cuda")
    assert OnnxEngine(bundle.model, device="auto").device == "cpu"


@pytest.mark.parametrize("content", [b"", b"not a graph", None], ids=["empty", "text", "cut off"])
def test_a_damaged_graph_is_refused(bundle: Bundle, content: bytes | None, tmp_path: Path) -> None:
    damaged = tmp_path / "model.onnx"
    whole = bundle.model.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(EngineError) as caught:
        OnnxEngine(damaged)
    assert one_sentence(caught.value).startswith(f"ONNX Runtime cannot load {damaged}: ")


def test_a_failure_while_running_names_the_shape_of_the_windows(bundle: Bundle) -> None:
    engine = OnnxEngine(bundle.model, threads=1)
    windows = np.full((2, 1, 4, 4, 4), 0.5, np.float32)
    assert engine.logits(engine.run(windows)).shape == (2, 3, 4, 4, 4)
    windows[0, 0, 1, 1, 1] = 1.0
    with pytest.raises(EngineError) as caught:
        engine.run(windows)
    assert one_sentence(caught.value).startswith("ONNX Runtime failed on windows of shape (2, 1, 4, 4, 4): ")


def test_windows_with_another_number_of_channels_are_an_engine_error(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="failed on windows of shape"):
        OnnxEngine(bundle.model, threads=1).run(np.zeros((1, 2, 4, 4, 4), np.float32))


def test_the_runtime_does_not_report_to_its_maker(monkeypatch: pytest.MonkeyPatch) -> None:
    """SRV-07."""
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    import_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
