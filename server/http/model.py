"""A model of a server process: opened at start, warmed up in the background, and shared by all requests."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from semiseg.bundle.bundle import open_bundle
from semiseg.bundle.variant import Precision
from semiseg.errors import SemisegError
from semiseg.inference.engine_selection import choose_engine
from semiseg.inference.segmenter import Segmenter, SlidingWindowOptions
from semiseg.outputs.report import ModelIdentity
from semiseg.predicting.predictor import Predictor
from semiseg.system.processors import usable_processors

_LOG = logging.getLogger("semiseg.server")


class ModelSettings(BaseModel):
    """A bundle and how its network is run.

    Attributes:
        bundle: Folder of the bundle.
        threads: Number of CPU threads; None uses all that the process may use.
        window: Size of the sliding window in voxels; None takes the bundle's.
        overlap: Overlap of neighbouring windows; None takes the bundle's.
        batch: Number of windows that are run at once.
        precision: Precision of the graph; None takes the fastest one.
        full: True to run all windows of every scan, also if the model has a coarse pass.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: Path
    threads: Annotated[int, Field(ge=1)] | None = None
    window: tuple[int, int, int] | None = None
    overlap: float | None = None
    batch: int = 1
    precision: Precision | None = None
    full: bool = False


class ServedModel:
    """An open model; it is ready once it has run its first window."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.failure: SemisegError | None = None
        self._ready = threading.Event()

    @classmethod
    def open(cls, settings: ModelSettings) -> ServedModel:
        """Verify the bundle and load its graph.

        Raises:
            BundleError: The bundle is incomplete, altered, or has another version.
            EngineError: The inference library cannot load the graph.
            InputError: The model does not allow a setting, or the precision is not available here.
        """
        bundle = open_bundle(settings.bundle)
        # Parallel scans share one session, so its threads may be as many as the process may use.
        threads = settings.threads or usable_processors()
        choice = choose_engine(bundle, threads=threads, precision=settings.precision)
        for one in choice.candidates[: choice.candidates.index(choice.selected)]:
            _LOG.info("Engine %s in %s is not used: %s", one.engine_and_device, one.precision, one.reason)
        taken = choice.selected
        _LOG.info("Engine %s in %s is used: %s", taken.engine_and_device, taken.precision, taken.reason)
        tiling = SlidingWindowOptions(settings.window, settings.overlap, settings.batch, settings.full)
        return cls(Predictor.from_selection(bundle.manifest, choice, tiling))

    @property
    def segmenter(self) -> Segmenter:
        """The sliding-window segmenter of the predictor."""
        return self.predictor.segmenter

    @property
    def identity(self) -> ModelIdentity:
        """The name, version and SHA-256 of the model."""
        return self.predictor.identity

    @property
    def ready(self) -> bool:
        """True if the warm-up is done, so that the next scan does not wait for it."""
        return self._ready.is_set()

    def warm_up(self) -> None:
        """Run a first window; afterwards the model is ready, or :attr:`failure` holds the error."""
        try:
            self.segmenter.warm_up()
        except SemisegError as error:
            self.failure = error
            _LOG.error("The model %s cannot be used: %s", self.identity.name, error)
        else:
            self._ready.set()
            _LOG.info("Model %s is warmed up", self.identity.name)
