"""Former names of keys in users' files, which are still read with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from semiseg.errors import InputError


class RenamedKeyWarning(FutureWarning):
    """A file or an option uses a former name; the message names the present one."""


def rename_keys(section: Mapping[str, Any], names: Mapping[str, str], where: str) -> dict[str, Any]:
    """Replace former names of keys by the present ones.

    Args:
        section: A mapping as it was read.
        names: Present name of each key, by its former name.
        where: The file or section, as a message names it.

    Returns:
        The mapping with present names, in the same order.

    Raises:
        InputError: A key stands there under both names.
    """
    for old, new in names.items():
        if old in section:
            if new in section:
                raise InputError(f"In {where}, `{old}` is the former name of `{new}`; leave `{old}` out.")
            _warn(f"In {where}, `{old}` is called `{new}` now.")
    return {names.get(key, key): value for key, value in section.items()}


def rename_values(value: Any, key: str, names: Mapping[str, str], where: str) -> Any:
    """Replace former values of a key by the present ones, in sections at any depth.

    Args:
        value: A value as it was read: a mapping, a list, or anything else.
        key: The key whose value has been renamed.
        names: The present value, by the former one.
        where: The file or section, as a message names it.

    Returns:
        The value with present names.
    """
    if isinstance(value, Mapping):
        changed = {name: rename_values(inner, key, names, where) for name, inner in value.items()}
        former = changed.get(key)
        if isinstance(former, str) and former in names:
            _warn(f"In {where}, `{key}: {former}` is called `{key}: {names[former]}` now.")
            changed[key] = names[former]
        return changed
    if isinstance(value, list):
        return [rename_values(inner, key, names, where) for inner in value]
    return value


def _warn(message: str) -> None:
    warnings.warn(message, RenamedKeyWarning, stacklevel=3)
