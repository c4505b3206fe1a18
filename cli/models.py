"""Opening a model for a command: a bundle, or the folder of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from semiseg.bundle.bundle import Bundle, open_bundle
from semiseg.bundle.manifest import Manifest
from semiseg.bundle.variant import PRECISIONS, Precision
from semiseg.engines.engine import Engine
from semiseg.errors import InputError
from semiseg.inference.choice import choose_engine
from semiseg.inference.segmenter import Segmenter, Settings
from semiseg.outputs.report import ModelIdentity
from semiseg.volumes.volume import by_sides

RUN_DOCUMENT = "run.json"


@dataclass(frozen=True)
class OpenModel:
    """A model ready for scans, what it promises, and who it is."""

    segmenter: Segmenter
    manifest: Manifest
    identity: ModelIdentity


def open_model(
    path: Path,
    settings: Settings | None = None,
    *,
    threads: int | None = None,
    precision: Precision | None = None,
) -> OpenModel:
    """Open and warm up the bundle or run in the folder ``path``.

    Args:
        path: a bundle, or a run (a folder with ``run.json``), which needs torch.
        settings: how the sliding window is laid; the model's own choice by default.
        threads: CPU threads of the network; all by default.
        precision: of the bundle's graph; by default the fastest that this machine runs and the export proved.

    Raises:
        BundleError: no bundle or run, or an incomplete or altered one.
        InputError: settings that the model does not allow.
        EngineError: the inference library cannot run the network.
    """
    engine, identity, manifest = _open(path, threads, precision)
    segmenter = Segmenter(manifest, engine, settings)
    segmenter.warm_up()
    return OpenModel(segmenter, manifest, identity)


def parse_window(text: str | None) -> tuple[int, int, int] | None:
    """A window such as ``96x96x64`` in voxels.

    Raises:
        InputError: not three whole numbers with an x between them.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise InputError(f"A window is three whole numbers such as 96x96x64, not {text!r}.")
    x, y, z = (int(part) for part in parts)
    return (x, y, z)


def variant_lines(bundle: Bundle) -> list[str]:
    """A line for each graph of a bundle: its size, and what its proofs found."""
    lines = []
    for variant in bundle.manifest.variants:
        size = (bundle.folder / variant.file).stat().st_size / 1e6
        for parity in variant.parity:
            window = by_sides(parity.window)
            lines.append(
                f"{variant.precision}, {size:.1f} MB, on {parity.engine}: proved on {parity.windows} windows of "
                f"{window}, logits differ by at most {parity.largest_difference:.2g}, masks agree to Dice "
                f"{parity.least_dice:.5f}"
            )
    return lines


def parse_precision(text: str | None) -> Precision | None:
    """A precision by name.

    Raises:
        InputError: there is none of this name.
    """
    if text is None:
        return None
    for precision in PRECISIONS:
        if text.lower() == precision:
            return precision
    raise InputError(f"A precision is {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}, not {text!r}.")


def _open(path: Path, threads: int | None, precision: Precision | None) -> tuple[Engine, ModelIdentity, Manifest]:
    if (path / RUN_DOCUMENT).is_file():
        if precision not in (None, "fp32"):
            raise InputError(f"{path} is a training run and has no {precision} graph; export it first.")
        from trainer.engine import open_run  # torch, which a serving environment does not have

        manifest, engine = open_run(path)
        return engine, ModelIdentity.of(manifest, None, engine=f"{engine.name} ({engine.device})"), manifest
    bundle = open_bundle(path)
    choice = choose_engine(bundle, threads=threads, precision=precision)
    taken = choice.taken
    identity = ModelIdentity.of(bundle.manifest, taken.sha256, precision=taken.precision, engine=taken.where)
    return choice.engine, identity, bundle.manifest
