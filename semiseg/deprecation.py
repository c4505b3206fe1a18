"""Former names of the public API, which still work and raise a :class:`DeprecationWarning`.

Aliases exist for names that docs/python.md documented, that ``semiseg.client`` exported, or that a training method
outside the package uses (:mod:`trainer.deprecated_names`). Former keys in files are in :mod:`semiseg.renamed_keys`.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

_Function = TypeVar("_Function", bound=Callable[..., Any])


class RenamedMember:
    """A class attribute that stands for a method or property under its former name.

    ::

        class Scan:
            remarks = RenamedMember("warnings")
    """

    def __init__(self, new: str) -> None:
        """Define the alias; the class statement supplies the former name.

        Args:
            new: Present name of the member.
        """
        self._new = new
        self._old = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._old = f"{owner.__name__}.{name}"

    def __get__(self, instance: object, owner: type) -> Any:
        _warn(self._old, self._new)
        return getattr(owner if instance is None else instance, self._new)


def renamed_arguments(**new_names: str) -> Callable[[_Function], _Function]:
    """Decorate a function so that it accepts keyword arguments under their former names.

    Args:
        new_names: The present name of each argument, by its former name.

    Returns:
        The decorator. The decorated function raises TypeError when an argument is given under both names.
    """

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def with_former_names(*args: Any, **kwargs: Any) -> Any:
            for old, new in new_names.items():
                if old in kwargs:
                    if new in kwargs:
                        raise TypeError(f"{function.__qualname__}() got {new!r} under its former name {old!r} as well")
                    _warn(f"{function.__qualname__}({old}=...)", new)
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return cast(_Function, with_former_names)

    return decorate


def renamed_attributes(module: str, **new_names: str) -> Callable[[str], Any]:
    """Return a module-level ``__getattr__`` (PEP 562) that resolves the former names of a module's attributes.

    Args:
        module: Name of the module.
        new_names: The present name of each attribute, by its former name.

    Returns:
        The function to assign to ``__getattr__``. It raises AttributeError for any other name.
    """

    def find(name: str) -> Any:
        if name not in new_names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        _warn(f"{module}.{name}", new_names[name])
        return getattr(sys.modules[module], new_names[name])

    return find


def _warn(old: str, new: str) -> None:
    """Warn at the line that used the former name: two frames above the caller of this function."""
    warnings.warn(f"{old} is deprecated; its name is {new} now.", DeprecationWarning, stacklevel=3)
