"""The export of a run: load the module, write its graphs, compare them with the module, write the bundle.

No bundle is written if a step fails.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from exporter.coarse import learn_settings, prove_settings
from exporter.cpu_rewrites import replace_group_norms, replace_transposed_convolutions
from exporter.errors import ExportError
from exporter.onnx import export_onnx
from exporter.parity import central_window, gate_failure, measure_parity
from exporter.parity_scans import ParityScans, find_parity_scans
from exporter.precision import to_half, to_int8
from semiseg.bundle.bundle import MODEL, Bundle, write_bundle
from semiseg.bundle.card import CARD, model_card
from semiseg.bundle.coarse_settings import CoarsePassProof, CoarsePassSettings, describe_coarse_pass
from semiseg.bundle.manifest import EXPORT_OVERLAP, Manifest
from semiseg.bundle.variant import Precision, Variant
from semiseg.engines.engine import Engine
from semiseg.engines.hardware import BF16_INSTRUCTIONS, has_instructions
from semiseg.engines.onnx import OnnxEngine
from semiseg.engines.openvino import OpenVinoEngine
from semiseg.errors import EngineError
from trainer.engine import TorchEngine, load_trained_network, network_config_from_manifest

FILES: dict[Precision, str] = {
    "fp32": MODEL,
    "fp16": "model.fp16.onnx",
    "bf16": "model.bf16.onnx",
    "int8": "model.int8.onnx",
}


@dataclass(frozen=True)
class ExportResult:
    """A bundle and the outcome of its parity tests.

    Attributes:
        bundle: The bundle.
        refused: A sentence for each requested precision that did not pass its gate.
        scans: A sentence that names the source of the test scans.
        coarse_pass: Lines that describe the coarse pass and its proofs, or say why the bundle has none.
    """

    bundle: Bundle
    refused: tuple[str, ...]
    scans: str
    coarse_pass: tuple[str, ...] = ()


def export(
    run: Path,
    out: Path,
    *,
    precisions: Sequence[Precision] = (),
    data: Path | None = None,
    cache: Path | None = None,
    coarse: bool = True,
    report: Callable[[str], None] = lambda _: None,
) -> ExportResult:
    """Turn a finished run into a bundle.

    Only the method's exported module is built and loaded. Teachers, adapters and averages that are not exported cannot
    reach the graph.

    Args:
        run: Folder of the run.
        out: Folder of the bundle. It is written under a temporary name beside it and renamed after all tests.
        precisions: Precisions of further graphs beside fp32. A graph that fails its gate is left out, and the result
            says by how much it failed.
        data: Dataset from which scans for the parity tests and for calibration are taken, never its test scans.
        cache: Preprocessing cache from which these scans are taken if ``data`` is None. If both are None, they are the
            run's own scans, provided that these still exist.
        coarse: If True, look for a coarse pass with which windows of background can be skipped. This takes up to eight
            full passes over scans to learn its settings, and up to eight to prove it in each precision. A coarse pass
            that fails its gate is left out.
        report: Function that is called with a line before each of these passes.

    Raises:
        BundleError: ``run`` is not a run, or ``out`` is not a bundle.
        RunError: The run has not finished.
        ExportError: The fp32 graph cannot be created or fails its gate.
    """
    manifest, network = load_trained_network(run)
    # Papers' recipes may lay windows with strides of a few voxels, hundreds per scan; bundles overlap by half a window.
    manifest = manifest.model_copy(update={"overlap": EXPORT_OVERLAP})
    scans = find_parity_scans(manifest, run, data=data, cache=cache)
    arrays = [scan.array for scan in scans.parity]
    reference = TorchEngine(network, "cpu")
    refused: list[str] = []
    coarse_lines: list[str] = []

    def fill(folder: Path) -> Manifest:
        model = folder / MODEL
        # The graph takes windows of any size if the network does.
        divisor = manifest.divisor if network_config_from_manifest(manifest).takes_any_size else None
        graphs = _Graphs(network, folder, len(manifest.channels), manifest.window, divisor)
        graphs.write_float32(model)
        first, failures = verify(manifest, "fp32", model, reference, arrays)
        if first is None or failures:
            raise ExportError(f"{' '.join(failures)} No bundle was written.")
        variants = [first]
        for precision in dict.fromkeys(p for p in precisions if p != "fp32"):
            target = folder / FILES[precision]
            variant, failures = None, []
            try:
                windows = [central_window(scan.array, manifest.window) for scan in scans.calibration]
                graphs.write(target, precision, windows)
                variant, failures = verify(manifest, precision, target, reference, arrays)
            except ExportError as error:
                failures = [str(error)]
            refused.extend(failures)
            if variant is None:
                target.unlink(missing_ok=True)
            else:
                variants.append(variant)
        proved = manifest.model_copy(update={"variants": tuple(variants)})
        if coarse:
            settings, lines = _coarse_pass(proved, folder, scans, report)
            coarse_lines.extend(lines)
            proved = proved.model_copy(update={"coarse_pass": settings})
        (folder / CARD).write_text(model_card(proved), encoding="utf-8", newline="\n")
        return proved

    bundle = write_bundle(out, fill)
    return ExportResult(bundle, tuple(refused), scans.origin, tuple(coarse_lines))


def _coarse_pass(
    manifest: Manifest, folder: Path, scans: ParityScans, report: Callable[[str], None]
) -> tuple[CoarsePassSettings | None, list[str]]:
    """Return the settings of the coarse pass with their proofs, or None if there are none; and lines that say so."""
    first, *_ = manifest.variants  # fp32
    learned = learn_settings(manifest, _engine_of(first, folder), scans.calibration, report)
    if isinstance(learned, str):
        return None, [f"No coarse pass: {learned}."]
    proofs: list[CoarsePassProof] = []
    failures: list[str] = []
    for variant in manifest.variants:
        engine = _engine_of(variant, folder)
        proof, failure = prove_settings(manifest, learned, engine, variant.precision, scans.parity, report)
        if proof is not None:
            proofs.append(proof)
            continue
        failures.append(f"No coarse pass in {variant.precision} ({learned.description}): {failure}.")
        if not proofs:  # without a proof for fp32 there is none for other precisions
            return None, failures
    settings = learned.model_copy(update={"proofs": tuple(proofs)})
    return settings, [*describe_coarse_pass(settings), *failures]


def _engine_of(variant: Variant, folder: Path) -> Engine:
    """Return the engine that inference would select for a graph on this machine's CPU."""
    model = folder / variant.file
    if variant.verified_on(OpenVinoEngine.name):
        return OpenVinoEngine(model, bf16=variant.precision == "bf16")
    return OnnxEngine(model, device="cpu")


