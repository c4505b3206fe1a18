"""The HTTP interface in words, from what a server says of itself."""

from __future__ import annotations

from collections.abc import Iterator

from packaging.version import Version

from docs.generators.document import REPOSITORY, Document, markdown_table
from docs.generators.reference import Schema, describe_type, document_schema
from server.http.limits import Limits
from server.http.model import ModelSettings
from server.http.models import ServedModels
from server.http.openapi import openapi_document

INTRODUCTION = """\
# The HTTP interface

Made by `make docs` from what a server says of itself at `/docs.json` (OpenAPI 3.1), with `--state` and a model that
takes the channel(s) {channels}.
"""


def document() -> Document:
    """Every address, field and answer."""
    bundle = max((REPOSITORY / "tests" / "releases").glob("*/bundle"), key=lambda one: Version(one.parent.name))
    models = ServedModels.open([ModelSettings(bundle=bundle, threads=1)])
    described = openapi_document(models, Limits(), jobs=True)
    channels = ", ".join(next(iter(models.by_name.values())).segmenter.manifest.channel_names)
    lines = [INTRODUCTION.format(channels=channels)]
    for path, verbs in described["paths"].items():
        shared = verbs.get("parameters", [])
        for verb in sorted(set(verbs) - {"parameters"}, reverse=True):
            about = verbs[verb] | {"parameters": [*shared, *verbs[verb].get("parameters", ())]}
            lines.append(f"\n## {verb.upper()} {path}\n\n{about.get('summary', '')}\n")
            if text := about.get("description"):
                lines.append(f"\n{text}\n")
            lines += _request(about)
            answers = [(status, one.get("description", "")) for status, one in about["responses"].items()]
            lines.append("\n" + markdown_table(("status", "answer"), answers))
    for name, schema in described["components"]["schemas"].items():
        if "properties" in schema:
            lines.append(document_schema(name, schema))
    return Document("docs/reference/http.md", "".join(lines))


def _request(about: Schema) -> Iterator[str]:
    rows = [
        (f"`{one['name']}`", f"{one['in']}: {describe_type(one.get('schema', {}))}", one.get("description", ""))
        for one in about.get("parameters", ())
    ]
    for content in about.get("requestBody", {}).get("content", {}).values():
        form = content.get("schema", {})
        rows += [
            (f"`{name}`", f"form: {describe_type(one)}", one.get("description", ""))
            for name, one in form.get("properties", {}).items()
        ]
    if rows:
        yield "\n" + markdown_table(("field", "where and what", "meaning"), rows)
