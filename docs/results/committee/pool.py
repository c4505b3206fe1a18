"""Judge sources of labels, and means of their probabilities, on the development scans of a draw.

    python -m docs.results.committee.pool DATA WORK DRAW NAME=RUN [NAME=RUN ...]

DATA and WORK are those of run.sh. A source is a trained run, or the atlases (``atlas``, always there). Printed are the
mean Dice of both segments, the mean volume as a share of the outline's, and the sources, whose probabilities count
equally, except for `half`: one half for the atlases, the other for all networks together.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cli.models import open_model
from semiseg.dataset import load_dataset
from trainer.atlas_labels import AtlasSet
from trainer.atlas_quality import AtlasAssessment
from trainer.cases import PreparedCase, prepare_cases
from trainer.label_channels import LabelChannels

Probabilities = dict[str, NDArray[np.uint8]]


def of_atlases(own: list[PreparedCase], others: list[PreparedCase], segments: int, cache: Path) -> Probabilities:
    """Return the probabilities (segments, X, Y, Z), in 255ths, that the atlases give to other scans."""
    atlases = AtlasSet.from_cases(own, others, LabelChannels(segments, overlapping=False), cache, 1)
    judged = AtlasAssessment.from_scores(atlases.names, list(atlases.cross_validate()))
    print(f"atlases, labelled by one another: {judged.dice:.4f}")
    return {name: labels[1:-1] for name, labels in atlases.label_scans(others, judged.sharpness, judged.difference)}


def score(weighted: list[tuple[float, Probabilities]], cases: dict[str, PreparedCase]) -> tuple[float, float]:
    """Return the mean Dice and the mean volume ratio of a weighted mean of sources."""
    dice, volumes = [], []
    for name, case in cases.items():
        segments = sum(weight * source[name].astype(np.float32) / 255 for weight, source in weighted)
        found = np.concatenate([1 - segments.sum(axis=0, keepdims=True), segments]).argmax(axis=0)
        truth = np.asarray(case.labels)
        for value in range(1, len(segments) + 1):
            ours, theirs = found == value, truth == value
            dice.append(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))
            volumes.append(ours.sum() / theirs.sum())
    return float(np.mean(dice)), float(np.mean(volumes))


def main(data: Path, work: Path, draw: str, runs: dict[str, Path]) -> None:
    """Print the table of a draw."""
    torch.set_num_threads(1)
    split = json.loads((work / "splits" / f"draw{draw}-fold0.json").read_text())
    models = {name: open_model(run, threads=1).segmenter for name, run in runs.items()}
    manifest = next(iter(models.values())).manifest
    labelled, development = split["labelled"]["4"], split["development"]
    made = prepare_cases(
        load_dataset(data), [*development, *labelled], [], manifest.segments, manifest.preprocessing, work / "cache"
    )
    cases = {name: made[name] for name in development}
    networks = {
        name: {case: model.probabilities_of_preprocessed(np.asarray(made[case].image)) for case in development}
        for name, model in models.items()
    }
    atlases = of_atlases([made[n] for n in labelled], list(cases.values()), len(manifest.segments), work / "cache")
    every = {**networks, "atlas": atlases}
    for count in (1, 2, len(every)):
        for names in itertools.combinations(every, count):
            dice, volume = score([(1 / count, every[name]) for name in names], cases)
            print(f"{dice:.4f}  volume {volume:.2f}  {' + '.join(names)}", flush=True)
    halves = [(0.5 / len(networks), one) for one in networks.values()] + [(0.5, atlases)]
    dice, volume = score(halves, cases)
    print(f"{dice:.4f}  volume {volume:.2f}  half: {' + '.join(every)}")


if __name__ == "__main__":
    pairs = (argument.split("=", 1) for argument in sys.argv[4:])
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], {name: Path(run) for name, run in pairs})
