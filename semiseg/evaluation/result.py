"""Results of an evaluation: a row per scan and segment, and summaries as table, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from semiseg.deprecation import RenamedMember
from semiseg.errors import InputError
from semiseg.evaluation.metrics import METRICS, SegmentScore, f1_of_means
from semiseg.system.durable_files import atomic_file

FORMAT = 1
NO_SCORE = SegmentScore(*[math.nan] * len(fields(SegmentScore)))
HEADINGS = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "hd95_mm": "HD95 (mm)",
    "assd_mm": "ASSD (mm)",
    "asd_mm": "ASD one-way (mm)",
    "hd_mm": "HD (mm)",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1 of means",
}
"""Column headings by metric: :data:`METRICS`, and ``f1`` (:func:`semiseg.evaluation.metrics.f1_of_means`)."""
DEFAULT_METRICS = ("dice", "jaccard", "hd95_mm", "assd_mm")
MISSING_TEXTS = {
    "dice": "Dice and Jaccard (both masks are empty, or the scan failed)",
    "hd95_mm": "distances (a mask is empty, or the scan failed)",
    "precision": "precision (nothing was found, or the scan failed)",
    "recall": "recall (there is nothing to find, or the scan failed)",
}
MISSING_TOGETHER = {
    "jaccard": ("dice",),
    **dict.fromkeys(("assd_mm", "asd_mm", "hd_mm"), ("hd95_mm",)),
    "f1": ("precision", "recall"),
}
"""Metrics that are missing for the same scans as metrics of :data:`MISSING_TEXTS`."""


@dataclass(frozen=True)
class ScoreRow:
    """Metrics of one segment in one scan; ``error`` is the reason if the scan has none."""

    case: str
    segment: str
    score: SegmentScore
    seconds: float = math.nan
    error: str | None = None

    def value(self, metric: str) -> float:
        """Return the value of ``metric``, one of :data:`METRICS` or a volume."""
        return float(getattr(self.score, metric))


@dataclass(frozen=True)
class MetricSummary:
    """Summary of one metric of one segment over the scans that have it.

    Attributes:
        segment: Name of the segment.
        metric: Name of the metric.
        mean: Mean over the scans.
        std: Standard deviation of the sample (n - 1); NaN with fewer than two scans.
        median: Median over the scans.
        n: Number of scans with a value.
        missing: Number of scans without a value, because a mask was empty or the scan failed. No mean includes them.
    """

    segment: str
    metric: str
    mean: float
    std: float
    median: float
    n: int
    missing: int


@dataclass(frozen=True)
class TextTable:
    """A table of text with a header, for a terminal, a README or a spreadsheet."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown."""
        lines = [self.header, ("---", *("---:" for _ in self.header[1:])), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of one model on some scans.

    Attributes:
        title: Names of the model and the scans, for captions.
        segments: Names of the segments, in the model's order.
        rows: Rows, one per scan and segment, scan by scan.
        notes: Sentences that belong to the results, such as "not validated".
    """

    title: str
    segments: tuple[str, ...]
    rows: tuple[ScoreRow, ...]
    notes: tuple[str, ...] = ()

    of = RenamedMember("segment_rows")
    remarks = RenamedMember("footnotes")

    @property
    def cases(self) -> tuple[str, ...]:
        """Ids of the scans, in the order of the evaluation."""
        return tuple(dict.fromkeys(row.case for row in self.rows))

    @property
    def failures(self) -> dict[str, str]:
        """Reason of each failed scan, by its id."""
        return {row.case: row.error for row in self.rows if row.error is not None}

    def segment_rows(self, segment: str) -> tuple[ScoreRow, ...]:
        """Return the rows of one segment.

        Raises:
            InputError: The evaluation has no such segment.
        """
        if segment not in self.segments:
            raise InputError(f"'{segment}' was not evaluated; there are {', '.join(self.segments)}.")
        return tuple(row for row in self.rows if row.segment == segment)

    def summary(self) -> tuple[MetricSummary, ...]:
        """Return mean, standard deviation and median of every metric for every segment, and its F1 of means."""
        found: list[MetricSummary] = []
        for segment in self.segments:
            rows = self.segment_rows(segment)
            of = {metric: _summary(segment, metric, [row.value(metric) for row in rows]) for metric in METRICS}
            found += [*of.values(), _f1(of["precision"], of["recall"])]
        return tuple(found)

    def table(self, shown: tuple[str, ...] = DEFAULT_METRICS) -> TextTable:
        """Return a table of mean ± standard deviation per segment; the last row has the mean over several segments.

        An asterisk marks a metric that some scans lack; :meth:`footnotes` explains it. The one-way ASD is by default
        only in CSV and JSON, because beside ASSD it is easily taken for the same.

        Args:
            shown: Metrics of :data:`HEADINGS`, in the order of the columns.
        """
        by_segment = {s: {x.metric: x for x in self.summary() if x.segment == s} for s in self.segments}
        rows = [(s, *(_cell(of[m]) for m in shown), str(len(self.cases))) for s, of in by_segment.items()]
        if len(self.segments) > 1:
            means = (_mean([of[m].mean for of in by_segment.values()]) for m in shown)
            rows.append(("mean", *(_number(v, m) for v, m in zip(means, shown, strict=True)), ""))
        return TextTable(("Segment", *(HEADINGS[m] for m in shown), "Scans"), tuple(rows))

    def footnotes(self, shown: tuple[str, ...] = DEFAULT_METRICS) -> tuple[str, ...]:
        """Return the footnotes of the table of some metrics: explanations of its asterisks, and the notes."""
        out = []
        told = {one for metric in shown for one in MISSING_TOGETHER.get(metric, (metric,))}
        for found in self.summary():
            if found.metric in told and found.metric in MISSING_TEXTS and found.missing:
                what = MISSING_TEXTS[found.metric]
                out.append(f"* {found.segment}: {found.missing} of {len(self.cases)} scan(s) without {what}.")
        return (*out, *self.notes)

    def to_csv(self, path: Path) -> None:
        """Write one line per scan and segment as CSV; a missing value is an empty cell."""
        names = [f.name for f in fields(SegmentScore)]
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["case", "segment", *names, "seconds", "error"])
        for row in self.rows:
            figures = [_or_empty(row.value(n)) for n in names]
            writer.writerow([row.case, row.segment, *figures, _or_empty(row.seconds), row.error or ""])
        _write(path, text.getvalue())

    def to_json(self, path: Path) -> None:
        """Write the whole evaluation as JSON, with rows and summary; a missing value is null."""
        document = {
            "format": FORMAT,
            "title": self.title,
            "segments": self.segments,
            "notes": self.notes,
            "summary": [asdict(s) for s in self.summary()],
            "rows": [asdict(row) for row in self.rows],
        }
        _write(path, json.dumps(_without_nan(document), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def from_json(cls, path: Path) -> Evaluation:
        """Read a file that :meth:`to_json` wrote.

        Raises:
            InputError: The file is unreadable or is not an evaluation.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            if document["format"] != FORMAT:
                raise InputError(f"{path} has format {document['format']}; this version reads format {FORMAT}.")
            rows = tuple(_row(entry) for entry in document["rows"])
            return cls(document["title"], tuple(document["segments"]), rows, tuple(document["notes"]))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not the JSON file of an evaluation ({error!r}).") from error


def _summary(segment: str, metric: str, values: list[float]) -> MetricSummary:
    there = np.asarray([v for v in values if not math.isnan(v)])
    return MetricSummary(
        segment=segment,
        metric=metric,
        mean=float(there.mean()) if there.size else math.nan,
        std=float(there.std(ddof=1)) if there.size > 1 else math.nan,
        median=float(np.median(there)) if there.size else math.nan,
        n=int(there.size),
        missing=len(values) - int(there.size),
    )


def _f1(precision: MetricSummary, recall: MetricSummary) -> MetricSummary:
    value = f1_of_means(precision.mean, recall.mean)
    n = min(precision.n, recall.n)
    return MetricSummary(precision.segment, "f1", value, math.nan, math.nan, n, max(precision.missing, recall.missing))


def _cell(summary: MetricSummary) -> str:
    text = _number(summary.mean, summary.metric)
    if not math.isnan(summary.std):
        text += f" ± {_number(summary.std, summary.metric)}"
    return f"{text}*" if summary.missing else text


def _number(value: float, metric: str) -> str:
    if math.isnan(value):
        return "none"
    return f"{value:.2f}" if metric.endswith("_mm") else f"{value:.3f}"


def _mean(values: list[float]) -> float:
    there = [v for v in values if not math.isnan(v)]
    return sum(there) / len(there) if there else math.nan


def _or_empty(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _without_nan(value: Any) -> Any:
    """Replace NaN, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _row(entry: dict[str, Any]) -> ScoreRow:
    given = entry["score"]
    # Files of earlier versions lack the metrics that have a default.
    names = [f.name for f in fields(SegmentScore) if f.name in given or f.default is dataclasses.MISSING]
    figures = {name: _or_nan(given[name]) for name in names}
    return ScoreRow(entry["case"], entry["segment"], SegmentScore(**figures), _or_nan(entry["seconds"]), entry["error"])


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _write(path: Path, text: str) -> None:
    with atomic_file(Path(path)) as file:
        file.write(text.encode("utf-8"))
