"""Former names of keys and values in users' files, which are still read with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from semiseg.errors import InputError


class RenamedKeyWarning(FutureWarning):
    """A file or an option uses a former name; the message names the present one."""


def rename_keys(section: Mapping[str, Any], names: Mapping[str, str], where: str) -> dict[str, Any]:
    """Replace former names of keys by the present ones.

    Files that semiseg wrote list all keys; those without a value are renamed without a warning, and give way to a value
    under the present name.

    Args:
        section: A mapping as it was read.
        names: Present name of each key, by its former name.
        where: The file or section, as a message names it.

    Returns:
        The mapping with present names, in the same order.

    Raises:
        InputError: A key stands there under both names.
    """
    kept = dict(section)
    for old, new in names.items():
        if old not in kept:
            continue
        if kept[old] is not None:
            if new in kept:
                raise InputError(f"In {where}, `{old}` is the former name of `{new}`; leave `{old}` out.")
            warn_of_former_name(f"In {where}, `{old}` is called `{new}` now.")
        elif new in kept:
            del kept[old]
    return {names.get(key, key): value for key, value in kept.items()}


def rename_value(section: Mapping[str, Any], key: str, names: Mapping[str, str], where: str) -> dict[str, Any]:
    """Replace a former value of a key by the present one.

    Args:
        section: A mapping as it was read.
        key: The key whose value has been renamed.
        names: The present value, by the former one.
        where: The file or section, as a message names it.

    Returns:
        The mapping with the present value.
    """
    former = section.get(key)
    if not isinstance(former, str) or former not in names:
        return dict(section)
    warn_of_former_name(f"In {where}, `{key}: {former}` is called `{key}: {names[former]}` now.")
    return {**section, key: names[former]}


def warn_of_former_name(message: str) -> None:
    """Warn a user of a former name, with a sentence that names the present one."""
    warnings.warn(message, RenamedKeyWarning, stacklevel=3)
