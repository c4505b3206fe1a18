"""Changes the Python of a condition (tests/conditions): read by every interpreter that has this folder on its path.

TESTS_CONDITION_SLEEP      replaces time.sleep: libfaketime, told to leave the monotonic clock alone, fails every sleep
                           until a moment of that clock, and since 3.11 time.sleep is one
TESTS_CONDITION_WITHOUT    top-level modules and distributions, with commas, that are not found, as if not installed
"""

from __future__ import annotations

import os
import re
import select
import sys
import time
from importlib.machinery import PathFinder
from importlib.metadata import MetadataPathFinder


def _sleep(seconds: float) -> None:
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        select.select([], [], [], min(left, 86400.0))
    if seconds == 0:
        os.sched_yield()


def _hide(names: set[str]) -> None:
    find_spec = PathFinder.find_spec
    find_distributions = MetadataPathFinder.find_distributions

    def spec(cls: type, name: str, path: object = None, target: object = None) -> object:
        return None if name.split(".")[0] in names else find_spec(name, path, target)  # type: ignore[arg-type]

    def distributions(cls: type, *arguments: object, **named: object) -> object:
        for found in find_distributions(*arguments, **named):  # type: ignore[arg-type]
            if re.sub(r"[-_.]+", "_", str(found.metadata["Name"])).lower() not in names:
                yield found

    PathFinder.find_spec = classmethod(spec)  # type: ignore[assignment,method-assign]
    PathFinder.find_distributions = classmethod(distributions)  # type: ignore[assignment,method-assign]


if os.environ.get("TESTS_CONDITION_SLEEP"):
    time.sleep = _sleep  # type: ignore[assignment]
if hidden := {name for name in os.environ.get("TESTS_CONDITION_WITHOUT", "").split(",") if name}:
    _hide(hidden)
    for loaded in [name for name in sys.modules if name.split(".")[0] in hidden]:  # a .pth file may have loaded one
        del sys.modules[loaded]
