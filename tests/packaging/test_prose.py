"""The linter of sentences finds half sentences and leaves whole ones alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.prose import check_file, descriptions_of, faults_of, main


@pytest.mark.parametrize(
    "text",
    ["Voxel spacing in mm.", "``cpu`` or ``gpu``.", "True if the scan is whole.", "float32 (N, C, X, Y, Z).", "2D."],
)
def test_a_noun_phrase_is_no_fault(text: str) -> None:
    assert not faults_of(text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Of the scan.", "'Of'"),
        ("what is asked for.", "'what'"),
        ("How many scans.", "'How'"),
        ("Whether it is whole.", "'Whether'"),
        ("the scan.", "small letter"),
        ("Voxel spacing in mm", "full stop"),
    ],
)
def test_half_a_sentence_is_a_fault(text: str, fault: str) -> None:
    assert any(fault in found for found in faults_of(text))


def test_every_section_is_read_with_lines_that_go_on() -> None:
    entries = "Args:\n    scan: The scan,\n        in RAS+: right first.\n    side: of it.\n\nReturns:\n    which part."
    docstring = f"Cut a scan.\n\n{entries}\n\nRaises:\n    ValueError: too small.\n"
    found = [(one.line, one.name, one.text) for one in descriptions_of(docstring, 10)]
    assert found == [
        (13, "scan", "The scan, in RAS+: right first."),
        (15, "side", "of it."),
        (18, "", "which part."),
        (21, "ValueError", "too small."),
    ]


def test_a_heading_within_another_section_is_a_fault(tmp_path: Path) -> None:
    file = tmp_path / "indented.py"
    file.write_text(
        'def cut():\n    """Cut.\n\n    Args:\n        a: It.\n\n        Raises:\n            B: Bad.\n    """\n',
        encoding="utf-8",
    )
    assert [fault for fault in check_file(file) if "Raises: is indented" in fault]


def test_help_of_an_option_is_read_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "command.py"
    file.write_text('option = Option(help="where to write")\nkind = parser(description="phantom")\n', encoding="utf-8")
    assert len(list(check_file(file))) == 2  # a word with which it does not begin, and no full stop
    assert main([str(tmp_path)]) == 1
    assert "command.py:1: help: 'where to write'" in capsys.readouterr().out
    file.write_text('option = Option(help="File to write.")\n', encoding="utf-8")
    assert main([str(file)]) == 0
