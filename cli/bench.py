"""`semiseg bench`: time and memory of inference here, compared with other sliding windows around the same network."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from semiseg.errors import InputError
from semiseg.system.processors import usable_processors

app = typer.Typer(no_args_is_help=True)

LONG = (512, 512, 400)


@app.command()
def inference(
    quick: Annotated[bool, typer.Option(help="One small volume, one round: a look, not a measurement.")] = False,
    only: Annotated[str | None, typer.Option(help="A student: unet, unet-plain, vnet, segresnet, dynunet.")] = None,
    volume: Annotated[str, typer.Option(help="Voxels of the volume.")] = "256x256x128",
    rounds: Annotated[
        int, typer.Option(min=1, help="Number of rounds; in each round all backends run once, in turn.")
    ] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all by default.")] = None,
    memory: Annotated[bool, typer.Option(help="Also the memory for 512x512x400 voxels in 14 classes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Time the sliding window from array to mask, in turn with MONAI's and, where it is installed, nnU-Net's."""
    from cli.models import parse_window
    from exporter.bench.benchmark_case import STUDENTS, BenchmarkCase
    from exporter.bench.measure import machine_info, run_benchmark

    if only is not None and only not in STUDENTS:
        raise InputError(f"There is no student '{only}' to time; there are {', '.join(STUDENTS)}.")
    threads = threads or usable_processors()
    if quick:
        cases = [BenchmarkCase(only or "unet-plain", 3, (96, 96, 72), (48, 48, 48), 1)]
    else:
        small, flat = parse_window(volume), (160, 160, 64)
        assert small is not None
        cube = (96, 96, 96)
        cases = [
            BenchmarkCase("unet", 3, small, cube, rounds),
            BenchmarkCase("unet", 3, small, flat, rounds),
            BenchmarkCase("unet-plain", 14, small, cube, rounds),
            BenchmarkCase("segresnet", 3, small, cube, rounds),
            BenchmarkCase("vnet", 3, small, cube, rounds),
            BenchmarkCase("dynunet", 3, small, cube, rounds),
        ]
        cases = [case for case in cases if only in (None, case.student)]
    console = Console(stderr=as_json, highlight=False, soft_wrap=True)
    here = machine_info(threads)
    told: dict[str, object] = {"machine": here}
    console.print("  ".join(f"{name} {value}" for name, value in here.items()))
    results = []
    for case in cases:
        console.print(f"[bold]{case}[/]")
        result = run_benchmark(case, threads, console.print)
        results.append(asdict(result))
        table = Table("", "s", "times as fast", "same voxels", "not network", "of matmul")
        for one in result.timed:
            share = ["" if value is None else f"{value:.0%}" for value in (one.outside, one.of_matmul)]
            middle = sorted(one.seconds)[len(one.seconds) // 2]
            table.add_row(one.name, f"{middle:.2f}", f"{one.ratio:.2f}", f"{one.equal:.4%}", *share)
        console.print(table)
    told["cases"] = results
    if memory:
        told["memory"] = _memory(console, threads)
    if as_json:
        typer.echo(json.dumps(told, indent=1))


def _memory(console: Console, threads: int) -> list[dict[str, object]]:
    """Measure the peak memory of a pass over a long scan: three lengths for semiseg, one for MONAI."""
    from exporter.bench import measure
    from exporter.bench.benchmark_case import BenchmarkCase

    out: list[dict[str, object]] = []
    for who, slices in (("ours", 200), ("ours", LONG[2]), ("ours", 800), ("monai", LONG[2])):
        case = BenchmarkCase("unet-plain", 14, (LONG[0], LONG[1], slices), (96, 96, 96))
        used, seconds = measure.measure_memory(case, who, threads)
        console.print(f"{case}: {who} {used / 1e6:.0f} MB above the idle process, {seconds:.0f} s")
        out.append({"who": who, "slices": slices, "bytes": used, "seconds": seconds})
    return out
