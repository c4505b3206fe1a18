"""Destinations of results. A further type has a module here and a line in :data:`Destination`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from semiseg.renamed_keys import warn_of_former_name
from server.gateway.destinations.destination import DestinationBase as DestinationBase
from server.gateway.destinations.dicomweb import DicomwebDestination as DicomwebDestination
from server.gateway.destinations.dimse import DimseDestination as DimseDestination

_FORMER_SECTIONS = {"dimse": "dimse", "web": "dicomweb"}


def _with_type(section: Any) -> Any:
    """Read a destination whose address stands in a section `dimse` or `web`, as in earlier versions."""
    if not isinstance(section, Mapping) or "type" in section:
        return section
    found = [name for name in _FORMER_SECTIONS if section.get(name) is not None]
    if len(found) != 1 or not isinstance(section[found[0]], Mapping) or set(section[found[0]]) & set(section):
        raise ValueError(f"give the `type` of the destination: {' or '.join(_FORMER_SECTIONS.values())}")
    old, new = found[0], _FORMER_SECTIONS[found[0]]
    warn_of_former_name(f"In a destination, write `type: {new}` and the keys of the section `{old}` beside it.")
    rest = {name: value for name, value in section.items() if name not in _FORMER_SECTIONS}
    return {"type": new, **section[old], **rest}


Destination = Annotated[
    Annotated[DimseDestination | DicomwebDestination, Field(discriminator="type")], BeforeValidator(_with_type)
]
"""Any destination, as in gateway.yaml; `type` selects the class."""
