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
    """At least one model; which of several is meant, the request says."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        """Keep them under their names.

        Raises:
            InputError: two have one name.
        """
        self.by_name = {model.identity.name: model for model in models}
        if len(self.by_name) < len(models):
            names = [model.identity.name for model in models]
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(
                f"Two of the bundles are named {twice}; a request could not say which one it means. Export one of them "
                "anew from a recipe with another `name`."
            )

    @classmethod
    def open(cls, settings: Sequence[ModelSettings]) -> ServedModels:
        """Open each bundle; see :meth:`ServedModel.open` and :class:`ServedModels` for what is raised."""
        return cls([ServedModel.open(one) for one in settings])

    def select(self, name: str | None) -> ServedModel:
        """The model that a request means.

        Raises:
            ApiError: 400, it names none of several, or one that is not here.
        """
        names = ", ".join(self.by_name)
        if not name:
            if len(self.by_name) > 1:
                raise ApiError(400, f"Name a model in the field `model`; here are {names}.")
            (model,) = self.by_name.values()
        elif name in self.by_name:
            model = self.by_name[name]
        else:
            raise ApiError(400, f"The field `model` names none of this server's models; here are {names}.")
        return model

    @property
    def ready(self) -> bool:
        """Whether all of them are warm."""
        return all(model.ready for model in self.by_name.values())

    @property
    def failure(self) -> SemisegError | None:
        """Why one of them cannot be used."""
        return next((model.failure for model in self.by_name.values() if model.failure is not None), None)

    def entries(self) -> list[ModelEntry]:
        """What GET /models answers."""
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
        """Warm up in a thread of its own, so that /livez and /readyz answer meanwhile.

        ``done`` is called in that thread at the end; :attr:`failure` then says whether all can be used.
        """

        def run() -> None:
            for model in self.by_name.values():
                model.warm_up()
            done()

        threading.Thread(target=run, name="warm-up", daemon=True).start()
