"""Opening a model for a command: a bundle, or the folder of a training run."""

from __future__ import annotations

from pathlib import Path

from semiseg.bundle.bundle import RUN, Bundle
from semiseg.bundle.variant import Precision
from semiseg.errors import InputError
from semiseg.inference.segmenter import Segmenter, Settings
from semiseg.outputs.report import ModelIdentity
from semiseg.predicting.predictor import Predictor
from semiseg.volumes.volume import by_sides


def open_model(
    path: Path,
    settings: Settings | None = None,
    *,
    threads: int | None = None,
    precision: Precision | None = None,
) -> Predictor:
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
    if not (path / RUN).is_file():
        return Predictor.load(path, settings, threads=threads, precision=precision)
    if precision not in (None, "fp32"):
        raise InputError(f"{path} is a training run and has no {precision} graph; export it first.")
    from trainer.engine import open_run  # torch, which a serving environment does not have

    manifest, engine = open_run(path)
    identity = ModelIdentity.of(manifest, None, engine=f"{engine.name} ({engine.device})")
    predictor = Predictor(Segmenter(manifest, engine, settings), identity)
    predictor.segmenter.warm_up()
    return predictor


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
