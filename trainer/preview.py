"""Preview picture of the trained network's segmentation."""

from __future__ import annotations

from pathlib import Path

from semiseg.dataset import read_channels, read_reference
from semiseg.inference.segmenter import Segmenter
from semiseg.outputs.overlay import contact_sheet
from semiseg.volumes.segmentation import segmentation_from_labels
from trainer.plan import TrainingPlan


def draw_preview(segmenter: Segmenter, plan: TrainingPlan, target: Path) -> None:
    """Draw a contact sheet of a validation scan, or else an unlabelled (prediction only) or labelled scan."""
    split = plan.split
    case_id = (*split.validation, *plan.unlabelled, *split.labelled)[0]
    case = plan.dataset.case(case_id)
    channels = read_channels(case, plan.dataset.channels)
    image = next(iter(channels.values()))
    predicted = segmenter.segment(channels)
    masks = [("prediction", predicted)]
    kind = "unlabelled"
    if case_id not in plan.unlabelled:
        reference = read_reference(case, image)
        masks.insert(0, ("reference", segmentation_from_labels(plan.segments, reference.array, image.affine)))
        kind = "validation" if case_id in split.validation else "labelled, seen in training"
    contact_sheet(target, image, masks, plan.segments, f"{case_id} ({kind})")
