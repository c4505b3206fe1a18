"""Sampling of patches from scans, and their composition into batches.

A batch is a function of the recipe's seed and the step. The only state between steps is the numbers of patches drawn
so far, which can be recomputed. A resumed run is therefore identical to one that was never interrupted.
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
    """Request for one patch.

    Attributes:
        case_id: Name of the scan.
        labelled: True if the labels of the scan are used.
        voxel: Voxel that the patch has to contain; None for any position.
        seed: Seed of the random numbers of the patch.
    """

    case_id: str
    labelled: bool
    voxel: tuple[int, int, int] | None
    seed: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Patches of one update; the labelled ones come first.

    Attributes:
        images: Images float32 (N, C, X, Y, Z).
        labels: Labels int64 (N, X, Y, Z): for an unlabelled patch its pseudo-label, or zeros if there is none.
        labelled: Number of labelled patches.
        cases: Names of the scans that the patches were cut from.
        step: Step that the batch belongs to.
        guides: Pseudo-labels of the unlabelled patches, by the name of the earlier stage that made them, as codes
            (N, X, Y, Z) int64 or soft labels (N, C + 1, X, Y, Z) uint8. They are zero for labelled patches.
        views: Further views (N, C, X, Y, Z) of the patches by name, with the same voxels and other values.
        weights: Weights float32 (N, X, Y, Z) of the voxels' labels, which are 0 where the label is unknown; None for 1.
        where: Positions float32 (N, 3, 2) of the patch's two faces along each axis, as shares of the scan's extent; NaN
            for an axis that a rotation by 90 degrees has exchanged with another one.
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
        """The weights of the labelled patches, or None."""
        return None if self.weights is None else self.weights[: self.labelled]

    def to(self, device: torch.device) -> Batch:
        """Copy the batch to a device."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Copy the batch to page-locked memory; the data loader calls this."""
        return self._with_each(Tensor.pin_memory)

    def parts(self, count: int) -> Iterator[Batch]:
        """Split into ``count`` parts with about the same share of labelled patches, which come first in each part."""
        for part in range(count):
            rows = list(range(part, len(self), count))
            yield replace(
                self._with_each(lambda tensor, rows=rows: tensor[rows]),  # type: ignore[misc]
                labelled=sum(row < self.labelled for row in rows),
                cases=tuple(self.cases[row] for row in rows),
            )

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return a copy of the batch with each of its tensors changed."""
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
    """Numbers of patches in the batch of a step.

    Attributes:
        labelled: Number of labelled patches.
        unlabelled: Number of unlabelled patches.
        either: Number of patches of any training scan, cut anywhere and without a label; a batch counts them as
            unlabelled.
        crops: Number of patches cut from each scan that is drawn.
    """

    labelled: int
    unlabelled: int
    either: int = 0
    crops: int = 1

    def __add__(self, other: BatchComposition) -> BatchComposition:
        """Add the numbers of patches."""
        return BatchComposition(
            self.labelled + other.labelled, self.unlabelled + other.unlabelled, self.either + other.either
        )

    @property
    def total(self) -> int:
        """The number of all patches."""
        return self.labelled + self.unlabelled + self.either


_EITHER = 2  # index of the pool of all training scans


class PatchSampler:
    """Sampler of the patch requests of each step: scans in shuffled passes over each pool, positions by the recipe."""

    def __init__(
        self, recipe: Recipe, cases: Mapping[str, PreparedCase], labelled: Sequence[str], unlabelled: Sequence[str]
    ) -> None:
        self._recipe = recipe
        self._cases = cases
        self._pools = (tuple(labelled), tuple(unlabelled), (*labelled, *unlabelled))
        self.foreground: dict[str, tuple[NDArray[np.int32], ...]] = {}

    def requests(self, step: int, composition: BatchComposition, before: BatchComposition) -> list[PatchRequest]:
        """Return the requests of ``step``, labelled ones first.

        The k-th scan from a pool of n is entry k mod n of shuffle k // n. Each pass contains each scan once, and a pool
        smaller than the batch is cycled.

        Args:
            step: The step.
            composition: Numbers of patches of this step.
            before: Numbers of patches of all earlier steps together.
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
        """Draw a segment uniformly and a voxel in it, or None if the patch may be anywhere."""
        places = case.segment_voxels or self.foreground.get(case.case_id, ())
        if not places or random.random() >= self._recipe.foreground:
            return None
        of_segment = places[int(random.integers(len(places)))]
        x, y, z = (int(v) for v in of_segment[int(random.integers(len(of_segment)))])
        return (x, y, z)


@dataclass(frozen=True)
class UncutPatch:
    """Data of a patch that was read but not yet cut, rotated or deformed.

    Attributes:
        request: Request of the patch.
        box: Part of the scan that the patch needs.
        random: Generator of the patch's further random numbers.
        where: Positions of the faces as in :class:`Batch`, before mirroring and rotations by 90 degrees.
    """

    request: PatchRequest
    box: SourceRegion
    random: np.random.Generator
    where: NDArray[np.float64]

    def pin_memory(self) -> UncutPatch:
        """Copy the data to page-locked memory; the data loader calls this."""
        return replace(self, box=self.box.pin_memory())


