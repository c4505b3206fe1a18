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
    trt: Annotated[bool, typer.Option("--trt", help="Also build a TensorRT plan for this machine's GPU.")] = False,
) -> None:
    """Turn a training run into a bundle: one small network as ONNX, with proof."""
    from exporter.export import export as make_bundle

    bundle = make_bundle(run, out, data=data, cache=cache)
    size = bundle.model.stat().st_size / 1e6
    parity = bundle.manifest.parity
    typer.echo(
        f"{out}: {bundle.manifest.provenance.parameters:,} parameters, {size:.1f} MB, sha256 {bundle.sha256[:12]}"
    )
    if parity is not None:
        typer.echo(
            f"proved on {parity.windows} windows: logits differ by at most {parity.largest_difference:.2g}, "
            f"masks agree to Dice {parity.dice:.5f}"
        )
    if trt:
        from exporter.tensorrt import add_plan

        key = add_plan(bundle).manifest.plan
        if key is not None:
            typer.echo(f"TensorRT {key.tensorrt} plan for {key.gpu}, driver {key.driver}")
