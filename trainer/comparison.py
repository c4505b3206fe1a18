"""Several methods on one split with one budget: which runs there are, and what they come to.

A figure of a method is the mean over the test scans, of each scan's mean over segments and seeds. Its difference to
``supervised`` with as many labels is taken scan by scan and seed by seed, and its interval comes from drawing scans and
seeds with replacement: with one seed it speaks about other scans only, with three it is too narrow by nature. Which
scans are labelled is the split's choice, the same for every seed, so it is not in the interval.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from semiseg.errors import InputError
from semiseg.evaluation.bootstrap import bootstrap_differences
from semiseg.evaluation.result import Evaluation
from semiseg.system.durable_files import atomic_file

matplotlib.use("Agg")
from matplotlib import pyplot

BASELINE = "supervised"
SHOWN = ("dice", "jaccard", "hd95_mm", "assd_mm")


@dataclass(frozen=True, order=True)
class Trial:
    """One run of a comparison."""

    method: str
    labelled: int
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.method}-{self.labelled}-seed{self.seed}"


def trials(methods: Sequence[str], labelled: Sequence[int], seeds: Sequence[int]) -> list[Trial]:
    """Every combination: all methods of one seed and count before the next, so that a comparison cut short is fair.

    Raises:
        InputError: a list is empty or names something twice.
    """
    for what, values in (("method", methods), ("count of labels", labelled), ("seed", seeds)):
        if not values:
            raise InputError(f"Name at least one {what} to compare.")
        twice = sorted({str(v) for v in values if values.count(v) > 1})
        if twice:
            raise InputError(f"The {what} {twice[0]} is named twice.")
    return [Trial(m, n, s) for s, n, m in itertools.product(seeds, labelled, methods)]


@dataclass(frozen=True)
class Line:
    """One method with one count of labels, over its seeds.

    Attributes:
        figures: the mean of each metric over scans and segments; NaN where there is none.
        dice: mean Dice of each segment.
        spread: lowest and highest mean Dice of the seeds.
        difference: mean, low and high of Dice minus that of ``supervised``; None for ``supervised`` itself, or where it
            was not trained with as many labels.
        seeds: how many.
        failures: scans without a figure, over all seeds.
        no_distance: pairs of scan and segment without an HD95, over all seeds: a mask is empty.
    """

    method: str
    labelled: int
    figures: Mapping[str, float]
    dice: Mapping[str, float]
    spread: tuple[float, float]
    difference: tuple[float, float, float] | None
    seeds: int
    failures: int
    no_distance: int

    @property
    def remark(self) -> str | None:
        """What its figures leave out."""
        parts = [f"{self.failures} scan(s) failed"] if self.failures else []
        if self.no_distance:
            parts.append(f"{self.no_distance} mask(s) have no HD95, since one of the two is empty")
        return f"{self.method} with {self.labelled} labels: {', '.join(parts)}." if parts else None


def summarise(found: Mapping[Trial, Evaluation]) -> list[Line]:
    """What the finished trials come to, the counts of labels in order, ``supervised`` first within each.

    Raises:
        InputError: two of them judged other scans or segments.
    """
    if not found:
        raise InputError("No run has finished, so there is nothing to compare.")
    first = next(iter(found.values()))
    for trial, evaluation in found.items():
        if evaluation.segments != first.segments or set(evaluation.cases) != set(first.cases):
            raise InputError(f"{trial.name} did not judge the same scans and segments as the others.")
    groups: dict[tuple[int, str], dict[int, Evaluation]] = {}
    for trial, evaluation in sorted(found.items()):
        groups.setdefault((trial.labelled, trial.method), {})[trial.seed] = evaluation
    keys = sorted(groups, key=lambda key: (key[0], key[1] != BASELINE))
    return [_line(key, groups[key], groups.get((key[0], BASELINE)), first.cases) for key in keys]


def _line(
    key: tuple[int, str],
    runs: Mapping[int, Evaluation],
    baseline: Mapping[int, Evaluation] | None,
    cases: Sequence[str],
) -> Line:
    labelled, method = key
    segments = next(iter(runs.values())).segments
    tables = {metric: np.stack([table_of(e, metric, cases) for e in runs.values()]) for metric in SHOWN}
    by_segment = _means(tables["dice"].transpose(2, 0, 1).reshape(len(segments), -1))
    per_seed = _means(tables["dice"].reshape(len(runs), -1))
    difference = None
    if baseline is not None and method != BASELINE:
        shared = sorted(set(runs) & set(baseline))
        if shared:
            pairs = [table_of(runs[s], "dice", cases) - table_of(baseline[s], "dice", cases) for s in shared]
            found = bootstrap_differences(np.stack([_means(pair) for pair in pairs]))
            difference = (found.mean, found.low, found.high)
    return Line(
        method=method,
        labelled=labelled,
        figures={metric: _over_scans(table) for metric, table in tables.items()},
        dice=dict(zip(segments, map(float, by_segment), strict=True)),
        spread=(float(np.nanmin(per_seed)), float(np.nanmax(per_seed))),
        difference=difference,
        seeds=len(runs),
        failures=sum(len(e.failures) for e in runs.values()),
        no_distance=int(np.isnan(tables["hd95_mm"]).sum()),
    )


def table_of(evaluation: Evaluation, metric: str, cases: Sequence[str]) -> NDArray[np.float64]:
    """The figures of one run (cases, segments), NaN where there is none."""
    values = {(row.case, row.segment): row.value(metric) for row in evaluation.rows}
    return np.asarray([[values[case, segment] for segment in evaluation.segments] for case in cases])


def as_text(lines: Sequence[Line]) -> list[list[str]]:
    """A table, headings first."""
    segments = list(lines[0].dice)
    names = [f"Dice {s}" for s in segments] if len(segments) > 1 else []
    rows = [["labels", "method", *names, "Dice", "of seeds", f"minus {BASELINE}", "Jaccard", "HD95 (mm)", "ASSD (mm)"]]
    for line in lines:
        by_segment = [f"{line.dice[s]:.3f}" for s in segments] if names else []
        spread = f"{line.spread[0]:.3f} to {line.spread[1]:.3f}" if line.seeds > 1 else "one seed"
        away = "" if line.difference is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*line.difference)
        others = [f"{line.figures['jaccard']:.3f}", f"{line.figures['hd95_mm']:.2f}", f"{line.figures['assd_mm']:.2f}"]
        rows.append(
            [str(line.labelled), line.method, *by_segment, f"{line.figures['dice']:.3f}", spread, away, *others]
        )
    return rows


def write_csv(lines: Sequence[Line], path: Path) -> None:
    """Every figure, one line a method and count of labels."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    segments = list(lines[0].dice)
    head = ["method", "labelled", "seeds", *SHOWN, *(f"dice {s}" for s in segments), "dice lowest seed"]
    writer.writerow([*head, "dice highest seed", "difference", "difference low", "difference high", "failed scans"])
    for line in lines:
        away = line.difference or ("", "", "")
        figures = [line.figures[m] for m in SHOWN]
        row = [
            line.method,
            line.labelled,
            line.seeds,
            *figures,
            *line.dice.values(),
            *line.spread,
            *away,
            line.failures,
        ]
        writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row])
    with atomic_file(path) as stream:
        stream.write(text.getvalue().encode())


