"""UIDs as PS3.5 9.1 builds them, and what is wrong with one that is not."""

from __future__ import annotations

import re
from typing import Literal

UidRule = Literal["strict", "lenient"]
MAX_UID_LENGTH = 64  # characters (PS3.5 table 6.2-1, UI)
_STRICT = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")
_LENIENT = re.compile(r"[0-9]+(\.[0-9]+)*")


def uid_error(uid: str, rule: UidRule = "strict") -> str:
    """What is wrong with a UID, as the end of a sentence; "" where nothing is.

    Args:
        uid: UID without padding.
        rule: ``lenient`` lets components begin with a zero, which some devices write.
    """
    if len(uid) > MAX_UID_LENGTH:
        return f"has {len(uid)} characters, and PS3.5 9.1 allows {MAX_UID_LENGTH}"
    if (_STRICT if rule == "strict" else _LENIENT).fullmatch(uid):
        return ""
    if _LENIENT.fullmatch(uid):
        return "has a component that begins with a zero, which PS3.5 9.1 forbids"
    return "is no UID: PS3.5 9.1 allows numbers with a full stop between them"
