"""Which graph a machine runs: the fastest that was proved and that it has instructions for, and a reason for each."""

from __future__ import annotations

from pathlib import Path

import pytest

from semiseg.bundle.bundle import Bundle, write_bundle
from semiseg.bundle.manifest import Manifest
from semiseg.bundle.variant import PRECISIONS, Parity, Precision, Variant
from semiseg.engines import hardware as machine_of
from semiseg.engines.onnx import OnnxEngine
from semiseg.engines.openvino import OpenVinoEngine
from semiseg.errors import EngineError, InputError
from semiseg.inference import engine_selection
from semiseg.inference.engine_selection import choose_engine
from tests.bundles import make_threshold_bundle

PROVED = ("onnxruntime", "openvino")


def bundle_with(folder: Path, *precisions: Precision, engines: tuple[str, ...] = PROVED) -> Bundle:
    """The threshold graph under several names, proved on ``engines``."""
    plain = make_threshold_bundle(folder / "plain")
    window = plain.manifest.window

    def fill(scratch: Path) -> Manifest:
        variants = []
        for precision in ("fp32", *precisions):
            name = "model.onnx" if precision == "fp32" else f"model.{precision}.onnx"
            (scratch / name).write_bytes(plain.model.read_bytes())
            proofs = tuple(Parity(engine=e, window=window, windows=1, largest_difference=0, dice={}) for e in engines)
            variants.append(Variant(precision=precision, file=name, parity=proofs))
        return plain.manifest.model_copy(update={"variants": tuple(variants), "files": {}})

    return write_bundle(folder / "bundle", fill)


def machine(monkeypatch: pytest.MonkeyPatch, *, flags: str = "", cuda: bool = False) -> None:
    """As if the processor had these instructions, and a GPU were there."""
    monkeypatch.setattr(engine_selection, "has_instructions", lambda names: bool(set(names) & set(flags.split())))
    monkeypatch.setattr(engine_selection, "is_cuda_available", lambda: cuda)


@pytest.mark.package("openvino")
@pytest.mark.parametrize(
    ("flags", "taken"),
    [
        ("", "fp32"),
        ("avx512_vnni", "int8"),
        ("avx_vnni", "int8"),
        ("avx512_bf16", "bf16"),
        ("amx_int8 amx_bf16", "int8"),
    ],
)
def test_a_processor_gets_the_graph_that_it_has_instructions_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, taken: str
) -> None:
    machine(monkeypatch, flags=flags)
    found = choose_engine(bundle_with(tmp_path, "fp16", "bf16", "int8"), threads=1)
    assert (found.selected.precision, found.selected.engine) == (taken, "openvino")
    assert isinstance(found.engine, OpenVinoEngine) and found.selected.engine_and_device == "openvino (cpu)"
    reasons = {one.precision: one.reason for one in found.candidates if one.open is None}
    for precision in {"int8", "bf16"} & reasons.keys():
        assert reasons[precision].startswith("this processor has no ")


@pytest.mark.package("openvino")
def test_a_graph_that_was_not_proved_on_an_engine_does_not_run_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INF-05."""
    machine(monkeypatch, flags="avx512_vnni")
    found = choose_engine(bundle_with(tmp_path, "int8", engines=("onnxruntime",)), threads=1)
    assert (found.selected.precision, found.selected.engine) == ("fp32", "openvino")
    (int8,) = [one for one in found.candidates if one.precision == "int8"]
    assert int8.reason == "the export did not verify it on this engine"


def test_a_machine_without_openvino_has_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, flags="avx512_vnni")
    monkeypatch.setattr(engine_selection.importlib.util, "find_spec", lambda name: None)
    found = choose_engine(bundle_with(tmp_path, "int8"), threads=1)
    assert isinstance(found.engine, OnnxEngine) and found.selected.precision == "fp32"
    assert [one.reason for one in found.candidates[:3] if one.engine == "openvino"] == ["OpenVINO is not installed"] * 2


@pytest.mark.package("openvino")
def test_a_gpu_that_does_not_start_is_passed_over_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """INF-05."""
    machine(monkeypatch, cuda=True)
    found = choose_engine(bundle_with(tmp_path, "fp16"), threads=1)
    assert (found.selected.precision, found.selected.engine) == ("fp32", "openvino")
    told = [one.reason for one in found.candidates if one.device == "cuda"]
    assert len(told) == 2 and all("has no CUDA" in reason for reason in told)


@pytest.mark.package("openvino")
def test_a_precision_can_be_insisted_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, flags="avx512_vnni")
    bundle = bundle_with(tmp_path, "int8")
    assert choose_engine(bundle, threads=1, precision="fp32").selected.precision == "fp32"
    assert choose_engine(bundle, threads=1, precision="int8").selected.precision == "int8"
    with pytest.raises(InputError, match=r"^The bundle has fp32, int8 and cannot run in bf16 here\.$"):
        choose_engine(bundle, precision="bf16")
    machine(monkeypatch)
    with pytest.raises(InputError, match=r"cannot run in int8 here \(openvino: this processor has no 8-bit"):
        choose_engine(bundle, precision="int8")


def test_a_graph_that_no_engine_loads_is_an_error_and_not_a_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch)
    bundle = bundle_with(tmp_path)
    bundle.model.write_bytes(b"not a graph")
    with pytest.raises(EngineError, match="ONNX Runtime cannot load"):
        choose_engine(bundle, threads=1)


def test_every_precision_can_be_named(tmp_path: Path) -> None:
    assert PRECISIONS == ("fp32", "fp16", "bf16", "int8")
    assert [v.precision for v in bundle_with(tmp_path, "fp16", "bf16", "int8").manifest.variants] == list(PRECISIONS)


@pytest.mark.parametrize(
    ("cap", "int8", "bf16"),
    [("", True, True), ("AVX512_CORE_AMX", True, True), ("avx512_core_vnni", True, False), ("AVX2", False, False)],
)
def test_a_cap_on_the_instruction_set_takes_what_it_forbids(
    monkeypatch: pytest.MonkeyPatch, cap: str, int8: bool, bf16: bool
) -> None:
    here = frozenset({"avx2", "avx512f", "avx512_vnni", "avx512_bf16"})
    monkeypatch.setattr(machine_of, "processor_flags", lambda: here)
    monkeypatch.setenv(machine_of.ISA_CAP_VARIABLE, cap)
    assert (
        machine_of.has_instructions(machine_of.INT8_INSTRUCTIONS),
        machine_of.has_instructions(machine_of.BF16_INSTRUCTIONS),
    ) == (int8, bf16)
