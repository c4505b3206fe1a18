"""A MONAI Bundle that MONAI itself runs, and whose masks are those of the network it was made from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle.config_parser import ConfigParser
from monai.bundle.scripts import verify_net_in_out

from exporter.errors import ExportError
from exporter.monai_bundle import inference_config, intensity_expression, write_monai_bundle
from semiseg.bundle.preprocessing import Intensity
from semiseg.errors import BundleError
from semiseg.inference.segmenter import Segmenter
from semiseg.volumes.volume import Volume
from tests.grids import make_affine
from tests.runs import TinyRun
from trainer.engine import network_config_from_manifest, open_run
from trainer.network_configs import parse_network_config
from trainer.network_configs.base import MonaiNetworkConfig


@pytest.fixture(scope="module")
def written(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("monai") / "tiny"
    write_monai_bundle(tiny_run.folder, out)
    return out


def run_monai(bundle: Path, scans: Path, masks: Path) -> str:
    """As its README says."""
    command = [sys.executable, "-m", "monai.bundle", "run", "--meta_file", "configs/metadata.json"]
    command += ["--config_file", "configs/inference.json", "--dataset_dir", str(scans), "--output_dir", str(masks)]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=False, timeout=540)
    assert done.returncode == 0, done.stderr[-9000:]
    return done.stdout + done.stderr


def test_monai_draws_the_masks_of_the_run(written: Path, tiny_run: TinyRun, tmp_path: Path) -> None:
    """Scans in other orientations than the model's, larger and smaller than its window."""
    scans, expected = tmp_path / "scans", {}
    scans.mkdir()
    manifest, engine = open_run(tiny_run.folder, "cpu")
    segmenter = Segmenter(manifest, engine)
    rng = np.random.default_rng(0)
    for name, axes, shape in (("a", "LPS", (30, 21, 17)), ("b", "SRA", (9, 18, 20)), ("c", "RAS", (12, 6, 7))):
        coarse = torch.from_numpy(rng.normal(size=(1, 1, 4, 4, 4)))
        values = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear")[0, 0].numpy()
        values = (400 * values).astype(np.int16)
        affine = make_affine(axes, (1.5, 2.0, 3.0), (4.0, -3.0, 8.0))
        nib.save(nib.Nifti1Image(values, affine), scans / f"{name}.nii.gz")
        expected[name] = segmenter.segment({manifest.channel_names[0]: Volume(values, affine)}).array
    run_monai(written, scans, tmp_path / "masks")
    agreeing = []
    for name, mask in expected.items():
        found = nib.load(tmp_path / "masks" / f"{name}_mask.nii.gz")
        np.testing.assert_allclose(found.affine, nib.load(scans / f"{name}.nii.gz").affine, atol=1e-4)
        assert found.shape[:3] == mask.shape
        agreeing.append(np.mean(np.asarray(found.dataobj).reshape(mask.shape) == mask))
    # Its weights have another floor at the border of a window; the network has hardly been trained.
    assert min(agreeing) > 0.97 and len(np.unique(np.concatenate([m.ravel() for m in expected.values()]))) > 1


def test_the_network_takes_and_gives_what_the_metadata_say(written: Path) -> None:
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(written / "configs" / "metadata.json"),
        config_file=str(written / "configs" / "inference.json"),
        device="cpu",
        p=1,
        n=1,
        any=1,
    )
    weights = torch.load(written / "models" / "model.pt", weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in weights.values())
    assert "RESEARCH USE ONLY" in (written / "docs" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "student",
    [
        {"kind": "unet", "strides": [[2, 2, 1], [2, 2, 2], [2, 2, 2]]},
        {"kind": "segresnet"},
        {"kind": "dynunet", "channels": [8, 16, 32]},
        {"kind": "unetr", "hidden_size": 48, "mlp_dim": 64, "heads": 4},
        {"kind": "swinunetr", "feature_size": 12},
    ],
    ids=lambda student: student["kind"],
)
def test_monai_builds_every_network_of_its_own(student: dict[str, object], tiny_run: TinyRun) -> None:
    section = parse_network_config(student)
    assert isinstance(section, MonaiNetworkConfig)
    manifest = tiny_run.manifest.model_copy(update={"patch": (32, 32, 32)})
    parser = ConfigParser(json.loads(json.dumps(inference_config(manifest, section))))
    network = parser.get_parsed_content("network_def")
    expected = section.build(1, manifest.outputs, (32, 32, 32)).state_dict()
    assert {k: v.shape for k, v in network.state_dict().items()} == {k: v.shape for k, v in expected.items()}


@pytest.mark.parametrize("over", ["all", "nonzero"])
@pytest.mark.parametrize(
    "setting",
    [
        {"scale": "zscore"},
        {"scale": "minmax"},
        {"scale": "zscore", "clip": (-100, 250)},
        {"scale": "minmax", "percentiles": (5, 97.5)},
        {"scale": "window", "clip": (-160.0, 240.0)},
    ],
    ids=str,
)
def test_intensities_are_those_of_the_contract(setting: dict[str, object], over: str) -> None:
    intensity = Intensity.model_validate({**setting, "over": over})
    values = np.random.default_rng(1).normal(30, 200, (9, 8, 7)).astype(np.float32)
    values[:3] = 0
    found = eval(f"lambda c: {intensity_expression(intensity)}", {"np": np, "torch": torch})(torch.from_numpy(values))
    np.testing.assert_allclose(found.numpy(), intensity.apply(values), atol=1e-4)


def test_several_channels_are_files_side_by_side(tiny_run: TinyRun, tmp_path: Path) -> None:
    first = tiny_run.manifest.channels[0]
    both = tuple(first.model_copy(update={"name": name}) for name in ("t1", "flair"))
    contract = tiny_run.manifest.preprocessing
    contract = contract.model_copy(update={"intensity": contract.intensity * 2})
    manifest = tiny_run.manifest.model_copy(update={"channels": both, "preprocessing": contract})
    for case in ("b", "a"):
        for name in ("t1", "flair"):
            (tmp_path / f"{case}_{name}.nii.gz").touch()
    section = network_config_from_manifest(tiny_run.manifest)
    assert isinstance(section, MonaiNetworkConfig)
    parser = ConfigParser(inference_config(manifest, section) | {"dataset_dir": str(tmp_path)})
    found = parser.get_parsed_content("datalist")
    assert [[Path(p).name for p in case] for case in found] == [
        ["a_t1.nii.gz", "a_flair.nii.gz"],
        ["b_t1.nii.gz", "b_flair.nii.gz"],
    ]


def test_what_monai_cannot_build_is_refused(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "exporter.monai_bundle.network_config_from_manifest", lambda manifest: parse_network_config({"kind": "vnet"})
    )
    with pytest.raises(ExportError, match="not one of MONAI's own networks"):
        write_monai_bundle(tiny_run.folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_another_folder_is_not_overwritten(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(BundleError, match="exists and is not a MONAI Bundle"):
        write_monai_bundle(tiny_run.folder, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["own.txt"]
