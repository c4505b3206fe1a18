"""deploy/update_constraints.py: what it changes, what it holds, and what it says."""

from __future__ import annotations

from deploy import update_constraints
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


def test_pins_move_but_for_those_with_a_reason() -> None:
    found = {"alpha": "1.1", "beta": "1.5", "onnxruntime": "1.21", "gamma": "0.1", "flatbuffers": "25"}
    head, pins = update_constraints.parse_constraints(TEXT)
    pins, told = update_constraints.update_pins(pins, found)
    assert told == [
        "alpha: 1.0 -> 1.1",
        "onnxruntime: 1.20 -> 1.21",
        "onnxruntime-gpu: 1.20 -> 1.21",
        "not asked for here: Zeta_one 3.0",
        "new: gamma 0.1",
    ]
    assert update_constraints.format_constraints(head, pins) == (
        "# A head.\n#\n# - flatbuffers: left out.\n\nalpha==1.1\n# beta 2 is broken.\nbeta==1.5\ngamma==0.1\n"
        "onnxruntime==1.21\nonnxruntime-gpu==1.21\nZeta_one==3.0\n"
    )


def test_a_pin_of_another_python_or_system_stays_as_it_is() -> None:
    here, elsewhere = 'python_version >= "3.11"', 'python_version < "3.11"'
    text = f"# A head.\n\nalpha==1.0; {elsewhere}\n# Why.\nalpha==2.0; {here}\nbeta==1.0; {here}\n"
    head, pins = update_constraints.parse_constraints(text)
    assert update_constraints.format_constraints(head, pins) == text
    pins, told = update_constraints.update_pins(pins, {"alpha": "3.0", "beta": "1.1"})
    assert told == ["beta: 1.0 -> 1.1"]
    assert update_constraints.format_constraints(head, pins) == text.replace("beta==1.0", "beta==1.1")


def test_the_file_is_one_that_it_can_read_and_write() -> None:
    text = (REPOSITORY / "constraints.txt").read_text()
    head, pins = update_constraints.parse_constraints(text)
    assert len(pins) > 150
    assert update_constraints.format_constraints(head, sorted(pins, key=lambda pin: pin.key)) == text
