"""One list of output formats serves command line, server, page and gateway."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from semiseg.errors import InputError
from semiseg.outputs.format_selection import format_from_path, require_format
from semiseg.outputs.formats import DICOM_FORMATS, FORMER_NAMES, OUTPUT_FORMATS, find_format, present_name
from semiseg.renamed_keys import RenamedKeyWarning
from server.gateway.config_types import FormatName as GatewayFormat

WORDS = Path(__file__).resolve().parents[2] / "server" / "http" / "page" / "words.js"


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS.values(), ids=OUTPUT_FORMATS)
def test_a_format_is_found_by_its_name_and_by_each_of_its_suffixes(output_format) -> None:
    assert find_format(output_format.name) is output_format
    assert output_format.file_name.endswith(output_format.suffixes)
    for suffix in output_format.suffixes:
        assert format_from_path(Path(f"a{suffix}"), output_format.name) is output_format
    with pytest.raises(InputError, match=re.escape(output_format.suffixes[0])):
        format_from_path(Path("a.txt"), output_format.name)


def test_the_first_format_with_a_suffix_is_its_default() -> None:
    found = {
        suffix: format_from_path(Path(f"a{suffix}")).name for suffix in (".nii", ".dcm", ".zip", ".seg.nrrd", ".nrrd")
    }
    assert list(found.values()) == ["nifti", "seg", "overlay", "seg-nrrd", "nrrd"]


def test_former_names_are_understood_with_a_warning() -> None:
    for former, present in FORMER_NAMES.items():
        with pytest.warns(RenamedKeyWarning, match=f"{former} is called {present} now"):
            assert require_format(former).name == present
        assert present_name(former) == present == present_name(present)


def test_an_unknown_format_is_refused_with_all_names() -> None:
    with pytest.raises(InputError, match=r"nifti, .*nrrd; 'picture' is none of these"):
        require_format("picture")


def test_dicom_formats_say_what_objects_they_are_and_are_those_that_the_gateway_delivers() -> None:
    assert get_args(GatewayFormat) == DICOM_FORMATS
    for name, output_format in OUTPUT_FORMATS.items():
        assert bool(output_format.sop_class) == bool(output_format.transfer_syntax) == (name in DICOM_FORMATS)


def test_the_page_has_words_for_every_format() -> None:
    words = WORDS.read_text(encoding="utf-8").partition("FORMS = {")[2].partition("}")[0]
    assert re.findall(r'^  "?([\w-]+)"?:', words, re.M) == list(OUTPUT_FORMATS)
