"""The example of a configuration, deploy/gateway.yaml, has every key that there is."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel

from docs.generators.document import REPOSITORY
from server.gateway.config import DimseListener, GatewayConfig, read_config
from server.gateway.destinations import DestinationBase

EXAMPLE = REPOSITORY / "deploy" / "gateway.yaml"


def keys_in(part: object, found: dict[type[BaseModel], set[str]]) -> None:
    """Add the keys that are written in a part of the configuration, by the part's class."""
    if isinstance(part, BaseModel):
        found.setdefault(type(part), set()).update(part.model_fields_set)
        for name in part.model_fields_set:
            keys_in(getattr(part, name), found)
    elif isinstance(part, dict):
        for one in part.values():
            keys_in(one, found)
    elif isinstance(part, tuple):
        for one in part:
            keys_in(one, found)


def test_example_with_its_comments_taken_off_is_read_and_has_every_key(tmp_path: Path) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    every = tmp_path / "gateway.yaml"
    every.write_text(re.sub(r"^( *)# ( *(?:- )?\{?\w+:)", r"\1\2", text, flags=re.MULTILINE), encoding="utf-8")
    found: dict[type[BaseModel], set[str]] = {}
    keys_in(read_config(every), found)
    assert "any_sender: true" in text  # excludes `senders`
    found[DimseListener].add("any_sender")
    assert {part.__name__ for part in found} == {"GatewayConfig", *GatewayConfig.model_json_schema()["$defs"]}
    shared = {key for part in found if issubclass(part, DestinationBase) for key in found[part]}
    for part in found:
        if issubclass(part, DestinationBase):
            found[part] |= shared & set(DestinationBase.model_fields)
    missing = {part.__name__: set(part.model_fields) - keys for part, keys in found.items()}
    assert not {name: keys for name, keys in missing.items() if keys}
