"""What may be written into a recipe, a manifest and a gateway's configuration, from the models that read them."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from docs.generators.document import Document, DocumentError, markdown_table
from semiseg.bundle.manifest import Manifest
from server.gateway.config import GatewayConfig
from server.labelling.training_round import TrainingConfig
from trainer.methods import METHODS
from trainer.network_configs import AnyNetworkConfig
from trainer.recipe import Recipe

Schema = dict[str, Any]
Bases = type[BaseModel] | None
_BLOCK = re.compile(r"^(Attributes|Args):$", re.MULTILINE)
_ENTRY = re.compile(r"^    (\w+(?:, \w+)*): (.*)$")


def documents() -> list[Document]:
    """One for each kind of file that people write by hand, or may want to read."""
    return [
        Document("docs/reference/recipe.md", _recipe(Recipe)),
        Document(
            "docs/reference/manifest.md",
            _page(
                "A bundle's manifest",
                "`manifest.json` beside the graphs, and `run.json` in a training run. Written by semiseg, read by "
                "whoever wants to know what a model is. The same as [JSON Schema](../manifest.schema.json).",
                [Manifest],
            ),
        ),
        Document(
            "docs/reference/labelling.md",
            _page(
                "The labelling server's training",
                "The YAML file that `semiseg label --config` reads, as [docs/labelling.md](../labelling.md) explains "
                "it. A key that is not here is refused.",
                [TrainingConfig],
            ),
        ),
        Document(
            "docs/reference/gateway.md",
            _page(
                "The gateway's configuration",
                "`gateway.yaml`, as [docs/gateway.md](../gateway.md) explains it and "
                "[deploy/gateway.yaml](../../deploy/gateway.yaml) begins one. Paths are meant from the file's own "
                "folder; a key that is not here is refused.",
                [GatewayConfig],
            ),
        ),
    ]


def _page(title: str, introduction: str, models: Sequence[type[BaseModel]], more: str = "") -> str:
    sections = "".join(_model(model) for model in models)
    return f"# {title}\n\nMade by `make docs` from the code. {introduction}\n\n{sections}{more}"


def _recipe(recipe: type[BaseModel]) -> str:
    seen = set(recipe.model_json_schema()["$defs"]) | {recipe.__name__}
    methods = ["\n## Settings of the methods\n\nEach stands in `methods` under the method's name.\n"]
    for name, method in METHODS.items():
        schema = method.Config.model_json_schema()
        methods.append(document_schema(f"methods.{name}", schema, 3, bases=method.Config))
        methods += _definitions(schema, seen, 3)
    students = ["\n## Networks\n\nWhat may stand in `student`; `kind` says which.\n"]
    for student in AnyNetworkConfig.__args__:
        schema = student.model_json_schema()
        students.append(document_schema(describe_type(schema["properties"]["kind"]).replace("`", ""), schema, 3))
    return _page(
        "A recipe",
        "The YAML file that `semiseg train --recipe` reads. What is left out has the default that is given here; a key "
        "that is not here is refused. `semiseg train` writes the whole recipe into the run, with all that was decided.",
        [recipe],
        "".join(methods) + "".join(students),
    )


def _model(model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    return document_schema(model.__name__, schema) + "".join(_definitions(schema, {model.__name__}))


def _definitions(schema: Schema, seen: set[str], level: int = 2) -> Iterator[str]:
    for name, one in schema.get("$defs", {}).items():
        if name not in seen and "properties" in one:
            seen.add(name)
            yield document_schema(name, one, level)


def document_schema(title: str, schema: Schema, level: int = 2, *, bases: Bases = None) -> str:
    """A heading, what the docstring says, and a table of what may be set.

    Raises:
        DocumentError: The docstring does not describe a key.
    """
    about, told = _parse_docstring(schema.get("description", ""))
    models = [bases] if bases else [one for one in _models(BaseModel) if one.__name__ == schema.get("title")]
    told = _inherited(models) | told
    told.setdefault("kind", "which one this is")
    rows = [
        (f"`{name}`", describe_type(one), _default(name, one, schema), told.get(name, ""))
        for name, one in schema.get("properties", {}).items()
    ]
    if bare := [name for name in schema.get("properties", {}) if name not in told]:
        raise DocumentError(f"{title}: the docstring says nothing of {', '.join(bare)}.")
    body = markdown_table(("key", "value", "default", "meaning"), rows) if rows else "Nothing to set.\n"
    return f"\n{level * '#'} {title}\n\n{about}\n\n{body}"


def _parse_docstring(docstring: str) -> tuple[str, dict[str, str]]:
    """What a docstring says of all, and of each attribute."""
    parts = _BLOCK.split(docstring, maxsplit=1)
    told: dict[str, str] = {}
    names: list[str] = []
    for line in (parts[2] if len(parts) > 2 else "").splitlines():
        entry = _ENTRY.match(line)
        if entry:
            names = entry[1].split(", ")
            told |= dict.fromkeys(names, entry[2])
        elif line.startswith("     "):
            told |= {name: f"{told[name]} {line.strip()}" for name in names}
        elif line.strip():
            break
    return _markdown(textwrap.dedent(parts[0]).strip()), {name: _markdown(text) for name, text in told.items()}


def _inherited(models: Iterable[type[BaseModel]]) -> dict[str, str]:
    """What the docstrings of the classes say that models stand on, which their own do not repeat."""
    found: dict[str, str] = {}
    for base in (base for model in models for base in model.__mro__[:0:-1]):
        found |= _parse_docstring(inspect.cleandoc(base.__doc__ or ""))[1] if issubclass(base, BaseModel) else {}
    return found


def _models(base: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for model in base.__subclasses__():
        if model.__module__.split(".")[0] in ("semiseg", "trainer", "server"):
            yield model
        yield from _models(model)


def _markdown(text: str) -> str:
    text = re.sub(r":(?:class|meth|mod|func):`~?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`")


def _default(name: str, one: Schema, schema: Schema) -> str:
    if name in schema.get("required", ()):
        return "**required**"
    if "default" not in one:
        return ""
    words = json.dumps(one["default"], ensure_ascii=False)
    return f"`{words}`" if len(words) <= 60 else "as below"


def describe_type(one: Schema) -> str:
    """What a value may be, in words."""
    if "anyOf" in one or "oneOf" in one:
        kinds = [describe_type(part) for part in one.get("anyOf", ()) or one["oneOf"]]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in one:
        return str(one["$ref"]).rsplit("/", 1)[1]
    if "allOf" in one:
        return " and ".join(describe_type(part) for part in one["allOf"])
    if "const" in one:
        return f"`{one['const']}`"
    if "enum" in one:
        return ", ".join(f"`{value}`" for value in one["enum"])
    if one.get("type") == "array":
        return _array(one)
    if one.get("type") == "object":
        inside = one.get("additionalProperties")
        return f"mapping of names to {describe_type(inside)}" if isinstance(inside, dict) else "mapping"
    if one.get("type") == "null":
        return "nothing"
    return f"{one.get('format') or one.get('type', 'anything')}{_bounds(one)}"


def _array(one: Schema) -> str:
    parts = one.get("prefixItems")
    if parts:
        kinds = [describe_type(part) for part in parts]
        return f"{len(kinds)} of {kinds[0]}" if len(set(kinds)) == 1 else f"({', '.join(kinds)})"
    return f"list of {describe_type(one.get('items', {}))}"


def _bounds(one: Schema) -> str:
    signs = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    found = [f"{sign} {one[key]:g}" for key, sign in signs if isinstance(one.get(key), int | float)]
    return f" {', '.join(found)}" if found else ""
