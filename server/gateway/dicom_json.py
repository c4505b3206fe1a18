"""Values of data sets in DICOM JSON (PS3.18 F.2) that another program wrote and that may be malformed."""

from __future__ import annotations

from typing import Any


def values_of(dataset: object, tag: str) -> list[Any]:
    """Return the values of an attribute; an empty list if it is missing or is not valid DICOM JSON.

    Args:
        dataset: Data set, as read from JSON.
        tag: Tag of the attribute, as 8 hexadecimal digits.
    """
    element = dataset.get(tag) if isinstance(dataset, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def first_value(dataset: object, tag: str) -> Any:
    """Return the first value of an attribute; None if there is none."""
    return next(iter(values_of(dataset, tag)), None)
