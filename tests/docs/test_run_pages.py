"""The commands that README and the pages for users show, run as they stand, on scans and networks that are small.

`semiseg` is a program in front of the real one that makes training short; the words of the pages are not changed but
for the addresses and names that differ everywhere. What is not run here says why.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import yaml
from numpy.typing import NDArray

from docs.generators.document import REPOSITORY
from exporter.export import export
from semiseg.dataset import load_dataset, make_split
from semiseg.outputs.dicom_common import write_dicom
from semiseg.outputs.dicom_seg import segmentation_to_seg
from semiseg.phantoms.writers import write_dataset, write_dicom_series
from semiseg.volumes.dicom_series import read_series
from semiseg.volumes.segmentation import Segmentation
from tests.bundles import make_threshold_bundle, scan_array
from tests.collection.clinical_data import ALGORITHM, make_scan, make_segmentation, write_labels_as_seg, write_scan
from tests.gateway.harness import (
    RunningGateway,
    dcmtk_program,
    dimse_destination,
    make_config,
    running_gateway,
    storescu,
)
from tests.polling import wait_until
from tests.ports import free_port
from tests.processes import RunningProcess
from tests.runs import tiny_recipe_document
from tests.server.harness import RunningServer, running_server
from trainer.loop import train
from trainer.plan import make_plan
from trainer.recipe_files import make_recipe

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

PAGES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("data", "training", "export", "serving", "gateway", "papers", "methods")),
]
NOT_RUN = {
    "torchrun": "tests/trainer/test_parallel.py runs it",
    "accelerate launch": "tests/trainer/test_parallel.py trains in several processes",
    "docs/results/hippocampus/run.sh": "takes an hour; its figures are kept beside it",
    "semiseg export RUN --out BUNDLE --trt": "needs a GPU; tests/exporter/test_tensorrt.py",
    "semiseg train ... --out RUN --resume": "tests/trainer/test_kill_and_resume.py resumes again and again",
    "docker build": "needs Docker; deploy/try_images.sh builds the images where buildah is",
    "make ": "tests/packaging/test_makefile.py, tests/cli/test_demo.py",
    "semiseg demo": "takes minutes; tests/cli/test_demo.py runs it",
}
SMALL = ["updates=2", "batch=2", "patch=[16,16,8]", "windows=[]", "patience=null", "validate_every=2"]
PROGRAM = """#!{python}
import os, sys
words = sys.argv[1:]
small = {small!r}
if words[:1] in (["train"], ["compare"]):
    if "--recipe" not in words:
        words += ["--recipe", "my.yaml"]
    if "--seeds" in words:
        words[words.index("--seeds") + 1] = "0"
    if any("papers/" in word for word in words):
        small = [change.replace("[16,16,8]", "[32,32,32]") for change in small]  # their networks go deeper
    words += [word for change in small for word in ("--set", change)]
if "--distil-to" in words:
    words += ["--updates", "2"]
if words[:2] == ["bench", "inference"]:
    words.append("--quick")
