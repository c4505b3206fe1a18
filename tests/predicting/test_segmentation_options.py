"""Options of a segmentation: parsed from the fields of a form, and written as such."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from semiseg.errors import InputError
from semiseg.outputs.formats import OUTPUT_FORMATS
from semiseg.predicting.segmentation_options import SegmentationOptions
from semiseg.renamed_keys import RenamedKeyWarning

NAMES = st.none() | st.text("abc.1", min_size=1)


@given(
    st.builds(
        SegmentationOptions,
        model=NAMES,
        series=NAMES,
        output_formats=st.lists(st.sampled_from(sorted(OUTPUT_FORMATS)), unique=True).map(tuple),
        strict=st.booleans(),
        aligned=st.booleans(),
        full=st.booleans(),
    )
)
def test_fields_of_a_form_keep_all_options(options: SegmentationOptions) -> None:
    assert SegmentationOptions.from_fields(options.to_fields()) == options


def test_fields_without_text_and_with_their_default_are_no_options() -> None:
    empty = dict.fromkeys(("model", "output_format", "series", "strict", "aligned", "full"), "")
    assert SegmentationOptions.from_fields(empty) == SegmentationOptions()
    assert SegmentationOptions.from_fields({"strict": "false"}).to_fields() == {}


def test_a_format_is_listed_once_under_its_present_name() -> None:
    with pytest.warns(RenamedKeyWarning, match="case is called viewer-bundle now"):
        options = SegmentationOptions(output_formats=("seg", "case", "viewer-bundle", " seg "))
    assert options.output_formats == ("seg", "viewer-bundle")
    assert [one.name for one in options.formats] == ["seg", "viewer-bundle"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"strict": "yes"}, "The field `strict` must be true or false"),
        ({"full": "TRUE"}, "The field `full` must be true or false"),
        ({"output_format": "seg,pdf"}, "The field `output_format` must be nifti, .* or nrrd, or several of them"),
        ({"output_format": "seg,"}, "The field `output_format` must be"),
    ],
)
def test_an_invalid_field_is_named(fields: dict[str, str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        SegmentationOptions.from_fields(fields)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ValidationError):
        SegmentationOptions(colour="red")  # type: ignore[call-arg]
