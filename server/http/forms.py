"""The forms of an answer on the wire: what they are called, what is asked for, and several of them in one body."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from semiseg.errors import InputError
from semiseg.outputs.answer import chosen_kind
from semiseg.outputs.kind import ANSWERS, FORMS, KINDS, Kind
from semiseg.volumes.scan import Scan
from server.http.limits import Refusal
from server.http.model import ServedModel

SEVERAL = "application/zip"  # of answers in several forms: a folder for each, named as the form


def forms_asked(field: str, accept: str) -> tuple[Kind, ...]:
    """The forms that a request names: in its field `answer`, or else by its Accept header; none where it does not.

    Raises:
        Refusal: 400, the field names something else.
    """
    if field:
        return forms_named(field)
    types = _accepted(accept)
    # Wildcards and foreign types name none.
    return tuple(kind for wanted in types for kind, form in FORMS.items() if form.media_type == wanted)[:1]


def wants_report(accept: str) -> bool:
    """Whether an Accept header asks for a zip of the answer and of the report, whose size no header bounds."""
    return ANSWERS in _accepted(accept)


def _accepted(accept: str) -> list[str]:
    return [part.split(";")[0].strip().lower() for part in accept.split(",")]


def forms_named(field: str) -> tuple[Kind, ...]:
    """The forms that a field `answer` names, separated by commas.

    Raises:
        Refusal: 400, it names something else, or nothing.
    """
    names = dict.fromkeys(name.strip() for name in field.split(","))
    found = tuple(kind for name in names for kind in KINDS if kind == name)
    if len(found) < len(names):
        raise Refusal(400, f"The field `answer` is {', '.join(KINDS[:-1])} or {KINDS[-1]}, or several with commas.")
    return found


def forms_for(asked: Sequence[Kind], scan: Scan, model: ServedModel) -> tuple[Kind, ...]:
    """The forms that are made of a scan: those asked for, or the scan's own.

    Raises:
        Refusal: 400, one of them cannot be made of this scan, or cannot hold the model's segments.
    """
    try:
        return tuple(chosen_kind(kind, scan.series, model.segmenter.manifest) for kind in asked or (None,))
    except InputError as error:
        raise Refusal(400, str(error)) from error


def packed(files: Mapping[Kind, Path], *, with_report: bool = False) -> tuple[bytes, str, str]:
    """The body, the media type and the file name of an answer in these forms; a zip if the report was asked for."""
    if len(files) == 1 and not with_report:
        ((kind, path),) = files.items()
        return path.read_bytes(), FORMS[kind].media_type, FORMS[kind].file_name
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for kind, path in files.items():
            archive.writestr(zipfile.ZipInfo(f"{kind}/{FORMS[kind].file_name}"), path.read_bytes())
    return body.getvalue(), ANSWERS if with_report else SEVERAL, "answers.zip"
