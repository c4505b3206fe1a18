"""The record of one version of a label, as it is stored on the disk for programs and auditors."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from semiseg.errors import InputError

LabelState = Literal["original", "draft", "final"]
RecordKind = Literal["label", "withdrawal", "information"]

FINAL = "final"
ORIGINAL = "original"
DATASET = "dataset"
"""Tag of the label of the dataset folder, saved before an annotator's label replaces it there."""

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class LabelRecord(BaseModel):
    """One entry in the history of an image's labels; entries are added and never changed.

    Attributes:
        version: Number of the entry, counted from 1 for each image.
        image: Id of the image.
        kind: ``label`` for a label map, ``withdrawal`` for the removal of the newest label of a tag, ``information``
            for a note about a label.
        tag: Name under which clients ask for the label, such as ``final``.
        state: ``original`` for a label that came with the dataset, ``final`` for one that an annotator finished,
            ``draft`` for all others, such as a model's segmentation.
        who: Owner of the API key of the request or, on a server without keys, the name that the client sent.
        when: Time of the entry, ISO 8601 in UTC.
        model: Name of the model that made the label or the draft that it is based on; empty if there is none.
        model_sha256: SHA-256 of that model's graph, if this server ran it; empty otherwise.
        file: Name of the label map's file beside the record.
        sha256: SHA-256 of that file.
        voxels: Number of voxels of each segment in the label map.
        about: Version that a withdrawal or a note refers to; None for a label.
        info: Further data about the label from the client.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Annotated[int, Field(ge=1)]
    image: str
    kind: RecordKind
    tag: str
    state: LabelState
    who: str
    when: str
    model: str = ""
    model_sha256: str = ""
    file: str = ""
    sha256: str = ""
    voxels: dict[str, int] = {}
    about: int | None = None
    info: dict[str, Any] = {}


def state_for_tag(tag: str) -> LabelState:
    """The state of a label with this tag.

    Raises:
        InputError: The tag is empty, longer than 64 characters, or has characters other than letters, digits, ``_``,
            ``.`` and ``-``.
    """
    if not _TAG.fullmatch(tag):
        raise InputError("A tag must have 1 to 64 letters, digits, points, hyphens or underscores, such as `final`.")
    if tag == FINAL:
        return "final"
    return "original" if tag == DATASET else "draft"
