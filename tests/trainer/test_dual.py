"""Dual Networks: each term is the paper's equation, and each has a gradient where the paper means it to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from semiseg.dataset import Dataset
from tests.trainer.factories import (
    PARTNER_NETWORK,
    load_run_weights,
    make_batch,
    make_recipe_for,
    train_on_cpu,
    write_phantoms,
)
from trainer.engine import network_from_manifest
from trainer.errors import RecipeError
from trainer.methods import make_method
from trainer.methods.dual import Dual, contrastive
from trainer.methods.method import SegmentationTask
from trainer.network_configs import count_parameters, patch_divisor
from trainer.networks.ensemble import NetworkEnsemble
from trainer.patches import Batch
from trainer.targets import ExclusiveClasses, OverlappingRegions, Targets

ONE, TWO, REGIONS = ExclusiveClasses(1), ExclusiveClasses(2), OverlappingRegions(2)


def dual(targets: Targets = TWO, changes: dict[str, Any] | None = None, **switches: Any) -> Dual:
    method = make_method(make_recipe_for("dual", changes, **switches), SegmentationTask(1, targets, 2, 4, 12))
    assert isinstance(method, Dual)
    return method


def networks_of(method: Dual) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return method.build()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slope(term: Tensor, network: nn.Module) -> float:
    """The largest gradient that a term gives a network."""
    found = torch.autograd.grad(term, list(network.parameters()), allow_unused=True, retain_graph=True)
    return max((float(g.abs().max()) for g in found if g is not None), default=0.0)


# --- T1, T2: which voxels count, and what they cost ---------------------------------------------------------------


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 1.0])
def test_a_network_calls_its_share_of_the_voxels_certain(share: float) -> None:
    p = torch.softmax(3 * noise(1, 3, 5, 5, 5), dim=1)
    kept = dual(keep_quantile=share).certain(p)
    assert int(kept.sum()) == math.ceil(share * 125)
    entropy = TWO.entropy(p)
    assert float(entropy[kept].max()) <= float(entropy[~kept].min() if (~kept).any() else 1.0)


def test_a_voxel_is_ignored_only_where_both_networks_are_uncertain() -> None:
    sure, torn = (0.99, 0.01), (0.55, 0.45)
    a = torch.tensor([[sure, sure], [torn, torn]]).permute(2, 0, 1)[None, ..., None]  # a 2x2 map
    b = torch.tensor([[sure, torn], [sure, torn]]).permute(2, 0, 1)[None, ..., None]
    kept = dual(ONE, keep_quantile=0.5).certain(a, b)
    assert kept[0, :, :, 0].tolist() == [[True, True], [True, False]]


def test_the_pseudo_labelled_term_is_both_networks_cross_entropy_on_certain_voxels() -> None:
    method = dual()
    logits = {"student": noise(3, 3, 4, 4, 4), "partner": noise(3, 3, 4, 4, 4, seed=1)}
    pseudo = torch.randint(0, 3, (2, 4, 4, 4), generator=torch.Generator().manual_seed(2))
    kept = noise(2, 4, 4, 4, seed=3) > 0
    ignored = pseudo.where(kept, torch.tensor(255))
    expected = sum(functional.cross_entropy(y[1:], ignored, ignore_index=255) for y in logits.values())
    torch.testing.assert_close(method.semi(logits, 1, pseudo, kept), expected)


def test_without_a_certain_voxel_the_pseudo_labelled_term_is_zero() -> None:
    method = dual()
    logits = {"student": noise(2, 3, 4, 4, 4).requires_grad_(), "partner": noise(2, 3, 4, 4, 4, seed=1)}
    nothing = torch.zeros((2, 4, 4, 4), dtype=torch.bool)
    assert float(method.semi(logits, 0, nothing.long(), nothing).detach()) == 0


# --- T3, T4: agreement of the two predictions ---------------------------------------------------------------------


def test_disagreement_is_zero_for_equal_and_one_for_orthogonal_predictions() -> None:
    p = torch.softmax(noise(2, 3, 4, 4, 4), dim=1)
    assert float(dual().disagreement(p, p)) == pytest.approx(0, abs=1e-6)
    a, b = (TWO.encode(torch.full((1, 4, 4, 4), c)) for c in (0, 2))
    assert float(dual().disagreement(a, b)) == pytest.approx(1)
    a, b = (REGIONS.encode(torch.full((1, 4, 4, 4), c)) for c in (0, 3))
    assert float(dual(REGIONS).disagreement(a, b)) == pytest.approx(1)
    a, b = (REGIONS.encode(torch.full((1, 4, 4, 4), c)) for c in (1, 3))
    assert float(dual(REGIONS).disagreement(a, b)) == pytest.approx(0.5), "one of two regions agrees"


def test_where_both_say_the_same_the_uncertainty_term_is_plain_cross_entropy() -> None:
    y = noise(2, 3, 4, 4, 4)
    torch.testing.assert_close(dual().uncertainty(y, y), functional.cross_entropy(y, y.argmax(1)))
    y = noise(2, 2, 4, 4, 4)
    own = (y >= 0).float()
    torch.testing.assert_close(
        dual(REGIONS).uncertainty(y, y), functional.binary_cross_entropy_with_logits(y, own), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("soft", [False, True])
def test_the_uncertainty_term_written_out(soft: bool) -> None:
    learner, teacher = noise(2, 3, 4, 4, 4), 2 * noise(2, 3, 4, 4, 4, seed=1)
    p = torch.softmax(teacher, 1)
    apart = (p * (p.log() - torch.log_softmax(learner, 1))).sum(1)
    target = torch.softmax(teacher / 0.5, 1) if soft else functional.one_hot(teacher.argmax(1), 3).movedim(-1, 1)
    crossed = -(target * torch.log_softmax(learner, 1)).sum(1)
    assert 0 < float(torch.exp(-apart).min()) <= float(torch.exp(-apart).max()) <= 1
    expected = (torch.exp(-apart) * crossed).mean() + apart.mean()
    torch.testing.assert_close(dual(soft_targets=soft).uncertainty(learner, teacher), expected)
    hotter = dual(soft_targets=soft, temperature=2.0).uncertainty(learner, teacher)
    assert (float(hotter) == pytest.approx(float(expected))) is not soft, "the temperature matters to soft targets"


# --- T5: features -------------------------------------------------------------------------------------------------


def test_features_at_their_prototypes_are_attracted_no_further() -> None:
    where = torch.tensor([0, 1, 0, 1])
    kept = torch.tensor([True, True, False, False])
    features = torch.eye(4)[where].requires_grad_()
    away = contrastive(features, where, kept, where, 2, True)
    between = math.sqrt(2)  # two orthogonal prototypes
    assert float(away.detach()) == pytest.approx(-between, abs=1e-6)
    together = contrastive(features, where, kept, where, 2, False)
    assert float(together.detach()) == pytest.approx(between, abs=1e-6)
    (gradient,) = torch.autograd.grad(away, features)
    assert bool(torch.isfinite(gradient).all())


def test_prototypes_are_pushed_apart_as_the_text_says_or_pulled_together_as_the_code_does() -> None:
    where = torch.tensor([0, 1, 0, 1])[None]
    kept = torch.tensor([True, True, False, False])[None]
    features = torch.eye(4)[:, where[0]][None]
    apart, together = (
        float(dual(ONE, prototypes=p).contrast(features, where, kept, where)) for p in ("apart", "together")
    )
    assert apart == pytest.approx(-together) and together == pytest.approx(math.sqrt(2), abs=1e-6)


def test_uncertain_features_are_measured_to_the_prototype_of_their_own_class() -> None:
    f = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [5.0, 5.0], [0.0, -1.0]])
    pseudo, kept = torch.tensor([0, 0, 1, 0, 0]), torch.tensor([True, True, True, False, False])
    own = torch.tensor([0, 0, 1, 1, 0])
    half = math.sqrt(0.5)
    to_one = math.dist((half, half), (0, 1))
    to_zero = math.dist((0, -1), (1, 0))
    expected = to_one + to_zero - math.dist((1, 0), (0, 1))
    assert float(contrastive(f, pseudo, kept, own, 2, True)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("missing", ["candidates", "class"])
def test_without_candidates_or_a_second_class_the_feature_term_is_zero(missing: str) -> None:
    features = noise(6, 4).requires_grad_()
    kept = torch.tensor([True] * 6 if missing == "candidates" else [True, True, True, False, False, False])
    pseudo = torch.tensor([0, 1, 0, 1, 0, 1] if missing == "candidates" else [0, 0, 0, 1, 1, 1])
    value = contrastive(features, pseudo, kept, pseudo, 2, True)
    assert float(value.detach()) == 0
    (gradient,) = torch.autograd.grad(value, features)
    assert float(gradient.abs().max()) == 0


# --- T6: who teaches ----------------------------------------------------------------------------------------------


def test_the_network_that_knows_the_labels_better_teaches_and_swapping_them_swaps_the_roles() -> None:
    method, batch = dual(), make_batch(2, 2)
    good = torch.cat([TWO.encode(batch.labels[:2]), torch.zeros(2, 3, 8, 8, 8)])
    bad = torch.full_like(good, 1 / 3)
    assert method.roles({"student": good, "partner": bad}, batch) == ("student", "partner")
    assert method.roles({"student": bad, "partner": good}, batch) == ("partner", "student")
    assert dual(teacher="student").roles({"student": bad, "partner": good}, batch) == ("student", "partner")


# --- the whole loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confident", [0.6, 0.9])
def test_the_supervised_term_written_out(confident: float) -> None:
    batch = make_batch(2, 2, outputs=2)
    logits = {"student": 3 * noise(4, 2, 8, 8, 8), "partner": 3 * noise(4, 2, 8, 8, 8, seed=1)}
    p = {name: torch.softmax(y, 1) for name, y in logits.items()}
    y = batch.labels[:2].float()
    wrong = (p["student"][:2, 1] >= confident) ^ (p["partner"][:2, 1] >= confident)
    assert 0 < float(wrong.float().mean()) < 1
    equation_2 = of_the_code = torch.zeros(())
    for name in logits:
        f = p[name][:2, 1]
        dice = 1 - 2 * (f * y).sum() / ((f * f).sum() + (y * y).sum())
        equation_2 = equation_2 + functional.cross_entropy(logits[name][:2], batch.labels[:2]) + dice
        of_the_code = of_the_code + 0.5 * ((f - y) ** 2)[wrong].mean()
    torch.testing.assert_close(dual(ONE, confident=confident).supervised(logits, p, batch), equation_2)
    released = dual(ONE, confident=confident, mistake_weight=0.5)
    torch.testing.assert_close(released.supervised(logits, p, batch), equation_2 + of_the_code)


def terms_of(method: Dual, networks: dict[str, nn.Module], batch: Batch, update: int = 4) -> dict[str, Tensor]:
    return method.loss(networks, batch, method.step_plan(update))


def only(term: str, targets: Targets = TWO, **switches: Any) -> Dual:
    """A method with one of the four weights, and no supervision to hide behind."""
    weights = {f"weight_{name}": float(name == term) for name in ("semi", "reg", "unc", "con")}
    return dual(targets, {"updates": 4}, **{**weights, **switches})


@pytest.mark.parametrize("term", ["semi", "con", "unc", "reg"])
def test_every_unlabelled_term_trains_the_network_that_it_is_for(term: str) -> None:
    """T7. In the released code two of the four are constants."""
    method = only(term, teacher="student")
    networks, batch = networks_of(method), make_batch(0, 4)
    method.prepare(networks, method.step_plan(3))
    total = terms_of(method, networks, batch, 3)["total"]
    assert float(total.detach().abs()) > 0
    assert slope(total, networks["partner"]) > 1e-7, "the learner"
    teaches = slope(total, networks["student"])
    assert (teaches > 1e-7) is (term in ("semi", "reg")), "the teacher moves by its own pseudo-labels and by agreement"


def test_the_terms_add_up_and_the_roles_are_told() -> None:
    method = dual(changes={"updates": 4})
    networks, batch = networks_of(method), make_batch(2, 2)
    terms = terms_of(method, networks, batch, 3)
    parts = [value for name, value in terms.items() if name not in ("total", "teacher_is_student")]
    assert set(terms) == {"total", "supervised", "reg", "unc", "semi", "con", "teacher_is_student"}
    torch.testing.assert_close(terms["total"], torch.stack(parts).sum())
    assert float(terms["teacher_is_student"]) in (0.0, 1.0)


@pytest.mark.parametrize("better", ["student", "partner"])
def test_who_teaches_makes_the_pseudo_labels_and_who_learns_is_pulled_by_its_own(
    better: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = dual(changes={"updates": 4}, keep_quantile=0.3)
    networks, batch, step_plan = networks_of(method), make_batch(2, 2), method.step_plan(2)
    learner = "partner" if better == "student" else "student"
    monkeypatch.setattr(method, "roles", lambda probabilities, batch: (better, learner))
    terms = method.loss(networks, batch, step_plan)
    logits, features = method._forward(networks, batch.images)
    p = {name: torch.softmax(y[2:], dim=1) for name, y in logits.items()}
    decided = {name: q.argmax(dim=1) for name, q in p.items()}
    assert not torch.equal(decided["student"], decided["partner"])
    kept = method.certain(*p.values())
    torch.testing.assert_close(terms["semi"], method.semi(logits, 2, decided[better], kept).detach())
    rows = features[learner][2:].movedim(1, -1).flatten(0, -2)
    con = contrastive(rows, decided[better].flatten(), kept.flatten(), decided[learner].flatten(), 3, True)
    weight = 0.1 * math.exp(-5 * (1 - 2 / 4) ** 2)
    torch.testing.assert_close(terms["con"], (weight * con).detach())
    torch.testing.assert_close(terms["unc"], method.uncertainty(logits[learner][2:], logits[better][2:]).detach())


def test_a_part_of_a_batch_without_labels_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"dual compares its networks on labelled patches: 2 in 4 part\(s\)"):
        dual(changes={"accumulate": 4})
    method = dual(changes={"accumulate": 2})
    with pytest.raises(RecipeError, match=r"2 in 4 part\(s\)"):
        method.check_parts(2)


@pytest.mark.parametrize(("on", "expected"), [("unlabelled", False), ("all", True)])
def test_the_uncertainty_term_sees_labelled_patches_only_when_told_to(on: str, expected: bool) -> None:
    method = only("unc", uncertainty_on=on)
    networks, batch = networks_of(method), make_batch(4, 0)
    step_plan = method.step_plan(3)
    assert ("unc" in method.loss(networks, batch, step_plan)) or not expected
    images = batch.images.clone()
    images[:2] += 1.0
    changed = Batch(images, batch.labels, 2, batch.cases, 0)
    plain = Batch(batch.images, batch.labels, 2, batch.cases, 0)
    one, other = (float(method.loss(networks, b, step_plan)["unc"]) for b in (plain, changed))
    assert (one != other) is expected


def test_the_weight_of_the_feature_term_rises_as_the_paper_says() -> None:
    method = dual(changes={"updates": 6000})
    assert method.contrast_weight(0) == pytest.approx(0.1 * math.exp(-5))
    assert method.contrast_weight(6000) == pytest.approx(0.1)


def test_only_one_segment_alone_has_a_union() -> None:
    with pytest.raises(RecipeError, match="no union"):
        dual(TWO, pseudo_labels="union")
    for targets in (ONE, REGIONS):
        dual(targets, pseudo_labels="union")


def test_the_union_is_what_either_network_finds() -> None:
    method = only("semi", ONE, pseudo_labels="union", keep_quantile=1.0)
    networks, batch = networks_of(method), make_batch(2, 2, outputs=2)
    logits = {name: network(batch.images[2:]) for name, network in networks.items()}
    found = logits["student"].argmax(1) | logits["partner"].argmax(1)
    expected = sum(functional.cross_entropy(y, found) for y in logits.values())
    torch.testing.assert_close(terms_of(method, networks, batch)["semi"], expected)


# --- T9: what is kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [TWO, REGIONS], ids=["classes", "regions"])
def test_the_mean_of_both_is_the_average_of_their_probabilities(targets: Targets) -> None:
    method = dual(targets)
    networks, images = networks_of(method), make_batch(0, 2).images
    both = method.exported(networks)
    assert isinstance(both, NetworkEnsemble)
    average = torch.stack([targets.probabilities(n(images)) for n in networks.values()]).mean(0)
    torch.testing.assert_close(targets.probabilities(both(images)), average)


def test_either_network_can_be_kept_alone() -> None:
    for name in ("student", "partner"):
        method = dual(export=name)
        networks = networks_of(method)
        assert method.exported(networks) is networks[name]
        assert method.exported_config().build(1, 3, (8, 8, 8)).state_dict().keys() == networks[name].state_dict().keys()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantoms(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("export", ["mean", "student", "partner"])
def test_a_run_keeps_what_it_says_it_keeps(dataset: Dataset, tmp_path: Path, export: str) -> None:
    recipe = make_recipe_for("dual", {"patch": [16, 16, 16], "updates": 2}, export=export)
    manifest = train_on_cpu(dataset, recipe, tmp_path / "run")
    network = network_from_manifest(manifest)
    network.load_state_dict(load_run_weights(tmp_path / "run"))
    assert manifest.provenance.parameters == count_parameters(network)
    assert isinstance(network, NetworkEnsemble) is (export == "mean")


def test_the_patch_suits_both_networks() -> None:
    sections = Dual.students(make_recipe_for("dual", partner={**PARTNER_NETWORK, "channels": [4, 4, 4, 8]}))
    assert patch_divisor(sections) == (8, 8, 8)


def test_a_partner_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"methods\.dual\.partner: Input tag 'vunet'"):
        dual(partner={"kind": "vunet"})


def test_the_papers_networks_have_the_papers_sizes() -> None:
    recipe = make_recipe_for(
        "dual", {"student": {"kind": "vnet"}, "patch": [16, 16, 16]}, partner={"kind": "resnet_vnet"}
    )
    networks = make_method(recipe, SegmentationTask(1, ONE, 2, 4, 12)).build()
    assert [count_parameters(n) for n in networks.values()] == [9_448_866, 17_930_354]
