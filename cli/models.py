"""Opening a model for a command: a bundle, or the folder of a training run."""

from __future__ import annotations

from pathlib import Path

from semiseg.bundle.bundle import MANIFEST, RUN, Bundle, read_manifest
from semiseg.bundle.manifest import Manifest
from semiseg.bundle.variant import Precision
from semiseg.errors import InputError
from semiseg.inference.segmenter import Segmenter, SlidingWindowOptions
from semiseg.outputs.report import ModelIdentity
from semiseg.predicting.predictor import Predictor
from semiseg.volumes.volume import format_shape


def open_model(
    path: Path,
    settings: SlidingWindowOptions | None = None,
    *,
    threads: int | None = None,
    precision: Precision | None = None,
) -> Predictor:
    """Open and warm up the bundle or run in the folder ``path``.

    Args:
        path: Bundle, or run (a folder with ``run.json``), which needs torch.
        settings: Options of the sliding window; by default those of the model.
        threads: CPU threads of the network; all by default.
        precision: Precision of the bundle's graph; by default the fastest verified one that this machine runs.

    Raises:
        BundleError: The path is no bundle or run, or it is incomplete or altered.
        InputError: The model does not allow the settings.
        EngineError: The inference library cannot run the network.
    """
    if not (path / RUN).is_file():
        return Predictor.load(path, settings, threads=threads, precision=precision)
    if precision not in (None, "fp32"):
        raise InputError(f"{path} is a training run and has no {precision} graph; export it first.")
    from trainer.engine import open_run  # torch, which a serving environment does not have

    manifest, engine = open_run(path)
    identity = ModelIdentity.from_manifest(manifest, None, engine=f"{engine.name} ({engine.device})")
    predictor = Predictor(Segmenter(manifest, engine, settings), identity)
    predictor.segmenter.warm_up()
    return predictor


def read_model_manifest(path: Path) -> Manifest:
    """The manifest of a bundle or run.

    Raises:
        BundleError: The folder holds neither.
    """
    return read_manifest(path / (RUN if (path / RUN).is_file() else MANIFEST))


def parse_window(text: str | None, name: str = "window") -> tuple[int, int, int] | None:
    """Parse a window, or another size called ``name``, such as ``96x96x64`` in voxels.

    Raises:
        InputError: The text is not three whole numbers with an x between them.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise InputError(f"A {name} is three whole numbers such as 96x96x64, not {text!r}.")
    x, y, z = (int(part) for part in parts)
    return (x, y, z)


def parse_overlap(text: str | None) -> float | tuple[float, float, float] | None:
    """Parse an overlap such as ``0.5``, or one for each axis such as ``0.84,0.84,0.95``.

    Raises:
        InputError: Neither one number nor three, or a number outside of [0, 1).
    """
    if text is None:
        return None
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) not in (1, 3) or not all(0 <= share < 1 for share in found):
        raise InputError(f"An overlap is a number from 0 to below 1, or three such as 0.84,0.84,0.95, not {text!r}.")
    return found[0] if len(found) == 1 else (found[0], found[1], found[2])


def stride_to_overlap(stride: str, window: tuple[int, int, int]) -> tuple[float, float, float]:
    """The overlap along each axis that moves a window by a stride such as ``18x18x4`` voxels.

    Raises:
        InputError: Not three whole numbers, or one that is 0 or larger than the window.
    """
    steps = parse_window(stride, "stride")
    if steps is None or not all(1 <= step <= side for step, side in zip(steps, window, strict=True)):
        raise InputError(
            f"A stride is at least 1 and at most the window of {format_shape(window)} voxels, not {stride!r}."
        )
    x, y, z = (1.0 - step / side for step, side in zip(steps, window, strict=True))
    return (x, y, z)


def describe_variants(bundle: Bundle) -> list[str]:
    """One line for each graph of a bundle: its size and the results of its parity checks."""
    lines = []
    for variant in bundle.manifest.variants:
        size = (bundle.folder / variant.file).stat().st_size / 1e6
        for parity in variant.parity:
            window = format_shape(parity.window)
            lines.append(
                f"{variant.precision}, {size:.1f} MB, on {parity.engine}: proved on {parity.windows} windows of "
                f"{window}, logits differ by at most {parity.largest_difference:.2g}, masks agree to Dice "
                f"{parity.least_dice:.5f}"
            )
    return lines
