"""Types of values in gateway.yaml that several of its sections share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from semiseg.outputs.formats import DICOM_FORMATS

_VISIBLE = re.compile(r"[ -\[\]-~]+")
if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[DICOM_FORMATS]
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


class ConfigSection(BaseModel):
    """Section of the file: an immutable model that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Tls(ConfigSection):
    """Encryption of DIMSE (PS3.15 B.9), with files in PEM format.

    Attributes:
        certificate, key: Certificate and key of the gateway.
        authority: File with the certificates of the authorities that the peer's certificate is verified against; a
            listener with an authority accepts only clients with a certificate signed by it (mutual authentication).
    """

    certificate: File | None = None
    key: File | None = None
    authority: File | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together")
        return self
