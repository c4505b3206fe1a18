"""Dice on the validation scans, and statistics of masks, computed with the segmenter of exported models."""

from __future__ import annotations

import math

from semiseg.bundle.manifest import Manifest, ValidationMetrics
from semiseg.bundle.mask_fingerprint import MaskFingerprint, measure_mask
from semiseg.dataset import read_channels, read_reference
from semiseg.engines.engine import Engine
from semiseg.evaluation.metrics import overlap
from semiseg.inference.segment_entropy import SegmentEntropy
from semiseg.inference.segmenter import Segmenter, SlidingWindowOptions
from semiseg.volumes.segmentation import segmentation_from_labels
from trainer.plan import TrainingPlan

BATCH = 4  # windows per call of the network on a GPU
MAX_STATISTICS_SCANS = 30  # largest number of scans for the statistics of masks


def make_segmenter(manifest: Manifest, engine: Engine) -> Segmenter:
    """Create the segmenter of a run."""
    return Segmenter(manifest, engine, SlidingWindowOptions(batch=1 if engine.device == "cpu" else BATCH))


def validate(segmenter: Segmenter, plan: TrainingPlan) -> ValidationMetrics:
    """Compute the mean Dice of each segment over the validation scans, without scans in which it is undefined."""
    rows: dict[str, list[float]] = {s.name: [] for s in plan.segments}
    for case_id in plan.split.validation:
        case = plan.dataset.case(case_id)
        channels = read_channels(case, plan.dataset.channels)
        reference = read_reference(case, next(iter(channels.values())))
        predicted = segmenter.segment(channels)
        truth = segmentation_from_labels(plan.segments, reference.array, predicted.affine)
        for index, segment in enumerate(plan.segments):
            mask = predicted.mask(index)
            if plan.dataset.ignore is not None:
                mask = mask & (reference.array != plan.dataset.ignore)
            value, _ = overlap(mask, truth.mask(index))
            if not math.isnan(value):
                rows[segment.name].append(value)
    means = {name: sum(values) / len(values) if values else 0.0 for name, values in rows.items()}
    return ValidationMetrics(scans=len(plan.split.validation), dice=means)


def mask_statistics(segmenter: Segmenter, plan: TrainingPlan) -> MaskFingerprint:
    """Measure the model's masks of the labelled scans and, up to :data:`MAX_STATISTICS_SCANS`, of unlabelled scans."""
    others = plan.unlabelled[:: max(1, len(plan.unlabelled) // MAX_STATISTICS_SCANS)]
    masks = []
    for case_id in (*plan.split.labelled, *others)[:MAX_STATISTICS_SCANS]:
        doubt = SegmentEntropy(len(plan.segments), segmenter.manifest.activation)
        channels = read_channels(plan.dataset.case(case_id), plan.dataset.channels)
        masks.append(measure_mask(segmenter.segment(channels, observers=[doubt]), doubt.mean()))
    return MaskFingerprint.from_measures(masks)


def mean_dice(figures: ValidationMetrics) -> float:
    """Return the mean over the segments."""
    return sum(figures.dice.values()) / len(figures.dice)
