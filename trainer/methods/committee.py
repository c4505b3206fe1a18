"""A committee of networks of any methods, and of atlases, labels the unlabelled scans for one student.

Each member is a run of its own inside the run folder, trained by the method that it names. The members' predictions of
the unlabelled scans are calibrated and pooled (:mod:`trainer.opinion_pool`), and a new student of any size learns from
the labels and from these soft labels, as in distillation from an ensemble (Hinton, Vinyals and Dean 2015) and in
self-training with a noisy student (Xie et al., CVPR 2020). The members of a second round are such students. The last
student is the one that is kept, evaluated and exported; the members' runs stay in RUN/members.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.ndimage import binary_dilation

from semiseg.bundle.manifest import PretrainedWeights
from semiseg.inference.segmenter import Segmenter
from trainer.cases import PreparedCase
from trainer.errors import RecipeError
from trainer.label_channels import FloatArray, LabelChannels
from trainer.methods.atlas import AtlasMethod
from trainer.methods.label_then_train import LabelThenTrain
from trainer.methods.method import SegmentationTask
from trainer.methods.pretrain_then_train import PretrainThenTrain
from trainer.methods.registry import MethodName, method_class
from trainer.opinion_pool import (
    channels_from_outcomes,
    fit_pool_weights,
    fit_temperature,
    outcomes_from_channels,
    pool_opinions,
    scale_temperature,
)
from trainer.recipe import Positive, Recipe, Section
from trainer.recipe_files import make_recipe
from trainer.scan_labelling import LabellingWorkload, ScanLabeller, TrainingScans
from trainer.soft_labels import BYTE_MAX, to_bytes, to_label_map

Seed = Annotated[int, Field(ge=0, lt=2**63)]
FOREGROUND_MARGIN = 4  # largest distance in voxels from any foreground of the voxels that weights are fitted on
MAX_VOXELS = 20_000  # largest number of voxels of a scan that weights are fitted on


class CommitteeMember(Section):
    """A network of the committee, trained on scans that are preprocessed as for the student.

    Attributes:
        method: Method that trains the network; its settings stand in the recipe under its own name.
        seed: Seed of the member's run.
        updates: Number of updates; None takes the recipe's.
        student: Network; None takes the recipe's student.
        switches: Further settings of the member's method.
    """

    method: MethodName
    seed: Seed = 0
    updates: Positive | None = None
    student: dict[str, Any] | None = None
    switches: dict[str, Any] = Field(default_factory=dict)


DEFAULT = (CommitteeMember(method="supervised"), CommitteeMember(method="mean_teacher"))


@dataclass(frozen=True)
class LabelSource:
    """A source of labels for whole scans.

    Attributes:
        name: Name in messages.
        is_network: True if a network makes the labels, False for atlases.
        of: Function from names of scans to tuples of a name, the probabilities (C, X, Y, Z) of its channels, and a
            weight (X, Y, Z) that is zero where the source has no opinion; None if it has one everywhere.
    """

    name: str
    is_network: bool
    of: Callable[[Sequence[str]], Iterator[tuple[str, FloatArray, FloatArray | None]]]


class Committee(LabelThenTrain):
    """L = L_host + weight (cross-entropy + Dice) / 2 against the soft labels of the committee."""

    name = "committee"

    class Config(Section):
        """Members of the committee and weights of their predictions.

        Attributes:
            members: Networks of the first round.
            atlas: If True, atlases are a source of labels, too, unless cross-validation on the labelled scans rules
                them out (``methods.atlas``).
            host: Method that the student is trained with, in addition to the committee's labels.
            rounds: Number of rounds; the members of each further round are students of the round before.
            students: Number of students of a round that are members of the next.
            weighing: Weights of the sources: ``equal``; ``by_kind``, one half for the atlases and the other for all
                networks together, since errors of networks resemble one another; or ``cross_fitted``, the temperatures
                and weights of the first round's sources that maximise the likelihood of the labelled scans, each
                predicted by networks that did not learn from it. Each member is then trained ``folds`` more times. The
                students of a round have equal weights in the next.
            folds: Number of parts of the labelled scans that are held back in turn.
            weight: Weight of the committee's term.
        """

        members: Annotated[tuple[CommitteeMember, ...], Field(min_length=1)] = DEFAULT
        atlas: bool = True
        host: MethodName = "supervised"
        rounds: Annotated[int, Field(ge=1, le=4)] = 1
        students: Annotated[int, Field(ge=1)] = 2
        weighing: Literal["equal", "by_kind", "cross_fitted"] = "by_kind"
        folds: Annotated[int, Field(ge=2)] = 2
        weight: Annotated[float, Field(ge=0)] = 1.0

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """See :class:`LabelThenTrain`; the members' recipes are checked, too.

        Raises:
            RecipeError: There are too few labelled scans to hold some back, a member is listed twice or is a committee
                itself, or a member's method refuses its recipe.
        """
        super().__init__(recipe, task)
        if self._cross_fits and task.labelled < self.config.folds:
            raise RecipeError(
                f"methods.committee.folds: {task.labelled} labelled scan(s) do not make {self.config.folds} parts; "
                "take fewer folds, or `weighing: equal`."
            )
        chosen = list(self.config.members)
        if twice := next((one for number, one in enumerate(chosen) if one in chosen[:number]), None):
            raise RecipeError(f"methods.committee.members: {twice.method} is listed twice; give it another seed.")
        for member in chosen:
            method = method_class(member.method)
            if method.name == self.name or (
                issubclass(method, PretrainThenTrain) and self.name in method.chain(recipe)
            ):
                raise RecipeError(
                    f"methods.committee.members: {member.method} is, or leads to, a committee; for further rounds set "
                    "`rounds`."
                )
        self._atlas = AtlasMethod(recipe, task) if self.config.atlas else None
        self._channels = LabelChannels.from_targets(self.targets)
        self._exclusive = not self._channels.overlapping
        from trainer.stages import StageSequence  # which imports the methods

        self._stages = [
            StageSequence(method_class(made.method)(made, task)) for made in map(self.recipe_of, self.members())
        ]

    @property
    def _cross_fits(self) -> bool:
        return self.config.weighing == "cross_fitted" and self.config.rounds == 1

    def members(self) -> tuple[CommitteeMember, ...]:
        """Return the networks of this round."""
        if self.config.rounds == 1:
            return tuple(self.config.members)
        earlier = {"rounds": self.config.rounds - 1}
        seeds = range(self.recipe.seed + 1, self.recipe.seed + 1 + self.config.students)
        return tuple(CommitteeMember(method=self.name, seed=seed, switches=earlier) for seed in seeds)

    def recipe_of(self, member: CommitteeMember) -> Recipe:
        """Return the recipe of a member's run, which keeps the last iterate: validation scans are for the student."""
        document = self.recipe.model_dump(mode="json")
        own = document["methods"].get(member.method, {})
        document |= {"method": member.method, "seed": member.seed, "patience": None}
        document["methods"] = {**document["methods"], member.method: {**own, **member.switches}}
        if member.updates is not None:
            document["updates"] = member.updates
        if member.student is not None:
            document |= {"student": member.student, "init_from": None}  # the weights are those of the recipe's student
        return make_recipe(document, source=f"methods.committee.members, {member.method}")

    def pretrained(self) -> tuple[PretrainedWeights, ...]:
        """Return the pretrained weights of all members, since the student learns from them indirectly."""
        return tuple(dict.fromkeys(weights for stages in self._stages for weights in stages.pretrained()))

    def guidance_weight(self, update: int) -> float:
        """Return the constant weight of the committee's term."""
        return float(self.config.weight)

    # --- labels of the committee ----------------------------------------------------------------------------------

    def labelling_workload(self) -> LabellingWorkload:
        """Count the runs of the members and folds, and the registrations, which the members of a round share."""
        labelled = self.task.labelled
        members = [(self.recipe_of(member), labelled, 1) for member in self.members()]
        if self._cross_fits:
            kept = labelled - math.ceil(labelled / self.config.folds)
            members += [(recipe, max(1, kept), self.config.folds) for recipe, _, _ in members]
        own = 0 if self._atlas is None else self._atlas.labelling_workload().registrations
        return LabellingWorkload(own, tuple(members))

    def scan_labeller(self, step: int, scans: TrainingScans) -> ScanLabeller:
        """Train the members that are not trained yet, and return a labeller that pools all sources."""
        folds = self._folds(scans) if self._cross_fits else ()
        opinions = self._opinions(scans, scans.labelled)
        temperatures, weights = [1.0] * len(opinions), self._fixed_weights(opinions)
        if folds:
            temperatures, weights = self._weighed(opinions, folds, scans)
            scans.tell(_weights_sentence([one.name for one in opinions], temperatures, weights))

        def labels_of(names: Sequence[str]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
            volumes = []
            streams = [one.of(names) for one in opinions]
            for number, name in enumerate(names, start=1):
                channels = self._mixed([next(stream)[1:] for stream in streams], temperatures, weights)
                labels = to_bytes(channels, np.ones(channels.shape[1:], np.float32))
                volumes.append(self._volumes(to_label_map(labels, self.targets), scans.cases[name]))
                yield name, labels
                scans.progress("labelling by the committee", number, len(names))
            if volumes:
                outlined = [self._volumes(np.asarray(scans.cases[n].labels), scans.cases[n]) for n in scans.labelled]
                scans.tell(_volumes_sentence(self.config.rounds, outlined, volumes))

        return labels_of

    def _fixed_weights(self, opinions: Sequence[LabelSource]) -> list[float]:
        """Return the weights of the sources if they are not learned; they sum to 1."""
        networks = sum(one.is_network for one in opinions)
        if self.config.weighing != "by_kind" or networks in (0, len(opinions)):
            return [1.0 / len(opinions)] * len(opinions)
        return [0.5 / networks if one.is_network else 0.5 / (len(opinions) - networks) for one in opinions]

    def _opinions(self, scans: TrainingScans, labelled: tuple[str, ...]) -> list[LabelSource]:
        """Return the sources, learned from some of the labelled scans; members that are not trained yet are trained.

        The atlases, if they are used, are the last source.
        """
        found = []
        for member in self.members():
            segmenter = scans.train(self.recipe_of(member), self._folder_of(member, labelled), labelled)
            found.append(LabelSource(f"{member.method} (seed {member.seed})", True, self._by_network(segmenter, scans)))
        if self._atlas is not None:
            atlases = self._atlas.atlases(scans, labelled, tell=labelled == scans.labelled)
            if atlases is not None:
                found.append(LabelSource("atlas", False, self._by_atlases(atlases)))
        return found

    def _folder_of(self, member: CommitteeMember, labelled: tuple[str, ...]) -> str:
        """Return a folder name for a member's run that is unique within this run."""
        told = json.dumps([member.model_dump(mode="json"), sorted(labelled)], sort_keys=True)
        digest = hashlib.sha256(told.encode()).hexdigest()[:8]
        return f"{member.method.replace(':', '.')}-seed{member.seed}-{digest}"

    def _by_network(self, segmenter: Segmenter, scans: TrainingScans) -> Any:
        def of(names: Sequence[str]) -> Iterator[tuple[str, FloatArray, None]]:
            for name in names:
                segments = segmenter.probabilities_of_preprocessed(np.asarray(scans.cases[name].image))
                yield name, self._channels.from_segments(segments.astype(np.float32) / np.float32(BYTE_MAX)), None

        return of

    def _by_atlases(self, labels_of: ScanLabeller) -> Any:
        def of(names: Sequence[str]) -> Iterator[tuple[str, FloatArray, FloatArray]]:
            for name, labels in labels_of(names):
                values = labels.astype(np.float32) / np.float32(BYTE_MAX)
                yield name, values[:-1], values[-1]

        return of

    def _mixed(
        self,
        said: Sequence[tuple[FloatArray, FloatArray | None]],
        temperatures: Sequence[float],
        weights: Sequence[float],
    ) -> FloatArray:
        """Pool the sources' predictions into channels (C, X, Y, Z)."""
        pool = [self._tempered(channels, t) for (channels, _), t in zip(said, temperatures, strict=True)]
        return channels_from_outcomes(
            pool_opinions(pool, weights, [self._known(where) for _, where in said]), exclusive=self._exclusive
        )

    def _tempered(self, channels: FloatArray, temperature: float) -> FloatArray:
        opinion = outcomes_from_channels(channels, exclusive=self._exclusive)
        return opinion if temperature == 1.0 else scale_temperature(opinion, temperature)

    def _known(self, where: FloatArray | None) -> FloatArray | None:
        if where is None or self._exclusive:
            return where
        return np.broadcast_to(where, (self.targets.channels, *where.shape))

    def _volumes(self, codes: NDArray[np.uint8], case: PreparedCase) -> list[float]:
        """Return the volume in ml of each segment."""
        ml = float(np.prod(case.spacing)) / 1000.0
        return [float(mask.sum()) * ml for mask in self._channels.masks(codes, case.has_ignored_voxels)[:-1]]

    # --- cross-fitting --------------------------------------------------------------------------------------------

    def _folds(self, scans: TrainingScans) -> tuple[tuple[str, ...], ...]:
        """Return the parts of the labelled scans to hold back in turn.

        There are none, and a message says so, if a part's complement does not hold every segment.
        """
        folds = tuple(scans.labelled[k :: self.config.folds] for k in range(self.config.folds))
        volumes = {
            name: self._volumes(np.asarray(scans.cases[name].labels), scans.cases[name]) for name in scans.labelled
        }
        for held in folds:
            if not np.any([volumes[name] for name in scans.labelled if name not in held], axis=0).all():
                scans.tell(
                    f"Committee: without {', '.join(held)} the labelled scans lack a segment, so none can be held "
                    "back, and the members have equal weights."
                )
                return ()
        return folds

    def _weighed(
        self, opinions: Sequence[LabelSource], folds: Sequence[tuple[str, ...]], scans: TrainingScans
    ) -> tuple[list[float], list[float]]:
        """Fit temperatures and weights of the sources on labelled scans that they did not learn from."""
        shares: list[list[FloatArray]] = [[] for _ in opinions]
        truth: list[NDArray[np.int64]] = []
        for held in folds:
            rest = tuple(name for name in scans.labelled if name not in held)
            streams = [one.of(held) for one in self._opinions(scans, rest)]
            for case_id in held:
                said = [next(stream)[1:] for stream in streams]
                right, chosen = self._weighed_voxels(scans.cases[case_id], [channels for channels, _ in said])
                truth.append(right)
                for number, flat in enumerate(shares):
                    # Atlases that are ruled out with fewer labelled scans have no opinion there.
                    flat.append(self._flat(said[number], chosen) if number < len(said) else self._uniform(len(right)))
        right = np.concatenate(truth)
        if not len(right):
            return [1.0] * len(opinions), [1.0 / len(opinions)] * len(opinions)
        joined = [np.concatenate(flat) for flat in shares]
        temperatures = [fit_temperature(one, right) for one in joined]
        rows = np.arange(len(right))
        given = np.stack([scale_temperature(one, t)[rows, right] for one, t in zip(joined, temperatures, strict=True)])
        return temperatures, [float(w) for w in fit_pool_weights(given)]

    def _flat(self, said: tuple[FloatArray, FloatArray | None], chosen: NDArray[np.int64]) -> FloatArray:
        """Return opinions (V, K) at chosen voxels; where the source has none, all outcomes are equally likely."""
        channels, where = said
        found = outcomes_from_channels(channels, exclusive=self._exclusive)
        flat = found.reshape(-1, found.shape[-1])[chosen]
        known = self._known(where)
        if known is not None:
            flat = np.where(known.reshape(-1)[chosen, None] > 0, flat, self._uniform(1))
        return np.asarray(flat, dtype=np.float32)

    def _uniform(self, count: int) -> FloatArray:
        """Return opinions (count, K) in which all outcomes are equally likely."""
        size = self.targets.channels if self._exclusive else 2
        return np.full((count, size), 1.0 / size, np.float32)

    def _weighed_voxels(
        self, case: PreparedCase, said: Sequence[FloatArray]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Choose the voxels that weights are fitted on: near any source's or the labels' foreground.

        Returns:
            The correct outcome of each chosen voxel, and its index among the flat outcomes.
        """
        codes = np.asarray(case.labels)
        *masks, known = self._channels.masks(codes, case.has_ignored_voxels) > 0
        found = np.any(masks, axis=0)
        for one in said:
            found |= ((one[1:] if self._exclusive else one) >= 0.5).any(axis=0)
        near = binary_dilation(found, iterations=FOREGROUND_MARGIN) & known
        if self._exclusive:
            right, where = np.where(known, codes, 0), near
        else:
            right, where = 1 - np.stack(masks).astype(np.int64), np.stack([near] * len(masks))
        places = np.flatnonzero(where)
        picked = places[np.linspace(0, len(places) - 1, min(MAX_VOXELS, len(places))).astype(int)]
        return right.reshape(-1)[picked].astype(np.int64), picked


def _weights_sentence(names: Sequence[str], temperatures: Sequence[float], weights: Sequence[float]) -> str:
    each = (f"{n} {w:.2f} (temperature {t:.2f})" for n, w, t in zip(names, weights, temperatures, strict=True))
    return f"Committee: weights learned from labelled scans that were held back: {', '.join(each)}."


def _volumes_sentence(rounds: int, outlined: Sequence[Sequence[float]], found: Sequence[Sequence[float]]) -> str:
    ratios = np.mean(found, axis=0) / np.maximum(np.mean(outlined, axis=0), 1e-9)
    return (
        f"Committee, round {rounds}: in the {len(found)} scans that it labelled, the segments have "
        f"{', '.join(f'{r:.2f}' for r in ratios)} times the mean volume of the outlined ones."
    )