def verify(
    manifest: Manifest, precision: Precision, model: Path, reference: Engine, scans: Sequence[NDArray[np.float32]]
) -> tuple[Variant | None, list[str]]:
    """Compare a graph with the network on a window of each scan, for every allowed window size and available engine.

    Returns:
        The variant with the results of the engines on which it passed at every size, None if there is no such engine;
        and a sentence for each failure.

    Raises:
        ExportError: There is no scan, or the fp32 graph does not run.
    """
    passed, failures = [], []
    for make in available_engines(precision):
        try:
            engine = make(model)
            found = [
                measure_parity(manifest, reference, engine, (central_window(scan, window) for scan in scans))
                for window in manifest.windows
            ]
        except EngineError as error:
            if precision == "fp32":
                raise ExportError(f"The exported graph does not run: {error}") from error
            continue  # an engine without this precision is not used for the graph
        missed = [gate_failure(manifest, precision, parity) for parity in found]
        failures += [sentence for sentence in missed if sentence]
        if not any(missed):
            passed += found
    if not passed and not failures:
        failures = [f"No engine on this machine runs the {precision} graph, so it cannot be tested."]
    return (Variant(precision=precision, file=FILES[precision], parity=tuple(passed)) if passed else None, failures)


def available_engines(precision: Precision) -> Iterable[Callable[[Path], Engine]]:
    """Yield constructors of the engines that will run a graph of this precision on this machine's CPU."""
    yield lambda model: OnnxEngine(model, device="cpu")
    # On a CPU without bfloat16 instructions OpenVINO computes a bf16 graph in float32. Agreement of the masks there
    # proves nothing for CPUs that have them, which are the only ones to use this graph.
    bf16 = precision == "bf16"
    if importlib.util.find_spec("openvino") is not None and (has_instructions(BF16_INSTRUCTIONS) or not bf16):
        yield lambda model: OpenVinoEngine(model, bf16=bf16)


@dataclass(frozen=True)
class _Graphs:
    """A writer of a network's graphs, with the layers that are fast on the hardware for each precision."""

    network: nn.Module
    folder: Path
    inputs: int
    window: tuple[int, int, int]
    divisor: tuple[int, int, int] | None

    def write_float32(self, target: Path) -> None:
        self._export(replace_group_norms(self.network), target)

    def write(self, target: Path, precision: Precision, windows: Sequence[NDArray[np.float32]]) -> None:
        source = self.folder / "source.onnx"
        try:
            if precision == "int8":  # run on CPUs
                self._export(replace_transposed_convolutions(replace_group_norms(self.network)), source)
                to_int8(source, target, windows)
            elif precision != "fp32":  # run on GPUs, on which the replaced layers have not been measured
                self._export(self.network, source)
                to_half(source, target, precision)
        finally:
            source.unlink(missing_ok=True)

    def _export(self, network: nn.Module, target: Path) -> None:
        export_onnx(network, target, inputs=self.inputs, window=self.window, divisor=self.divisor)
