"""The whole export: run -> module -> graph -> proof -> bundle, or nothing at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporter.onnx import export_onnx
from exporter.parity import cached_scans, compare, windows_of
from semiseg.bundle.bundle import MODEL, Bundle, write_bundle
from semiseg.bundle.manifest import Manifest, Parity
from semiseg.dataset import find_split, load_dataset, read_channels, read_split
from semiseg.engines.onnx import OnnxEngine
from trainer.engine import TorchEngine, student_section, trained_network

WINDOWS = 8


def export(run: Path, out: Path, *, data: Path | None = None, cache: Path | None = None) -> Bundle:
    """Turn a finished run into a bundle.

    Only the method's exported module is built and loaded: teachers, adapters and averages that are not exported do not
    exist here, so they cannot reach the graph.

    Args:
        run: the run folder.
        out: the bundle folder; written beside it under a temporary name and renamed when all is proven.
        data: take the windows for the parity check from the first scans of this dataset that are not for testing ...
        cache: ... or from this preprocessing cache; by default the run's own.

    Raises:
        BundleError: ``run`` is not a run, or ``out`` is something else than a bundle.
        RunError: the run has not finished.
        ExportError: the graph cannot be made or fails the comparison.
    """
    manifest, network = trained_network(run)
    if data is not None:
        scans = _scans_of(data, manifest)
    else:
        scans = cached_scans(cache or run / "cache", WINDOWS, len(manifest.channels))

    def fill(folder: Path) -> Manifest:
        model = folder / MODEL
        # A network that takes windows of any size gives a graph that does.
        divisor = manifest.divisor if student_section(manifest).takes_any_size else None
        export_onnx(network, model, inputs=len(manifest.channels), window=manifest.window, divisor=divisor)
        return manifest.model_copy(update={"parity": prove(manifest, TorchEngine(network, "cpu"), model, scans)})

    return write_bundle(out, fill)


def prove(manifest: Manifest, network: TorchEngine, model: Path, scans: list[NDArray[np.float32]]) -> Parity:
    """Compare the graph with the network on a window of each scan, at every allowed window size.

    Raises:
        ExportError: they disagree.
    """
    engine = OnnxEngine(model, device="cpu")
    windows = (windows_of(scan, window) for window in manifest.windows for scan in scans)
    return compare(manifest, network, engine, windows)


def _scans_of(data: Path, manifest: Manifest) -> list[NDArray[np.float32]]:
    """The first scans of a dataset after preprocessing; test scans stay closed."""
    dataset = load_dataset(data)
    split = find_split(dataset, None)
    closed = () if split is None else read_split(dataset, split).test
    out = []
    for case_id in [i for i in dataset.cases if i not in closed][:WINDOWS]:
        channels = read_channels(dataset.case(case_id), dataset.channels)
        out.append(manifest.preprocessing.apply(channels).array)
    return out
