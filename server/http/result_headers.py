"""The headers of a result, limited to a size that proxies accept: nginx allows 4096 bytes for all response headers.

All values that can be long are also in a body: in the JSON report, which can be requested with any output format, in
the SEG and the SR, and in the document of a job. A header that would be too long has a short form instead, and
X-Semiseg-Shortened names it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from semiseg.inference.timing import Timing
from semiseg.outputs.report import NOTICE, Report

MAX_HEADER_BYTES = 768  # maximum size of one header's value
SHORTENED_HEADER = "X-Semiseg-Shortened"
MODEL_HEADER, MILLILITRES_HEADER, REMARKS_HEADER = "X-Semiseg-Model", "X-Semiseg-Millilitres", "X-Semiseg-Remarks"
_NAME_CHARACTERS = 60  # maximum length of a text in a short form; a non-ASCII character takes six bytes


def make_result_headers(report: Report, name: str, timing: Timing) -> dict[str, str]:
    """Make the headers of a result whose file is called ``name``."""
    stages = ", ".join(f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in timing.seconds.items())
    return limit_header_sizes(
        {
            "Content-Disposition": f'attachment; filename="{name}"',
            "Server-Timing": stages,
            "X-Semiseg-Notice": NOTICE,
            MODEL_HEADER: json.dumps(report.model.model_dump()),
            MILLILITRES_HEADER: json.dumps(segment_millilitres(report)),
            REMARKS_HEADER: json.dumps(remark_pairs(report)),
            "X-Semiseg-Windows": str(report.windows),
        }
    )


def segment_millilitres(report: Report) -> dict[str, float]:
    """The volume of each segment in ml, by name."""
    return {segment.name: segment.ml for segment in report.segments}


def remark_pairs(report: Report) -> list[list[str]]:
    """The scan warnings as pairs of a code and a sentence."""
    return [[remark.code, remark.text] for remark in report.remarks]


def limit_header_sizes(headers: Mapping[str, str]) -> dict[str, str]:
    """Replace headers that are too long by their short forms; a second call changes nothing."""
    kept = dict(headers)
    shortened: list[str] = json.loads(kept.get(SHORTENED_HEADER, "[]"))
    for name, short in _SHORT_FORMS.items():
        if len(kept.get(name, "")) > MAX_HEADER_BYTES:
            kept[name] = json.dumps(short(json.loads(kept[name])))
            shortened.append(name)
    return kept | {SHORTENED_HEADER: json.dumps(shortened)}


def _short_remarks(remarks: list[list[str]]) -> list[list[str]]:
    """The codes without their sentences, each once, as many as fit."""
    pairs: list[list[str]] = []
    for code in dict.fromkeys(code for code, _ in remarks):
        if len(json.dumps([*pairs, [code, ""]])) > MAX_HEADER_BYTES:
            break
        pairs.append([code, ""])
    return pairs


def _short_model(model: dict[str, Any]) -> dict[str, Any]:
    return {key: value[:_NAME_CHARACTERS] if key != "sha256" and value else value for key, value in model.items()}


# The volumes of all segments are given, or none: an incomplete list could be taken for the whole.
_SHORT_FORMS: dict[str, Callable[[Any], Any]] = {
    MODEL_HEADER: _short_model,
    MILLILITRES_HEADER: lambda _: {},
    REMARKS_HEADER: _short_remarks,
}
