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
from semiseg.evaluation.evaluate import evaluate
from trainer.comparison import table_of
from trainer.suggestion import committee_of, unlabelled_of, votes

dataset = load_dataset(Path(sys.argv[1]))
for argument in sys.argv[2:]:
    name, _, folders = argument.partition("=")
    runs = [Path(folder) for folder in folders.split(",")]
    committee = committee_of(runs)
    scans = unlabelled_of(runs, dataset, ())
    disagreements = np.array([vote.disagreement for vote in votes(committee, dataset, scans)])
    student = next(iter(committee.voters.values()))
    dice = table_of(evaluate(student.segment, dataset, scans), "dice", scans).mean(axis=1)
    found = spearmanr(disagreements, 1.0 - dice)
    low, middle, high = np.percentile(disagreements, (0, 50, 100))
    print(
        f"{name} ({', '.join(committee.voters)}): disagreement {low:.4f} to {high:.4f}, median {middle:.4f}; its "
        f"student's Dice {dice.mean():.3f}; correlation with 1 - Dice {found.statistic:+.2f} (p = {found.pvalue:.1g}, "
        f"{len(scans)} scans)"
    )
