"""`semiseg export --distil-to`: a smaller student on the run's own scans, and a bundle that names both."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from exporter.distil import distil, smaller_student
from exporter.errors import ExportError
from semiseg.bundle.bundle import open_bundle
from semiseg.errors import InputError
from tests.command_line import run_semiseg
from tests.runs import TinyRun
from trainer.checkpoints import read_training_record
from trainer.run_sources import SOURCES_FILE

UNET = {
    "kind": "unet",
    "channels": [16, 32, 64],
    "strides": None,
    "residual_units": 2,
    "norm": "instance",
    "dropout": 0.0,
}


def export(*arguments: object) -> int:
    return run_semiseg("export", *map(str, arguments))


def test_small_and_tiny_divide_the_channels() -> None:
    assert smaller_student(UNET, "small") == {**UNET, "channels": [8, 16, 32]}
    assert smaller_student(UNET, "tiny") == {**UNET, "channels": [4, 8, 16]}
    assert smaller_student({"kind": "vnet"}, "tiny")["channels"] == [8, 16, 32, 64]
    assert smaller_student(UNET, "{kind: unet, channels: [4, 6]}") == {"kind": "unet", "channels": [4, 6]}


def test_a_file_may_say_which_student(tmp_path: Path) -> None:
    (tmp_path / "student.yaml").write_text("kind: unet\nchannels: [4, 6]\n")
    assert smaller_student(UNET, str(tmp_path / "student.yaml")) == {"kind": "unet", "channels": [4, 6]}
    for nonsense in ("huge", "[1, 2]", "{kind: "):
        with pytest.raises(InputError, match="--distil-to"):
            smaller_student(UNET, nonsense)


def test_the_bundle_is_of_the_smaller_student_and_names_its_teacher(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = "{kind: unet, channels: [4, 6], residual_units: 0}"
    out = tmp_path / "bundle"
    asked = (tiny_run.folder, "--out", out, "--distil-to", student, "--updates", 3)
    assert export(*asked) == 0
    said = capsys.readouterr()
    assert f"The scans are those of {tiny_run.data}, the dataset of the run." in said.err
    assert "distilling 3/3" in said.err and "taught by tiny (mn, " in said.out
    manifest = open_bundle(out).manifest
    origin = manifest.provenance
    assert origin.method == "distil" and origin.updates == 3 and manifest.windows == tiny_run.manifest.windows
    assert origin.taught_by is not None
    assert origin.parameters < origin.taught_by.parameters == tiny_run.manifest.provenance.parameters
    made, before = read_training_record(tmp_path / "bundle-run"), read_training_record(tiny_run.folder)
    assert made["split"] == before["split"] and made["recipe"]["preparation"] == before["recipe"]["preparation"]
    assert export(*asked, "--monai-bundle", tmp_path / "monai") == 0, "the finished run is used again"
    assert (tmp_path / "monai" / "configs" / "metadata.json").is_file()


def test_what_cannot_be_distilled_is_refused_and_nothing_is_written(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    forgetful = shutil.copytree(tiny_run.folder, tmp_path / "forgetful")
    (forgetful / SOURCES_FILE).unlink()
    assert export(forgetful, "--out", out, "--distil-to", "small") == 2
    assert "name it with --data" in capsys.readouterr().err
    shutil.rmtree(forgetful)
    larger = "{kind: unet, channels: [8, 16]}"
    with pytest.raises(ExportError, match="it must be smaller"):
        distil(tiny_run.folder, larger, tmp_path / "run", data=tiny_run.data)
    other = shutil.copytree(tiny_run.data, tmp_path / "other")
    shutil.rmtree(other / "imagesTr")
    shutil.copytree(tiny_run.data / "imagesTr", other / "imagesTr")
    document = (other / "dataset.json").read_text()
    case = read_training_record(tiny_run.folder)["split"]["labelled"][0]
    (other / "dataset.json").write_text(document.replace(f"{case}.nii.gz", "gone.nii.gz"))
    with pytest.raises(InputError, match=f"does not hold scan '{case}'"):
        distil(tiny_run.folder, "{kind: unet, channels: [4, 5], residual_units: 0}", tmp_path / "run", data=other)
    assert export(tiny_run.folder, "--out", out, "--updates", 3) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other"]
