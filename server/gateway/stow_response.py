"""Parser of responses to STOW-RS requests (PS3.18 10.5.3 and Annex I), in JSON or XML."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

_UID, _REASON, _WARNING = "00081155", "00081197", "00081196"
_FAILED, _REFERENCED = "00081198", "00081199"


@dataclass
class StowResponse:
    """Parsed response to a STOW-RS request.

    Attributes:
        stored: Warning Reason (0008,1196) of each stored instance, or 0 if there is none, by SOP Instance UID.
        failed: Failure Reason (0008,1197) of each failed instance, or 0 if none is given, by SOP Instance UID.
        known: True if the body is a response document; an empty body is not.
        empty: True if there is no body, or the document has no items.
    """

    stored: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    known: bool = False
    empty: bool = False


def parse_stow_response(body: bytes, media_type: str) -> StowResponse:
    """Parse a response; one that cannot be parsed gives an unknown, empty result.

    Args:
        body: Body of the response.
        media_type: Content-Type header of the response; parameters, case and quotes are ignored.
    """
    kind = media_type.partition(";")[0].strip().strip('"').lower()
    text = body.strip()
    if not text:
        return StowResponse(empty=True)
    try:
        if kind.endswith("json") or (not kind and text[:1] in (b"{", b"[")):
            return _of(list(_json_items(text)))
        if kind.endswith("xml") or (not kind and text[:1] == b"<"):
            return _of(list(_xml_items(text)))
    except (ValueError, TypeError, AttributeError, RecursionError, ElementTree.ParseError):
        pass
    return StowResponse()


def _of(items: list[tuple[str, str, int]]) -> StowResponse:
    answer = StowResponse(known=True, empty=not items)
    for sequence, uid, reason in items:
        (answer.failed if sequence == _FAILED else answer.stored)[uid] = reason
    return answer


def _json_items(text: bytes) -> Iterator[tuple[str, str, int]]:
    found = json.loads(text)
    for document in found if isinstance(found, list) else [found]:
        for sequence, reason in ((_FAILED, _REASON), (_REFERENCED, _WARNING)):
            for item in document.get(sequence, {}).get("Value") or []:
                uid = _first(item, _UID)
                if isinstance(uid, str):
                    yield sequence, uid, int(_first(item, reason) or 0)


def _first(item: dict[str, Any], tag: str) -> Any:
    values = item.get(tag, {}).get("Value") or [None]
    return values[0]


def _xml_items(text: bytes) -> Iterator[tuple[str, str, int]]:
    """Yield the items of a Native DICOM Model (PS3.19 A.1), with or without a namespace."""
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise ValueError("a document type is not allowed in a response")
    root = ElementTree.fromstring(text)
    if _local(root) != "NativeDicomModel":
        raise ValueError("not a Native DICOM Model")
    for sequence in root:
        if sequence.get("tag") not in (_FAILED, _REFERENCED):
            continue
        reason = _REASON if sequence.get("tag") == _FAILED else _WARNING
        for item in sequence:
            values = {
                one.get("tag"): "".join(value.text or "" for value in one if _local(value) == "Value").strip()
                for one in item
            }
            if values.get(_UID):
                yield str(sequence.get("tag")), values[_UID], int(values.get(reason) or 0)


def _local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
