"""A ``tensorrt`` package that writes down what it is asked, and computes with NumPy in host memory.

TensorRT cannot be installed where these tests run. Whether a real plan computes the right thing is for a machine with a
GPU to show (docs/gpu-checks.md); here the calls are those that versions 10 and 11 ask for, in their order, on the right
memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from semiseg.engines import tensorrt as engine_file

PLAN_BYTES = b"the plan"


class HostValue:
    """ONNX Runtime's OrtValue on a device, in host memory; ``all`` finds one by its address."""

    all: ClassVar[dict[int, HostValue]] = {}

    def __init__(self, shape: list[int]) -> None:
        self.array = np.zeros(shape, np.float32)
        self.all[self.data_ptr()] = self

    @classmethod
    def ortvalue_from_shape_and_type(cls, shape: list[int], kind: Any, device: str, number: int) -> HostValue:
        assert (kind, device, number) == (np.float32, "cuda", 0)
        return cls(shape)

    def data_ptr(self) -> int:
        return id(self)

    def update_inplace(self, values: NDArray[np.float32]) -> None:
        assert values.flags.c_contiguous
        self.array[...] = values

    def numpy(self) -> NDArray[np.float32]:
        return self.array.copy()


@dataclass
class FakeTensorRT:
    """A ``tensorrt`` package of one version; ``calls`` are the calls in order.

    Attributes:
        parses, builds, loads: whether these steps succeed.
        format: what the inspector says of the convolutions' inputs.
        network: from windows to logits, what a plan computes.
        outputs: channels of the logits.
        largest: the largest batch and the window of the plan.
    """

    version: str
    parses: bool = True
    builds: bool = True
    loads: bool = True
    format: str = "Row major linear FP32"
    network: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda windows: windows
    outputs: int = 3
    largest: tuple[int, ...] = (4, 2, 16, 24, 8)
    calls: list[tuple[str, Any]] = field(default_factory=list)

    def record(self, call: str, answer: Any = None) -> Callable[..., Any]:
        """A function that remembers its arguments and returns ``answer``."""

        def called(*arguments: Any, **named: Any) -> Any:
            self.calls.append((call, (*arguments, *named.items())))
            return answer

        return called

    def arguments(self, call: str) -> list[Any]:
        return [arguments for name, arguments in self.calls if name == call]

    def module(self) -> ModuleType:
        out = ModuleType("tensorrt")
        made = SimpleNamespace(serialize=lambda: b"timings")
        self.config = SimpleNamespace(
            set_memory_pool_limit=self.record("memory"),
            add_optimization_profile=self.record("add_profile"),
            create_timing_cache=self.record("create_cache", made),
            set_timing_cache=self.record("set_cache"),
            get_timing_cache=lambda: made,
        )
        profile = SimpleNamespace(set_shape=self.record("set_shape"))
        builder = SimpleNamespace(
            create_network=self.record("create_network", "network"),
            create_builder_config=lambda: self.config,
            create_optimization_profile=lambda: profile,
            build_serialized_network=self.record("build", PLAN_BYTES if self.builds else None),
        )
        parser = SimpleNamespace(
            parse_from_file=self.record("parse", self.parses), num_errors=2, get_error=lambda i: f"problem {i}"
        )
        everything: dict[str, Any] = {
            "__version__": self.version,
            "Logger": type("Logger", (), {"WARNING": "warning", "ERROR": "error", "__init__": lambda *_: None}),
            "Builder": lambda _: builder,
            "OnnxParser": self.record("parser", parser),
            "MemoryPoolType": SimpleNamespace(WORKSPACE="workspace"),
            "ProfilingVerbosity": SimpleNamespace(DETAILED="detailed"),
            "LayerInformationFormat": SimpleNamespace(JSON="json"),
            "TensorIOMode": SimpleNamespace(INPUT="input", OUTPUT="output"),
            "Runtime": lambda _: SimpleNamespace(deserialize_cuda_engine=self._engine),
            # Version 11 knows no other mode, and has no flag for it.
            "NetworkDefinitionCreationFlag": SimpleNamespace(STRONGLY_TYPED=1)
            if self.version.startswith("10")
            else SimpleNamespace(),
        }
        for name, value in everything.items():
            setattr(out, name, value)
        return out

    def _engine(self, plan: bytes) -> Any:
        if plan != PLAN_BYTES or not self.loads:
            return None
        return SimpleNamespace(
            num_io_tensors=2,
            get_tensor_name=lambda k: ("logits", "windows")[k],
            get_tensor_mode=lambda name: "input" if name == "windows" else "output",
            create_execution_context=lambda: _Context(self),
            create_engine_inspector=lambda: _Inspector(self),
        )


class _Context:
    def __init__(self, of: FakeTensorRT) -> None:
        self._of = of
        self.shape: tuple[int, ...] = ()
        self._at: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "windows"
        fits = shape[1:] == self._of.largest[1:] and 1 <= shape[0] <= self._of.largest[0]
        self.shape = shape if fits else ()
        return fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name == "logits"
        return (self.shape[0], self._of.outputs, *self.shape[2:])

    def set_tensor_address(self, name: str, address: int) -> None:
        self._at[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 0
        given, found = (HostValue.all[self._at[name]] for name in ("windows", "logits"))
        assert given.array.shape == self.shape
        found.array[...] = self._of.network(given.array)
        return True


class _Inspector:
    """Tells formats only for a context whose shapes are set, as the real one does."""

    def __init__(self, of: FakeTensorRT) -> None:
        self._of = of
        self.execution_context: _Context | None = None

    def get_engine_information(self, how: str) -> str:
        assert how == "json"
        known = self.execution_context is not None and bool(self.execution_context.shape)
        told = self._of.format if known else "N/A due to dynamic shapes"
        layers: list[Any] = [
            {"Name": "in", "LayerType": "Reformat", "Inputs": [{"Format/Datatype": "Row major linear FP32"}]},
            {"Name": "a", "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": told}]},
            {"Name": "b", "LayerType": "kgen", "ParameterType": "Convolution", "Inputs": [{"Format/Datatype": told}]},
            "a layer of which only the name is told",
        ]
        return json.dumps({"Layers": layers, "Bindings": ["windows", "logits"]})


def install_fake_tensorrt(
    monkeypatch: pytest.MonkeyPatch, tools: Path, gpu: str = "NVIDIA L4, 580.95.05"
) -> Callable[..., FakeTensorRT]:
    """A machine with a GPU, its driver, and TensorRT of the version asked for; nvidia-smi is in ``tools``."""
    tools.mkdir(exist_ok=True)
    (tools / "nvidia-smi").write_text(f"#!/bin/sh\necho '{gpu}'\n")
    (tools / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr(engine_file, "import_onnxruntime", lambda: SimpleNamespace(OrtValue=HostValue))

    def make(version: str = "10.9.0", **how: Any) -> FakeTensorRT:
        stand_in = FakeTensorRT(version, **how)
        monkeypatch.setitem(sys.modules, "tensorrt", stand_in.module())
        return stand_in

    return make
