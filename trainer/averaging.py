"""Former module of :mod:`trainer.moving_average`."""

from __future__ import annotations

from trainer.deprecated_names import renamed_module

__getattr__ = renamed_module(__name__, "trainer.moving_average", average_into="update_moving_average")
