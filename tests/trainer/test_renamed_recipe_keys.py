"""Recipes and runs with former names of keys still open."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.distil import distillation_recipe
from semiseg.renamed_keys import RenamedKeyWarning
from trainer.errors import RecipeError
from trainer.network_configs import parse_network_config
from trainer.recipe_files import make_recipe, read_recipe


def test_a_recipe_with_former_names_means_the_same(tmp_path: Path) -> None:
    former, present = tmp_path / "former.yaml", tmp_path / "present.yaml"
    custom = "{{kind: {kind}, function: 'a:b'}}"
    text = f"{{key}}: earlier\nstudent: {custom}\nmethods: {{{{mn: {{{{teacher: {custom}}}}}}}}}\n"
    former.write_text(text.format(key="start", kind="outside"), encoding="utf-8")
    present.write_text(text.format(key="init_from", kind="custom"), encoding="utf-8")
    with pytest.warns(RenamedKeyWarning) as caught:
        found = read_recipe(former)
    assert found == read_recipe(present)
    assert len([one for one in caught if one.category is RenamedKeyWarning]) == 3


def test_a_change_on_the_command_line_may_have_the_former_name() -> None:
    with pytest.warns(RenamedKeyWarning, match="`--set start=earlier`"):
        assert make_recipe({}, ["start=earlier"]).init_from == Path("earlier")


def test_a_change_overrides_the_recipe_across_both_names() -> None:
    with pytest.warns(RenamedKeyWarning):
        assert make_recipe({"start": "first"}, ["init_from=second"]).init_from == Path("second")
        assert make_recipe({"init_from": "first"}, ["start=second"]).init_from == Path("second")


def test_a_key_under_both_names_is_an_error_of_the_recipe() -> None:
    with pytest.raises(RecipeError, match="former name"):
        make_recipe({"start": "first", "init_from": "second"})


def test_what_a_custom_network_is_given_stays_as_it_is(recwarn: pytest.WarningsRecorder) -> None:
    student = {"kind": "custom", "function": "a:b", "settings": {"kind": "outside", "function": "c:d"}}
    methods = {"own": {"kind": "outside", "shape": {"kind": "canvas"}}}
    found = make_recipe({"student": student, "methods": methods})
    assert (found.student, found.methods) == (student, methods) and not recwarn.list


def test_the_record_of_an_earlier_run_is_read_without_a_warning_about_keys_without_a_value(
    recwarn: pytest.WarningsRecorder,
) -> None:
    record = make_recipe({}).model_dump(mode="json")
    del record["init_from"], record["memory_format"]
    assert make_recipe({**record, "start": None}) == make_recipe({}) and not recwarn.list
    distilled = distillation_recipe({**record, "start": None}, Path("run"), {"kind": "unet"}, None)
    assert distilled.init_from is None and distilled.method == "distil"


def test_the_network_of_an_earlier_manifest_opens() -> None:
    section = {"kind": "outside", "function": "tests.trainer.test_students:thin"}
    with pytest.warns(RenamedKeyWarning):
        assert parse_network_config(section).kind == "custom"
