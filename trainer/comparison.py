"""Comparison of several methods with the same budget: its runs and their results.

A figure of a method is the mean, over the evaluated scans, of each scan's mean over segments, seeds and draws of the
labelled scans. Differences to ``supervised`` are computed with the same number of labels, and paired by scan, seed and
draw. Intervals come from resampling draws, seeds and scans
(:func:`semiseg.evaluation.bootstrap.hierarchical_bootstrap`): with one seed they do not cover the variation between
seeds, and with one draw not the variation between sets of labelled scans. With folds, every outlined scan is evaluated
by the run of its fold.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from semiseg.errors import InputError
from semiseg.evaluation.bootstrap import hierarchical_bootstrap
from semiseg.evaluation.result import Evaluation
from semiseg.system.durable_files import atomic_file

BASELINE = "supervised"
REPORTED_METRICS = ("dice", "jaccard", "hd95_mm", "assd_mm")
EvaluationsByRun = dict[tuple[int, int], Evaluation]
"""Evaluations by draw and seed."""


@dataclass(frozen=True, order=True)
class Trial:
    """One run of a comparison.

    Attributes:
        method: Name of the method.
        labelled: Number of labelled scans.
        seed: Seed of the run.
        draw: Number of the draw of the labelled scans; 0 for the split's own list.
        fold: Number of the fold, from 1; 0 without folds.
    """

    method: str
    labelled: int
    seed: int
    draw: int = 0
    fold: int = 0

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        # A custom method is named package.module:Class, and file names cannot contain colons on Windows.
        name = f"{self.method.replace(':', '.')}-{self.labelled}-seed{self.seed}"
        return name + (f"-draw{self.draw}" if self.draw else "") + (f"-fold{self.fold}" if self.fold else "")


def make_trials(
    methods: Sequence[str],
    labelled: Sequence[int],
    seeds: Sequence[int],
    draws: Sequence[int] = (0,),
    folds: Sequence[int] = (0,),
) -> list[Trial]:
    """Return a trial for every combination.

    All methods of one seed, draw, fold and number of labels come before the next ones, so that an interrupted
    comparison is fair.

    Raises:
        InputError: A list is empty or contains a value twice.
    """
    for what, values in (("method", methods), ("count of labels", labelled), ("seed", seeds)):
        if not values:
            raise InputError(f"Name at least one {what} to compare.")
        twice = sorted({str(v) for v in values if values.count(v) > 1})
        if twice:
            raise InputError(f"The {what} {twice[0]} is named twice.")
    runs = itertools.product(seeds, draws, folds, labelled, methods)
    return [Trial(m, n, s, d, f) for s, d, f, n, m in runs]


@dataclass(frozen=True)
class ComparisonRow:
    """Results of one method with one number of labels, over its draws and seeds.

    Attributes:
        method: Name of the method.
        labelled: Number of labelled scans.
        figures: Mean of each metric over scans and segments; NaN if no value exists.
        dice: Mean Dice of each segment.
        interval: 95 % interval of the mean Dice.
        spread: Lowest and highest mean Dice over the draws of the labelled scans, or over the seeds with one draw.
        difference: Mean and bounds of the interval of the difference in Dice to ``supervised``; None for ``supervised``
            itself, or if it was not trained with the same number of labels.
        seeds: Number of seeds.
        draws: Number of draws of the labelled scans.
        failures: Number of scans without a figure, over all runs.
        no_distance: Number of pairs of scan and segment without an HD95, over all runs, because a mask is empty.
    """

    method: str
    labelled: int
    figures: Mapping[str, float]
    dice: Mapping[str, float]
    interval: tuple[float, float]
    spread: tuple[float, float]
    difference: tuple[float, float, float] | None
    seeds: int
    draws: int
    failures: int
    no_distance: int

    @property
    def missing_figures_note(self) -> str | None:
        """A sentence about the scans and masks that the figures leave out; None if there are none."""
        parts = [f"{self.failures} scan(s) failed"] if self.failures else []
        if self.no_distance:
            parts.append(f"{self.no_distance} mask(s) have no HD95, since one of the two is empty")
        return f"{self.method} with {self.labelled} labels: {', '.join(parts)}." if parts else None


def summarise_trials(found: Mapping[Trial, Evaluation]) -> list[ComparisonRow]:
    """Summarise the finished trials, ordered by the number of labels, with ``supervised`` first for each number.

    Raises:
        InputError: No trial is complete, or two trials were evaluated on different scans or segments.
    """
    if not found:
        raise InputError("No run has finished, so there is nothing to compare.")
    runs: dict[tuple[int, str], EvaluationsByRun] = {}
    for key, of in _by_fold(found).items():
        for (draw, seed), evaluations in of.items():
            runs.setdefault(key, {})[draw, seed] = _joined(evaluations)
    if not runs:
        raise InputError("No run has been evaluated on all of its folds, so there is nothing to compare.")
    first = next(iter(next(iter(runs.values())).values()))
    keys = sorted(runs, key=lambda key: (key[0], key[1] != BASELINE))
    return [_line(key, runs[key], runs.get((key[0], BASELINE)), first.cases, first.segments) for key in keys]


def _by_fold(found: Mapping[Trial, Evaluation]) -> dict[tuple[int, str], dict[tuple[int, int], list[Evaluation]]]:
    """Group evaluations by labels and method, and by draw and seed; runs that lack a fold are left out.

    Raises:
        InputError: Two trials of one fold were evaluated on different scans or segments.
    """
    folds: dict[int, Evaluation] = {}
    for trial, evaluation in found.items():
        folds.setdefault(trial.fold, evaluation)
    out: dict[tuple[int, str], dict[tuple[int, int], list[Evaluation]]] = {}
    for trial, evaluation in sorted(found.items()):
        first = folds[trial.fold]
        if evaluation.segments != first.segments or set(evaluation.cases) != set(first.cases):
            raise InputError(f"{trial.name} was not evaluated on the same scans and segments as the others.")
        of = out.setdefault((trial.labelled, trial.method), {})
        of.setdefault((trial.draw, trial.seed), []).append(evaluation)
    return {
        key: whole
        for key, of in out.items()
        if (whole := {run: evaluations for run, evaluations in of.items() if len(evaluations) == len(folds)})
    }


def _joined(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Join the evaluations of all folds into one."""
    first = evaluations[0]
    rows = tuple(row for one in evaluations for row in one.rows)
    notes = tuple(dict.fromkeys(note for one in evaluations for note in one.notes))
    return Evaluation(first.title, first.segments, rows, notes)


