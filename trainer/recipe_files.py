"""Recipes in YAML files: how they are found, read, changed on the command line, and validated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from semiseg.errors import InputError, validation_message
from semiseg.renamed_keys import rename_keys, rename_value, warn_of_former_name
from trainer.errors import RecipeError
from trainer.recipe import Recipe

RENAMED_KEYS = {"start": "init_from"}
"""Present names of the keys of a recipe, by their former names."""
RENAMED_KINDS = {"outside": "custom", "canvas": "slice_mosaic"}
"""Present names of kinds of networks, by their former names."""


def read_recipe(path: Path, changes: list[str] | None = None) -> Recipe:
    """Read a recipe and apply ``--set key=value`` changes to it (``methods.mn.teacher.finetune=whole``).

    Raises:
        RecipeError: The file cannot be read or is not YAML, or a value is invalid; the message names the key.
    """
    return make_recipe(read_document(path, changes), source=str(path))


def read_document(path: Path, changes: list[str] | None = None) -> dict[str, Any]:
    """Read a recipe from YAML and apply changes, without validation: keys may be left open (``auto``).

    Raises:
        RecipeError: The file cannot be read or is not YAML, or a change is malformed.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"The recipe {path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(document, dict):
        raise RecipeError(f"The recipe {path} does not consist of `key: value` lines.")
    return apply_changes(_with_present_keys(document, str(path)), changes or [])


def apply_changes(document: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    """Apply ``--set key=value`` changes to a document in place and return it.

    Raises:
        RecipeError: A change is malformed.
    """
    for change in changes:
        key, separator, text = change.partition("=")
        if not separator or not key:
            raise RecipeError(f"`--set {change}` does not have the form key=value.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise RecipeError(f"`--set {change}`: {text!r} is not a YAML value.") from None
        first, *rest = key.split(".")
        if first in RENAMED_KEYS:
            warn_of_former_name(f"`--set {change}`: `{first}` is called `{RENAMED_KEYS[first]}` now.")
        _set(document, [RENAMED_KEYS.get(first, first), *rest], value, change)
    return document


def make_recipe(document: dict[str, Any], changes: list[str] | None = None, *, source: str = "the recipe") -> Recipe:
    """Validate a recipe given as a mapping; see :func:`read_recipe`."""
    document = apply_changes(_with_present_keys(document, source), changes or [])
    for key in ("student", "methods"):
        if key in document:
            document[key] = rename_kinds(document[key], f"{source}, {key}", student=key == "student")
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise RecipeError(f"In {source}: {validation_message(error)}.") from None


def rename_kinds(section: Any, where: str, *, student: bool = False) -> Any:
    """Replace former kinds of networks by the present ones, in a section and in the sections within it.

    A section of a custom network names its function. What is given to that function (``settings``) is the user's own.

    Args:
        section: A section as it was read.
        where: The section, as a message names it.
        student: True if it describes a 3D network.

    Returns:
        The section with present names.
    """
    if isinstance(section, list):
        return [rename_kinds(one, where) for one in section]
    if not isinstance(section, Mapping):
        return section
    names = {former: present for former, present in RENAMED_KINDS.items() if student or former != "canvas"}
    if "function" in section or student:
        section = rename_value(section, "kind", names, where)
    return {key: value if key == "settings" else rename_kinds(value, where) for key, value in section.items()}


def _with_present_keys(document: Mapping[str, Any], source: str) -> dict[str, Any]:
    try:
        return rename_keys(document, RENAMED_KEYS, source)
    except InputError as error:
        raise RecipeError(str(error)) from None


def _set(document: dict[str, Any], keys: list[str], value: Any, change: str) -> None:
    place = document
    for key in keys[:-1]:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise RecipeError(f"`--set {change}`: {key!r} is a value, not a section.")
    place[keys[-1]] = value


def find_recipe(name: str) -> Path:
    """Find a recipe file by its path, or one of the recipes shipped with semiseg by its name.

    Raises:
        RecipeError: There is no such file or shipped recipe.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = Path(__file__).parent / "recipes"
    if (shipped / f"{name}.yaml").is_file():
        return shipped / f"{name}.yaml"
    names = ", ".join(sorted(p.relative_to(shipped).with_suffix("").as_posix() for p in shipped.rglob("*.yaml")))
    raise RecipeError(f"There is no recipe file {name}, and semiseg ships no recipe of that name (it has: {names}).")
