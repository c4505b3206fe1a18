"""The model for annotators: a bundle that is opened once and replaced when another one is accepted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semiseg.dataset.folder import Dataset
from semiseg.errors import InputError, SemisegError
from semiseg.predicting.prediction import Prediction
from semiseg.volumes.segmentation import are_overlapping, painted_values
from server.http.model import ModelSettings, ServedModel
from server.labelling.label_names import LabelNames

_LOG = logging.getLogger("semiseg.labelling")


@dataclass(frozen=True, eq=False)
class LabellingModel:
    """An open model whose segments have the label values of the dataset.

    Attributes:
        served: Open bundle.
        bundle: Folder of the bundle.
        lookup: Label value of the dataset for each value of the model's label map, uint8 (256,).
        values: Label value of the dataset for each segment of the model.
    """

    served: ServedModel
    bundle: Path
    lookup: NDArray[np.uint8]
    values: dict[str, int]

    @classmethod
    def open(cls, settings: ModelSettings, dataset: Dataset, names: LabelNames) -> LabellingModel:
        """Open a bundle for a dataset.

        Raises:
            BundleError, EngineError: The bundle cannot be used.
            InputError: The bundle has a segment that the dataset does not have, or another number of channels.
        """
        served = ServedModel.open(settings)
        manifest = served.predictor.manifest
        unknown = [segment.name for segment in manifest.segments if segment.name not in names.values]
        if unknown:
            raise InputError(
                f"The bundle {settings.bundle} segments {unknown[0]!r}, but the dataset has only "
                f"{', '.join(names.values)}."
            )
        if len(manifest.channels) != len(dataset.channels):
            raise InputError(
                f"The bundle {settings.bundle} takes {len(manifest.channels)} channel(s), but the dataset's images "
                f"have {len(dataset.channels)}."
            )
        regions = are_overlapping(manifest.segments)
        drawn = painted_values(manifest.segments) if regions else [segment.label for segment in manifest.segments]
        lookup = np.zeros(256, np.uint8)
        for segment, value in zip(manifest.segments, drawn, strict=True):
            lookup[value] = names.values[segment.name]
        inside = {segment.name for segment in manifest.segments}
        return cls(served, settings.bundle, lookup, {k: v for k, v in names.values.items() if k in inside})

    @property
    def name(self) -> str:
        """The model's name."""
        return self.served.identity.name

    @property
    def sha256(self) -> str:
        """The SHA-256 of the model's graph."""
        return self.served.identity.sha256 or ""

    def label_map(self, prediction: Prediction) -> NDArray[np.uint8]:
        """Convert a prediction to a label map (X, Y, Z) with the values of the dataset."""
        return np.asarray(self.lookup[prediction.segmentation.label_map()])

    def describe(self) -> dict[str, Any]:
        """The document about the model for ``GET /info/``."""
        origin = self.served.predictor.manifest.provenance
        return {
            "type": "segmentation",
            "labels": dict(self.values),
            "dimension": 3,
            "description": f"{self.name}, trained by {origin.method} with {origin.labelled} labelled and "
            f"{origin.unlabelled} unlabelled scans; SHA-256 {self.sha256[:12]}",
            "config": {},
        }


class ModelSlot:
    """The model in use; when ``find`` returns another bundle, that one is opened."""

    def __init__(self, find: Callable[[], Path | None], open_bundle: Callable[[Path], LabellingModel]) -> None:
        """Open the bundle that ``find`` returns, if there is one.

        Args:
            find: Function that returns the folder of the bundle in use, or None if there is none yet.
            open_bundle: Function that opens a bundle.

        Raises:
            SemisegError: The bundle cannot be used.
        """
        self._find, self._open = find, open_bundle
        self._lock = threading.Lock()
        self._model: LabellingModel | None = None
        self._refused: Path | None = None
        if (bundle := find()) is not None:
            self._model = open_bundle(bundle)

    def current(self) -> LabellingModel | None:
        """The model in use; a new bundle that cannot be opened is logged once, and the previous model stays in use."""
        bundle = self._find()
        with self._lock:
            if bundle is None:
                self._model = None
            if bundle is None or bundle == self._refused or (self._model and bundle == self._model.bundle):
                return self._model
            try:
                self._model = _warm(self._open(bundle))
            except SemisegError as error:
                self._refused = bundle
                _LOG.error("The new model cannot be used: %s", error)
            return self._model

    def warm_up(self) -> None:
        """Run a first window, so that the first annotator does not wait for it."""
        if self._model is not None:
            self._model.served.warm_up()


def _warm(model: LabellingModel) -> LabellingModel:
    """Run a first window of a model and return the model.

    Raises:
        SemisegError: The network cannot be run.
    """
    model.served.warm_up()
    if model.served.failure is not None:
        raise model.served.failure
    return model
