"""Former module of :class:`semiseg.volumes.read_options.ReadOptions`, which was called ``Wishes``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semiseg.deprecation import renamed_attributes
from semiseg.volumes.read_options import ReadOptions as ReadOptions

if not TYPE_CHECKING:
    __getattr__ = renamed_attributes(__name__, Wishes="ReadOptions")
