"""A committee teaches one student: networks of any methods, and atlases, label the unlabelled scans together.

Each member is a run of its own inside the run folder, trained by the method that it names. What the members say of the
unlabelled scans is calibrated and mixed (:mod:`trainer.committee`), and a new student of any size learns from the
labels and from these soft labels, as in distillation from an ensemble (Hinton, Vinyals and Dean 2015) and in
self-training with a noisy student (Xie et al., CVPR 2020). A second round has such students as its members. Only the
last student is kept.
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
from torch import Tensor

from semiseg.inference.segmenter import Segmenter
from trainer.cases import IGNORE, PreparedCase
from trainer.committee import best_temperature, channels_of, mixed, mixture_weights, outcomes, tempered
from trainer.errors import RecipeError
from trainer.methods.atlas import AtlasMethod
from trainer.methods.method import Labelling, LabellingWork, LabelsOfScan, Networks, Task, TrainingScans, Turn
from trainer.methods.pretrain import PretrainThenTrain
from trainer.methods.registry import MethodName
from trainer.patches import Batch
from trainer.recipe import Recipe, Section, make_recipe
from trainer.soft_labels import FULL, decided, to_bytes
from trainer.targets import ExclusiveClasses

SEED = Annotated[int, Field(ge=0, lt=2**63)]
NEAR = 4  # voxels: how far from any foreground the voxels lie that opinions are weighed on
MOST_VOXELS = 20_000  # of a scan, on which opinions are weighed


class Member(Section):
    """A network of the committee.

    Attributes:
        method: Method that trains it; its switches stand in the recipe under its own name.
        seed: Seed of its run.
        changes: Further changes of the recipe for it, each as `--set` has them: ``updates=800``.
    """

    method: MethodName
    seed: SEED = 0
    changes: tuple[str, ...] = ()


DEFAULT = (Member(method="mn"), Member(method="mean_teacher"))


@dataclass(frozen=True)
class Opinion:
    """A source of labels for whole scans.

    Attributes:
        name: For the person who trains.
        of: From names of scans to each name with the probabilities (C, X, Y, Z) of its channels, and where the source
            knows anything (X, Y, Z); None for everywhere.
    """

    name: str
    of: Callable[[Sequence[str]], Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32] | None]]]


class Committee(PretrainThenTrain):
    """L = L_host + weight (cross-entropy + Dice) / 2 against the soft labels of the committee."""

    name = "committee"
    switch = "host"
    guides = True

    class Switches(Section):
        """Who is in the committee, and how it is heard.

        Attributes:
            members: Networks of the first round.
            atlas: Atlases have a vote, too, where the labelled scans do not speak against them (``methods.atlas``).
            host: Method that the student is trained with, beside what the committee says.
            rounds: Rounds; the members of each further one are students of the one before.
            students: Number of students of a round that are members of the next.
            weighing: ``equal`` votes; or ``cross_fitted``: temperatures and weights under which the labelled scans are
                most likely, each labelled by networks that did not learn from it. That trains each member
                ``folds`` times more.
            folds: Number of parts of the labelled scans that are held back in turn.
            weight: Weight of the committee's term.
        """

        members: Annotated[tuple[Member, ...], Field(min_length=1)] = DEFAULT
        atlas: bool = True
        host: MethodName = "supervised"
        rounds: Annotated[int, Field(ge=1, le=4)] = 1
        students: Annotated[int, Field(ge=1)] = 2
        weighing: Literal["equal", "cross_fitted"] = "equal"
        folds: Annotated[int, Field(ge=2)] = 2
        weight: Annotated[float, Field(ge=0)] = 1.0

    def __init__(self, recipe: Recipe, task: Task) -> None:
        """See :class:`PretrainThenTrain`; members that cannot work are refused now.

        Raises:
            RecipeError: There is nothing to label, too few labelled scans to hold some back, or a member that is a
                committee itself.
        """
        super().__init__(recipe, task)
        if not task.unlabelled:
            raise RecipeError("committee labels unlabelled scans, and the split has none; train with `supervised`.")
        if self.switches.weighing == "cross_fitted" and task.labelled < self.switches.folds:
            raise RecipeError(
                f"methods.committee.folds: {task.labelled} labelled scan(s) do not make {self.switches.folds} parts; "
                "take fewer folds, or `weighing: equal`."
            )
        if any(member.method == self.name for member in self.switches.members):
            raise RecipeError("methods.committee.members: a committee is no member of another; `rounds` repeats it.")
        self._atlas = AtlasMethod(recipe, task) if self.switches.atlas else None
        self._exclusive = isinstance(self.targets, ExclusiveClasses)
        from trainer.methods import make_method  # which imports this module

        for member in self.members():
            make_method(self.recipe_of(member), task)

    def members(self) -> tuple[Member, ...]:
        """The networks of this round."""
        if self.switches.rounds == 1:
            return tuple(self.switches.members)
        earlier = (f"methods.committee.rounds={self.switches.rounds - 1}",)
        seeds = range(self.recipe.seed + 1, self.recipe.seed + 1 + self.switches.students)
        return tuple(Member(method=self.name, seed=seed, changes=earlier) for seed in seeds)

    def recipe_of(self, member: Member) -> Recipe:
        """The recipe of a member's run."""
        document = {**self.recipe.model_dump(mode="json"), "method": member.method, "seed": member.seed}
        return make_recipe(document, list(member.changes), source=f"methods.committee.members, {member.method}")

    def build(self) -> Networks:
        """None of its own; the members' runs have theirs."""
        return {}

    @property
    def steps(self) -> int:
        """None: the scans are labelled before the first step of the host."""
        return 0

    def turn(self, step: int) -> Turn:
        """There is no step of this stage."""
        raise IndexError(step)

    def loss(self, networks: Networks, batch: Batch, turn: Turn) -> dict[str, Tensor]:
        """There is no step of this stage."""
        raise IndexError(batch.step)

    def refreshes_pseudo_labels(self, step: int) -> bool:
        """Once."""
        return step == 0

    def guidance_weight(self, update: int) -> float:
        """Constant."""
        return float(self.switches.weight)

    def voters(self, networks: Networks) -> Networks:
        """No network of this stage."""
        return {}

    # --- what the committee says ----------------------------------------------------------------------------------

    def scan_labeller(self, step: int, scans: TrainingScans) -> LabelsOfScan:
        """The members, trained where they are not yet, and the mixture of what they say."""
        opinions = self._opinions(scans, scans.labelled, "")
        temperatures, weights = [1.0] * len(opinions), [1.0 / len(opinions)] * len(opinions)
        if self.switches.weighing == "cross_fitted":
            temperatures, weights = self._weighed([one.name for one in opinions], scans)
            scans.tell(_weights_sentence([one.name for one in opinions], temperatures, weights))

        def labels_of(names: Sequence[str]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
            volumes = []
            streams = [one.of(names) for one in opinions]
            for number, name in enumerate(names, start=1):
                said = [next(stream)[1:] for stream in streams]
                pool = [tempered(self._outcomes(p), t) for (p, _), t in zip(said, temperatures, strict=True)]
                known = [self._known(where) for _, where in said]
                channels = channels_of(mixed(pool, weights, known), exclusive=self._exclusive)
                labels = to_bytes(channels, np.ones(channels.shape[1:], np.float32))
                volumes.append(self._volumes(decided(labels, self.targets), scans.cases[name]))
                yield name, labels
                scans.progress("asking the committee", number, len(names))
            if volumes:
                outlined = [self._volumes(np.asarray(scans.cases[n].labels), scans.cases[n]) for n in scans.labelled]
                scans.tell(_volumes_sentence(self.switches.rounds, outlined, volumes))

        return labels_of

    def labelling(self, amount: Labelling) -> LabellingWork:
        """The runs of the members, those of the folds, and the atlases'; a round's members share theirs."""
        members = [(self.recipe_of(member), amount.labelled, 1) for member in self.members()]
        folds = self.switches.folds
        if self.switches.weighing == "cross_fitted":
            kept = amount.labelled - math.ceil(amount.labelled / folds)
            members += [(recipe, max(1, kept), folds) for recipe, _, _ in members]
        own = 0 if self._atlas is None else self._atlas.labelling(amount).registrations
        return LabellingWork(own, tuple(members))

    def _opinions(self, scans: TrainingScans, labelled: tuple[str, ...], suffix: str) -> list[Opinion]:
        """Every source, learned from some of the labelled scans; members that are not trained yet are trained."""
        found = []
        for member in self.members():
            recipe = self.recipe_of(member)
            segmenter = scans.train(recipe, _folder_of(recipe) + suffix, labelled)
            found.append(Opinion(f"{member.method} (seed {member.seed})", self._by_network(segmenter, scans)))
        if self._atlas is not None:
            atlases = self._atlas.atlases(scans, labelled, tell=not suffix)
            if atlases is not None:
                found.append(Opinion("atlas", self._by_atlases(atlases)))
        return found

    def _by_network(self, segmenter: Segmenter, scans: TrainingScans) -> Any:
        def of(names: Sequence[str]) -> Iterator[tuple[str, NDArray[np.float32], None]]:
            for name in names:
                segments = segmenter.probabilities_of_prepared(np.asarray(scans.cases[name].image))
                yield name, self._channels(segments.astype(np.float32) / np.float32(FULL)), None

        return of

    def _by_atlases(self, labels_of: LabelsOfScan) -> Any:
        def of(names: Sequence[str]) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
            for name, labels in labels_of(names):
                values = labels.astype(np.float32) / np.float32(FULL)
                yield name, values[:-1], values[-1]

        return of

    def _channels(self, segments: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self._exclusive:
            return segments
        return np.concatenate([np.clip(1.0 - segments.sum(axis=0, keepdims=True), 0.0, 1.0), segments])

    def _outcomes(self, channels: NDArray[np.float32]) -> NDArray[np.float32]:
        return outcomes(channels, exclusive=self._exclusive)

    def _known(self, where: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        if where is None or self._exclusive:
            return where
        return np.broadcast_to(where, (self.targets.channels, *where.shape))

    def _volumes(self, codes: NDArray[np.uint8], case: PreparedCase) -> list[float]:
        """Volume in ml of each segment."""
        ml = float(np.prod(case.spacing)) / 1000.0
        of = range(self.targets.segments)
        masks = (codes == k + 1 if self._exclusive else (codes >> k) & 1 for k in of)
        return [float(mask.sum()) * ml for mask in masks]

    # --- cross-fitting --------------------------------------------------------------------------------------------

    def _weighed(self, names: Sequence[str], scans: TrainingScans) -> tuple[list[float], list[float]]:
        """Temperatures and weights of the sources, from labelled scans that they did not learn from."""
        folds = self.switches.folds
        shares: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
        truth: list[NDArray[np.int64]] = []
        for fold in range(folds):
            held = scans.labelled[fold::folds]
            rest = tuple(name for name in scans.labelled if name not in held)
            opinions = {one.name: one for one in self._opinions(scans, rest, f"-fold{fold + 1}")}
            streams = [opinions[name].of(held) if name in opinions else None for name in names]
            for case_id in held:
                said = [None if stream is None else next(stream)[1] for stream in streams]
                right, chosen = self._weighed_voxels(scans.cases[case_id], [one for one in said if one is not None])
                truth.append(right)
                for name, one in zip(names, said, strict=True):
                    flat = self._uniform(len(right)) if one is None else self._flat(one)[chosen]
                    shares[name].append(flat)
        right = np.concatenate(truth)
        joined = [np.concatenate(shares[name]) for name in names]
        temperatures = [best_temperature(one, right) for one in joined]
        rows = np.arange(len(right))
        given = np.stack([tempered(one, t)[rows, right] for one, t in zip(joined, temperatures, strict=True)])
        return temperatures, [float(w) for w in mixture_weights(given)]

    def _flat(self, channels: NDArray[np.float32]) -> NDArray[np.float32]:
        found = self._outcomes(channels)
        return found.reshape(-1, found.shape[-1])

    def _uniform(self, count: int) -> NDArray[np.float32]:
        """The opinion of who has none."""
        size = self.targets.channels if self._exclusive else 2
        return np.full((count, size), 1.0 / size, np.float32)

    def _weighed_voxels(
        self, case: PreparedCase, said: Sequence[NDArray[np.float32]]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Right outcomes, and which of the flat outcomes they are: near what anybody calls a segment."""
        codes = np.asarray(case.labels)
        known = codes != IGNORE if case.ignores else np.ones(codes.shape, bool)
        masks = np.stack(
            [(codes == k + 1 if self._exclusive else (codes >> k) & 1) & known for k in range(self.targets.segments)]
        ).astype(bool)
        found = masks.any(axis=0)
        for one in said:
            segments = one[1:] if self._exclusive else one
            found |= (segments >= 0.5).any(axis=0)
        near = binary_dilation(found, iterations=NEAR) & known
        if self._exclusive:
            right, where = np.where(known, codes, 0), near
        else:
            right, where = 1 - masks.astype(np.int64), np.broadcast_to(near, masks.shape)
        places = np.flatnonzero(where)
        picked = places[np.linspace(0, len(places) - 1, min(MOST_VOXELS, len(places))).astype(int)]
        return right.reshape(-1)[picked].astype(np.int64), picked


def _folder_of(recipe: Recipe) -> str:
    """A name for a member's run that tells it from every other one's."""
    told = json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
    return f"{recipe.method.replace(':', '.')}-seed{recipe.seed}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def _weights_sentence(names: Sequence[str], temperatures: Sequence[float], weights: Sequence[float]) -> str:
    each = (f"{n} {w:.2f} (temperature {t:.2f})" for n, w, t in zip(names, weights, temperatures, strict=True))
    return f"Committee: weights learned from labelled scans that were held back: {', '.join(each)}."


def _volumes_sentence(rounds: int, outlined: Sequence[Sequence[float]], found: Sequence[Sequence[float]]) -> str:
    ratios = np.mean(found, axis=0) / np.maximum(np.mean(outlined, axis=0), 1e-9)
    return (
        f"Committee, round {rounds}: the segments of the scans that it labelled have "
        f"{', '.join(f'{r:.2f}' for r in ratios)} times the mean volume of the outlined ones."
    )
