"""Keys of a recipe document with sections, written with dots such as ``preparation.spacing``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def read_key(document: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key such as ``preparation.spacing``; None if it does not exist."""
    place: Any = document
    for part in key.split("."):
        place = place.get(part) if isinstance(place, Mapping) else None
    return place


def write_key(document: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a key such as ``preparation.spacing``, creating its sections if necessary."""
    *sections, last = key.split(".")
    place = document
    for part in sections:
        inner = place.get(part)
        place[part] = dict(inner) if isinstance(inner, Mapping) else {}
        place = place[part]
    place[last] = value


def remove_key(document: dict[str, Any], key: str) -> None:
    """Remove a key such as ``preparation.spacing`` if it exists, and sections that it leaves empty."""
    section, _, last = key.rpartition(".")
    if not section:
        document.pop(last, None)
        return
    place = read_key(document, section)
    if isinstance(place, Mapping) and last in place:
        rest = {name: value for name, value in place.items() if name != last}
        if rest:
            write_key(document, section, rest)
        else:
            remove_key(document, section)


def copy_document(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a document and of its sections."""
    return {key: copy_document(value) if isinstance(value, Mapping) else value for key, value in document.items()}