class PatchSource(Dataset[Any]):
    """Dataset that makes patches from requests in the data loader's worker processes.

    Args:
        recipe: Recipe with the patch size and the augmentation.
        cases: The preprocessed scans.
        slice_axis: Axis of in-plane rotations.
        padding: Values outside a scan, see :class:`semiseg.bundle.preprocessing.Preprocessing`.
        pseudo: Pseudo-labels of unlabelled scans, by the stage that made them and by scan.
        source: Stage whose pseudo-labels are the labels of unlabelled patches; those of other stages become guides.
        views: Names of further views of each patch; see :class:`trainer.methods.method.Method`.
        device: Device that makes the patches if the recipe has ``augment_on: device``; otherwise, patches are made by
            the process that reads them.
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
        """Return the patch of ``request``, or its uncut data if the device makes the patches."""
        draft = self.read(request)
        return draft if self._device is not None else self.make(draft)

    def read(self, request: PatchRequest) -> UncutPatch:
        """Determine the position of the patch and read that part of the scan."""
        case = self._cases[request.case_id]
        random = np.random.default_rng((*request.seed, 1))
        patch = self._recipe.size()
        turn = draw_rotation_and_zoom(self._recipe.augmentation, self._slice_axis, random)
        cut = place_patch(
            case.shape, patch, turn, case.spacing, request.voxel, np.random.default_rng((*request.seed, 2))
        )
        cut = replace(cut, control=draw_deformation(self._recipe.augmentation, patch, case.spacing, random))
        # Outside the scan, labels are padded as the image is: with border values, or with zeros (background).
        wanted = [one for maps in self._maps(request) for one in maps]
        return UncutPatch(
            request, read_region(case.image, wanted, cut, patch), random, patch_faces(cut, patch, case.shape)
        )

    def _maps(self, request: PatchRequest) -> list[list[NDArray[np.uint8]]]:
        """Return the maps (X, Y, Z) of a scan: its labels or current pseudo-labels, and then those of each guide.

        Codes are one map, soft labels are several maps, and missing labels are an empty list.
        """
        if request.labelled:
            own = self._cases[request.case_id].labels
            return [[] if own is None else [own], *([] for _ in self._guides)]
        found = (self._pseudo.get(name, {}).get(request.case_id) for name in (self._source, *self._guides))
        return [[] if one is None else list(one) if is_soft(one) else [one] for one in found]

    def make(self, draft: UncutPatch) -> dict[str, Any]:
        """Make the patch: image float32 (C, X, Y, Z), labels int64 (X, Y, Z), and guides as in :class:`Batch`."""
        request, random, augmentation = draft.request, draft.random, self._recipe.augmentation
        box = draft.box if self._device is None else draft.box.to(self._device)
        patch = self._recipe.size()
        image, found = resample_patch(box, patch, self._padding)
        symmetry = draw_symmetry(augmentation, self._slice_axis, patch, random)
        image, found = symmetry.apply(image), symmetry.apply(found)
        where = symmetry.apply_to_faces(torch.from_numpy(draft.where).float())
        image = augment_intensities(image, augmentation, random)
        # A separate generator, so that the patch does not depend on whether it has further views.
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
        """Return the pseudo-labels of a stage from ``maps`` (K, X, Y, Z); zeros if there are no maps."""
        example = next(iter(self._pseudo[name].values()), None)
        if example is None or not is_soft(example):
            return maps[0].long() if len(maps) else torch.zeros_like(like)
        soft = maps if len(maps) else torch.zeros((len(example), *like.shape), device=like.device)
        return soft.to(torch.uint8)


class _Steps(Sampler[list[PatchRequest]]):
    """Batch sampler with one list of requests per step, drawn when the data loader needs them."""

    def __init__(self, steps: Iterable[list[PatchRequest]]) -> None:
        self._steps = steps

    def __iter__(self) -> Iterator[list[PatchRequest]]:
        return iter(self._steps)


def load_batches(
    source: PatchSource, steps: Iterable[list[PatchRequest]], first_step: int, workers: int, pin_memory: bool
) -> Iterator[Batch]:
    """Yield the batches of consecutive steps, made ahead of time by ``workers`` processes, or by this one if 0."""
    if workers and multiprocessing.get_start_method() == "forkserver":
        # The server imports torch once, so that forking the workers of each loader is fast.
        multiprocessing.set_forkserver_preload([__name__])
    loader: DataLoader[Any] = DataLoader(
        source, batch_sampler=_Steps(steps), num_workers=workers, collate_fn=_collate, pin_memory=pin_memory
    )
    for step, found in enumerate(loader, start=first_step):
        made = found if isinstance(found, Batch) else _stack([source.make(draft) for draft in found])
        yield replace(made, step=step)


def _collate(samples: list[Any]) -> Any:
    """Stack patches into a batch; return uncut patches unchanged, for the device that makes them."""
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
