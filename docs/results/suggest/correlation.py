"""Does a committee disagree most on the scans that its student gets wrong? Asked of unlabelled scans that have labels.

    python docs/results/suggest/correlation.py DATA NAME=RUN[,RUN...] [NAME=...]

For each committee: the range of its disagreements over the scans, and Spearman's correlation between a scan's
disagreement and 1 - Dice of the first run's student there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from semiseg.dataset import load_dataset
from semiseg.evaluation.evaluator import evaluate
from trainer.comparison import metric_table
from trainer.suggestion import load_committee, measure_disagreement, unlabelled_scans

dataset = load_dataset(Path(sys.argv[1]))
for argument in sys.argv[2:]:
    name, _, folders = argument.partition("=")
    runs = [Path(folder) for folder in folders.split(",")]
    committee = load_committee(runs)
    scans = unlabelled_scans(runs, dataset, ())
    disagreements = np.array([vote.disagreement for vote in measure_disagreement(committee, dataset, scans)])
    student = next(iter(committee.members.values()))
    dice = metric_table(evaluate(student.segment, dataset, scans), "dice", scans).mean(axis=1)
    found = spearmanr(disagreements, 1.0 - dice)
    low, middle, high = np.percentile(disagreements, (0, 50, 100))
    print(
        f"{name} ({', '.join(committee.members)}): disagreement {low:.4f} to {high:.4f}, median {middle:.4f}; its "
        f"student's Dice {dice.mean():.3f}; correlation with 1 - Dice {found.statistic:+.2f} (p = {found.pvalue:.1g}, "
        f"{len(scans)} scans)"
    )
