"""Picture of an evaluation: every scan as a dot, a box per segment, and the names of the worst and best scans."""

from __future__ import annotations

import io
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from semiseg.errors import InputError
from semiseg.evaluation.metrics import HIGHER_IS_BETTER, METRICS
from semiseg.evaluation.result import HEADINGS, Evaluation, ScoreRow
from semiseg.system.durable_files import atomic_file

WIDTH = 1200
LEFT, RIGHT, TOP, ROW, BOTTOM = (
    200,
    400,
    64,
    96,
    64,
)  # pixels: names, worst/median/best, title, a segment, axis and notes
INK, FAINT, DOT, BOX, WORST, BEST = "#1b1f24", "#c9d1d9", "#4f7cac", "#dbe7f3", "#c0392b", "#2e8b57"


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    ticks: tuple[float, ...]

    def x(self, value: float) -> float:
        return LEFT + (value - self.low) / (self.high - self.low) * (WIDTH - LEFT - RIGHT)


def draw_evaluation(evaluation: Evaluation, metric: str = "dice") -> Image.Image:
    """Draw a strip of dots and a box (quartiles, median) per segment, with the names of worst, median and best scan.

    Scans without the metric are counted at the right, not drawn as 0. Notes of the evaluation are at the bottom.

    Raises:
        InputError: There is no such metric.
    """
    if metric not in METRICS:
        raise InputError(f"There is no metric '{metric}'; choose one of {', '.join(METRICS)}.")
    notes = [*evaluation.notes, *([f"{len(evaluation.failures)} scan(s) failed."] if evaluation.failures else [])]
    height = TOP + ROW * len(evaluation.segments) + BOTTOM + 18 * len(notes)
    picture = Image.new("RGB", (WIDTH, height), "white")
    canvas = ImageDraw.Draw(picture)
    axis = _axis([row.value(metric) for row in evaluation.rows], metric)
    floor = TOP + ROW * len(evaluation.segments)
    title = f"{HEADINGS[metric]}: {evaluation.title}" if evaluation.title else HEADINGS[metric]
    canvas.text((16, 16), _cut(title, 110), INK, _font(20))
    _draw_axis(canvas, axis, floor)
    for number, segment in enumerate(evaluation.segments):
        _draw_segment(canvas, axis, evaluation.segment_rows(segment), metric, TOP + ROW * number)
    for number, note in enumerate(notes):
        canvas.text((16, floor + BOTTOM - 12 + 18 * number), _cut(note, 170), INK, _font(13))
    return picture


def save_picture(evaluation: Evaluation, path: Path, metric: str = "dice") -> None:
    """Write the picture of :func:`draw_evaluation` as a PNG.

    Raises:
        InputError: There is no such metric.
    """
    buffer = io.BytesIO()
    draw_evaluation(evaluation, metric).save(buffer, format="PNG", optimize=True)
    with atomic_file(Path(path)) as file:
        file.write(buffer.getvalue())


def rank_rows(rows: tuple[ScoreRow, ...], metric: str) -> list[ScoreRow]:
    """Return the rows that have the metric, worst first; equal rows keep their order."""
    there = [row for row in rows if not math.isnan(row.value(metric))]
    return sorted(there, key=lambda row: row.value(metric) * (1 if HIGHER_IS_BETTER[metric] else -1))


def _draw_segment(canvas: ImageDraw.ImageDraw, axis: _Axis, rows: tuple[ScoreRow, ...], metric: str, top: int) -> None:
    middle = top + ROW // 2
    canvas.text((16, middle - 10), _cut(rows[0].segment, 22), INK, _font(16))
    order = rank_rows(rows, metric)
    missing = len(rows) - len(order)
    lines = [f"no figure for {missing} of {len(rows)} scans"] if missing else []
    if order:
        _draw_box(canvas, axis, [row.value(metric) for row in order], middle)
        for number, row in enumerate(order):
            # Dots of similar values get different heights, so that they do not overlap; the heights are deterministic.
            y = middle + ((number * 0.618034) % 1 - 0.5) * ROW * 0.5
            _draw_dot(canvas, axis.x(row.value(metric)), y, 3, DOT)
        worst, median, best = order[0], order[(len(order) - 1) // 2], order[-1]
        for row, colour in ((worst, WORST), (best, BEST)):
            y = middle + ((order.index(row) * 0.618034) % 1 - 0.5) * ROW * 0.5
            _draw_dot(canvas, axis.x(row.value(metric)), y, 5, colour)
        named = (("worst", worst), ("median", median), ("best", best))
        lines = [f"{what} {_value(row.value(metric), metric)}  {row.case}" for what, row in named] + lines
    for number, line in enumerate(lines):
        colour = {"worst": WORST, "best": BEST}.get(line.split(" ")[0], INK)
        canvas.text((WIDTH - RIGHT + 24, top + 14 + 18 * number), _cut(line, 46), colour, _font(13))


def _draw_box(canvas: ImageDraw.ImageDraw, axis: _Axis, values: list[float], middle: int) -> None:
    half = ROW * 0.3
    if len(values) > 1:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        canvas.rectangle((axis.x(low), middle - half, axis.x(high), middle + half), fill=BOX, outline=FAINT)
    median = axis.x(statistics.median(values))
    canvas.line((median, middle - half, median, middle + half), INK, 2)


def _draw_dot(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: int, colour: str) -> None:
    canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline="white")


def _draw_axis(canvas: ImageDraw.ImageDraw, axis: _Axis, floor: int) -> None:
    for tick in axis.ticks:
        x = axis.x(tick)
        canvas.line((x, TOP, x, floor), FAINT, 1)
        canvas.text((x, floor + 8), f"{tick:g}", INK, _font(13), anchor="ma")


def _axis(values: list[float], metric: str) -> _Axis:
    """Return an axis for all values between round numbers; overlap metrics end at 1, distances start at 0."""
    there = [v for v in values if not math.isnan(v)]
    if metric.endswith("_mm"):
        low, high = 0.0, max(there, default=1.0) or 1.0
    else:
        low, high = min(there, default=0.0), 1.0
    step = _round_step(max(high - low, 0.05) / 5)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    ticks = tuple(round(k * step, 10) for k in range(first, last + 1))
    return _Axis(ticks[0], ticks[-1], ticks)


def _round_step(rough: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def _value(value: float, metric: str) -> str:
    return f"{value:.2f} mm" if metric.endswith("_mm") else f"{value:.3f}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
