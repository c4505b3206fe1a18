"""The batches of a run: patches cut from prepared scans, and the predictions that decide where they are cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from semiseg.inference.segmenter import Segmenter
from trainer.cases import PreparedCase, encode_prediction, prepare_cases, sample_segment_voxels, segments_without_label
from trainer.device import loader_workers
from trainer.errors import RecipeError
from trainer.methods.method import StepPlan
from trainer.model_set import ModelSet
from trainer.parallel import barrier, process_count, rank
from trainer.patches import Batch, BatchComposition, PatchRequest, PatchSampler, PatchSource, load_batches
from trainer.plan import ProgressCallback, TrainingPlan
from trainer.pseudo_labels import PseudoLabels
from trainer.scan_labelling import ScanLabeller, TrainingScans
from trainer.soft_labels import to_label_map

Foreground = dict[str, tuple[NDArray[np.int32], ...]]


class BatchStream:
    """The batches of a run.

    Between two refreshes they are made ahead of time; what a refresh predicts is the last thing that they depend on
    besides the recipe and the step.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        cases: dict[str, PreparedCase],
        pseudo: PseudoLabels,
        device: torch.device,
        scans: Callable[[dict[str, PreparedCase]], TrainingScans],
    ) -> None:
        """Prepare to draw patches.

        Args:
            plan: The plan of the run.
            cases: The prepared scans.
            pseudo: Where predictions that serve as labels lie.
            device: The device that the run computes on.
            scans: What a stage works with that labels scans without a network of its own.
        """
        self._plan, self._cases, self._device = plan, cases, device
        self._scans = scans
        self._draws = PatchSampler(plan.recipe, cases, plan.split.labelled, plan.unlabelled)
        self._kept = pseudo
        self._pseudo: dict[str, dict[str, NDArray[np.uint8]]] = {}

    @property
    def foreground(self) -> Foreground:
        """Where the last predictions found each segment, by unlabelled scan; a checkpoint holds it."""
        return self._draws.foreground

    def restore(self, step: int, foreground: Foreground) -> None:
        """Go on at ``step`` from a checkpoint."""
        stages = self._plan.stages
        self._draws.foreground = foreground
        made = {source: s for s in range(min(step, stages.steps)) for source in stages.labelling_sources(s)}
        renewed = stages.labelling_sources(step)
        for source, at in made.items():
            if step < stages.steps and source not in renewed:
                self._pseudo[source] = self._kept.read(at, source, self._plan.unlabelled)

    def until_refresh(self, step: int, models: ModelSet) -> Iterator[tuple[Batch, StepPlan]]:
        """Renew the predictions that are due before ``step``; then yield batch and plan of each step until the next."""
        stages, recipe, preprocessing = self._plan.stages, self._plan.recipe, self._plan.preprocessing
        self._refresh(step, models)
        before = sum((stages.step_plan(s).composition for s in range(step)), BatchComposition(0, 0))
        stop = next((s for s in range(step + 1, stages.steps) if stages.is_boundary(s)), stages.steps)
        step_plans = [stages.step_plan(s) for s in range(step, stop)]
        source = PatchSource(
            recipe,
            self._cases,
            preprocessing.slice_axis,
            preprocessing.padding,
            self._pseudo,
            stages.pseudo_label_source(step),
            self._device,
            stages.stage_at(step)[0].views,
        )
        on_gpu = self._device.type == "cuda"
        made = load_batches(
            source, self._requests(step, step_plans, before), step, loader_workers(recipe, self._device), on_gpu
        )
        for batch, step_plan in zip(made, step_plans, strict=True):
            yield batch.to(self._device), step_plan

    def release(self) -> None:
        """Unmap the files of pseudo-labels: Windows deletes none that is mapped."""
        self._pseudo = {}

    def _requests(
        self, step: int, step_plans: list[StepPlan], before: BatchComposition
    ) -> Iterator[list[PatchRequest]]:
        """The patches of each step that this process makes: every W-th one of W processes."""
        for s, step_plan in enumerate(step_plans, start=step):
            yield self._draws.requests(s, step_plan.composition, before)[rank() :: process_count()]
            before += step_plan.composition

    def _refresh(self, step: int, models: ModelSet) -> None:
        """What is renewed before ``step``: predictions first, then what a stage hands over, then what starts anew."""
        stages = self._plan.stages
        if stages.refreshes_foreground(step):
            self._predict_foreground(models.segmenter())
        for labelling in stages.labellings(models.networks, step, self._scans(self._cases)):
            if labelling.labels_of is None:
                self._predict_labels(step, labelling.source, models.segmenter(labelling.network))
            else:
                self._label_scans(step, labelling.source, labelling.labels_of)
            self._take_labels(step, labelling.source)
        models.begin_step(step)

    def _predict_foreground(self, segmenter: Segmenter) -> None:
        """Predict every unlabelled scan that does not fit into a patch; where it finds foreground, patches are cut."""
        patch = self._plan.recipe.size()
        for case_id in self._plan.unlabelled:
            case = self._cases[case_id]
            if all(n <= p for n, p in zip(case.shape, patch, strict=True)):
                continue
            found = segmenter.segment_preprocessed(np.asarray(case.image))
            encoded = encode_prediction(found, self._plan.segments)
            self._draws.foreground[case_id] = sample_segment_voxels(encoded, self._plan.segments)

    def _predict_labels(self, step: int, source: str, segmenter: Segmenter) -> None:
        """Predict every unlabelled scan, each process its share."""
        for case_id in self._plan.unlabelled[rank() :: process_count()]:
            found = segmenter.segment_preprocessed(np.asarray(self._cases[case_id].image))
            self._kept.write(step, source, case_id, encode_prediction(found, self._plan.segments))

    def _label_scans(self, step: int, source: str, labels_of: ScanLabeller) -> None:
        """Label every unlabelled scan without a network, each process its share; those that are there already stay."""
        mine = self._plan.unlabelled[rank() :: process_count()]
        for case_id, labels in labels_of([case_id for case_id in mine if not self._kept.has(step, source, case_id)]):
            self._kept.write(step, source, case_id, labels)

    def _take_labels(self, step: int, source: str) -> None:
        """Take the labels that were made before ``step`` as those of a stage from now on."""
        barrier()
        self._pseudo[source] = self._kept.read(step, source, self._plan.unlabelled)
        for case_id, labels in self._pseudo[source].items():
            found = to_label_map(labels, self._plan.stages.last.targets)
            self._draws.foreground[case_id] = sample_segment_voxels(found, self._plan.segments)


def prepare_training_cases(plan: TrainingPlan, cache: Path, watch: ProgressCallback | None) -> dict[str, PreparedCase]:
    """The training scans, preprocessed; the first process fills the cache.

    Raises:
        RecipeError: a segment lies in no labelled scan.
    """
    split = plan.split
    progress = None if watch is None else lambda done, total: watch("preparing scans", done, total)
    if rank() > 0:
        barrier()
    cases = prepare_cases(
        plan.dataset, split.labelled, plan.unlabelled, plan.segments, plan.preprocessing, cache, progress
    )
    if rank() == 0:
        barrier()
    unseen = segments_without_label((cases[i] for i in split.labelled), plan.segments)
    if unseen:
        raise RecipeError(
            f"None of the {len(split.labelled)} labelled scans holds {' or '.join(unseen)}, so no network can "
            "learn it: label a scan that does, or name the segments to learn under `regions` in the recipe."
        )
    return cases
