"""Each network of a run by itself: `python docs/results/methods/each_network.py RUN DATA development|test`.

Of Dual, whose export is the mean of two networks, it says what one of them has alone; of CFR, what the foundation model
draws that teaches the student.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from semiseg.dataset import load_dataset
from semiseg.dataset.split import evaluation_scans
from semiseg.evaluation.evaluator import evaluate
from semiseg.volumes.segmentation import are_overlapping
from trainer.checkpoints import RunFolder, load_state, read_training_record
from trainer.engine import TorchEngine, load_trained_network
from trainer.methods import make_method
from trainer.methods.method import SegmentationTask
from trainer.recipe_files import make_recipe
from trainer.stages import StageSequence
from trainer.targets import make_targets
from trainer.validation import make_segmenter


def main() -> None:
    """Dice of every network, mean over segments and scans."""
    run, data, on = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    dataset = load_dataset(data)
    cases = evaluation_scans(dataset, None, "test" if on == "test" else "development")
    manifest, exported = load_trained_network(run)
    origin = manifest.provenance
    targets = make_targets(len(manifest.segments), overlapping=are_overlapping(manifest.segments))
    task = SegmentationTask(
        len(manifest.channels), targets, manifest.preprocessing.slice_axis, origin.labelled, origin.unlabelled
    )
    stages = StageSequence(make_method(make_recipe(read_training_record(run)["recipe"]), task))
    networks = stages.build()
    state = load_state(RunFolder(run).checkpoint, torch.device("cpu"))
    for name, network in networks.items():
        network.load_state_dict(state.networks[name])
    judged: dict[str, nn.Module] = {"what is exported": exported, **stages.committee(networks)}
    for step in range(stages.steps):
        for labelling in stages.labellings(networks, step):
            if labelling.network is not None:
                judged["what labels the unlabelled scans"] = labelling.network
    for name, module in judged.items():
        segmenter = make_segmenter(manifest, TorchEngine(module.eval(), "cpu"))
        scores: dict[str, list[float]] = {}
        for row in evaluate(segmenter.segment, dataset, cases).rows:
            scores.setdefault(row.segment, []).append(row.score.dice)
        means = {segment: sum(values) / len(values) for segment, values in scores.items()}
        mean = sum(means.values()) / len(means)
        told = ", ".join(f"{segment} {value:.3f}" for segment, value in means.items())
        print(f"{run.name}, {name}: {mean:.4f} ({told}; {len(cases)} {on} scans)", flush=True)


main()
