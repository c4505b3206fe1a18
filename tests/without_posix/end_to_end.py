"""Scans to masks in one process: `python end_to_end.py FOLDER`, each step as the command that a user would type."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml

from cli.app import main
from semiseg.dataset import load_dataset
from semiseg.phantoms.writers import write_dataset, write_dicom_series
from semiseg.volumes.nifti import read_nifti

SIZE = {"shape": (20, 18, 12), "spacing": (6.0, 6.0, 8.0)}
RECIPE = {
    "name": "tiny",
    "method": "mean_teacher",
    "student": {"kind": "unet", "channels": [4, 8], "residual_units": 0},
    "patch": [8, 8, 8],
    "batch": 2,
    "updates": 2,
    "threads": 1,
    "workers": 1,  # a process that multiprocessing starts
    "validate_every": 1,
}


def run_semiseg(*arguments: object) -> None:
    """Run a command."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"semiseg {' '.join(map(str, arguments))} ended with {end.code}") from None


def run_pipeline(folder: Path) -> None:
    """Everything from DICOM files to an evaluated mask."""
    data, run, bundle, study = folder / "data", folder / "run", folder / "bundle", folder / "study"
    write_dataset(data, cases=6, labelled=2, test=2, **SIZE)
    scan, other = (
        load_dataset(data).cases[name].image
        for name in json.loads((data / "split.json").read_text(encoding="utf-8"))["test"]
    )
    write_dicom_series(study, read_nifti(scan), patient_id="P1", description="T1")
    write_dicom_series(folder / "next", read_nifti(other), patient_id="P2", description="T1")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    run_semiseg("inspect", study)
    run_semiseg("collect", study, "--out", folder / "collected", "--labels", "spleen=1")
    run_semiseg("collect", folder / "next", "--out", folder / "collected", "--add")
    run_semiseg("data", "check", data)
    run_semiseg("train", "--data", data, "--recipe", folder / "recipe.yaml", "--out", run, "--device", "cpu", "--quiet")
    run_semiseg("export", run, "--out", bundle, "--data", data)
    run_semiseg("export", run, "--out", bundle, "--data", data)  # takes the place of the first
    run_semiseg("predict", bundle, study, "--out", folder / "mask.dcm")
    run_semiseg("predict", bundle, scan, "--out", folder / "mask.nii.gz")
    (folder / "list.txt").write_text(f"{scan}\n{study}\n", encoding="utf-8")
    run_semiseg("predict", bundle, "--input-list", folder / "list.txt", "--out", folder / "many")
    run_semiseg("evaluate", bundle, "--data", data, "--out", folder / "evaluation")


if __name__ == "__main__":
    run_pipeline(Path(sys.argv[1]))
