"""Former names of what methods outside this package define, override or import, beside :mod:`semiseg.deprecation`."""

from __future__ import annotations

import importlib
import warnings
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any, ClassVar


class RenamedMembers:
    """Base class of classes whose members had other names, under which subclasses may still define and call them.

    ::

        class Method(RenamedMembers):
            former_members: ClassVar[dict[str, str]] = {"voters": "committee"}

    Each class that defines a member under one of the two names gets it under the other one as well, so that overriding
    and ``super()`` work across both. Defining or reading the former name raises a :class:`DeprecationWarning`.

    Attributes:
        former_members: The present name of each renamed member, by its former name. The entries of base classes count,
            too.
    """

    former_members: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for old, new in ChainMap(*(dict(vars(base).get("former_members", {})) for base in cls.__mro__)).items():
            nearest = (vars(base) for base in cls.__mro__ if old in vars(base) or new in vars(base))
            members: Mapping[str, Any] = next(nearest, {})
            if old in members and new not in members:
                text = f"{cls.__qualname__} defines {old!r}, which is deprecated; its name is {new!r} now."
                warnings.warn(text, DeprecationWarning, stacklevel=3)  # past ABCMeta.__new__, to the class statement
                setattr(cls, new, members[old])
            elif new in members and old not in members:
                setattr(cls, old, _FormerMember(old, new, members[new]))


class _FormerMember:
    """A class attribute under its former name.

    It holds the attribute of its own class, which need not be the one that ``getattr(instance, new)`` finds: otherwise
    a subclass that overrides the former name and calls ``super()`` would call itself.
    """

    def __init__(self, old: str, new: str, value: object) -> None:
        self._old, self._new, self._value = old, new, value

    def __get__(self, instance: object, owner: type) -> Any:
        text = f"{owner.__qualname__}.{self._old} is deprecated; its name is {self._new!r} now."
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        bind = getattr(type(self._value), "__get__", None)
        return self._value if bind is None else bind(self._value, instance, owner)


def renamed_module(old: str, new: str, **new_names: str) -> Callable[[str], Any]:
    """Return a module-level ``__getattr__`` (PEP 562) for the file that is left under a module's former name.

    Args:
        old: Former name of the module.
        new: Present name of the module, which is imported when an attribute is read.
        new_names: The present name of each attribute that was renamed as well, by its former name.
    """

    def find(name: str) -> Any:
        if name.startswith("__"):  # the import system asks for __path__, which would make the file a package
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(new), new_names.get(name, name))
        text = f"{old}.{name} is deprecated; its name is {new}.{new_names.get(name, name)} now."
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return value

    return find
