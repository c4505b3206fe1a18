"""`semiseg doctor`: report what this machine can run, and check a bundle and the engine that would run it."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from semiseg.errors import SemisegError
from semiseg.features import PYTHONS, SYSTEMS, availabilities
from semiseg.system.memory import physical_memory
from semiseg.system.nvidia import nvidia_driver
from semiseg.system.processors import processor_flags, usable_processors
from semiseg.volumes.volume import format_shape

app = typer.Typer()

PACKAGES = {
    "train": ("torch", "monai", "transformers", "peft", "accelerate"),
    "export": ("onnx", "onnxscript"),
    "serve": ("bentoml", "httpx", "openvino"),
    "trt": ("tensorrt",),
}
MIN_FREE_GB = 5.0


@app.command()
def doctor(
    bundle: Annotated[Path | None, typer.Argument(help="A bundle to check and try out.")] = None,
) -> None:
    """Report what this machine can run and, with a bundle, whether it is intact and how fast it is here."""
    console = Console(highlight=False, soft_wrap=True)
    troubles = [*_machine(console), *_packages(console)]
    _features(console)
    if bundle is not None:
        troubles += _bundle(console, bundle)
    for trouble in troubles:
        console.print(f"[bold red]trouble[/]  {trouble}")
    if troubles:
        raise typer.Exit(1)
    console.print("[bold green]no trouble found[/]")


def _machine(console: Console) -> list[str]:
    """Report processor, memory, disk and GPU."""
    cores = usable_processors()
    memory = (physical_memory() or 0) / 1e9
    console.print(f"machine  {_system()}, {cores} cores, {memory:.0f} GB memory")
    python = ".".join(platform.python_version_tuple()[:2])
    tried = PYTHONS.get(python, "newer than those that semiseg was tried with")
    console.print(f"         Python {platform.python_version()} ({tried})")
    flags = processor_flags()
    fast = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if name in flags]
    console.print(f"         instructions: {', '.join(fast) or 'none of AVX2, AVX-512, AMX'}")
    scratch = Path(tempfile.gettempdir())
    free = shutil.disk_usage(scratch).free / 1e9
    console.print(f"         {free:.0f} GB free in {scratch}, where uploads wait")
    console.print(f"         GPU driver: {nvidia_driver() or 'none'}")
    troubles = []
    if sys.version_info < (3, 11):  # noqa: UP036 (pip refuses it; a copied tree does not)
        troubles.append(f"Python {platform.python_version()} is not supported; use 3.11 or newer.")
    if free < MIN_FREE_GB:
        troubles.append(f"Only {free:.1f} GB are free in {scratch}; a study and its mask need room there.")
    return troubles


def _system() -> str:
    """The operating system by the name that its users know, and the processor's architecture."""
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = f"{SYSTEMS.get(platform.system(), platform.system())} {platform.release()}"
    return f"{name}, {platform.machine()}"


def _packages(console: Console) -> list[str]:
    """Report which extras are complete, and check that one ONNX Runtime is installed."""
    from semiseg.engines.onnx import installed_runtimes

    for extra, packages in PACKAGES.items():
        missing = [p for p in packages if importlib.util.find_spec(p) is None]
        state = (
            f"missing {', '.join(missing)}" if missing else ", ".join(f"{p} {metadata.version(p)}" for p in packages)
        )
        console.print(f"{extra:8} {state}")
    runtimes = installed_runtimes()
    console.print(f"engine   {', '.join(f'{r} {metadata.version(r)}' for r in runtimes) or 'no ONNX Runtime'}")
    if len(runtimes) > 1:
        return [
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; uninstall both, "
            "then install the `serve` extra or the `gpu` extra."
        ]
    return []


def _features(console: Console) -> None:
    """Report the features that work on this machine: a row for each, as in the README's table."""
    table = Table("feature", "here", "why not", box=None, pad_edge=False)
    for one in availabilities():
        table.add_row(one.feature.name, "[green]yes[/]" if one.available else "[red]no[/]", one.reason)
    console.print(table)


def _bundle(console: Console, folder: Path) -> list[str]:
    """Load the bundle, run one window, and report the engine."""
    from cli.models import describe_variants
    from semiseg.bundle.bundle import open_bundle
    from semiseg.bundle.coarse_settings import describe_coarse_pass
    from semiseg.inference.engine_selection import choose_engine
    from semiseg.inference.segmenter import Segmenter

    try:
        bundle = open_bundle(folder)
        choice = choose_engine(bundle)
        segmenter = Segmenter(bundle.manifest, choice.engine, precision=choice.selected.precision)
        segmenter.warm_up()
        started = time.perf_counter()
        segmenter.warm_up()
        seconds = time.perf_counter() - started
    except SemisegError as error:
        return [str(error)]
    manifest = bundle.manifest
    origin = manifest.provenance
    window = format_shape(manifest.window)
    console.print(f"bundle   {manifest.name}, sha256 {bundle.sha256[:12]}, every file as the manifest says")
    console.print(
        f"         {origin.method}, {origin.labelled} labelled and {origin.unlabelled} unlabelled scans of "
        f"{origin.dataset}, {origin.parameters:,} parameters"
    )
    console.print(f"         segments: {', '.join(s.name for s in manifest.segments)}")
    for line in describe_variants(bundle):
        console.print(f"         {line}")
    for line in describe_coarse_pass(manifest.coarse_pass):
        console.print(f"         {line}")
    if manifest.validation is None:
        console.print("         not validated: its split had no validation list")
    for one in choice.candidates:
        if one is choice.selected:
            break
        console.print(f"         not {one.precision} on {one.engine_and_device}: {one.reason}")
    taken = choice.selected
    console.print(f"         runs {taken.precision} on {taken.engine_and_device}: {taken.reason}")
    if manifest.coarse_pass is not None:
        here = "used here" if segmenter.coarse_pass is not None else f"not used here: {segmenter.full_pass_reason}"
        console.print(f"         the coarse pass is {here}")
    console.print(f"         a window of {window} takes {seconds * 1000:.0f} ms")
    return []
