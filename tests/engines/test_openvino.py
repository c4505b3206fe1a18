"""OpenVINO: several threads share one engine, nothing leaves the machine, and what is wrong is said in a sentence."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from semiseg.bundle.bundle import Bundle
from semiseg.engines.onnx import OnnxEngine
from semiseg.engines.openvino import OpenVinoEngine
from semiseg.errors import EngineError, InputError
from tests.bundles import make_threshold_bundle

pytestmark = pytest.mark.package("openvino")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_threshold_bundle(tmp_path_factory.mktemp("openvino") / "bundle")


def windows(seed: int, shape: tuple[int, ...] = (2, 1, 16, 16, 16)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def test_it_computes_what_onnx_runtime_computes_in_every_shape(bundle: Bundle) -> None:
    engine, other = OpenVinoEngine(bundle.model, threads=1), OnnxEngine(bundle.model, threads=1)
    for shape in ((1, 1, 16, 16, 16), (3, 1, 16, 16, 16), (1, 1, 8, 12, 5)):
        given = windows(1, shape)
        np.testing.assert_allclose(engine.logits(engine.run(given)), other.logits(other.run(given)), atol=1e-4)


def test_threads_do_not_see_each_others_windows(bundle: Bundle) -> None:
    engine, other = OpenVinoEngine(bundle.model, threads=1), OnnxEngine(bundle.model, threads=1)

    def differs(seed: int) -> float:
        given = windows(seed)
        found = engine.run(given)
        return float(np.abs(engine.logits(found) - other.logits(other.run(given))).max())

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(differs, range(60))) < 1e-4


def test_a_damaged_graph_and_windows_that_do_not_fit_are_one_sentence(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "half.onnx").write_bytes(bundle.model.read_bytes()[:200])
    with pytest.raises(EngineError, match=r"^OpenVINO cannot load .*half\.onnx: [^\n]+$"):
        OpenVinoEngine(tmp_path / "half.onnx")
    engine = OpenVinoEngine(bundle.model, threads=1)
    with pytest.raises(
        EngineError, match=r"^OpenVINO cannot run this graph on windows of shape \(1, 7, 4, 4, 4\): [^\n]+$"
    ):
        engine.run(windows(0, (1, 7, 4, 4, 4)))
    assert len(engine.logits(engine.run(windows(0)))) == 2, "an engine survives what did not fit"


def test_without_openvino_the_extra_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match="install the `serve` extra"):
        OpenVinoEngine(bundle.model)


def test_nothing_is_sent_anywhere(bundle: Bundle) -> None:
    """SRV-07.

    A package for telemetry comes along with it: neither import nor inference may reach out or leave a thread.
    """
    code = f"""
import socket, subprocess, sys, threading, time
from pathlib import Path
def forbidden(*arguments, **named):
    print("reached out:", arguments, flush=True)
    raise OSError("no network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = forbidden
import numpy as np
from semiseg.engines.openvino import OpenVinoEngine
engine = OpenVinoEngine(Path({str(bundle.model)!r}), threads=1)
engine.logits(engine.run(np.zeros((1, 1, 16, 16, 16), np.float32)))
time.sleep(1)
print("threads", [t.name for t in threading.enumerate()])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "threads ['MainThread']\n", done.stdout + done.stderr
