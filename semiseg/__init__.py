"""Python interface of semiseg, without torch. The names in ``__all__`` are the public API (see docs/python.md).

    import semiseg

    model = semiseg.load_model("BUNDLE")
    model.predict("scan.nii.gz").save("mask.nii.gz")

Each name is imported on first use, so that ``import semiseg`` itself imports nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semiseg.bundle.bundle import open_bundle
    from semiseg.client import Client
    from semiseg.dataset import load_dataset
    from semiseg.errors import SemisegError
    from semiseg.evaluation.evaluator import evaluate
    from semiseg.inference.engine_selection import choose_engine
    from semiseg.inference.segmenter import Segmenter
    from semiseg.predicting.prediction import Prediction
    from semiseg.predicting.predictor import Predictor, load_model
    from semiseg.volumes.nifti import read_nifti, write_segmentation
    from semiseg.volumes.scan import Scan, open_scan

__all__ = [
    "Client",
    "Prediction",
    "Predictor",
    "Scan",
    "Segmenter",
    "SemisegError",
    "choose_engine",
    "evaluate",
    "load_dataset",
    "load_model",
    "open_bundle",
    "open_scan",
    "read_nifti",
    "write_segmentation",
]
_HOMES = {
    "Client": "client",
    "Prediction": "predicting.prediction",
    "Predictor": "predicting.predictor",
    "Scan": "volumes.scan",
    "Segmenter": "inference.segmenter",
    "SemisegError": "errors",
    "choose_engine": "inference.engine_selection",
    "evaluate": "evaluation.evaluator",
    "load_dataset": "dataset",
    "load_model": "predicting.predictor",
    "open_bundle": "bundle.bundle",
    "open_scan": "volumes.scan",
    "read_nifti": "volumes.nifti",
    "write_segmentation": "volumes.nifti",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"semiseg.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
