"""One model of a server process: opened at start, warmed up beside it, shared by all requests."""

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
    """Which bundle, and how its network is run; None takes the bundle's choice, all CPU threads, the fastest graph."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: Path
    threads: Annotated[int, Field(ge=1)] | None = None
    window: tuple[int, int, int] | None = None
    overlap: float | None = None
    batch: int = 1
    precision: Precision | None = None


class ServedModel:
    """A model that is open, and ready once it has run its first window."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.failure: SemisegError | None = None
        self._ready = threading.Event()

    @classmethod
    def open(cls, settings: ModelSettings) -> ServedModel:
        """Verify the bundle and load its graph.

        Raises:
            BundleError: the bundle is incomplete, altered, or of another version.
            EngineError: the inference library cannot load the graph.
            InputError: a setting that this model does not allow, or a precision that it does not have here.
        """
        bundle = open_bundle(settings.bundle)
        # Parallel scans share one session; without a limit its threads are already as many as the process may use.
        threads = settings.threads or usable_processors()
        choice = choose_engine(bundle, threads=threads, precision=settings.precision)
        for one in choice.candidates[: choice.candidates.index(choice.selected)]:
            _LOG.info("Not run by %s in %s: %s", one.engine_and_device, one.precision, one.reason)
        taken = choice.selected
        _LOG.info("Run by %s in %s: %s", taken.engine_and_device, taken.precision, taken.reason)
        tiling = SlidingWindowOptions(window=settings.window, overlap=settings.overlap, batch=settings.batch)
        return cls(Predictor.from_selection(bundle.manifest, choice, tiling))

    @property
    def segmenter(self) -> Segmenter:
        """The predictor's sliding window."""
        return self.predictor.segmenter

    @property
    def identity(self) -> ModelIdentity:
        """The name, version and SHA-256 of the model."""
        return self.predictor.identity

    @property
    def ready(self) -> bool:
        """Whether the warm-up is done and the next scan will not wait for it."""
        return self._ready.is_set()

    def warm_up(self) -> None:
        """Run a first window; afterwards the model is ready, or :attr:`failure` says why it cannot be used."""
        try:
            self.segmenter.warm_up()
        except SemisegError as error:
            self.failure = error
            _LOG.error("The model %s cannot be used: %s", self.identity.name, error)
        else:
            self._ready.set()
            _LOG.info("Model %s is warm", self.identity.name)
