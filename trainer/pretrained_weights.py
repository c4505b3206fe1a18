"""Where pretrained weights come from, and what a library says that refuses them."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from pydantic import model_validator

from semiseg.bundle.manifest import PretrainedWeights
from trainer.errors import RecipeError
from trainer.licences import check_licence
from trainer.recipe import Section

# What transformers raises at a configuration that makes no sense; the last one is no kind of ValueError.
LOADING_ERRORS = (
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    StrictDataclassError,
)


class WeightsSource(Section):
    """Pretrained weights, from a folder or from a hub.

    Attributes:
        folder: as ``save_pretrained`` writes it.
        hub: an id such as ``nvidia/mit-b2``.
        revision: of the hub's files.
        licence: repeats a restrictive licence, to say that it is known.
    """

    folder: Path | None = None
    hub: str | None = None
    revision: str | None = None
    licence: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> WeightsSource:
        if (self.folder is None) == (self.hub is None):
            raise ValueError("give `folder` or `hub`, one of them")
        return self

    @property
    def source(self) -> str:
        """The hub id or the folder, as the recipe names it."""
        return self.hub or str(self.folder)

    def manifest_entry(self, needed: str | None) -> PretrainedWeights:
        """What the manifest says about them; ``needed`` is a file that their folder must hold.

        Raises:
            RecipeError: their licence is restrictive and not repeated, or they are not there.
        """
        if self.folder is not None and not self.folder.is_dir():
            raise RecipeError(f"There is no folder {self.folder} with weights.")
        if self.folder is not None and needed is not None and not (self.folder / needed).is_file():
            raise RecipeError(f"There are no weights in {self.folder}: it has no {needed}.")
        licence = check_licence(self.source, self.folder, self.licence)
        name = self.folder.name if self.folder is not None else self.source
        return PretrainedWeights(name=name, revision=self.revision, licence=licence)


def one_line_error(error: Exception) -> str:
    """What the error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
