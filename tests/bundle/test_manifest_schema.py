"""The published JSON Schema of the manifest is the one that the code reads by."""

from __future__ import annotations

import json
from pathlib import Path

from semiseg.bundle.manifest import Manifest

PUBLISHED = Path(__file__).parents[2] / "docs" / "manifest.schema.json"


def test_the_published_schema_is_the_codes_own() -> None:
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    assert published == Manifest.model_json_schema(), "run `make schema` and commit what it changes"
