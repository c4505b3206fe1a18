"""`semiseg export`: a training run in, a bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A finished training run.")],
    out: Annotated[Path, typer.Option(help="Bundle folder to make.")],
    data: Annotated[Path | None, typer.Option(help="Prove the graph on scans of this dataset.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Prove the graph on this preprocessing cache.")] = None,
    precision: Annotated[
        str, typer.Option(help="Further graphs beside fp32, with commas: fp16, bf16, int8. One that fails is left out.")
    ] = "",
    trt: Annotated[bool, typer.Option("--trt", help="Also build a TensorRT plan for this machine's GPU.")] = False,
) -> None:
    """Turn a training run into a bundle: one small network as ONNX, with proof."""
    from cli.models import parse_precision, variant_lines
    from exporter.errors import ExportError
    from exporter.export import export as make_bundle

    precisions = [p for text in precision.split(",") if text.strip() and (p := parse_precision(text.strip()))]
    exported = make_bundle(run, out, precisions=precisions, data=data, cache=cache)
    bundle = exported.bundle
    typer.echo(f"{out}: {bundle.manifest.provenance.parameters:,} parameters, sha256 {bundle.sha256[:12]}")
    for line in variant_lines(bundle):
        typer.echo(line)
    if trt:
        from exporter.tensorrt import add_plan

        key = add_plan(bundle).manifest.plan
        if key is not None:
            typer.echo(f"TensorRT {key.tensorrt} plan for {key.gpu}, driver {key.driver}")
    if exported.refused:
        raise ExportError(f"{' '.join(exported.refused)} The bundle was written without what failed.")
