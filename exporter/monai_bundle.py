"""Export of a run as a MONAI Bundle, for MONAI Label and MONAI Deploy.

MONAI's own transforms express the manifest's preprocessing. Masks of a scan that is not resampled equal semiseg's. If a
scan is resampled, MONAI places the new grid slightly differently, and masks differ at their border. Postprocessing is
not included.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from exporter.errors import ExportError
from semiseg.bundle.bundle import write_folder
from semiseg.bundle.card import model_card
from semiseg.bundle.manifest import EXPORT_OVERLAP, Manifest
from semiseg.bundle.preprocessing import Intensity, Preprocessing
from trainer.engine import load_trained_network, network_config_from_manifest
from trainer.network_configs.base import MonaiNetworkConfig

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
SUFFIX = ".nii.gz"


def write_monai_bundle(run: Path, out: Path) -> None:
    """Write a finished run as a MONAI Bundle: ``configs/``, ``models/model.pt`` (tensors only) and ``docs/README.md``.

    Raises:
        ExportError: The student is not one of MONAI's networks; nothing is written.
        BundleError: ``out`` exists and is not a MONAI Bundle.
    """
    manifest, network = load_trained_network(run)
    section = network_config_from_manifest(manifest)
    if not isinstance(section, MonaiNetworkConfig):
        raise ExportError(
            f"The student `{manifest.provenance.student.get('kind')}` is not one of MONAI's own networks, so MONAI "
            "could not build it; a MONAI Bundle supports unet, segresnet, dynunet, unetr and swinunetr."
        )

    def fill(folder: Path) -> None:
        for name in ("configs", "models", "docs"):
            (folder / name).mkdir()
        torch.save(network.state_dict(), folder / "models" / "model.pt")
        for name, document in (("metadata", _metadata(manifest)), ("inference", inference_config(manifest, section))):
            text = json.dumps(document, indent=1) + "\n"
            (folder / "configs" / f"{name}.json").write_text(text, encoding="utf-8", newline="\n")
        (folder / "docs" / "README.md").write_text(_readme(manifest), encoding="utf-8", newline="\n")

    write_folder(out, fill, "a MONAI Bundle", lambda folder: (folder / "configs" / "metadata.json").is_file())


def inference_config(manifest: Manifest, section: MonaiNetworkConfig) -> dict[str, Any]:
    """Return the bundle's ``inference.json``, which segments each NIfTI scan of ``dataset_dir`` into ``output_dir``."""
    names = manifest.channel_names
    scans = "$sorted(glob.glob(@dataset_dir + '/*" + SUFFIX + "'))"
    if len(names) > 1:  # CASE_first.nii.gz, CASE_second.nii.gz
        end = len(f"_{names[0]}{SUFFIX}")
        files = ", ".join(f"p[:-{end}] + '_{name}{SUFFIX}'" for name in names)
        scans = f"$[[{files}] for p in sorted(glob.glob(@dataset_dir + '/*_{names[0]}{SUFFIX}'))]"
    network_class = section.network_class
    return {
        "imports": ["$import glob", "$import numpy as np", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": scans,
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": f"{network_class.__module__}.{network_class.__qualname__}",
            **section.arguments(len(names), manifest.outputs, manifest.patch),
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(manifest.preprocessing)},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': one} for one in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": manifest.window,
            "sw_batch_size": 1,
            "overlap": EXPORT_OVERLAP,
            "mode": manifest.blending,
            "padding_mode": "replicate" if manifest.preprocessing.padding == "edge" else "constant",
        },
        "postprocessing": {"_target_": "Compose", "transforms": _postprocessing(manifest)},
        "checkpointloader": {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
            "map_location": "@device",
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": ["@checkpointloader"],
        },
        "initialize": ["$None"],
        "run": ["$@evaluator.run()"],
    }


def _preprocessing(contract: Preprocessing) -> list[dict[str, Any]]:
    """Return MONAI's transforms for the steps of :class:`Preprocessing`, in their order."""
    expressions = ", ".join(
        f"(lambda c: {intensity_expression(one)})(x.as_tensor()[{k}])" for k, one in enumerate(contract.intensity)
    )
    steps: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": contract.orientation},
    ]
    if contract.crop == "nonzero":
        steps.append(
            {
                "_target_": "CropForegroundd",
                "keys": "image",
                "source_key": "image",
                "select_fn": "$lambda x: x != 0",
                "allow_smaller": True,
            }
        )
    steps.append(
        {"_target_": "Lambdad", "keys": "image", "func": f"$lambda x: x.clone().copy_(torch.stack([{expressions}]))"}
    )
    if contract.spacing is not None:
        steps.append(
            {
                "_target_": "Spacingd",
                "keys": "image",
                "pixdim": contract.spacing,
                "mode": "bilinear",
                "padding_mode": "border",
            }
        )
    return steps


