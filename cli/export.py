"""`semiseg export`: make a bundle of a training run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from semiseg.errors import InputError

app = typer.Typer()


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A finished training run.")],
    out: Annotated[Path, typer.Option(help="Bundle folder to make.")],
    data: Annotated[
        Path | None, typer.Option(help="Prove the graph on scans of this dataset; by default on the run's own scans.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Prove the graph on this preprocessing cache; by default on the run's own.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Further graphs beside fp32, with commas: fp16, bf16, int8. One that fails is left out.")
    ] = "",
    distil_to: Annotated[
        str | None,
        typer.Option(
            help="Train a smaller student from the run first, on the dataset the run was trained on (--data, where it "
            "has moved): small, tiny, or a student such as '{kind: unet, channels: [8, 16, 32]}' or a YAML file of one."
        ),
    ] = None,
    updates: Annotated[
        int | None,
        typer.Option(min=1, help="Number of updates of the smaller student; by default as many as the run has."),
    ] = None,
    monai_bundle: Annotated[
        Path | None, typer.Option(help="Also write a MONAI Bundle to this folder, for MONAI Label and MONAI Deploy.")
    ] = None,
    coarse: Annotated[
        bool,
        typer.Option(
            help="Look for a coarse pass with which windows of background are skipped, and prove it. This takes up to "
            "sixteen full passes over scans in fp32, and eight in each further precision."
        ),
    ] = True,
    trt: Annotated[bool, typer.Option("--trt", help="Also build a TensorRT plan for this machine's GPU.")] = False,
) -> None:
    """Turn a training run into a bundle: one small network as ONNX, verified against the run."""
    from cli.dataset_option import resolve_dataset_folder
    from cli.models import describe_variants
    from exporter.errors import ExportError
    from exporter.export import export as make_bundle
    from exporter.parity_scans import find_parity_scans
    from semiseg.bundle.variant import parse_precision

    precisions = [p for text in precision.split(",") if text.strip() and (p := parse_precision(text.strip()))]
    if distil_to is not None:
        run = _distilled(run, distil_to, out.with_name(f"{out.name}-run"), resolve_dataset_folder(data, run), updates)
    elif updates is not None:
        raise InputError("--updates is about --distil-to.")

    def report(line: str) -> None:
        if sys.stderr.isatty():
            typer.echo(line, err=True)

    exported = make_bundle(run, out, precisions=precisions, data=data, cache=cache, coarse=coarse, report=report)
    bundle = exported.bundle
    typer.echo(f"{out}: {bundle.manifest.provenance.parameters:,} parameters, sha256 {bundle.sha256[:12]}")
    typer.echo(exported.scans)
    for line in (*describe_variants(bundle), *exported.coarse_pass):
        typer.echo(line)
    if trt:
        from exporter.tensorrt import add_plan

        scans = find_parity_scans(bundle.manifest, run, data=data, cache=cache).parity
        key = add_plan(bundle, scans=[scan.array for scan in scans]).manifest.plan
        if key is not None:
            typer.echo(f"TensorRT {key.tensorrt} plan in {key.precision} for {key.gpu}, driver {key.driver}")
    if monai_bundle is not None:
        from exporter.monai_bundle import write_monai_bundle

        write_monai_bundle(run, monai_bundle)
        typer.echo(f"{monai_bundle}: the same model as a MONAI Bundle")
    origin = bundle.manifest.provenance
    if origin.taught_by is not None:
        teacher = origin.taught_by
        typer.echo(f"taught by {teacher.name} ({teacher.method}, {teacher.parameters:,} parameters)")
    if exported.refused:
        raise ExportError(f"{' '.join(exported.refused)} The bundle was written without what failed.")


def _distilled(run: Path, to: str, into: Path, data: Path, updates: int | None) -> Path:
    """Run folder of a smaller student, which is trained beside the future bundle."""
    from exporter.distil import distil

    def report(step: int, steps: int, values: dict[str, Any]) -> None:
        if step % 100 == 0 or step == steps:
            typer.echo(f"distilling {step}/{steps}: loss {values['total']:.3f}", err=True)

    return distil(run, to, into, data=data, updates=updates, report=report)
