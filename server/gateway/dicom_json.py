"""Values out of data sets in DICOM JSON (PS3.18 F.2), whatever another program wrote in their place."""

from __future__ import annotations

from typing import Any


def values_of(dataset: object, tag: str) -> list[Any]:
    """The values of an attribute; none where there is no such attribute, or what is there is no DICOM JSON.

    Args:
        dataset: Data set as JSON was read.
        tag: Tag of the attribute, as 8 hexadecimal digits.
    """
    element = dataset.get(tag) if isinstance(dataset, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def first_value(dataset: object, tag: str) -> Any:
    """The first value of an attribute, None where there is none."""
    return next(iter(values_of(dataset, tag)), None)
