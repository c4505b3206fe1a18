"""Validation of UIDs by the rules of PS3.5 9.1."""

from __future__ import annotations

import re
from typing import Literal

UidRule = Literal["strict", "lenient"]
MAX_UID_LENGTH = 64  # characters (PS3.5 table 6.2-1, UI)
_STRICT = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")
_LENIENT = re.compile(r"[0-9]+(\.[0-9]+)*")


def uid_error(uid: str, rule: UidRule = "strict") -> str:
    """Describe what is wrong with a UID, as the end of a sentence; "" if the UID is valid.

    Args:
        uid: UID without padding.
        rule: Rule to apply; ``lenient`` accepts components that begin with a zero, which some devices write.
    """
    if len(uid) > MAX_UID_LENGTH:
        return f"has {len(uid)} characters, and PS3.5 9.1 allows {MAX_UID_LENGTH}"
    if (_STRICT if rule == "strict" else _LENIENT).fullmatch(uid):
        return ""
    if _LENIENT.fullmatch(uid):
        return "has a component that begins with a zero, which PS3.5 9.1 forbids"
    return "is not a UID: PS3.5 9.1 allows numbers separated by full stops"
