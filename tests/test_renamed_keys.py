"""Files with former names of keys still open, and say so."""

from __future__ import annotations

import pytest

from semiseg.errors import InputError
from semiseg.renamed_keys import RenamedKeyWarning, rename_keys, rename_value


def test_a_former_key_is_read_in_its_place_with_a_warning() -> None:
    with pytest.warns(RenamedKeyWarning, match=r"In recipe\.yaml, `start` is called `init_from` now\."):
        found = rename_keys({"name": "a", "start": "run", "batch": 4}, {"start": "init_from"}, "recipe.yaml")
    assert list(found.items()) == [("name", "a"), ("init_from", "run"), ("batch", 4)]


def test_a_key_under_both_names_is_refused() -> None:
    with pytest.raises(InputError, match="former name"):
        rename_keys({"start": "run", "init_from": "other"}, {"start": "init_from"}, "recipe.yaml")


def test_a_key_without_a_value_gives_way_to_the_present_one(recwarn: pytest.WarningsRecorder) -> None:
    names = {"start": "init_from"}
    assert rename_keys({"start": None, "init_from": "run"}, names, "recipe.yaml") == {"init_from": "run"}
    assert rename_keys({"start": None}, names, "recipe.yaml") == {"init_from": None}
    assert not recwarn.list


def test_a_former_value_is_replaced_under_its_key_alone() -> None:
    section = {"kind": "outside", "name": "outside"}
    with pytest.warns(RenamedKeyWarning, match="`kind: outside` is called `kind: custom` now"):
        found = rename_value(section, "kind", {"outside": "custom"}, "the recipe")
    assert found == {"kind": "custom", "name": "outside"}


def test_present_names_raise_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    assert rename_keys({"init_from": "run"}, {"start": "init_from"}, "recipe.yaml") == {"init_from": "run"}
    assert rename_value({"kind": "custom"}, "kind", {"outside": "custom"}, "recipe.yaml") == {"kind": "custom"}
    assert not recwarn.list
