"""Results are understood under the former names of output formats, in requests and in answers of earlier servers."""

from __future__ import annotations

import io
import json
import zipfile

import httpx
import pytest

from semiseg.client_results import parse_multi_format_result, parse_result
from semiseg.outputs.formats import RESULTS_MEDIA_TYPE

REPORT = json.dumps({"segments": [], "seconds": {}, "model": {"name": "m"}, "remarks": []}).encode()


def archive(folder: str) -> httpx.Response:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as zipped:
        zipped.writestr(f"{folder}/a.zip", b"bundle")
        zipped.writestr("json/segmentation.json", REPORT)
    return httpx.Response(200, content=body.getvalue(), headers={"Content-Type": RESULTS_MEDIA_TYPE})


@pytest.mark.parametrize("folder", ["case", "viewer-bundle"])
def test_a_viewer_bundle_is_the_result_and_not_its_report(folder: str) -> None:
    found = parse_result("http://server", archive(folder))
    assert (found.body, found.media_type) == (b"bundle", "application/zip")


@pytest.mark.parametrize("folder", ["case", "viewer-bundle"])
@pytest.mark.parametrize("asked", ["case", "viewer-bundle"])
def test_several_formats_have_the_names_that_were_asked_for(folder: str, asked: str) -> None:
    found = parse_multi_format_result("http://server", archive(folder), [asked, "json"])
    assert found.files == {asked: (b"bundle",), "json": (REPORT,)}
