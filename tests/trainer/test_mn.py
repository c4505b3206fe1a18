"""M&N: who learns when, from what, and which of the 2D network's parameters (METHODS of the paper and its code)."""

from __future__ import annotations

import dataclasses
import itertools
import math
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import SegformerConfig, SegformerForImageClassification, SegformerForSemanticSegmentation

from tests.trainer.tiny import (
    BATCH_NORM,
    SEGFORMER,
    batch_of,
    clone,
    method_of,
    phantoms,
    plan_of,
    recipe_of,
    same_weights,
    trained,
)
from trainer.checkpoints import load_state
from trainer.errors import RecipeError
from trainer.licences import check_licence
from trainer.methods.mn import MN
from trainer.students import parameters_of, read_student
from trainer.teachers import SegformerTeacher, Teacher, build_teacher, lora_targets


def mn(changes: dict[str, Any] | None = None, *, axis: int = 2, unlabelled: int = 12, **switches: Any) -> MN:
    method = method_of(recipe_of("mn", changes, **switches), axis=axis, unlabelled=unlabelled)
    assert isinstance(method, MN)
    return method


def paper(**switches: Any) -> MN:
    return mn({"batch": 5, "updates": 32000}, iterations=8, stage1=0.125, **switches)


# --- the schedule -------------------------------------------------------------------------------------------------


def test_the_stages_have_the_papers_lengths() -> None:
    method = paper()
    assert method.epochs == (500, 3500)
    assert method.steps == 8 * (500 + 2 * 3500)
    assert method.turn(3999).stage == "labelled"
    assert set(method.turn(3999).rates) == {"student", "teacher"}
    stages = [method.turn(4000 + 8 * k).stage for k in range(4)]
    assert stages == ["cotrain-teacher", "cotrain-student"] * 2


def test_the_student_gets_the_recipes_updates_and_the_teacher_as_many() -> None:
    method = mn({"updates": 40}, iterations=4, stage1=0.3)
    turns = [method.turn(step) for step in range(method.steps)]
    of_student = [turn.student_update for turn in turns if "student" in turn.rates]
    assert of_student == list(range(40))
    assert sum("teacher" in turn.rates for turn in turns) == 40


def test_with_a_fixed_2d_network_only_the_student_learns_after_stage_1() -> None:
    method = mn({"updates": 40}, iterations=4, stage1=0.3, cotrain="fixed2d")
    assert method.steps == 40
    turns = [method.turn(step) for step in range(40)]
    assert [turn.student_update for turn in turns] == list(range(40))
    assert all(set(turn.rates) == ({"student", "teacher"} if k < 12 else {"student"}) for k, turn in enumerate(turns))


@pytest.mark.parametrize(("share", "stages"), [(0.0, {"cotrain-teacher", "cotrain-student"}), (1.0, {"labelled"})])
def test_either_stage_may_be_left_out(share: float, stages: set[str]) -> None:
    method = mn(stage1=share)
    assert {method.turn(step).stage for step in range(method.steps)} == stages


def test_updates_that_are_not_whole_epochs_are_refused_before_anything_is_read() -> None:
    with pytest.raises(RecipeError, match=r"9 updates are not a whole number of epochs of 2 updates"):
        mn({"updates": 9})


def test_learning_rate_guided_sampling_reaches_each_patch_at_the_papers_epoch() -> None:
    method = paper()
    counts = [method.unlabelled_in_batch(epoch, 0) for epoch in range(3500)]
    assert [500 + counts.index(k) for k in (1, 2, 3, 4)] == [1534, 2026, 2475, 2967]
    assert 5 not in counts, "never the whole batch while training"


def test_the_released_codes_linear_rule_reaches_them_earlier() -> None:
    method = paper(lrg="linear")
    counts = [method.unlabelled_in_batch(epoch, 0) for epoch in range(3500)]
    assert [500 + counts.index(k) for k in (1, 2, 3, 4)] == [1200, 1900, 2600, 3300]


