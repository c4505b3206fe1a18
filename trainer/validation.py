"""Dice on the validation scans, and what masks look like, by the same segmenter that the hospital runs."""

from __future__ import annotations

import math

from semiseg.bundle.manifest import Figures, Manifest
from semiseg.bundle.mask_fingerprint import MaskFingerprint, measures_of
from semiseg.dataset import read_channels, read_reference
from semiseg.engines.engine import Engine
from semiseg.evaluation.metrics import overlap
from semiseg.inference.doubt import Doubt
from semiseg.inference.segmenter import Segmenter, Settings
from semiseg.volumes.segmentation import from_reference
from trainer.plan import Plan

BATCH = 4  # windows per call of the network while training
PORTRAYED = 30  # scans whose masks say what a mask is like


def segmenter_for(manifest: Manifest, engine: Engine) -> Segmenter:
    """The segmenter of a run in progress."""
    return Segmenter(manifest, engine, Settings(batch=1 if engine.device == "cpu" else BATCH))


def validate(segmenter: Segmenter, plan: Plan) -> Figures:
    """Mean Dice per segment over the split's validation scans; a scan without the segment does not count."""
    rows: dict[str, list[float]] = {s.name: [] for s in plan.segments}
    for case_id in plan.split.validation:
        case = plan.dataset.case(case_id)
        channels = read_channels(case, plan.dataset.channels)
        reference = read_reference(case, next(iter(channels.values())))
        predicted = segmenter.segment(channels)
        truth = from_reference(plan.segments, reference.array, predicted.affine)
        for index, segment in enumerate(plan.segments):
            mask = predicted.mask(index)
            if plan.dataset.ignore is not None:
                mask = mask & (reference.array != plan.dataset.ignore)
            value, _ = overlap(mask, truth.mask(index))
            if not math.isnan(value):
                rows[segment.name].append(value)
    means = {name: sum(values) / len(values) if values else 0.0 for name, values in rows.items()}
    return Figures(scans=len(plan.split.validation), dice=means)


def mask_statistics(segmenter: Segmenter, plan: Plan) -> MaskFingerprint:
    """What the model's masks of its training scans are like: the labelled ones, then as many others as it takes."""
    others = plan.unlabelled[:: max(1, len(plan.unlabelled) // PORTRAYED)]
    masks = []
    for case_id in (*plan.split.labelled, *others)[:PORTRAYED]:
        doubt = Doubt(len(plan.segments), segmenter.manifest.activation)
        channels = read_channels(plan.dataset.case(case_id), plan.dataset.channels)
        masks.append(measures_of(segmenter.segment(channels, watchers=[doubt]), doubt.mean()))
    return MaskFingerprint.of(masks)


def mean_dice(figures: Figures) -> float:
    """Mean over the segments."""
    return sum(figures.dice.values()) / len(figures.dice)