def _line(
    key: tuple[int, str],
    runs: EvaluationsByRun,
    baseline: EvaluationsByRun | None,
    cases: Sequence[str],
    segments: Sequence[str],
) -> ComparisonRow:
    labelled, method = key
    tables = {metric: np.stack([metric_table(e, metric, cases) for e in runs.values()]) for metric in REPORTED_METRICS}
    by_segment = _means(tables["dice"].transpose(2, 0, 1).reshape(len(segments), -1))
    draws = sorted({draw for draw, _ in runs})
    per_run = dict(zip(runs, _means(tables["dice"].reshape(len(runs), -1)), strict=True))
    spread = list(per_run.values())
    if len(draws) > 1:
        spread = [np.nanmean([value for (d, _), value in per_run.items() if d == draw]) for draw in draws]
    own = hierarchical_bootstrap(_grid({run: metric_table(e, "dice", cases) for run, e in runs.items()}))
    difference = None
    if baseline is not None and method != BASELINE:
        shared = {run: (runs[run], baseline[run]) for run in runs if run in baseline}
        if shared:
            pairs = {r: metric_table(a, "dice", cases) - metric_table(b, "dice", cases) for r, (a, b) in shared.items()}
            found = hierarchical_bootstrap(_grid(pairs))
            difference = (found.mean, found.low, found.high)
    return ComparisonRow(
        method=method,
        labelled=labelled,
        figures={metric: _over_scans(table) for metric, table in tables.items()},
        dice=dict(zip(segments, map(float, by_segment), strict=True)),
        interval=(own.low, own.high),
        spread=(float(np.nanmin(spread)), float(np.nanmax(spread))),
        difference=difference,
        seeds=len({seed for _, seed in runs}),
        draws=len(draws),
        failures=sum(len(e.failures) for e in runs.values()),
        no_distance=int(np.isnan(tables["hd95_mm"]).sum()),
    )


def _grid(tables: Mapping[tuple[int, int], NDArray[np.float64]]) -> NDArray[np.float64]:
    """Arrange tables (scans, segments) by draw and seed as figures (draws, seeds, scans).

    If not every draw has every seed, only the seeds that all draws have are used; if there are none, each run counts as
    a draw.
    """
    draws = sorted({draw for draw, _ in tables})
    seeds = sorted(set.intersection(*({s for d, s in tables if d == draw} for draw in draws)))
    if not seeds:
        return np.stack([_means(table)[None] for table in tables.values()])
    return np.stack([np.stack([_means(tables[draw, seed]) for seed in seeds]) for draw in draws])


