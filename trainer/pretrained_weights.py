"""Sources of pretrained weights, and errors of the libraries that load them."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from pydantic import model_validator

from semiseg.bundle.manifest import PretrainedWeights
from trainer.errors import RecipeError
from trainer.licences import check_licence
from trainer.recipe import Section

# Errors that transformers raises for an invalid configuration; the last one is not a subclass of ValueError.
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
        folder: Folder of the weights, as ``save_pretrained`` writes it.
        hub: Id on the hub, such as ``nvidia/mit-b2``.
        revision: Revision of the files on the hub.
        licence: Licence of the weights, which must be repeated here if it is restrictive.
    """

    folder: Path | None = None
    hub: str | None = None
    revision: str | None = None
    licence: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> WeightsSource:
        if (self.folder is None) == (self.hub is None):
            raise ValueError("name either a `folder` or a `hub` id")
        return self

    @property
    def source(self) -> str:
        """The hub id or the folder, as the recipe names it."""
        return self.hub or str(self.folder)

    def manifest_entry(self, needed: str | None) -> PretrainedWeights:
        """Return the manifest's entry for the weights, and check their licence and files.

        Args:
            needed: File that their folder must contain, if any.

        Raises:
            RecipeError: The licence is restrictive and not repeated, or the weights do not exist.
        """
        if self.folder is not None and not self.folder.is_dir():
            raise RecipeError(f"There is no folder {self.folder} with weights.")
        if self.folder is not None and needed is not None and not (self.folder / needed).is_file():
            raise RecipeError(f"There are no weights in {self.folder}: it has no {needed}.")
        licence = check_licence(self.source, self.folder, self.licence)
        name = self.folder.name if self.folder is not None else self.source
        return PretrainedWeights(name=name, revision=self.revision, licence=licence)


def one_line_error(error: Exception) -> str:
    """Return the message of an error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