@given(st.integers(1, 12), st.integers(2, 60), st.sampled_from(["lr", "linear"]))
@settings(max_examples=40, deadline=None)
def test_the_mixture_follows_the_rate_of_the_turn(batch: int, epochs: int, rule: str) -> None:
    method = mn({"batch": batch, "updates": 2 * epochs, "optimiser": {"rate": 0.5}}, stage1=0.0, lrg=rule)
    seen = []
    for epoch in range(epochs):
        turn = method.turn(2 * (2 * epoch + 1))  # the student's part
        assert turn.stage == "cotrain-student"
        assert turn.mixture == method.turn(4 * epoch).mixture, "both networks of an epoch see the same mixture"
        assert turn.mixture.labelled + turn.mixture.unlabelled == batch
        if rule == "lr":
            exact = (0.5 - turn.rates["student"]) / 0.5 * batch  # Eq. 10 with eta_end = 0
            assert turn.mixture.unlabelled == math.floor(exact + 1e-6)
        seen.append(turn.mixture.unlabelled)
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert method.unlabelled_in_batch(epochs, 0) == batch, "eta = eta_end would be (0, B)"


def test_fixed_sampling_keeps_its_mixture() -> None:
    method = mn({"batch": 5}, lrg="fixed", fixed_unlabelled=3)
    mixtures = {method.turn(s).mixture.unlabelled for s in range(method.steps) if method.turn(s).stage != "labelled"}
    assert mixtures == {3}


def test_uniform_sampling_draws_scans_as_often_as_there_are() -> None:
    method = mn({"batch": 8, "updates": 2000}, stage1=0.0, lrg="uniform", unlabelled=12)
    drawn = [method.turn(step).mixture.unlabelled for step in range(method.steps)]
    assert sum(drawn) / (8 * len(drawn)) == pytest.approx(12 / 16, abs=0.02)
    assert drawn == [method.turn(step).mixture.unlabelled for step in range(method.steps)], "a function of the step"


def test_without_unlabelled_scans_every_batch_is_labelled() -> None:
    method = mn({"batch": 4}, unlabelled=0, lrg="fixed")
    assert {method.turn(step).mixture.unlabelled for step in range(method.steps)} == {0}


