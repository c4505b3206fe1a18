"""Overlapping regions from the run to the bundle: a sigmoid for each, and masks that may cover each other."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from exporter.export import export
from semiseg.bundle.bundle import open_bundle
from semiseg.dataset import read_channels
from semiseg.engines.onnx import OnnxEngine
from semiseg.inference.segmenter import Segmenter, SlidingWindowOptions
from semiseg.volumes.nifti import write_segmentation
from tests.trainer.factories import train_on_cpu
from tests.trainer.tumour_dataset import REGIONS, tumour_recipe, write_tumours
from trainer.engine import open_run


def test_regions_cross_to_the_bundle_and_come_out_as_masks_inside_one_another(tmp_path: Path) -> None:
    dataset = write_tumours(tmp_path / "data")
    train_on_cpu(dataset, tumour_recipe(), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.manifest.activation == "sigmoid"
    assert [s.values for s in bundle.manifest.segments] == [tuple(v) for v in REGIONS.values()]
    channels = read_channels(dataset.case("t4"), dataset.channels)
    engine = OnnxEngine(tmp_path / "bundle" / "model.onnx", threads=1)
    found = Segmenter(bundle.manifest, engine, SlidingWindowOptions()).segment(channels)
    manifest, torch_engine = open_run(tmp_path / "run", "cpu")
    trained_answer = Segmenter(manifest, torch_engine, SlidingWindowOptions()).segment(channels)
    assert np.array_equal(found.array, trained_answer.array)
    whole, core, enhancing = (found.mask(k) for k in range(3))
    assert whole.sum() > core.sum() > enhancing.sum() > 0
    assert (whole & core).sum() > 0.9 * core.sum(), "they overlap: a label map could not hold them"
    write_segmentation(tmp_path / "m.nii.gz", found, like=dataset.case("t4").image)
    image = nib.load(tmp_path / "m.nii.gz")
    assert image.shape == (16, 16, 16, 3)
    assert np.allclose(image.affine, next(iter(channels.values())).affine)
