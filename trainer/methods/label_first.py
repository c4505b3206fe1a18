"""Former module of :mod:`trainer.methods.label_then_train`."""

from __future__ import annotations

from trainer.deprecated_names import renamed_module

__getattr__ = renamed_module(__name__, "trainer.methods.label_then_train", LabelFirst="LabelThenTrain")
