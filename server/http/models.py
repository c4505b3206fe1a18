"""The models of a server process, by name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from semiseg.bundle.card import model_card
from semiseg.errors import InputError, SemisegError
from server.http.limits import ApiError
from server.http.model import ModelSettings, ServedModel
from server.http.schemas import ModelEntry


class ServedModels:
    """The models of a server, at least one; a request selects one of several by name."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        """Store the models by their names.

        Raises:
            InputError: Two models have the same name.
        """
        self.by_name = {model.identity.name: model for model in models}
        if len(self.by_name) < len(models):
            names = [model.identity.name for model in models]
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(
                f"Two of the bundles are named {twice}, so that requests could not select one of them. Export one of "
                "them again from a recipe with another `name`."
            )

    @classmethod
    def open(cls, settings: Sequence[ModelSettings]) -> ServedModels:
        """Open each bundle; for the errors see :meth:`ServedModel.open` and :class:`ServedModels`."""
        return cls([ServedModel.open(one) for one in settings])

    def select(self, name: str | None) -> ServedModel:
        """Return the model that a request selects; with one model, the name may be empty.

        Raises:
            ApiError: 400, the name is missing although there are several models, or there is no such model.
        """
        names = ", ".join(self.by_name)
        if not name:
            if len(self.by_name) > 1:
                raise ApiError(400, f"Name a model in the field `model`; this server has {names}.")
            (model,) = self.by_name.values()
        elif name in self.by_name:
            model = self.by_name[name]
        else:
            raise ApiError(400, f"The field `model` names no model of this server; it has {names}.")
        return model

    @property
    def ready(self) -> bool:
        """True if all models are warmed up."""
        return all(model.ready for model in self.by_name.values())

    @property
    def failure(self) -> SemisegError | None:
        """The error of the first model that cannot be used; None if there is none."""
        return next((model.failure for model in self.by_name.values() if model.failure is not None), None)

    def entries(self) -> list[ModelEntry]:
        """The documents of GET /models."""
        return [
            ModelEntry(
                identity=model.identity,
                ready=model.ready,
                channels=[channel.name for channel in model.segmenter.manifest.channels],
                segments=list(model.segmenter.manifest.segments),
                window=model.segmenter.window,
                card=model_card(model.segmenter.manifest),
            )
            for model in self.by_name.values()
        ]

    def warm_up_in_background(self, done: Callable[[], None]) -> None:
        """Warm up in a separate thread, so that /livez and /readyz respond meanwhile.

        ``done`` is called in that thread at the end; :attr:`failure` is then None if all models can be used.
        """

        def run() -> None:
            for model in self.by_name.values():
                model.warm_up()
            done()

        threading.Thread(target=run, name="warm-up", daemon=True).start()
