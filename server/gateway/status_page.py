"""Status page: the content of /status as HTML, without scripts; it reloads itself unless `?reload=false` is given."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RELOAD_SECONDS = 15
_STYLE = (Path(__file__).with_name("status.css")).read_text(encoding="utf-8")


def render_page(document: Mapping[str, Any], *, reload: bool = True) -> str:
    """Render the status page.

    Args:
        document: Document that /status returns.
        reload: If True, the browser reloads the page every few seconds.
    """
    problems = document["problems"]
    again = f'<meta http-equiv="refresh" content="{RELOAD_SECONDS}">' if reload else ""
    link = '<a href="?reload=false">Stop reloading</a>' if reload else '<a href="?reload=true">Reload automatically</a>'
    how = f"This page reloads every {RELOAD_SECONDS} s." if reload else "Automatic reloading is off."
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{again}<title>{'Problem: ' if problems else ''}semiseg gateway</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>semiseg gateway</h1>{_problems(problems)}"
        f"<p>{document['open_studies']} studies are arriving; {document['studies']} are stored; "
        f"{document['free_bytes'] / 2**30:.1f} GB are free. {_clock(time.time())}</p>"
        f"<h2>Servers, destinations, archives and worklists</h2>{_peers(document)}"
        f"<h2>Studies</h2>{_studies(document['study_list'])}"
        f"<h2>Jobs</h2>{_counts(document['jobs'])}"
        + _jobs("Jobs that failed and are retried automatically", document["held_up"])
        + _jobs("Dead letters: `semiseg gateway retry JOB` retries one", document["dead_letters"])
        + _workitems(document["workitems"])
        + _passed_over(document["worklists"])
        + _rejected(document["rejected"])
        + f"<p>{how} {link}</p><footer>RESEARCH USE ONLY</footer></main></body></html>"
    )


def _problems(problems: Sequence[Mapping[str, str]]) -> str:
    if not problems:
        return '<p class="good" role="status">All is well.</p>'
    items = "".join(f"<li>{_marked(one['what'])} {_advice(one['do'])}</li>" for one in problems)
    count = "One thing needs" if len(problems) == 1 else f"{len(problems)} things need"
    head = f'<h2 id="trouble" class="bad">{count} an operator</h2>'
    return f'<section aria-labelledby="trouble">{head}<ul>{items}</ul></section>'


def _peers(document: Mapping[str, Any]) -> str:
    rows = [
        (kind, _safe(one.get("name") or one.get("url")), _safe(one["trouble"]) or "No known problem.")
        for kind, key in (
            ("server", "servers"),
            ("destination", "destinations"),
            ("polled archive", "polls"),
            ("worklist", "worklists"),
        )
        for one in document[key]
    ]
    return _table("State at the last contact", ("kind", "name", "state"), rows)


def _studies(studies: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            f"<code>{_safe(one['study'])}</code>",
            f"{one['instances']} instances in {one['series']} series from "
            f"{_safe(', '.join(one['from']) or 'no sender')}"
            f"<br>{_day(one['came']) if one['came'] else ''}",
            _safe(one["stage"]),
            "<br>".join(_safe(line) for line in (one["decided"] or "No decision yet.", *one["reasons"])),
            "<br>".join(_safe(result_line(result)) for result in one["results"]) or "None yet.",
            f"{_marked(one['trouble'])}<br>{_advice(one['do'])}" if one["trouble"] else "",
        )
        for one in studies
    ]
    heads = ("study", "instances, and time of the last one", "stage", "decision and reasons", "results", "problem")
    caption = "Latest studies; `semiseg gateway show STUDY` shows the details of one"
    return _table(caption, heads, rows) or "<p>There are no studies.</p>"


def result_line(one: Mapping[str, Any]) -> str:
    """Return a line on some results of a study: number, state, destination, time and reason."""
    to = f" {'to' if one['state'] in ('delivered', 'being delivered') else 'for'} {one['to']}" if one["to"] else ""
    why = f": {one['why']}" if one["why"] else ""
    return f"{one['count']} {one['state']}{to}, {_day(one['when'])}{why}"


def _counts(jobs: Mapping[str, Mapping[str, int]]) -> str:
    states: Mapping[str, int] = next(iter(jobs.values()), {})
    rows = [(_safe(kind), *(str(count) for count in counted.values())) for kind, counted in jobs.items()]
    return _table("Number of jobs by kind and state", ("kind", *states), rows)


def _jobs(caption: str, jobs: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            f"<code>{_safe(one['id'])}</code>",
            _safe(one["kind"]),
            f"<code>{_safe(one['study'])}</code>",
            _safe(", ".join(one["to"])),
            _day(one["changed"]),
            str(one["tries"]),
            (f"Refused since {_day(one['refused_since'])}. " if one["refused_since"] else "") + _safe(one["error"]),
        )
        for one in jobs
    ]
    return _table(caption, ("job", "kind", "study", "to", "since", "tries", "why"), rows)


def _workitems(workitems: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            f"<code>{_safe(one['workitem'])}</code>",
            _safe(one["worklist"]),
            _safe(one["stage"]),
            _day(one["since"]),
            _safe(one["progress"]),
            _safe(one["why"]),
        )
        for one in workitems
    ]
    heads = ("workitem", "worklist", "stage", "since", "per cent", "work or problem")
    return _table("Claimed workitems", heads, rows)


def _passed_over(worklists: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (f"<code>{_safe(item['workitem'])}</code>", _safe(one["name"]), _safe(item["why"]))
        for one in worklists
        for item in one["passed_over"]
    ]
    return _table("Workitems that are not claimed", ("workitem", "worklist", "why"), rows)


def _rejected(rejected: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (_safe(one["address"]), _safe(one["calling"]), _safe(one["called"]), _day(one["time"]), _safe(one["why"]))
        for one in rejected
    ]
    return _table("Rejected associations", ("address", "calling", "called", "when", "why"), rows)


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of HTML cells, with the first cell of each row as its header; "" if there are no rows."""
    if not rows:
        return ""
    head = "".join(f"<th scope=col>{_safe(name)}</th>" for name in heads)
    body = "".join(
        f"<tr><th scope=row>{row[0]}</th>" + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    return (
        f'<div class="table" role="region" tabindex="0" aria-label="{_safe(caption)}"><table>'
        f"<caption>{_marked(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _advice(do: str) -> str:
    """Return HTML for a command, or for advice in words."""
    return f"<code>{_safe(do)}</code>" if do.startswith("semiseg ") else _marked(f"{do[:1].upper()}{do[1:]}.")


def _marked(text: object) -> str:
    """Return HTML for a text in which backticks enclose code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", _safe(text))


def _safe(text: object) -> str:
    return html.escape(str(text))


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))


def _clock(moment: float) -> str:
    return time.strftime("It is %Y-%m-%d %H:%M:%S.", time.localtime(moment))