def metric_table(evaluation: Evaluation, metric: str, cases: Sequence[str]) -> NDArray[np.float64]:
    """Return the figures of one run (cases, segments); NaN marks missing ones."""
    values = {(row.case, row.segment): row.value(metric) for row in evaluation.rows}
    return np.asarray([[values[case, segment] for segment in evaluation.segments] for case in cases])


def format_table(lines: Sequence[ComparisonRow]) -> list[list[str]]:
    """Format the rows as a table of texts, with the headings as the first row."""
    segments = list(lines[0].dice)
    names = [f"Dice {s}" for s in segments] if len(segments) > 1 else []
    several = any(line.draws > 1 for line in lines)
    spread_of = "of draws" if several else "of seeds"
    figures = ["Dice", "95 %", spread_of, f"minus {BASELINE}", "Jaccard", "HD95 (mm)", "ASSD (mm)"]
    rows = [["labels", "method", *names, *figures]]
    for line in lines:
        by_segment = [f"{line.dice[s]:.3f}" for s in segments] if names else []
        spread = f"{line.spread[0]:.3f} to {line.spread[1]:.3f}"
        if line.draws == 1 and (several or line.seeds == 1):
            spread = "one draw" if several else "one seed"
        interval = "{:.3f} to {:.3f}".format(*line.interval)
        away = "" if line.difference is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*line.difference)
        others = [f"{line.figures['jaccard']:.3f}", f"{line.figures['hd95_mm']:.2f}", f"{line.figures['assd_mm']:.2f}"]
        dice = f"{line.figures['dice']:.3f}"
        rows.append([str(line.labelled), line.method, *by_segment, dice, interval, spread, away, *others])
    return rows


def write_csv(lines: Sequence[ComparisonRow], path: Path) -> None:
    """Write all figures as CSV, with one line for each method and number of labels."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    segments = list(lines[0].dice)
    head = ["method", "labelled", "seeds", *REPORTED_METRICS, *(f"dice {s}" for s in segments), "dice lowest seed"]
    head = [*head[:3], "draws", *head[3:]]
    head += ["dice highest seed", "dice low", "dice high", "difference", "difference low", "difference high"]
    writer.writerow([*head, "failed scans"])
    for line in lines:
        away = line.difference or ("", "", "")
        figures = [line.figures[m] for m in REPORTED_METRICS]
        row = [
            line.method,
            line.labelled,
            line.seeds,
            line.draws,
            *figures,
            *line.dice.values(),
            *line.spread,
            *line.interval,
            *away,
            line.failures,
        ]
        writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row])
    with atomic_file(path) as stream:
        stream.write(text.getvalue().encode())


def plot_comparison(lines: Sequence[ComparisonRow], path: Path, title: str) -> None:
    """Plot mean Dice against the number of labelled scans, with a line per method and bars for its spread."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    counts = sorted({line.labelled for line in lines})
    for method in dict.fromkeys(line.method for line in lines):
        mine = [line for line in lines if line.method == method]
        x = [counts.index(line.labelled) for line in mine]
        y = [line.figures["dice"] for line in mine]
        reach = [[v - line.spread[0] for v, line in zip(y, mine, strict=True)]]
        reach.append([line.spread[1] - v for v, line in zip(y, mine, strict=True)])
        style: dict[str, Any] = {"color": "black", "linestyle": "--"} if method == BASELINE else {}
        axes.errorbar(x, y, yerr=np.maximum(reach, 0), marker="o", capsize=3, label=method, **style)
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.set_xlabel("labelled scans")
    axes.set_ylabel("mean Dice")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_file(path) as stream:
        figure.savefig(stream, dpi=120, format="png")


def _over_scans(table: NDArray[np.float64]) -> float:
    """Return the mean over scans of each scan's mean, from a table (runs, scans, segments)."""
    by_scan = _means(table.transpose(1, 0, 2).reshape(table.shape[1], -1))
    return float(_means(by_scan[None])[0])


def _means(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each row without its NaNs; NaN for a row of NaNs."""
    there = ~np.isnan(rows)
    count = there.sum(axis=1)
    sums = np.where(there, rows, 0.0).sum(axis=1)
    return np.where(count > 0, sums / np.maximum(count, 1), np.nan)


def read_evaluations(evaluations: Iterable[tuple[Trial, Path]]) -> dict[Trial, Evaluation]:
    """Read the evaluations whose ``scores.json`` exists."""
    return {trial: Evaluation.from_json(path) for trial, path in evaluations if path.is_file()}
