"""The JSON Schema of a bundle's manifest, from the model that reads it."""

from __future__ import annotations

import json

from docs.generators.document import Document
from semiseg.bundle.manifest import Manifest


def document() -> Document:
    return Document("docs/manifest.schema.json", json.dumps(Manifest.model_json_schema(), indent=1) + "\n")
