"""Parsing of ``dataset.json``: names of the channels and label values, and colours for the segments."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from semiseg.errors import DatasetError
from semiseg.volumes.formats.registry import reader_for_name, suffixes
from semiseg.volumes.segmentation import Segment

IGNORE_NAME = "ignore"
"""nnU-Net's name of the label value of unannotated voxels."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains an object, such as ``dataset.json`` and ``split.json``.

    Raises:
        DatasetError: The file is unreadable or not JSON, has a key twice in one object, or does not contain an object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_no_key_twice)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text.") from error
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path} is not JSON: {error.msg} in line {error.lineno}.") from error
    except KeyError as error:
        raise DatasetError(f"{path} has the key {error} twice in one object; keep one of them.") from error
    if not isinstance(document, dict):
        raise DatasetError(f"{path} must be a JSON object ({{...}}).")
    return document


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise KeyError(key)
        out[key] = value
    return out


def parse_channels(document: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Return the channel names in order from ``channel_names`` or ``modality``: ``{"0": "FLAIR", "1": "T1w"}``."""
    table = document.get("channel_names", document.get("modality"))
    if table is None:
        return ("image",)
    if not isinstance(table, dict) or not table or not all(isinstance(v, str) and v for v in table.values()):
        raise DatasetError(f'{path}: the channels must be an object such as {{"0": "CT"}}.')
    if set(table) != {str(k) for k in range(len(table))}:
        raise DatasetError(f"{path}: the channels must be numbered from 0 without gaps, not {', '.join(table)}.")
    names = tuple(table[str(k)] for k in range(len(table)))
    if len(set(names)) != len(names):
        raise DatasetError(f"{path}: two channels have the same name ({', '.join(names)}).")
    return names


def parse_file_ending(document: dict[str, Any], path: Path) -> str | None:
    """Return the suffix of scan and label files from nnU-Net's ``file_ending``; None if it is not given.

    Raises:
        DatasetError: The suffix is not that of a supported volume format.
    """
    ending = document.get("file_ending")
    if ending is None:
        return None
    if not isinstance(ending, str) or reader_for_name(ending) is None:
        raise DatasetError(
            f"{path}: files that end in {ending!r} (file_ending) are not read; {', '.join(suffixes())} are."
        )
    return ending.lower()


def parse_segments(document: dict[str, Any], path: Path) -> tuple[Segment, ...]:
    """Return the segments, without the background, from ``{"1": "liver"}`` or ``{"liver": 1}``.

    A list of values, as in nnU-Net, defines a region: ``{"whole tumour": [1, 2, 3], "core": [2, 3]}``. If there is one
    region, all segments are regions in the file's order and may overlap. ``regions_class_order`` then contains the
    value of each region in a single label map; in this map later regions overwrite earlier ones.

    Raises:
        DatasetError: The labels are missing or invalid, or two segments share a name or a label value.
    """
    table = document.get("labels")
    if not isinstance(table, dict) or not table:
        raise DatasetError(f'{path} must name the label values: "labels": {{"0": "background", "1": "liver"}}.')
    entries = [_label_entry(key, value, path) for key, value in table.items()]
    foreground = [(values, name) for values, name in entries if values != (0,) and not _is_ignore(name)]
    if not foreground:
        raise DatasetError(f"{path} names no label except the background.")
    regions = any(len(values) > 1 for values, _ in foreground)
    if not regions:
        foreground.sort()
    palette = distinct_colours(len(foreground))
    painted = _painted(document, len(foreground), path) if regions else None
    try:
        segments = tuple(
            Segment(
                name=name,
                label=k if regions else values[0],
                values=values if regions else (),
                painted=painted[k - 1] if painted else None,
                colour=colour,
            )
            for k, ((values, name), colour) in enumerate(zip(foreground, palette, strict=True), start=1)
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise DatasetError(
            f"{path}: a label cannot be used: {first['msg']} ({first['loc'][0]} = {first['input']!r})."
        ) from error
    check_distinct(segments, path)
    return segments


def _painted(document: dict[str, Any], count: int, path: Path) -> list[int] | None:
    order = document.get("regions_class_order")
    if order is None:
        return None
    if not isinstance(order, list) or len(order) != count or not all(type(v) is int and 1 <= v <= 255 for v in order):
        raise DatasetError(
            f"{path}: regions_class_order must list a label value from 1 to 255 for each of the {count} regions, not "
            f"{order}."
        )
    return order


def _label_entry(key: str, value: Any, path: Path) -> tuple[tuple[int, ...], str]:
    """Return (label values, name) of one entry of ``labels`` in either of its two notations."""
    if isinstance(value, list):
        if not value or not all(isinstance(v, int) and not isinstance(v, bool) and 1 <= v <= 255 for v in value):
            raise DatasetError(f"{path}: region '{key}' must list label values from 1 to 255, not {value}.")
        if len(set(value)) != len(value):
            raise DatasetError(f"{path}: region '{key}' lists a label value twice: {value}.")
        return tuple(value), key.strip()
    if isinstance(value, str) and key.isascii() and key.isdigit():
        number, name = int(key), value
    elif isinstance(value, int) and not isinstance(value, bool):
        number, name = value, key
    else:
        raise DatasetError(f'{path}: label {key!r}: {value!r} is neither "1": "liver" nor "liver": 1.')
    return (number,), name.strip()


def parse_ignore_label(document: dict[str, Any], path: Path) -> int | None:
    """Return the value of unannotated voxels, nnU-Net's label ``ignore``; None if there is none.

    Raises:
        DatasetError: It is the background's value, a segment's, or not one value from 1 to 255.
    """
    table = document.get("labels")
    if not isinstance(table, dict):
        return None
    entries = [_label_entry(key, value, path) for key, value in table.items()]
    found = [values for values, name in entries if _is_ignore(name)]
    if not found:
        return None
    others = {value for values, name in entries if not _is_ignore(name) for value in values}
    if len(found) > 1 or len(found[0]) > 1 or not 1 <= found[0][0] <= 255 or found[0][0] in others:
        raise DatasetError(f"{path}: the label 'ignore' must be one value from 1 to 255 that no other label has.")
    return found[0][0]


def _is_ignore(name: str) -> bool:
    return name.strip().lower() == IGNORE_NAME


def check_distinct(segments: tuple[Segment, ...], where: Path) -> None:
    """Check that no two segments share a name (ignoring case) or a label value.

    Raises:
        DatasetError: Two segments share a name or a label value.
    """
    for what, values in (
        ("name", [s.name.lower() for s in segments]),
        ("label value", [str(s.label) for s in segments]),
    ):
        twice = sorted({v for v in values if values.count(v) > 1})
        if twice:
            raise DatasetError(f"{where}: two segments have the same {what} ({', '.join(twice)}).")


def distinct_colours(count: int) -> list[tuple[int, int, int]]:
    """Return ``count`` different RGB colours (0..255): hues at steps of the golden angle, red first."""
    out = []
    for k in range(count):
        hue = (k * 0.6180339887498949) % 1.0
        red, green, blue = colorsys.hsv_to_rgb(hue, (0.75, 0.55, 0.95)[k % 3], (0.95, 0.80, 0.65)[(k // 3) % 3])
        out.append((round(red * 255), round(green * 255), round(blue * 255)))
    return out


def abbreviate_ids(ids: Iterable[str], limit: int = 5) -> str:
    """Format ids for a message, at most ``limit`` of them: ``'a', 'b', 'c' and 4 more``."""
    names = list(ids)
    shown = ", ".join(f"'{n}'" for n in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