def test_pseudo_masks_of_whole_scans_are_renewed_at_the_papers_epochs_before_the_students_part() -> None:
    method = paper()
    steps = [step for step in range(0, method.steps, 8) if method.refreshes_foreground(step)]
    assert [method.turn(step).student_update // 8 for step in steps] == [500, 1000, 1500, 2000, 3000]
    assert {method.turn(step).stage for step in steps} == {"cotrain-student"}


# --- what each learns from ----------------------------------------------------------------------------------------


def turn_of(method: MN, stage: str, unlabelled: int) -> Any:
    return next(
        t for t in map(method.turn, range(method.steps)) if t.stage == stage and t.mixture.unlabelled == unlabelled
    )


@pytest.mark.parametrize(("learner", "other"), [("student", "teacher"), ("teacher", "student")])
def test_the_network_that_teaches_gets_no_gradient_and_is_in_evaluation_mode(learner: str, other: str) -> None:
    method = mn(lrg="fixed", fixed_unlabelled=1)
    networks = method.build()
    turn = turn_of(method, f"cotrain-{learner}", 1)
    method.prepare(networks, turn)
    method.loss(networks, batch_of(1, 1), turn)["total"].backward()
    assert all(p.grad is None for p in networks[other].parameters())
    assert not any(m.training for m in networks[other].modules())
    assert networks[learner].training
    assert any(p.grad is not None for p in networks[learner].parameters())


def test_a_network_is_bit_identical_after_the_others_epoch(tmp_path: Path) -> None:
    changes = {"student": BATCH_NORM, "checkpoint_every": 1, "updates": 8}
    states: list[tuple[str, dict[str, dict[str, torch.Tensor]]]] = []
    checkpoint = tmp_path / "run" / "checkpoint.pt"

    def look(step: int, steps: int, values: dict[str, Any]) -> None:
        # The checkpoint of the step before lies there while this step is reported.
        if checkpoint.exists():
            states.append((values["stage"], load_state(checkpoint, torch.device("cpu")).networks))

    recipe = recipe_of("mn", changes, lrg="fixed", fixed_unlabelled=1)
    trained(phantoms(tmp_path / "data"), recipe, tmp_path / "run", report=look)
    seen = set()
    for (stage, before), (_, after) in itertools.pairwise(states):
        for name in ("student", "teacher"):
            learns = stage == "labelled" or stage.endswith(name)
            assert same_weights(before[name], after[name]) != learns, (stage, name)
        seen.add(stage)
    assert seen == {"labelled", "cotrain-teacher", "cotrain-student"}


def test_targets_are_labels_first_then_the_soft_masks_of_the_other_network() -> None:
    method = mn({"batch": 3}, lrg="fixed", fixed_unlabelled=2)
    networks = method.build()
    batch = batch_of(1, 2)
    for network in networks.values():
        network.eval()
    for flat, name in ((True, "teacher"), (False, "student")):
        target = method._target(batch, networks[name], flat=flat)
        assert torch.equal(target[0].argmax(dim=0), batch.labels[0])
        assert set(target[0].unique().tolist()) == {0.0, 1.0}
        with torch.no_grad():
            if flat:
                rows = torch.stack([networks[name](batch.images[1:, ..., k]) for k in range(8)], dim=-1)
            else:
                rows = networks[name](batch.images[1:])
        torch.testing.assert_close(target[1:], torch.softmax(rows, dim=1), atol=1e-6, rtol=1e-5)
        assert not target.requires_grad


def test_predicting_in_chunks_changes_nothing() -> None:
    whole, chunked = mn(lrg="fixed"), mn(lrg="fixed", chunk=3)
    teacher = whole.build()["teacher"].eval()
    images = batch_of(0, 2).images
    with torch.no_grad():
        torch.testing.assert_close(whole._by_slices(teacher, images), chunked._by_slices(teacher, images))


@pytest.mark.parametrize("learner", ["student", "teacher"])
def test_the_values_of_an_unlabelled_patchs_labels_do_not_reach_the_loss(learner: str) -> None:
    method = mn(lrg="fixed", fixed_unlabelled=1)
    networks = method.build()
    for network in networks.values():
        network.eval()
    turn = turn_of(method, f"cotrain-{learner}", 1)
    batch = batch_of(1, 1)
    before = method.loss(networks, batch, turn)["total"]
    labels = batch.labels.clone()
    labels[1:] = 2
    after = method.loss(networks, dataclasses.replace(batch, labels=labels), turn)["total"]
    assert torch.equal(before, after)
    labels[:1] = 2 - labels[:1]
    assert not torch.equal(before, method.loss(networks, dataclasses.replace(batch, labels=labels), turn)["total"])


class _Recorder(nn.Module):
    """A 2D network that says what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.shown = torch.zeros(0)

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        self.shown = slices.detach()
        return self.weight[None, :, None, None] * torch.ones_like(slices)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_subset_of_slices_is_the_same_for_image_and_target(axis: int) -> None:
    method = mn(slices=3, axis=axis)
    batch = batch_of(2, 0)
    targets: list[torch.Tensor] = []
    method.mixed_loss = lambda logits, target, labelled: targets.append(target) or logits.sum()  # type: ignore
    teacher = _Recorder()
    turn = method.turn(0)
    method.loss({"student": method.build_student(), "teacher": teacher}, batch, turn)
    images, target = teacher.shown, targets[-1]
    assert images.shape[0] == target.shape[0] == 2 * 3
    depth_of = []
    for row in range(6):
        volume, wanted = batch.images[row // 3], batch.labels[row // 3]
        (k,) = (k for k in range(8) if torch.equal(volume.select(1 + axis, k), images[row]))
        assert torch.equal(wanted.select(axis, k), target[row].argmax(dim=0))
        depth_of.append(k)
    assert depth_of[:3] == depth_of[3:] == sorted(depth_of[:3]), "the same slices of each volume"
    method.loss({"student": method.build_student(), "teacher": teacher}, dataclasses.replace(batch, step=1), turn)
    assert not torch.equal(images, teacher.shown), "other slices at another step"


def test_test_and_development_scans_are_in_no_pool_and_never_opened(tmp_path: Path) -> None:
    dataset = phantoms(tmp_path / "data", cases=8, labelled=2, test=2, development=2)
    plan = plan_of(dataset, recipe_of("mn"))
    kept_out = {*plan.split.test, *plan.split.development}
    assert len(kept_out) == 4
    pools = plan.training_pools()
    assert not kept_out & {case for pool in pools.values() for case in pool}
    assert len(pools["labelled"]) == len(pools["unlabelled"]) == 2
    for case in kept_out:
        dataset.case(case).image.unlink()
        label = dataset.case(case).label
        assert label is not None
        label.unlink()
    manifest = trained(dataset, recipe_of("mn"), tmp_path / "run")
    assert (manifest.provenance.labelled, manifest.provenance.unlabelled) == (2, 2)
    assert not manifest.provenance.transductive


# --- the 2D network -----------------------------------------------------------------------------------------------


def teacher_of(**section: Any) -> SegformerTeacher:
    torch.manual_seed(0)
    return build_teacher(Teacher.model_validate({"config": SEGFORMER, **section}), 1, 3)


def test_low_rank_adaptation_starts_as_the_network_it_adapts() -> None:
    slices = torch.randn(3, 1, 16, 16)
    with torch.no_grad():
        plain = teacher_of(finetune="whole").eval()(slices)
        torch.testing.assert_close(teacher_of(finetune="lora").eval()(slices), plain, rtol=0, atol=1e-6)


def test_low_rank_adaptation_trains_its_factors_biases_layer_norms_and_the_new_parts_alone() -> None:
    teacher = teacher_of(finetune="lora", inputs="conv")
    norms = {
        f"{name}.{key}"
        for name, module in teacher.named_modules()
        if isinstance(module, nn.LayerNorm)
        for key, _ in module.named_parameters()
    }
    assert norms
    for name, parameter in teacher.named_parameters():
        new = name.startswith(("head.", "adapt."))
        expected = new or "lora_" in name or name.endswith("bias") or name in norms
        assert parameter.requires_grad == expected, name
    frozen = [n for n, p in teacher.named_parameters() if not p.requires_grad]
    assert any("decode_head" in n for n in frozen), "the decode head's own projections stay"
    assert any("attention" in n for n in frozen)


def test_low_rank_adaptation_reaches_every_linear_layer_of_the_encoder_and_no_other() -> None:
    network = SegformerForSemanticSegmentation(SegformerConfig(**SEGFORMER))
    targets = set(lora_targets(network))
    encoder = {n for n, m in network.named_modules() if isinstance(m, nn.Linear) and n.startswith("segformer.")}
    assert targets == encoder
    # query, key, value, output and two feed-forward layers in each of the four blocks
    assert len(targets) == 4 * 6
    teacher = teacher_of(finetune="lora")
    factors = [n for n, _ in teacher.named_parameters() if "lora_A" in n]
    assert len(factors) == 4 * 6


def test_an_adapted_layer_multiplies_to_alpha_over_rank() -> None:
    teacher = teacher_of(finetune="lora", lora={"rank": 4, "alpha": 8, "dropout": 0.0}).eval()
    layer = next(m for m in teacher.modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer"))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.shape[0] == 4
    with torch.no_grad():
        b.normal_()
        x = torch.randn(2, layer.base_layer.in_features)
        torch.testing.assert_close(layer(x), layer.base_layer(x) + 8 / 4 * x @ a.T @ b.T)


def test_tuning_the_decoder_leaves_the_encoder_alone() -> None:
    for name, parameter in teacher_of(finetune="decoder").named_parameters():
        assert parameter.requires_grad != name.startswith("network.segformer."), name


def test_tuning_the_whole_network_leaves_nothing_alone() -> None:
    assert all(p.requires_grad for p in teacher_of(finetune="whole").parameters())


def test_the_output_convolution_has_the_released_codes_parameters_at_mit_b2s_width() -> None:
    config = {**SEGFORMER, "decoder_hidden_size": 768}
    teacher = build_teacher(Teacher(config=config, finetune="whole"), 1, 2)
    assert parameters_of(teacher.head) == 24_674
    assert tuple(teacher.head.weight.shape) == (771, 2, 4, 4)


def test_the_papers_3d_network_has_the_released_codes_parameters() -> None:
    student = read_student({"kind": "unet3d"})
    assert parameters_of(student.build(1, 2)) == 25_884_546
    assert student.divisor() == 16


@pytest.mark.parametrize("size", [(16, 16), (9, 14), (17, 11)])
@pytest.mark.parametrize("enlarge", [1, 2])
def test_logits_have_the_size_of_the_slices(size: tuple[int, int], enlarge: int) -> None:
    with torch.no_grad():
        assert teacher_of(enlarge=enlarge).eval()(torch.randn(2, 1, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize(
    ("channels", "inputs"), [(1, "repeat"), (1, "conv"), (2, "repeat"), (3, "repeat"), (4, "conv")]
)
def test_any_number_of_channels_becomes_the_three_of_natural_images(channels: int, inputs: str) -> None:
    teacher = build_teacher(Teacher.model_validate({"config": SEGFORMER, "inputs": inputs}), channels, 2).eval()
    with torch.no_grad():
        assert teacher(torch.randn(2, channels, 16, 16)).shape == (2, 2, 16, 16)
        if (channels, inputs) == (1, "repeat"):
            assert torch.equal(teacher.adapt(torch.ones(1, 1, 2, 2)), torch.ones(1, 3, 2, 2))


def test_slices_too_small_for_the_2d_network_are_refused_with_what_to_do() -> None:
    method = mn(teacher={"finetune": "whole", "config": {**SEGFORMER, "sr_ratios": [8, 4, 2, 1]}})
    with pytest.raises(RecipeError, match=r"slices of at least \d+ voxels a side, the patch's are of 8 x 8; enlarge"):
        method.build()
    teacher = {"finetune": "whole", "config": {**SEGFORMER, "sr_ratios": [8, 4, 2, 1]}, "enlarge": 4}
    mn(teacher=teacher).build()["teacher"](torch.zeros(2, 1, 8, 8))


def test_the_smallest_slice_works_and_one_voxel_less_does_not() -> None:
    teacher = teacher_of(config={**SEGFORMER, "sr_ratios": [8, 4, 2, 1]}).eval()
    side = teacher.smallest_slice()
    with torch.no_grad():
        assert teacher(torch.zeros(1, 1, side, side)).shape[-1] == side
        with pytest.raises(RuntimeError):
            teacher(torch.zeros(1, 1, side - 1, side - 1))


# --- where its weights come from ----------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails the test when anything tries to reach another machine."""
    tried: list[Any] = []

    def refuse(self: socket.socket, address: Any) -> None:
        tried.append(address)
        raise OSError("this test has no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: refuse(socket.socket(), args))
    yield
    assert tried == []


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SegFormer as ``save_pretrained`` leaves it, without a model card."""
    folder = tmp_path_factory.mktemp("weights") / "segformer-tiny"
    torch.manual_seed(3)
    SegformerForSemanticSegmentation(SegformerConfig(**SEGFORMER, num_labels=7)).save_pretrained(folder)
    return folder


@pytest.fixture
def card(saved: Path) -> Iterator[Path]:
    """The model card of :func:`saved`, to be written by the test."""
    file = saved / "README.md"
    yield file
    file.unlink(missing_ok=True)


@pytest.mark.usefixtures("no_network")
def test_weights_load_from_a_folder_without_a_network(saved: Path, card: Path) -> None:
    card.write_text("---\nlicense: apache-2.0\n---\nA model.\n", encoding="utf-8")
    section = Teacher.model_validate({"weights": {"folder": str(saved), "revision": "r1"}})
    teacher = build_teacher(section, 1, 3)
    original = SegformerForSemanticSegmentation.from_pretrained(saved).state_dict()
    ours = {k.replace(".base_layer", ""): v for k, v in clone(teacher.network.state_dict()).items()}
    compared = [k for k in original if not k.startswith("decode_head.classifier")]
    assert len(compared) > 50
    assert all(torch.equal(original[k], ours[k]) for k in compared)
    (said,) = section.pretrained()
    assert (said.name, said.revision, said.licence) == ("segformer-tiny", "r1", "apache-2.0")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("source", ["nvidia/segformer-b2-finetuned-ade-512-512", "NVIDIA/mit-b2"])
def test_hub_weights_under_a_restrictive_licence_are_refused_before_anything_is_fetched(source: str) -> None:
    with pytest.raises(RecipeError, match=r"restrictive licence 'nvidia-.*repeat it in the recipe: `licence: nvidia-"):
        build_teacher(Teacher.model_validate({"weights": {"hub": source}}), 1, 3)
    with pytest.raises(RecipeError, match="restrictive"):
        check_licence(source, None, "mit")


def test_a_restrictive_licence_is_accepted_when_the_recipe_repeats_it() -> None:
    stated = "nvidia-source-code-licence-non-commercial"
    assert check_licence("nvidia/mit-b2", None, stated) == stated


@pytest.mark.parametrize(
    ("head", "stated", "result"),
    [
        ("license: mit", None, "mit"),
        ("license: MIT", None, "mit"),
        ("license: other\nlicense_name: my-terms", "my-terms", "my-terms"),
        ("license: cc-by-nc-4.0", "cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("tags: [x]", "said-by-mail", "said-by-mail"),
        ("license: other\nlicense_name: my-terms", None, "restrictive licence 'my-terms'"),
        ("license: cc-by-nc-4.0", "mit", "restrictive licence 'cc-by-nc-4.0'"),
        ("tags: [x]", None, "do not say under which licence"),
        (": not yaml [", None, "do not say under which licence"),
    ],
)
def test_the_model_card_of_a_folder_decides(
    saved: Path, card: Path, head: str, stated: str | None, result: str
) -> None:
    card.write_text(f"---\n{head}\n---\nA model.\n", encoding="utf-8")
    if " " in result:
        with pytest.raises(RecipeError, match=result):
            check_licence(str(saved), saved, stated)
    else:
        assert check_licence(str(saved), saved, stated) == result


def test_a_licence_that_is_not_repeated_stops_the_plan_before_scans_are_prepared(tmp_path: Path, saved: Path) -> None:
    dataset = phantoms(tmp_path / "data", cases=4, labelled=1, test=1, development=0)
    recipe = recipe_of("mn", teacher={"weights": {"folder": str(saved)}})
    with pytest.raises(RecipeError, match="do not say under which licence"):
        plan_of(dataset, recipe)


def test_weights_that_are_no_segformer_or_not_there_are_refused(tmp_path: Path, saved: Path) -> None:
    def build(folder: Path, finetune: str = "whole") -> SegformerTeacher:
        weights = {"folder": str(folder), "licence": "mine"}
        return build_teacher(Teacher.model_validate({"weights": weights, "finetune": finetune}), 1, 3)

    with pytest.raises(RecipeError, match=r"no config\.json"):
        build(tmp_path)
    torch.manual_seed(0)
    SegformerForImageClassification(SegformerConfig(**SEGFORMER)).save_pretrained(tmp_path / "classifier")
    with pytest.raises(RecipeError, match=r"lack \d+ of the tensors .* such as decode_head"):
        build(tmp_path / "classifier", "lora")
    build(tmp_path / "classifier", "whole")  # its encoder is pretrained; the decode head learns from the start
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert", "num_attention_heads": 1}')
    with pytest.raises(RecipeError, match="cannot be loaded"):
        build(tmp_path / "bert")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name in ("config.json", "model.safetensors"):
        (damaged / name).write_bytes((saved / name).read_bytes()[: None if name == "config.json" else 1000])
    with pytest.raises(RecipeError, match="cannot be loaded"):
        build(damaged)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"hiden_sizes": [8, 8, 8, 8]}, "hiden_sizes"),
        ({"num_attention_heads": 1}, "does not make a SegFormer"),
        ({**SEGFORMER, "hidden_sizes": [8, 8]}, "does not make a SegFormer"),
    ],
)
def test_a_configuration_that_makes_no_segformer_is_refused(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        build_teacher(Teacher(config=config), 1, 3)


def test_weights_and_a_configuration_exclude_each_other() -> None:
    weights = {"hub": "a/b"}
    with pytest.raises(RecipeError, match="`config` describes a network from scratch"):
        mn(teacher={"weights": weights, "config": SEGFORMER})
    with pytest.raises(RecipeError, match="give `folder` or `hub`, one of them"):
        mn(teacher={"weights": {**weights, "folder": "c"}})
