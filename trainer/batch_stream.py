"""Batches of a run: patches of preprocessed scans, and the predictions that determine where patches are cut."""

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
    """Batches of a run.

    Between two refreshes of the predictions, batches are made ahead of time: they depend only on the recipe, the step,
    and the predictions of the last refresh.
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
            plan: Plan of the run.
            cases: The preprocessed scans.
            pseudo: Storage of the pseudo-labels.
            device: Device of the run.
            scans: Function from the preprocessed scans to the input of stages that label scans without a network of
                their own.
        """
        self._plan, self._cases, self._device = plan, cases, device
        self._scans = scans
        self._draws = PatchSampler(plan.recipe, cases, plan.split.labelled, plan.unlabelled)
        self._kept = pseudo
        self._pseudo: dict[str, dict[str, NDArray[np.uint8]]] = {}

    @property
    def foreground(self) -> Foreground:
        """Voxels of each segment in the last predictions, by unlabelled scan; stored in checkpoints."""
        return self._draws.foreground

    def restore(self, step: int, foreground: Foreground) -> None:
        """Continue at ``step`` from a checkpoint."""
        stages = self._plan.stages
        self._draws.foreground = foreground
        made = {source: s for s in range(min(step, stages.steps)) for source in stages.labelling_sources(s)}
        renewed = stages.labelling_sources(step)
        for source, at in made.items():
            if step < stages.steps and source not in renewed:
                self._pseudo[source] = self._kept.read(at, source, self._plan.unlabelled)

    def until_refresh(self, step: int, models: ModelSet) -> Iterator[tuple[Batch, StepPlan]]:
        """Refresh the predictions due before ``step``, then yield batch and plan of each step to the next refresh."""
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
        """Unmap the files of pseudo-labels, because Windows does not delete mapped files."""
        self._pseudo = {}

    def _requests(
        self, step: int, step_plans: list[StepPlan], before: BatchComposition
    ) -> Iterator[list[PatchRequest]]:
        """Yield the patches of each step that this process makes: every W-th one with W processes."""
        for s, step_plan in enumerate(step_plans, start=step):
            yield self._draws.requests(s, step_plan.composition, before)[rank() :: process_count()]
            before += step_plan.composition

    def _refresh(self, step: int, models: ModelSet) -> None:
        """Refresh the predictions due before ``step``, and then let the models begin the step."""
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
        """Predict the foreground, on which patches are placed, of every unlabelled scan larger than a patch."""
        patch = self._plan.recipe.size()
        for case_id in self._plan.unlabelled:
            case = self._cases[case_id]
            if all(n <= p for n, p in zip(case.shape, patch, strict=True)):
                continue
            found = segmenter.segment_preprocessed(np.asarray(case.image))
            encoded = encode_prediction(found, self._plan.segments)
            self._draws.foreground[case_id] = sample_segment_voxels(encoded, self._plan.segments)

    def _predict_labels(self, step: int, source: str, segmenter: Segmenter) -> None:
        """Predict every unlabelled scan; each process predicts its share."""
        for case_id in self._plan.unlabelled[rank() :: process_count()]:
            found = segmenter.segment_preprocessed(np.asarray(self._cases[case_id].image))
            self._kept.write(step, source, case_id, encode_prediction(found, self._plan.segments))

    def _label_scans(self, step: int, source: str, labels_of: ScanLabeller) -> None:
        """Label every unlabelled scan that has no labels yet, without a network; each process labels its share."""
        mine = self._plan.unlabelled[rank() :: process_count()]
        for case_id, labels in labels_of([case_id for case_id in mine if not self._kept.has(step, source, case_id)]):
            self._kept.write(step, source, case_id, labels)

    def _take_labels(self, step: int, source: str) -> None:
        """Use the labels that were made before ``step`` as those of a stage from now on."""
        barrier()
        self._pseudo[source] = self._kept.read(step, source, self._plan.unlabelled)
        for case_id, labels in self._pseudo[source].items():
            found = to_label_map(labels, self._plan.stages.last.targets)
            self._draws.foreground[case_id] = sample_segment_voxels(found, self._plan.segments)


def prepare_training_cases(plan: TrainingPlan, cache: Path, watch: ProgressCallback | None) -> dict[str, PreparedCase]:
    """Preprocess the training scans; the first process fills the cache.

    Raises:
        RecipeError: A segment is in no labelled scan.
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
