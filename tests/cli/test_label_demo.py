"""`semiseg label --demo` begins with scans of its own, and leaves folders of other people alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.label_demo import CASES, LABELLED, TEST, prepare_demo
from semiseg.dataset import load_dataset, make_split
from semiseg.errors import InputError
from server.labelling.training import read_config
from tests.command_line import run_semiseg


def test_the_folder_is_a_dataset_whose_training_can_be_read_and_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = prepare_demo(tmp_path / "demo")
    assert config is not None
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    split = make_split(load_dataset(tmp_path / "demo"))
    assert (len(split.labelled), len(split.unlabelled), len(split.test)) == (LABELLED, CASES - LABELLED - TEST, TEST)
    assert read_config(config).recipe == "demo"
    config.write_text("recipe: default\n")
    assert read_config(prepare_demo(tmp_path / "demo")).recipe == "default", "what the user changed stays"
    monkeypatch.setattr("cli.label_demo.can_train", lambda: False)
    assert prepare_demo(tmp_path / "demo") is None, "without the packages for it, there is no training"
    own = tmp_path / "own.yaml"
    assert prepare_demo(tmp_path / "demo", own) == own


def test_another_folder_is_not_taken_for_the_demos(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").touch()
    with pytest.raises(InputError, match="was not made by `semiseg label --demo`"):
        prepare_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]


def test_without_data_the_command_says_what_to_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_semiseg("label") == 2
    assert "--data, or try `semiseg label --demo`" in capsys.readouterr().err
