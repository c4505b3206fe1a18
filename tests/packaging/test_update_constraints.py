"""deploy/update_constraints.py: what it changes, what it holds, and what it says."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from tests.packaging.environments import REPOSITORY

TEXT = """\
# A head.
#
# - flatbuffers: left out.

alpha==1.0
# beta 2 is broken.
beta==1.5
onnxruntime==1.20
onnxruntime-gpu==1.20
Zeta_one==3.0
"""


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("update", REPOSITORY / "deploy" / "update_constraints.py")
    assert spec and spec.loader
    module = sys.modules["update"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pins_move_but_for_those_with_a_reason(script: ModuleType) -> None:
    found = {"alpha": "1.1", "beta": "1.5", "onnxruntime": "1.21", "gamma": "0.1", "flatbuffers": "25"}
    head, pins = script.read(TEXT)
    pins, told = script.updated(pins, found)
    assert told == [
        "alpha: 1.0 -> 1.1",
        "onnxruntime: 1.20 -> 1.21",
        "onnxruntime-gpu: 1.20 -> 1.21",
        "not asked for here: Zeta_one 3.0",
        "new: gamma 0.1",
    ]
    assert script.written(head, pins) == (
        "# A head.\n#\n# - flatbuffers: left out.\n\nalpha==1.1\n# beta 2 is broken.\nbeta==1.5\ngamma==0.1\n"
        "onnxruntime==1.21\nonnxruntime-gpu==1.21\nZeta_one==3.0\n"
    )


def test_the_file_is_one_that_it_can_read_and_write(script: ModuleType) -> None:
    text = (REPOSITORY / "constraints.txt").read_text()
    head, pins = script.read(text)
    assert len(pins) > 150
    assert script.written(head, sorted(pins, key=lambda pin: pin.key)) == text
