"""Which patch of which scan goes into which batch, and the patches themselves.

A batch is a function of the recipe's seed and the step: nothing is carried from one step to the next but two counters
that can be recomputed. That is what makes a resumed run equal to one that was never interrupted.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from trainer.cases import IGNORE, PreparedCase
from trainer.intensity_augmentation import augment_intensities
from trainer.mapped_arrays import from_file_reference, to_file_reference
from trainer.recipe import Recipe
from trainer.soft_labels import is_soft
from trainer.spatial_augmentation import (
    SourceRegion,
    draw_deformation,
    draw_rotation_and_zoom,
    draw_symmetry,
    patch_faces,
    place_patch,
    read_region,
    resample_patch,
)


@dataclass(frozen=True)
class PatchRequest:
    """One patch to be made: of which scan, on which voxel (None: anywhere), with which random numbers."""

    case_id: str
    labelled: bool
    voxel: tuple[int, int, int] | None
    seed: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Patches of one update; the labelled ones come first.

    Attributes:
        images: float32 (N, C, X, Y, Z).
        labels: int64 (N, X, Y, Z); where a patch is unlabelled its pseudo-label, or zeros when there is none.
        labelled: how many of the N are labelled.
        cases: the scans that the patches were cut from.
        step: the step that the batch belongs to.
        guides: Pseudo-labels of the unlabelled patches, by name of the earlier stage that made them: codes (N, X, Y, Z)
            int64 or soft labels (N, C + 1, X, Y, Z) uint8; zeros where a patch is labelled.
        views: Further views (N, C, X, Y, Z) of the patches by name: the same voxels with other values.
        weights: Weights of the voxels' labels, float32 (N, X, Y, Z): 0 where nobody outlined; None for 1.
        where: float32 (N, 3, 2): where along each axis the patch's two faces lie, as shares of the scan's extent; NaN
            where a turn has made another axis of it.
    """

    images: Tensor
    labels: Tensor
    labelled: int
    cases: tuple[str, ...]
    step: int
    where: Tensor | None = None
    guides: Mapping[str, Tensor] = field(default_factory=dict)
    views: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def label_weights(self) -> Tensor | None:
        """The weights of the labelled patches."""
        return None if self.weights is None else self.weights[: self.labelled]

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; the loader asks for it."""
        return self._with_each(Tensor.pin_memory)

    def parts(self, count: int) -> Iterator[Batch]:
        """Split into ``count`` parts that each hold labelled patches first, in the mixture of the whole."""
        for part in range(count):
            rows = list(range(part, len(self), count))
            yield replace(
                self._with_each(lambda tensor, rows=rows: tensor[rows]),  # type: ignore[misc]
                labelled=sum(row < self.labelled for row in rows),
                cases=tuple(self.cases[row] for row in rows),
            )

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with each of its tensors changed."""
        return replace(
            self,
            images=change(self.images),
            labels=change(self.labels),
            where=None if self.where is None else change(self.where),
            guides={name: change(labels) for name, labels in self.guides.items()},
            views={name: change(images) for name, images in self.views.items()},
            weights=None if self.weights is None else change(self.weights),
        )


@dataclass(frozen=True)
class BatchComposition:
    """How many patches of which kind the batch of a step holds, ``crops`` of each scan that is drawn.

    ``either`` are patches of all training scans, cut anywhere and without a label; a batch counts them as unlabelled.
    """

    labelled: int
    unlabelled: int
    either: int = 0
    crops: int = 1

    def __add__(self, other: BatchComposition) -> BatchComposition:
        """The patches of both."""
        return BatchComposition(
            self.labelled + other.labelled, self.unlabelled + other.unlabelled, self.either + other.either
        )

    @property
    def total(self) -> int:
        """All of them."""
        return self.labelled + self.unlabelled + self.either


_EITHER = 2  # the third pool of a mixture