os.execv(sys.executable, [sys.executable, "-m", "cli.app", *words])
"""


def lines_of(page: str) -> list[str]:
    """The lines of code that begin with a program."""
    text = (REPOSITORY / page).read_text(encoding="utf-8").replace("\\\n", " ")
    programs = "semiseg|curl|torchrun|accelerate|docker|docs/|make"
    return [line.strip() for line in re.findall(rf"^    ((?:{programs}) ?.*)$", text, re.MULTILINE)]


CASES = [(page, line) for page in PAGES for line in lines_of(page)]


@dataclass(frozen=True)
class Place:
    """What lines are run with: a folder in which every name of the pages stands for something, and what listens."""

    template: Path
    programs: Path
    server: RunningServer
    several: RunningServer
    gateway: RunningGateway


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str]) -> Iterator[Place]:
    send = dcmtk_program(require_program, "storescu")
    require_program("curl")
    folder = tmp_path_factory.mktemp("pages")
    template, programs = folder / "template", folder / "bin"
    programs.mkdir()
    (programs / "semiseg").write_text(PROGRAM.format(python=sys.executable, small=SMALL))
    (programs / "semiseg").chmod(0o755)
    _write_scans(template)
    _train_and_export(template)
    two = make_threshold_bundle(template / "two", channels=("T1", "FLAIR"))
    nowhere = make_config(folder, "http://127.0.0.1:9", destinations=dimse_destination(free_port()))
    with (
        running_server(template / "BUNDLE", folder / "server") as server,
        running_server(two.folder, folder / "several") as several,
        running_gateway({**nowhere, "servers": {"urls": [server.url]}}, folder / "gateway") as gateway,
    ):
        assert storescu(send, gateway.dicom_port, template / "FOLDER").returncode == 0
        gateway.wait_for("failed")
        shutil.copy(gateway.file, template / "gateway.yaml")
        yield Place(template, programs, server, several, gateway)


@pytest.mark.parametrize(("page", "line"), CASES, ids=[f"{page}: {line}"[:90] for page, line in CASES])
def test_line_does_what_the_page_says(place: Place, semiseg_data: Path, tmp_path: Path, page: str, line: str) -> None:
    if any(line.startswith(start) for start in NOT_RUN):
        return  # why, and that it is still there, is the other test's
    folder = tmp_path / "here"
    shutil.copytree(place.template, folder, symlinks=True)
    words = _prepared(place, folder, line)
    if "--recipe hippocampus" in words:
        shutil.rmtree(folder / "DATA")
        (folder / "DATA").symlink_to(semiseg_data / "hippocampus", target_is_directory=True)
    environ = os.environ | {
        "PATH": f"{place.programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "BENTOML_HOME": str(tmp_path / "bentoml"),
        "OMP_NUM_THREADS": "1",
    }
    found = re.fullmatch(r"(.*&& )?(semiseg (?:serve .*|gateway --config \S+ *(?:#.*)?))", words)
    before, running_on = (found[1], found[2]) if found else (words, None)
    if before:
        done = subprocess.run(
            ["bash", "-euc", before.removesuffix("&& ")],
            cwd=folder, env=environ, capture_output=True, text=True, check=False,
        )  # fmt: skip
        wanted = 1 if " check " in words and "gateway" in words else 0  # the archive of this place is not there
        assert done.returncode == wanted, f"{page}: {line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    for made in _made_by(words):
        assert (folder / made).exists(), f"{page}: {line} made no {made}"
    if running_on:
        _becomes_ready_and_stops(running_on, folder, environ)


def test_what_is_not_run_is_still_on_a_page() -> None:
    assert len(CASES) > 40
    for start in NOT_RUN:
        assert any(line.startswith(start) for _, line in CASES), start


def _prepared(place: Place, folder: Path, line: str) -> str:
    """The line with this place's addresses and jobs; what it makes is out of the way, what it reads is there."""
    server = place.several if "channel:" in line else place.server
    words = line.replace("http://127.0.0.1:3000", server.url).replace("--port 3000", f"--port {free_port()}")
    words = re.sub(r"(?<=--server )URL", place.server.url, words).replace("METHOD", "mean_teacher")
    parts = shlex.split(words, comments=True)
    if "--channel" in parts:
        words = words.replace("BUNDLE", "two")
    kind = "ct" if "--modality" in parts else "channels" if "--channels" in parts else "plain"
    (folder / f"src-{kind}").rename(folder / "SRC")
    if "--add" in parts:
        _remove(folder / "DATA")
        subprocess.run(
            [sys.executable, "-m", "cli.app", "collect", "SRC", "--out", "DATA"],
            cwd=folder,
            check=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
        )
    elif "--resume" not in parts:
        for made in _made_by(words):
            _remove(folder / made)
    if "explain" not in parts and "FOLDER" in parts:
        _remove(folder / "FOLDER")
    if "split" in parts:
        (folder / "DATA" / "split.json").unlink()
    if "--keys" in parts:
        (folder / "FILE").write_text("ward ward-0123456789-abcdefghij\n")
    return _with_jobs(place.gateway, words) if "gateway" in parts else words


def _with_jobs(gateway: RunningGateway, words: str) -> str:
    """NAME, JOB and STUDY as the gateway calls a delivery that waits for its archive, and its study."""
    told = gateway.audit("failed")[0]
    if "retry JOB" in words:
        gateway.command("cancel", told["job"])
        wait_until(lambda: "cancelled" in gateway.command("show", told["job"]))
    return words.replace("NAME", told["job"]).replace("JOB", told["job"]).replace("STUDY", told["study"])


