"""Opening a model for a command: a bundle, or the folder of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from semiseg.bundle.bundle import open_bundle
from semiseg.bundle.manifest import Manifest
from semiseg.engines.engine import Engine
from semiseg.errors import InputError
from semiseg.inference.segmenter import Segmenter, Settings
from semiseg.outputs.report import ModelIdentity

RUN_DOCUMENT = "run.json"


@dataclass(frozen=True)
class OpenModel:
    """A model ready for scans, what it promises, and who it is."""

    segmenter: Segmenter
    manifest: Manifest
    identity: ModelIdentity


def open_model(path: Path, settings: Settings | None = None, *, threads: int | None = None) -> OpenModel:
    """Open and warm up the bundle or run in the folder ``path``.

    Args:
        path: a bundle, or a run (a folder with ``run.json``), which needs torch.
        settings: how the sliding window is laid; the model's own choice by default.
        threads: CPU threads of the network; all by default.

    Raises:
        BundleError: no bundle or run, or an incomplete or altered one.
        InputError: settings that the model does not allow.
        EngineError: the inference library cannot run the network.
    """
    manifest, engine, sha256 = _open(path, threads)
    segmenter = Segmenter(manifest, engine, settings)
    segmenter.warm_up()
    return OpenModel(segmenter, manifest, ModelIdentity.of(manifest, sha256))


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


def _open(path: Path, threads: int | None) -> tuple[Manifest, Engine, str | None]:
    if (path / RUN_DOCUMENT).is_file():
        from trainer.engine import open_run  # torch, which a serving environment does not have

        manifest, engine = open_run(path)
        return manifest, engine, None
    from semiseg.engines.onnx import OnnxEngine

    bundle = open_bundle(path)
    return bundle.manifest, OnnxEngine(bundle.model, threads=threads), bundle.sha256
