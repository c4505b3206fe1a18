"""A run folder as an engine: what opens, what is refused (how engines blend is tested with the engines)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from semiseg.bundle.bundle import write_manifest
from semiseg.dataset import read_channels
from semiseg.errors import BundleError
from semiseg.inference.segmenter import Segmenter
from tests.networks import threshold_manifest
from tests.trainer.factories import BATCH_NORM_NETWORK, make_tiny_plan, make_tiny_recipe, train_on_cpu, write_phantoms
from trainer.engine import TorchEngine, load_trained_network, network_from_manifest, open_run
from trainer.errors import RunError
from trainer.plan import make_manifest


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no run\.json"):
        load_trained_network(tmp_path)


def test_a_run_that_has_not_finished_is_refused(tmp_path: Path) -> None:
    plan = make_tiny_plan(write_phantoms(tmp_path / "data", cases=4, labelled=1), make_tiny_recipe("supervised"))
    write_manifest(tmp_path / "run.json", make_manifest(plan))
    with pytest.raises(RunError, match="has not finished; continue it with --resume"):
        open_run(tmp_path)


def test_the_manifest_alone_says_how_the_network_is_built(tmp_path: Path) -> None:
    plan = make_tiny_plan(write_phantoms(tmp_path, cases=4, labelled=1), make_tiny_recipe("supervised"))
    manifest = make_manifest(plan)
    network = network_from_manifest(manifest)
    with torch.no_grad():
        assert network(torch.zeros(2, 1, 8, 10, 12)).shape == (2, manifest.outputs, 8, 10, 12)
    assert sum(p.numel() for p in network.parameters()) == manifest.provenance.parameters


def test_an_opened_run_segments_in_evaluation_mode_on_the_scans_own_grid(tmp_path: Path) -> None:
    dataset = write_phantoms(tmp_path / "data", cases=4, labelled=1)
    train_on_cpu(dataset, make_tiny_recipe("supervised", {"student": BATCH_NORM_NETWORK, "batch": 4}), tmp_path / "run")
    manifest, engine = open_run(tmp_path / "run", "cpu")
    channels = read_channels(next(iter(dataset.cases.values())), dataset.channels)
    volume = next(iter(channels.values()))
    first, second = (Segmenter(manifest, engine).segment(channels) for _ in range(2))
    assert first.shape == volume.shape
    assert np.array_equal(first.affine, volume.affine)
    assert np.array_equal(first.array, second.array), "dropout and batch statistics are off"


def test_the_engine_takes_any_module_out_of_train_mode_and_keeps_no_gradients() -> None:
    network = torch.nn.Conv3d(1, 2, 1).train()
    engine = TorchEngine(network)
    handle = engine.run(np.ones((1, 1, 2, 2, 2), np.float32))
    assert not network.training
    assert not handle.requires_grad


def test_a_pass_leaves_the_logits_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only blended voxels come back: a GPU would spend its time copying windows otherwise."""
    manifest = threshold_manifest(tmp_path, window=(5, 4, 6))
    network = torch.nn.Conv3d(1, manifest.outputs, 1)
    array = np.random.default_rng(0).normal(size=(1, 11, 9, 7)).astype(np.float32)
    expected = Segmenter(manifest, TorchEngine(network)).segment_preprocessed(array)
    monkeypatch.setattr(TorchEngine, "logits", lambda self, handle: pytest.fail("logits were asked for"))
    found = Segmenter(manifest, TorchEngine(network)).segment_preprocessed(array)
    assert np.array_equal(found, expected) and len(np.unique(found)) > 1
