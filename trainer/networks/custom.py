"""Networks that a recipe names by ``package.module:function``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from trainer.errors import RecipeError


def import_network_function(name: str) -> Callable[..., Any]:
    """Import and return the function that ``package.module:function`` names.

    Raises:
        ValueError: The name does not have this form, or there is no such module or function.
    """
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise ValueError(f"{name!r} is not of the form package.module:function")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise ValueError(
            f"module {module!r} cannot be imported ({error}); is it installed, or on PYTHONPATH?"
        ) from None
    if not callable(found):
        raise ValueError(f"module {module!r} has no function {function!r}")
    return found


def build_custom_network(name: str, inputs: int, outputs: int, settings: dict[str, Any]) -> nn.Module:
    """Call the function as ``function(inputs, outputs, **settings)``.

    Raises:
        RecipeError: The function fails, or does not return a torch module.
    """
    try:
        network = import_network_function(name)(inputs, outputs, **settings)
    except (TypeError, ValueError, RuntimeError, OSError, KeyError, AttributeError) as error:
        raise RecipeError(f"{name}({inputs}, {outputs}, ...) fails: {type(error).__name__}: {error}") from None
    if not isinstance(network, nn.Module):
        raise RecipeError(f"{name} returns {type(network).__name__}, not a torch module.")
    return network
