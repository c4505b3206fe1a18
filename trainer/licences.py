"""Pretrained weights whose licence restricts their use load only when the recipe repeats that licence.

A model that was trained from such weights carries their licence to whoever runs it; that must be somebody's decision.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from trainer.errors import RecipeError

PERMISSIVE_LICENCES = frozenset(
    {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "unlicense"}
)

# Weights on the hub whose model card names no standard licence; longest prefix first.
KNOWN_LICENCES = {"nvidia/": "nvidia-source-code-licence-non-commercial", "facebook/sam-": "apache-2.0"}


def check_licence(source: str, folder: Path | None, stated: str | None) -> str:
    """The licence of the weights ``source``, when the recipe may use them.

    Args:
        source: how the recipe names the weights: a hub id or a folder.
        folder: the folder, when they are local; its model card (README.md) is read.
        stated: the recipe's ``licence``.

    Raises:
        RecipeError: the licence is not a permissive one and the recipe does not repeat it.
    """
    declared = _declared(source, folder)
    if declared in PERMISSIVE_LICENCES:
        return declared
    if declared is None:
        if not stated:
            raise RecipeError(
                f"The weights {source} do not say under which licence they are; find out, and name it as "
                "`licence:` beside them in the recipe."
            )
        return stated
    if stated is None or stated.strip().lower() != declared:
        raise RecipeError(
            f"The weights {source} are under the restrictive licence {declared!r}. If your use is allowed by it, "
            f"repeat it in the recipe: `licence: {declared}`."
        )
    return declared


def _declared(source: str, folder: Path | None) -> str | None:
    if folder is not None:
        return _from_card(folder / "README.md")
    return next((licence for prefix, licence in KNOWN_LICENCES.items() if source.lower().startswith(prefix)), None)


def _from_card(card: Path) -> str | None:
    """The ``license`` of a model card's YAML head; ``license_name`` where that is "other"."""
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
