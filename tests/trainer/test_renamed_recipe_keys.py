"""Recipes and runs with former names of keys still open."""

from __future__ import annotations

from pathlib import Path

import pytest

from semiseg.renamed_keys import RenamedKeyWarning
from trainer.network_configs import parse_network_config
from trainer.recipe_files import make_recipe, read_recipe


def test_a_recipe_with_former_names_means_the_same(tmp_path: Path) -> None:
    former, present = tmp_path / "former.yaml", tmp_path / "present.yaml"
    text = (
        "{key}: earlier\nstudent: {{kind: {kind}, function: 'a:b'}}\nmethods: {{mn: {{teacher: {{kind: {kind}}}}}}}\n"
    )
    former.write_text(text.format(key="start", kind="outside"), encoding="utf-8")
    present.write_text(text.format(key="init_from", kind="custom"), encoding="utf-8")
    with pytest.warns(RenamedKeyWarning) as caught:
        found = read_recipe(former)
    assert found == read_recipe(present)
    assert len(caught) == 3


def test_a_change_on_the_command_line_may_have_the_former_name() -> None:
    with pytest.warns(RenamedKeyWarning, match="--set|the recipe"):
        assert make_recipe({}, ["start=earlier"]).init_from == Path("earlier")


def test_the_network_of_an_earlier_manifest_opens() -> None:
    section = {"kind": "outside", "function": "tests.trainer.test_students:thin"}
    with pytest.warns(RenamedKeyWarning):
        assert parse_network_config(section).kind == "custom"