def draw(lines: Sequence[Line], path: Path, title: str) -> None:
    """Mean Dice against the number of labelled scans, a line a method, its seeds' range as a bar."""
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    counts = sorted({line.labelled for line in lines})
    for method in dict.fromkeys(line.method for line in lines):
        mine = [line for line in lines if line.method == method]
        x = [counts.index(line.labelled) for line in mine]
        y = [line.figures["dice"] for line in mine]
        reach = [[v - line.spread[0] for v, line in zip(y, mine, strict=True)]]
        reach.append([line.spread[1] - v for v, line in zip(y, mine, strict=True)])
        style = {"color": "black", "linestyle": "--"} if method == BASELINE else {}
        axes.errorbar(x, y, yerr=np.maximum(reach, 0), marker="o", capsize=3, label=method, **style)
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.set_xlabel("labelled scans")
    axes.set_ylabel("mean Dice")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_file(path) as stream:
        figure.savefig(stream, dpi=120, format="png")
    pyplot.close(figure)


def _over_scans(table: NDArray[np.float64]) -> float:
    """(seeds, scans, segments) -> the mean over scans of each scan's mean."""
    by_scan = _means(table.transpose(1, 0, 2).reshape(table.shape[1], -1))
    return float(_means(by_scan[None])[0])


def _means(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each row over what there is; NaN for a row without anything."""
    there = ~np.isnan(rows)
    count = there.sum(axis=1)
    sums = np.where(there, rows, 0.0).sum(axis=1)
    return np.where(count > 0, sums / np.maximum(count, 1), np.nan)


def finished(evaluations: Iterable[tuple[Trial, Path]]) -> dict[Trial, Evaluation]:
    """The evaluations that are there, read from their ``scores.json``."""
    return {trial: Evaluation.from_json(path) for trial, path in evaluations if path.is_file()}