def intensity_expression(intensity: Intensity) -> str:
    """Return :meth:`Intensity.apply` for a channel ``c``, a tensor, as a Python expression over torch and NumPy."""
    values, counted = "c", "c[c != 0]" if intensity.over == "nonzero" else "c"
    limits = None
    if intensity.percentiles:
        limits = f"*map(float, np.percentile({counted}.numpy(), {tuple(intensity.percentiles)}))"
    elif intensity.clip:
        limits = f"{intensity.clip[0]}, {intensity.clip[1]}"
    if limits is not None:
        values, counted = f"{values}.clamp({limits})", f"{counted}.clamp({limits})"
    if intensity.scale == "window" and intensity.clip:
        low, high = intensity.clip
        return f"({values} - {low}) / {high - low}"
    if intensity.scale == "zscore":
        return f"({values} - float({counted}.double().mean())) / float({counted}.double().std(correction=0))"
    return f"({values} - {counted}.min()) / ({counted}.max() - {counted}.min())"


def _postprocessing(manifest: Manifest) -> list[dict[str, Any]]:
    exclusive = manifest.activation == "softmax"
    decision: list[dict[str, Any]] = [
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
        if exclusive
        else {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}
    ]
    labels = [segment.label for segment in manifest.segments]
    if exclusive and labels != list(range(1, len(labels) + 1)):
        decision.append(
            {
                "_target_": "MapLabelValued",
                "keys": "pred",
                "orig_labels": list(range(len(labels) + 1)),
                "target_labels": [0, *labels],
            }
        )
    return [
        {
            "_target_": "Activationsd",
            "keys": "pred",
            "softmax": exclusive,
            "sigmoid": not exclusive,
        },
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
            "to_tensor": True,
        },
        *decision,
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_postfix": "mask",
            "output_dtype": "$np.uint8",
            "separate_folder": False,
            "resample": False,
        },
    ]


def _metadata(manifest: Manifest) -> dict[str, Any]:
    """Return the bundle's ``metadata.json``."""
    window = list(manifest.window)
    classes = ["background"] if manifest.activation == "softmax" else []
    classes += [segment.name for segment in manifest.segments]
    origin = manifest.provenance
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by semiseg {metadata.version('semiseg')}"},
        "monai_version": metadata.version("monai"),
        "pytorch_version": metadata.version("torch").split("+")[0],
        "numpy_version": metadata.version("numpy"),
        "required_packages_version": {name: metadata.version(name) for name in ("nibabel", "einops")}
        | {"pytorch-ignite": "0.5.0"},
        "name": manifest.name,
        "task": f"segmentation of {', '.join(segment.name for segment in manifest.segments)}",
        "description": f"RESEARCH USE ONLY. Trained with {origin.method} on {origin.labelled} labelled scans.",
        "authors": "",
        "copyright": "",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "num_channels": len(manifest.channels),
                    "spatial_shape": window,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": dict(enumerate(manifest.channel_names)),
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": manifest.outputs,
                    "spatial_shape": window,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": dict(enumerate(classes)),
                }
            },
        },
    }


def _readme(manifest: Manifest) -> str:
    several = len(manifest.channels) > 1
    scans = " and ".join(f"`CASE_{name}{SUFFIX}`" for name in manifest.channel_names) if several else f"`*{SUFFIX}`"
    return (
        f"{model_card(manifest)}\n## As a MONAI Bundle\n\nPut scans ({scans}) in a folder, and run, in this one:\n\n"
        "    python -m monai.bundle run --meta_file configs/metadata.json --config_file configs/inference.json \\\n"
        "        --dataset_dir SCANS --output_dir MASKS\n\n"
        "It needs MONAI, nibabel, pytorch-ignite and fire. Preprocessing, network, window and blending are those of\n"
        "the model. The mask of a scan that the model resamples may differ from semiseg's at its border, and the\n"
        "postprocessing of masks, if the model has any, is not included.\n"
    )