class PatchSampler:
    """Draws the requests of each step: the scans by shuffled passes over each pool, the places by the recipe."""

    def __init__(
        self, recipe: Recipe, cases: Mapping[str, PreparedCase], labelled: Sequence[str], unlabelled: Sequence[str]
    ) -> None:
        self._recipe = recipe
        self._cases = cases
        self._pools = (tuple(labelled), tuple(unlabelled), (*labelled, *unlabelled))
        self.foreground: dict[str, tuple[NDArray[np.int32], ...]] = {}

    def requests(self, step: int, composition: BatchComposition, before: BatchComposition) -> list[PatchRequest]:
        """The patches of ``step``, labelled first; ``before`` counts what all earlier steps drew.

        The k-th scan from a pool of n is entry k mod n of shuffle k // n: every pass sees each scan once, and a pool
        smaller than the batch is cycled.
        """
        out: list[PatchRequest] = []
        counts = zip(
            (composition.labelled, composition.unlabelled, composition.either),
            (before.labelled, before.unlabelled, before.either),
            strict=True,
        )
        for kind, (count, offset) in enumerate(counts):
            pool = self._pools[kind]
            for k in range(offset, offset + count):
                turn, entry = divmod(k // composition.crops, len(pool))
                shuffle = np.random.default_rng((self._recipe.seed, kind, turn))
                case_id = pool[int(shuffle.permutation(len(pool))[entry])]
                seed = (self._recipe.seed, 2, kind, k)
                random = np.random.default_rng((*seed, 0))
                voxel = None if kind == _EITHER else self._foreground_voxel(self._cases[case_id], random)
                out.append(PatchRequest(case_id, kind == 0, voxel, seed))
        return out

    def _foreground_voxel(self, case: PreparedCase, random: np.random.Generator) -> tuple[int, int, int] | None:
        """A voxel of a segment drawn evenly, or None when the patch may lie anywhere."""
        places = case.segment_voxels or self.foreground.get(case.case_id, ())
        if not places or random.random() >= self._recipe.foreground:
            return None
        of_segment = places[int(random.integers(len(places)))]
        x, y, z = (int(v) for v in of_segment[int(random.integers(len(of_segment)))])
        return (x, y, z)


@dataclass(frozen=True)
class UncutPatch:
    """What a patch is made of, read but not yet cut, turned or bent.

    Attributes:
        request: whose patch it is.
        box: the part of the scan that it needs.
        random: where its further random numbers come from.
        where: see :class:`Batch`, before any mirroring.
    """

    request: PatchRequest
    box: SourceRegion
    random: np.random.Generator
    where: NDArray[np.float64]

    def pin_memory(self) -> UncutPatch:
        """The same in page-locked memory; the loader asks for it."""
        return replace(self, box=self.box.pin_memory())


class PatchSource(Dataset[Any]):
    """Turns requests into patches; runs in the loader's worker processes.

    Args:
        recipe: patch, augmentation and where it is done.
        cases: the prepared scans.
        slice_axis: the axis that in-plane rotations turn about.
        padding: what lies beyond a scan, see :class:`semiseg.bundle.preprocessing.Preprocessing`.
        pseudo: Pseudo-labels of unlabelled scans, by the stage that made them and by scan.
        source: The stage whose pseudo-labels are the labels of unlabelled patches; those of others become guides.
        views: Names of further views of each patch; see :class:`trainer.methods.method.Method`.
        device: makes the patches, when the recipe leaves them to it; else they are made where they are read.
    """

    def __init__(
        self,
        recipe: Recipe,
        cases: Mapping[str, PreparedCase],
        slice_axis: int,
        padding: str,
        pseudo: Mapping[str, Mapping[str, NDArray[np.uint8]]] | None = None,
        source: str = "",
        device: torch.device | None = None,
        views: Sequence[str] = (),
    ) -> None:
        self._pseudo = pseudo or {}
        self._source = source
        self._views = tuple(views)
        self._weighted = bool(recipe.scan_weights) or any(case.has_ignored_voxels for case in cases.values())
        self._guides = tuple(name for name in self._pseudo if name != source)
        self._recipe = recipe
        self._cases = cases
        self._slice_axis = slice_axis
        self._padding = padding
        self._device = device if recipe.augment_on == "device" else None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_pseudo": _each(to_file_reference, self._pseudo)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _pseudo=_each(from_file_reference, state["_pseudo"]))

    def __getitem__(self, request: PatchRequest) -> dict[str, Any] | UncutPatch:
        """The patch of ``request``, or what the device makes it of."""
        draft = self.read(request)
        return draft if self._device is not None else self.make(draft)

    def read(self, request: PatchRequest) -> UncutPatch:
        """Decide where the patch lies and read that part of the scan."""
        case = self._cases[request.case_id]
        random = np.random.default_rng((*request.seed, 1))
        patch = self._recipe.size()
        turn = draw_rotation_and_zoom(self._recipe.augmentation, self._slice_axis, random)
        cut = place_patch(
            case.shape, patch, turn, case.spacing, request.voxel, np.random.default_rng((*request.seed, 2))
        )
        cut = replace(cut, control=draw_deformation(self._recipe.augmentation, patch, case.spacing, random))
        # Beyond the scan there is no reference: with repeated borders the labels repeat too, else background.
        wanted = [one for maps in self._maps(request) for one in maps]
        return UncutPatch(
            request, read_region(case.image, wanted, cut, patch), random, patch_faces(cut, patch, case.shape)
        )

    def _maps(self, request: PatchRequest) -> list[list[NDArray[np.uint8]]]:
        """The maps (X, Y, Z) of a scan: its labels or the current pseudo-labels, and then those of each guide.

        Codes are one map, soft labels several, and what there is not is none.
        """
        if request.labelled:
            own = self._cases[request.case_id].labels
            return [[] if own is None else [own], *([] for _ in self._guides)]
        found = (self._pseudo.get(name, {}).get(request.case_id) for name in (self._source, *self._guides))
        return [[] if one is None else list(one) if is_soft(one) else [one] for one in found]

    def make(self, draft: UncutPatch) -> dict[str, Any]:
        """The patch: image float32 (C, X, Y, Z), labels int64 (X, Y, Z), and what :class:`Batch` says of each guide."""
        request, random, augmentation = draft.request, draft.random, self._recipe.augmentation
        box = draft.box if self._device is None else draft.box.to(self._device)
        patch = self._recipe.size()
        image, found = resample_patch(box, patch, self._padding)
        symmetry = draw_symmetry(augmentation, self._slice_axis, patch, random)
        image, found = symmetry.apply(image), symmetry.apply(found)
        where = symmetry.apply_to_faces(torch.from_numpy(draft.where).float())
        image = augment_intensities(image, augmentation, random)
        # A stream of its own, so that a patch is the same whether or not it has further views.
        other = np.random.default_rng((*request.seed, 3))
        views = {name: augment_intensities(image, self._recipe.strong_augmentation, other) for name in self._views}
        own, *others = found.split([len(maps) for maps in self._maps(request)])
        labels = own[0].long() if len(own) else torch.zeros(patch, dtype=torch.long, device=image.device)
        guides = [self._guide(name, maps, labels) for name, maps in zip(self._guides, others, strict=True)]
        known = labels != IGNORE if request.labelled and self._cases[request.case_id].has_ignored_voxels else None
        if known is not None:
            labels = labels * known
        weights: dict[str, Tensor] = {}
        if self._weighted:
            weight = self._recipe.scan_weights.get(request.case_id, 1.0)
            all_alike = torch.full(tuple(image.shape[1:]), weight, device=image.device)
            weights["weights"] = all_alike if known is None else all_alike * known
        return {
            "image": image,
            "views": views,
            **weights,
            "labels": labels,
            "guides": dict(zip(self._guides, guides, strict=True)),
            "case": request.case_id,
            "labelled": request.labelled,
            "where": where,
        }

    def _guide(self, name: str, maps: Tensor, like: Tensor) -> Tensor:
        """The pseudo-labels of a stage, of ``maps`` (K, X, Y, Z); zeros for none."""
        example = next(iter(self._pseudo[name].values()), None)
        if example is None or not is_soft(example):
            return maps[0].long() if len(maps) else torch.zeros_like(like)
        soft = maps if len(maps) else torch.zeros((len(example), *like.shape), device=like.device)
        return soft.to(torch.uint8)


class _Steps(Sampler[list[PatchRequest]]):
    """Hands the loader one list of requests per step, drawn when the loader asks."""

    def __init__(self, steps: Iterable[list[PatchRequest]]) -> None:
        self._steps = steps

    def __iter__(self) -> Iterator[list[PatchRequest]]:
        return iter(self._steps)


def load_batches(
    source: PatchSource, steps: Iterable[list[PatchRequest]], first_step: int, workers: int, pin_memory: bool
) -> Iterator[Batch]:
    """The batches of consecutive steps, made ahead of time by ``workers`` processes (0: in this one)."""
    if workers and multiprocessing.get_start_method() == "forkserver":
        # The server imports torch once, and forks each worker of every loader in no time.
        multiprocessing.set_forkserver_preload([__name__])
    loader: DataLoader[Any] = DataLoader(
        source, batch_sampler=_Steps(steps), num_workers=workers, collate_fn=_collate, pin_memory=pin_memory
    )
    for step, found in enumerate(loader, start=first_step):
        made = found if isinstance(found, Batch) else _stack([source.make(draft) for draft in found])
        yield replace(made, step=step)


def _collate(samples: list[Any]) -> Any:
    """Patches become one batch where they were made; drafts go as they are to the device that will make them."""
    return samples if isinstance(samples[0], UncutPatch) else _stack(samples)


def _stack(samples: list[dict[str, Any]]) -> Batch:
    return Batch(
        images=torch.stack([s["image"] for s in samples]),
        labels=torch.stack([s["labels"] for s in samples]),
        labelled=sum(s["labelled"] for s in samples),
        cases=tuple(s["case"] for s in samples),
        step=0,
        where=torch.stack([s["where"] for s in samples]),
        guides={name: torch.stack([s["guides"][name] for s in samples]) for name in samples[0]["guides"]},
        views={name: torch.stack([s["views"][name] for s in samples]) for name in samples[0]["views"]},
        weights=torch.stack([s["weights"] for s in samples]) if "weights" in samples[0] else None,
    )


def _each(change: Callable[[Any], Any], pseudo: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {source: {case: change(labels) for case, labels in of.items()} for source, of in pseudo.items()}