def _becomes_ready_and_stops(words: str, folder: Path, environ: dict[str, str]) -> None:
    arguments = shlex.split(words, comments=True)[1:]
    if arguments[0] == "gateway":  # another one than that which runs, on a folder of its own
        config = yaml.safe_load((folder / "gateway.yaml").read_text(encoding="utf-8"))
        (folder / "gateway.yaml").write_text(yaml.safe_dump({**config, "state": str(folder / "another")}))
    elif "--port" not in arguments:
        arguments += ["--port", str(free_port())]
    process = RunningProcess(arguments, environ, before=["env", "-C", str(folder)])
    try:
        wait_until(lambda: "ready" in process.output or process.process.poll() is not None, 180)
        assert process.process.poll() is None, process.output
    finally:
        code = process.stop()
    assert code == 0, process.output


def _made_by(words: str) -> list[str]:
    parts = shlex.split(words, comments=True)
    return [after for word, after in itertools.pairwise(parts) if word in ("--out", "-o", "--picture")]


def _train_and_export(folder: Path) -> None:
    write_dataset(folder / "DATA", cases=40, labelled=16, test=4, shape=(20, 20, 12), spacing=(4.8, 4.8, 8.0))
    dataset = load_dataset(folder / "DATA")
    recipe = make_recipe(
        tiny_recipe_document(gate={"fp16": 0.9, "int8": 0.9})
    )  # so small a network does not survive int8 unchanged
    train(make_plan(dataset, make_split(dataset, labelled=16), recipe), folder / "RUN", device="cpu")
    export(folder / "RUN", folder / "BUNDLE")
    _write_demo(folder)
    make_threshold_bundle(folder / "OTHER_BUNDLE", name="other")
    (folder / "my.yaml").write_text(yaml.safe_dump({**tiny_recipe_document(), "name": "my"}))


def _write_demo(folder: Path) -> None:
    """What the README takes from `semiseg demo`: a bundle, and a series in a zip."""
    shutil.copytree(folder / "BUNDLE", folder / "demo" / "bundle")
    files = write_dicom_series(folder / "demo" / "dicom", make_scan(0)[0])
    with zipfile.ZipFile(folder / "demo" / "dicom.zip", "w") as archive:
        for file in files:
            archive.write(file, file.name)


def _write_scans(folder: Path) -> None:
    for k in range(3):
        series, labels = write_scan(folder / f"src-plain/{k}", k)
        write_labels_as_seg(folder / f"src-plain/{k}/label.dcm", series, labels)
        volume, labels = make_scan(k)
        ct = write_dicom_series(folder / f"src-ct/{k}", volume, patient_id=f"C{k}", description="portal", modality="CT")
        _outline(folder / f"src-ct/{k}/label.dcm", ct, labels, ("liver", "tumour", "kidneys"))
        for name in ("t1", "flair"):
            for file in write_dicom_series(
                folder / f"src-channels/{k}/{name}", volume, patient_id=f"M{k}", description=name
            ):
                image = pydicom.dcmread(file)
                image.StudyInstanceUID = f"1.2.3.{k}"  # the two are one study
                image.FrameOfReferenceUID = f"1.2.4.{k}"
                image.save_as(file)
        (t1,) = folder.glob(f"src-channels/{k}/t1")
        _outline(folder / f"src-channels/{k}/label.dcm", sorted(t1.iterdir()), labels, ("liver", "spleen", "kidneys"))
    (folder / "labels.csv").write_text("scan,label\n0,0/label.dcm\n")
    for seed, name in enumerate(("MORE/new", "PATH", "FOLDER", "study/t1"), start=20):
        write_scan(folder / name, seed)
    shutil.copytree(folder / "study/t1", folder / "study/flair")
    for seed, name in enumerate(("scan", "other", "t1", "flair")):
        nib.save(nib.Nifti1Image(scan_array((20, 18, 14), seed), np.eye(4)), folder / f"{name}.nii.gz")
    shutil.copy(folder / "scan.nii.gz", folder / "SCAN")
    (folder / "FILE").write_text("scan.nii.gz\nother.nii.gz\n")
    shutil.make_archive(str(folder / "series"), "zip", folder / "FOLDER")


def _outline(path: Path, files: Sequence[Path], labels: NDArray[np.uint8], names: tuple[str, ...]) -> None:
    """A SEG on a series, its segments called by ``names``."""
    series = read_series(list(files))
    found = make_segmentation(series, labels)
    named = tuple(one.model_copy(update={"name": name}) for one, name in zip(found.segments, names, strict=True))
    write_dicom(path, segmentation_to_seg(Segmentation(named, labels, found.affine), series, algorithm=ALGORITHM))


def _remove(path: Path) -> None:
    if path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
