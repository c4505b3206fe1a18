"""Types of values in gateway.yaml that several of its sections share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from semiseg.outputs.formats import DICOM_FORMATS
from semiseg.renamed_keys import rename_keys

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


class FormerKeys(BaseModel):
    """Model that reads its keys under former names, too, with a warning."""

    former_keys: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _present_keys(cls, section: Any) -> Any:
        if not cls.former_keys or not isinstance(section, Mapping):
            return section
        return rename_keys(section, cls.former_keys, "the configuration")


class ConfigSection(FormerKeys):
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


class DimseNode(ConfigSection):
    """Application entity that the gateway opens associations with.

    Attributes:
        ae_title, host, port: AE title and address.
        tls: Encryption; None for an unencrypted connection.
    """

    ae_title: AETitle
    host: str
    port: Annotated[int, Field(ge=1, le=65535)]
    tls: Tls | None = None


class Retry(ConfigSection):
    """Delays after failures that are caused by other systems, such as failed deliveries and requests.

    Attributes:
        first_seconds: Delay after the first failure; it doubles with each further failure, varied at random by up to
            25 %.
        longest_seconds: Longest delay.
        hours: Hours of waiting after which a job becomes a dead letter, which an operator can inspect and retry.
    """

    first_seconds: Seconds = 5.0
    longest_seconds: Seconds = 600.0
    hours: Seconds = 72.0
