"""`semiseg demo`: every step from scans to masks on generated scans, each as the command that a user would type."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from semiseg.errors import InputError, SemisegError
from semiseg.system.terminal import shell_join

app = typer.Typer()

CASES, LABELLED, TEST = 26, 4, 6
MARKER_FILE = "semiseg-demo.json"


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to make; one that a demo made before is replaced.")] = Path(
        "demo-output"
    ),
    updates: Annotated[int, typer.Option(min=1, help="Updates of the network; more is better and slower.")] = 480,
    seed: Annotated[int, typer.Option(help="Another seed makes other scans.")] = 0,
) -> None:
    """Make scans, train M&N with 4 labelled ones, export, serve, and segment a DICOM and a NIfTI scan over HTTP."""
    console = Console(highlight=False, soft_wrap=True)
    _start_folder(out)
    data, run, bundle, answers = out / "data", out / "run", out / "bundle", out / "answers"
    console.rule("1. Scans: procedural phantoms with several organs")
    _make_scans(console, out, data, seed)
    console.rule("2. Training: 4 labelled scans, the rest without labels")
    training = ["train", "--data", str(data), "--recipe", "demo", "--labelled", str(LABELLED), "--out", str(run)]
    _semiseg(console, *training, "--set", f"updates={updates}", "--set", f"seed={seed}")
    console.rule("3. Export: the 3D network alone, as ONNX, with proof")
    _semiseg(console, "export", str(run), "--out", str(bundle))
    console.rule("4. Evaluation on the test scans, which training never saw")
    _semiseg(console, "evaluate", str(bundle), "--data", str(data), "--out", str(out / "evaluation"))
    console.rule("5. Serving: a DICOM series and a NIfTI volume go up, masks come back")
    answers.mkdir()
    with _server(console, bundle) as url:
        sheets = _segment_over_http(console, url, out, data, answers)
    _explain(console, out, sheets)


def _start_folder(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER_FILE).is_file():
            raise InputError(f"{out} exists and was not made by `semiseg demo`; name another folder with --out.")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER_FILE).write_text(json.dumps({"made by": "semiseg demo"}), encoding="utf-8")


def _make_scans(console: Console, out: Path, data: Path, seed: int) -> None:
    """The dataset, and one test scan again as a DICOM series in a zip, as a PACS would send it."""
    from semiseg.dataset import load_dataset
    from semiseg.phantoms.writers import write_dataset, write_dicom_series
    from semiseg.volumes.nifti import read_nifti

    write_dataset(data, cases=CASES, labelled=LABELLED, test=TEST, seed=seed)
    case = load_dataset(data).case(_test_cases(data)[0])
    files = write_dicom_series(
        out / "dicom", read_nifti(case.image), patient_id="PHANTOM-1", description="phantom", seed=seed
    )
    with zipfile.ZipFile(out / "dicom.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.name)
    console.print(f"{CASES} scans in {data}; {case.id} also as {len(files)} DICOM files in {out / 'dicom.zip'}")


def _semiseg(console: Console, *arguments: str) -> None:
    """Run a command of this program as a user would, showing it."""
    console.print(f"[bold]$ semiseg {shell_join(arguments)}[/]")
    finished = subprocess.run([sys.executable, "-m", "semiseg", *arguments], check=False)
    if finished.returncode:
        raise SemisegError(f"`semiseg {arguments[0]}` ended with exit code {finished.returncode}; see above.")


@contextlib.contextmanager
def _server(console: Console, bundle: Path) -> Iterator[str]:
    """`semiseg serve` in a process of its own, on a free port, until the block ends."""
    arguments = ["serve", str(bundle), "--port", "0"]
    console.print(f"[bold]$ semiseg {shell_join(arguments)}[/]")
    command = [sys.executable, "-u", "-m", "semiseg", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield _address_when_ready(console, process)
        finally:
            process.terminate()
            process.wait(timeout=60)


def _address_when_ready(console: Console, process: subprocess.Popen[str]) -> str:
    url = ""
    for line in process.stdout or ():
        console.print(f"  {line.rstrip()}")
        if "listening on http://" in line:
            url = "http://" + line.split("http://", 1)[1].split()[0].rstrip(",")
        if "ready" in line and url:
            return url
    raise SemisegError("The server ended before it was ready; see above.")


def _segment_over_http(console: Console, url: str, out: Path, data: Path, answers: Path) -> list[Path]:
    """Upload both scans, save the results, and draw them beside the reference."""
    from semiseg.client import Client
    from semiseg.dataset import load_dataset

    dataset = load_dataset(data)
    dicom, nifti = (dataset.case(case_id) for case_id in _test_cases(data)[:2])
    with Client(url) as client:
        seg = client.ask(out / "dicom.zip", "seg")
        (answers / "dicom_seg.dcm").write_bytes(seg.body)
        (answers / "dicom_mask.nii.gz").write_bytes(client.ask(out / "dicom.zip", "nifti").body)
        (answers / "nifti_mask.nii.gz").write_bytes(client.ask(nifti.image, "nifti").body)
        (answers / "nifti_report.json").write_bytes(client.ask(nifti.image, "json").body)
    for name, millilitres in seg.millilitres.items():
        console.print(f"  {dicom.id} (DICOM): {name} {millilitres:.1f} ml")
    sheets = []
    for case, kind in ((dicom, "dicom"), (nifti, "nifti")):
        sheet = out / f"{kind}_contact_sheet.png"
        _draw(case.image, case.label, answers / f"{kind}_mask.nii.gz", dataset.segments, f"{case.id} ({kind})", sheet)
        sheets.append(sheet)
    return sheets


def _draw(image: Path, label: Path | None, mask: Path, segments: tuple, title: str, sheet: Path) -> None:  # type: ignore[type-arg]
    from semiseg.evaluation.metrics import overlap
    from semiseg.outputs.overlay import contact_sheet
    from semiseg.volumes.nifti import read_labels, read_nifti
    from semiseg.volumes.segmentation import Segmentation

    if label is None:
        raise SemisegError(f"The demo's scan {image} has no reference.")
    scan, drawn, truth = read_nifti(image), read_labels(mask), read_labels(label)
    answer = Segmentation(segments, drawn.array.astype("uint8"), scan.affine)
    reference = Segmentation(segments, truth.array.astype("uint8"), scan.affine)
    dice = ", ".join(f"{s.name} {overlap(answer.mask(k), reference.mask(k))[0]:.3f}" for k, s in enumerate(segments))
    masks = [("reference", reference), ("prediction", answer)]
    contact_sheet(sheet, scan, masks, segments, f"{title}: Dice {dice}. A test scan; training never saw it.")


def _test_cases(data: Path) -> list[str]:
    return list(json.loads((data / "split.json").read_text(encoding="utf-8"))["test"])


def _explain(console: Console, out: Path, sheets: list[Path]) -> None:
    console.rule("What is where")
    meaning = {
        sheets[0]: "the picture to look at first: image, reference, prediction of the scan sent as DICOM",
        sheets[1]: "the same for the scan sent as NIfTI",
        out / "answers/dicom_seg.dcm": "DICOM SEG for a PACS: refers to the slices it was drawn on",
        out / "answers/nifti_mask.nii.gz": "label map on the scan's own grid: 0 background, 1.. the organs",
        out / "answers/nifti_report.json": "volume of each organ in ml, geometry, timing, which model",
        out / "evaluation": "Dice, Jaccard, HD95, ASSD of every test scan",
        out / "run": "the training run: curve.png, preview.png, log, recipe, checkpoint",
        out / "bundle": "what a hospital gets: manifest.json and model.onnx; serve it with `semiseg serve`",
    }
    for path, what in meaning.items():
        console.print(f"[bold]{path}[/]\n    {what}")
