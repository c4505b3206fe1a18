"""The comparative and the contrastive loss: known values, the triple loop, and which slices are compared."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainer.slice_similarity import (
    SliceFeatures,
    comparative_loss,
    contrastive_loss,
    slice_positions_in_body,
    slice_positions_in_patch,
    take_slices,
)

PATCHES, PARTS = 4, 4


def slices(values: Tensor | None = None, seed: int = 0, channels: int = 3) -> SliceFeatures:
    """One slice of each of four parts in each of four patches."""
    if values is None:
        values = torch.randn((16, channels, 10), generator=torch.Generator().manual_seed(seed))
    number = torch.arange(16)
    return SliceFeatures(values, patch=number // PARTS, scan=number // PARTS, part=number % PARTS)


def listed(s: SliceFeatures, kind: str) -> list[tuple[int, int, int]]:
    """The triplets by loops."""
    patch, part = s.patch.tolist(), s.part.tolist()
    out = []
    for r, a, d in itertools.product(range(len(patch)), repeat=3):
        similar = part[r] == part[a] and patch[r] != patch[a]
        if similar and part[d] != part[r] and (kind == "all" or patch[d] == patch[r]):
            out.append((r, a, d))
    return out


def naive(s: SliceFeatures, kind: str, loss: str, temperature: float) -> float:
    """Every cosine anew, one by one, as the released code has it."""

    def cosine(i: int, j: int) -> Tensor:
        return functional.cosine_similarity(s.values[i], s.values[j], dim=-1) / temperature

    triplets = listed(s, kind)
    total = torch.zeros(s.values.shape[1])
    if loss == "comparative":
        for r, a, d in triplets:
            total += torch.log(1 + torch.exp(cosine(r, d) - cosine(r, a)))
    elif loss == "released":
        for r, a, _ in triplets:
            below = sum(torch.exp(cosine(r, d)) for _, _, d in triplets)
            total -= torch.log(torch.exp(cosine(r, a)) / (torch.exp(cosine(r, a)) + below))
    else:
        for r, a in dict.fromkeys((r, a) for r, a, _ in triplets):
            below = sum(torch.exp(cosine(r, d)) for q, b, d in triplets if (q, b) == (r, a))
            total -= torch.log(torch.exp(cosine(r, a)) / (torch.exp(cosine(r, a)) + below))
    return float(total.mean())


# --- the losses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "count"), [("all", 576), ("same_scan", 144)])
def test_how_many_triplets_there_are(kind: str, count: int) -> None:
    """P (4 x 3) 4 (P - 1) as released, P (4 x 3) (P - 1) as Eq. 2 is printed."""
    s = slices()
    mask = s.triplets(kind)  # type: ignore[arg-type]
    assert int(mask.sum()) == count
    assert {tuple(t) for t in mask.nonzero().tolist()} == set(listed(s, kind))


def test_two_crops_of_one_scan_are_alike_as_released_but_not_as_printed() -> None:
    # Patches 0 and 1 are of scan 0, patch 2 is of scan 1; each shows two parts.
    patch, scan = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 0, 0, 0, 1, 1])
    s = SliceFeatures(torch.randn(6, 1, 4), patch, scan, torch.tensor([0, 1, 0, 1, 0, 1]))
    everything = {tuple(t) for t in s.triplets("all").nonzero().tolist()}
    printed = {tuple(t) for t in s.triplets("same_scan").nonzero().tolist()}
    assert (0, 2, 1) in everything - printed, "similar: two crops of one scan"
    assert (0, 4, 5) in everything - printed, "dissimilar: of another scan"
    assert {(0, 4, 1), (0, 4, 3)} <= printed, "dissimilar: either crop of the reference's scan"
    assert printed < everything


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equal_slices_cost_what_chance_costs(temperature: float) -> None:
    s = slices(torch.ones(16, 2, 10))
    similarity = s.similarity(temperature)
    assert float(comparative_loss(similarity, s.triplets("all"))) / 576 == pytest.approx(math.log(2), rel=1e-6)
    printed = contrastive_loss(similarity, s.triplets("same_scan"), released=False)
    assert float(printed) / 48 == pytest.approx(math.log(PARTS), rel=1e-6)
    released = contrastive_loss(similarity, s.triplets("all"), released=True)
    assert float(released) / 576 == pytest.approx(math.log(577), rel=1e-6)


def test_slices_that_are_quite_apart_cost_nearly_nothing() -> None:
    def cost(similar: float, dissimilar: float, temperature: float) -> float:
        """One reference, one similar and one dissimilar slice."""
        values = torch.tensor([[[1.0]], [[similar]], [[dissimilar]]])
        of = torch.tensor([0, 1, 0])
        s = SliceFeatures(values, patch=of, scan=of, part=torch.tensor([0, 0, 1]))
        mask = s.triplets("same_scan")
        assert int(mask.sum()) == 1
        return float(comparative_loss(s.similarity(temperature).double(), mask))

    assert cost(1.0, -1.0, 0.1) == pytest.approx(math.log1p(math.exp(-20)), rel=1e-4)
    assert cost(1.0, -1.0, 1.0) == pytest.approx(0.126928, rel=1e-5)
    assert cost(-1.0, 1.0, 1.0) == pytest.approx(2.126928, rel=1e-5)


@pytest.mark.parametrize("loss", ["comparative", "printed"])
@pytest.mark.parametrize("kind", ["all", "same_scan"])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_one_matrix_gives_what_the_loops_give(loss: str, kind: str, temperature: float) -> None:
    s = slices(channels=2)
    similarity, mask = s.similarity(temperature), s.triplets(kind)  # type: ignore[arg-type]
    comparative = loss == "comparative"
    found = comparative_loss(similarity, mask) if comparative else contrastive_loss(similarity, mask, released=False)
    assert float(found) == pytest.approx(naive(s, kind, loss, temperature), rel=1e-5)


def test_the_released_denominator_is_that_of_the_loops() -> None:
    number = torch.arange(6)  # three patches of two parts: small enough for its loops of loops
    values = torch.randn((6, 2, 10), generator=torch.Generator().manual_seed(1))
    s = SliceFeatures(values, patch=number // 2, scan=number // 2, part=number % 2)
    found = contrastive_loss(s.similarity(0.5), s.triplets("all"), released=True)
    assert float(found) == pytest.approx(naive(s, "all", "released", 0.5), rel=1e-5)


def test_the_length_of_a_slice_does_not_matter() -> None:
    s = slices()
    longer = slices(s.values * torch.linspace(0.1, 9, 16)[:, None, None])
    for released in (True, False):
        one, other = (contrastive_loss(x.similarity(0.1), x.triplets("all"), released=released) for x in (s, longer))
        torch.testing.assert_close(one, other)
    one, other = (comparative_loss(x.similarity(0.1), x.triplets("all")) for x in (s, longer))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("loss", ["comparative", "printed", "released"])
def test_a_step_along_the_gradient_separates_the_parts(loss: str) -> None:
    values = torch.randn((16, 2, 10), generator=torch.Generator().manual_seed(2)).requires_grad_()

    def cost() -> Tensor:
        s = slices(values)
        if loss == "comparative":
            return comparative_loss(s.similarity(0.5), s.triplets("all"))
        return contrastive_loss(s.similarity(0.5), s.triplets("all"), released=loss == "released")

    def gap() -> float:
        s = slices(values.detach())
        cosines = s.similarity(1.0).mean(dim=0)
        same = s.part[:, None] == s.part[None]
        return float(cosines[same].mean() - cosines[~same].mean())

    before = gap()
    for _ in range(20):
        (gradient,) = torch.autograd.grad(cost(), values)
        values = (values - 0.3 * gradient / gradient.norm()).detach().requires_grad_()
    assert gap() > before + 0.05


def test_with_nothing_to_compare_the_losses_are_zero_with_a_finite_gradient() -> None:
    values = torch.randn(3, 2, 5).requires_grad_()
    s = SliceFeatures(values, torch.zeros(3), torch.zeros(3), torch.tensor([0, 1, 2]))  # one patch alone
    total = comparative_loss(s.similarity(0.1), s.triplets("all"))
    for released in (True, False):
        total = total + contrastive_loss(s.similarity(0.1), s.triplets("all"), released=released)
    assert float(total.detach()) == 0
    (gradient,) = torch.autograd.grad(total, values)
    assert float(gradient.abs().max()) == 0


# --- which slices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, 12, 16, 30])
@pytest.mark.parametrize("offset", [0.0, 0.4, 0.999])
def test_as_released_there_is_one_slice_in_each_part_of_the_patch_at_one_offset(count: int, offset: float) -> None:
    at = slice_positions_in_patch(count, 4, 3, offset)
    assert at.shape == (3, 4)
    assert bool((at == at[0]).all())
    length = count // 4
    assert at[0].tolist() == [int(offset * length) + k * length for k in range(4)]
    assert int(at.max()) < count


def test_in_the_body_slices_of_one_part_come_from_one_place() -> None:
    # The first patch is the lower half of its scan, the second all of it, the third all of it, mirrored.
    where = torch.tensor([[0.0, 0.5], [0.0, 1.0], [1.0, 0.0]])
    at = slice_positions_in_body(where, 8, 4, 0.5)
    assert at.tolist() == [[2, 6, -1, -1], [1, 3, 5, 7], [7, 5, 3, 1]]
    for row, (low, high) in zip(at.tolist(), where.tolist(), strict=True):
        for part, index in enumerate(row):
            place = (part + 0.5) / 4
            if index < 0:
                assert not min(low, high) <= place < max(low, high)
            else:
                assert abs(low + (high - low) * (index + 0.5) / 8 - place) <= abs(high - low) / 16 + 1e-6


def test_a_patch_that_leaves_its_scan_is_compared_inside_it_only() -> None:
    at = slice_positions_in_body(torch.tensor([[-0.5, 1.5]]), 8, 4, 0.0)
    assert at.tolist() == [[2, 3, 4, 5]]
    assert slice_positions_in_body(torch.full((1, 2), torch.nan), 8, 4, 0.0).tolist() == [[-1] * 4]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_taken_across_the_axis(axis: int) -> None:
    features = torch.randn(2, 3, 4, 5, 6)
    at = torch.tensor([[1, -1], [0, 3]])
    s = take_slices(features, axis, at, torch.tensor([7, 5]))
    assert s.patch.tolist() == [0, 1, 1]
    assert s.scan.tolist() == [7, 5, 5]
    assert s.part.tolist() == [0, 0, 1]
    for row, (n, k) in enumerate(((0, 1), (1, 0), (1, 3))):
        assert torch.equal(s.values[row], features[n].select(1 + axis, k).flatten(1))
