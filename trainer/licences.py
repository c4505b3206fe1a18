"""Licence check for pretrained weights: restrictive licences must be repeated in the recipe.

The licence of pretrained weights also applies to models trained from them, so using such weights must be an explicit
decision.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from trainer.errors import RecipeError

PERMISSIVE_LICENCES = frozenset(
    {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "unlicense"}
)

# Licences, by the prefix of the hub id, of weights whose model card names no standard licence; longest prefix first.
KNOWN_LICENCES = {"nvidia/": "nvidia-source-code-licence-non-commercial", "facebook/sam-": "apache-2.0"}


def check_licence(source: str, folder: Path | None, stated: str | None) -> str:
    """Return the licence of pretrained weights if the recipe may use them.

    Args:
        source: Hub id or folder of the weights, as in the recipe.
        folder: Folder of local weights, whose model card (README.md) is read; None for weights from a hub.
        stated: The ``licence`` in the recipe.

    Raises:
        RecipeError: The licence is not permissive and the recipe does not repeat it.
    """
    declared = _declared(source, folder)
    if declared in PERMISSIVE_LICENCES:
        return declared
    if declared is None:
        if not stated:
            raise RecipeError(
                f"The weights {source} do not state their licence; find it out, and name it as `licence:` beside them "
                "in the recipe."
            )
        return stated
    if stated is None or stated.strip().lower() != declared:
        raise RecipeError(
            f"The weights {source} are under the restrictive licence {declared!r}. If it allows your use, repeat it in "
            f"the recipe: `licence: {declared}`."
        )
    return declared


def _declared(source: str, folder: Path | None) -> str | None:
    if folder is not None:
        return _from_card(folder / "README.md")
    return next((licence for prefix, licence in KNOWN_LICENCES.items() if source.lower().startswith(prefix)), None)


def _from_card(card: Path) -> str | None:
    """Return the ``license`` in a model card's YAML header, or the ``license_name`` if it is "other"."""
    if not card.is_file():
        return None
    head = card.read_text(encoding="utf-8", errors="replace").split("---")
    if len(head) < 3:
        return None
    try:
        notes = yaml.safe_load(head[1])
    except yaml.YAMLError:
        return None
    if not isinstance(notes, dict):
        return None
    licence = str(notes.get("license", "")).strip().lower()
    if licence == "other":
        licence = str(notes.get("license_name", "other")).strip().lower()
    return licence or None
