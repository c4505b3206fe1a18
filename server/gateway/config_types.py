"""Types of the values in gateway.yaml: names, addresses, files and numbers, checked when the file is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

_VISIBLE = re.compile(r"[ -\[\]-~]+")
Form = Literal["seg", "seg-labelmap", "seg-fractional", "rtstruct", "sr", "overlay"]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


def _ae_title(title: str) -> str:
    stripped = title.strip(" ")
    if not 0 < len(stripped) <= 16 or not _VISIBLE.fullmatch(stripped):
        raise ValueError("an AE title has 1 to 16 characters of ASCII, no backslash and no control character")
    return stripped


def _beside(path: Path, info: ValidationInfo) -> Path:
    return (info.context or {}).get("folder", Path()) / path


def _url(url: str) -> str:
    if not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#\s]*)?", url):
        raise ValueError("write it like http://server:3000, without a user, a query or a fragment")
    return url.rstrip("/")


AETitle = Annotated[str, AfterValidator(_ae_title)]
Url = Annotated[str, AfterValidator(_url)]
File = Annotated[Path, AfterValidator(_beside)]


class Part(BaseModel):
    """A mapping in the file; a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
