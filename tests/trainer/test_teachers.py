"""The 2D networks that teach: what of them is tuned, what they take, and where their weights may come from."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import SegformerConfig, SegformerForImageClassification, SegformerForSemanticSegmentation

from tests.trainer.factories import (
    SEGFORMER_CONFIG,
    build_method,
    clone,
    make_tiny_plan,
    make_tiny_recipe,
    write_phantoms,
)
from trainer.errors import RecipeError
from trainer.licences import check_licence
from trainer.methods.mn import MN
from trainer.network_configs import count_parameters, parse_network_config
from trainer.teachers import SegformerTeacher, TeacherConfig, build_teacher, lora_targets


def mn(changes: dict[str, Any] | None = None, *, axis: int = 2, unlabelled: int = 12, **switches: Any) -> MN:
    method = build_method(make_tiny_recipe("mn", changes, **switches), axis=axis, unlabelled=unlabelled)
    assert isinstance(method, MN)
    return method


# --- the 2D network -----------------------------------------------------------------------------------------------


def teacher_of(**section: Any) -> SegformerTeacher:
    torch.manual_seed(0)
    return build_teacher(TeacherConfig.model_validate({"config": SEGFORMER_CONFIG, **section}), 1, 3)


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
    network = SegformerForSemanticSegmentation(SegformerConfig(**SEGFORMER_CONFIG))
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
    config = {**SEGFORMER_CONFIG, "decoder_hidden_size": 768}
    teacher = build_teacher(TeacherConfig(config=config, finetune="whole"), 1, 2)
    assert count_parameters(teacher.head) == 24_674
    assert tuple(teacher.head.weight.shape) == (771, 2, 4, 4)


def test_the_papers_3d_network_has_the_released_codes_parameters() -> None:
    student = parse_network_config({"kind": "unet3d"})
    assert count_parameters(student.build(1, 2, (32, 32, 32))) == 25_884_546
    assert student.divisor() == (16, 16, 16)


@pytest.mark.parametrize("size", [(16, 16), (9, 14), (17, 11)])
@pytest.mark.parametrize("enlarge", [1, 2])
def test_logits_have_the_size_of_the_slices(size: tuple[int, int], enlarge: int) -> None:
    with torch.no_grad():
        assert teacher_of(enlarge=enlarge).eval()(torch.randn(2, 1, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize(
    ("channels", "inputs"), [(1, "repeat"), (1, "conv"), (2, "repeat"), (3, "repeat"), (4, "conv")]
)
def test_any_number_of_channels_becomes_the_three_of_natural_images(channels: int, inputs: str) -> None:
    teacher = build_teacher(
        TeacherConfig.model_validate({"config": SEGFORMER_CONFIG, "inputs": inputs}), channels, 2
    ).eval()
    with torch.no_grad():
        assert teacher(torch.randn(2, channels, 16, 16)).shape == (2, 2, 16, 16)
        if (channels, inputs) == (1, "repeat"):
            assert torch.equal(teacher.adapt(torch.ones(1, 1, 2, 2)), torch.ones(1, 3, 2, 2))


def test_slices_too_small_for_the_2d_network_are_refused_with_what_to_do() -> None:
    method = mn(teacher={"finetune": "whole", "config": {**SEGFORMER_CONFIG, "sr_ratios": [8, 4, 2, 1]}})
    with pytest.raises(RecipeError, match=r"slices of at least \d+ voxels per side; the patch's have 8 x 8. Enlarge"):
        method.build()
    teacher = {"finetune": "whole", "config": {**SEGFORMER_CONFIG, "sr_ratios": [8, 4, 2, 1]}, "enlarge": 4}
    mn(teacher=teacher).build()["teacher"](torch.zeros(2, 1, 8, 8))


def test_the_smallest_slice_works_and_one_voxel_less_does_not() -> None:
    teacher = teacher_of(config={**SEGFORMER_CONFIG, "sr_ratios": [8, 4, 2, 1]}).eval()
    side = teacher.min_slice_size()
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
    SegformerForSemanticSegmentation(SegformerConfig(**SEGFORMER_CONFIG, num_labels=7)).save_pretrained(folder)
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
    section = TeacherConfig.model_validate({"weights": {"folder": str(saved), "revision": "r1"}})
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
        build_teacher(TeacherConfig.model_validate({"weights": {"hub": source}}), 1, 3)
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
        ("tags: [x]", None, "do not state their licence"),
        (": not yaml [", None, "do not state their licence"),
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
    dataset = write_phantoms(tmp_path / "data", cases=4, labelled=1, test=1, development=0)
    recipe = make_tiny_recipe("mn", teacher={"weights": {"folder": str(saved)}})
    with pytest.raises(RecipeError, match="do not state their licence"):
        make_tiny_plan(dataset, recipe)


def test_weights_that_are_no_segformer_or_not_there_are_refused(tmp_path: Path, saved: Path) -> None:
    def build(folder: Path, finetune: str = "whole") -> SegformerTeacher:
        weights = {"folder": str(folder), "licence": "mine"}
        return build_teacher(TeacherConfig.model_validate({"weights": weights, "finetune": finetune}), 1, 3)

    with pytest.raises(RecipeError, match=r"no config\.json"):
        build(tmp_path)
    torch.manual_seed(0)
    SegformerForImageClassification(SegformerConfig(**SEGFORMER_CONFIG)).save_pretrained(tmp_path / "classifier")
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
        ({"num_attention_heads": 1}, "is not valid for SegFormer"),
        ({**SEGFORMER_CONFIG, "hidden_sizes": [8, 8]}, "is not valid for SegFormer"),
    ],
)
def test_a_configuration_that_makes_no_segformer_is_refused(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        build_teacher(TeacherConfig(config=config), 1, 3)


def test_weights_and_a_configuration_exclude_each_other() -> None:
    weights = {"hub": "a/b"}
    with pytest.raises(RecipeError, match="`config` is for a network from scratch"):
        mn(teacher={"weights": weights, "config": SEGFORMER_CONFIG})
    with pytest.raises(RecipeError, match="name either a `folder` or a `hub` id"):
        mn(teacher={"weights": {**weights, "folder": "c"}})


@pytest.mark.parametrize("enlarge", [1, 2])
def test_features_computed_by_chunks_are_those_of_one_pass_and_so_are_the_gradients(enlarge: int) -> None:
    slices = torch.randn(7, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    results = []
    for chunk in (None, 3, 1):
        config = {**SEGFORMER_CONFIG, "drop_path_rate": 0.0, "classifier_dropout_prob": 0.0}
        teacher = teacher_of(config=config, finetune="whole", enlarge=enlarge, chunk=chunk).train()
        logits = teacher(slices)
        logits.square().mean().backward()
        results.append((logits.detach(), {n: p.grad for n, p in teacher.named_parameters() if p.grad is not None}))
    for logits, gradients in results[1:]:
        torch.testing.assert_close(logits, results[0][0])
        assert gradients.keys() == results[0][1].keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, results[0][1][name], msg=name)


def test_the_teachers_features_are_the_librarys_own() -> None:
    teacher = teacher_of(finetune="whole").eval()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = teacher.network(pixel_values=x).logits
        torch.testing.assert_close(teacher.network.decode_head(teacher._encode(x)), expected)


def build_flat(inputs: int, outputs: int, width: int = 3, weights: Path | None = None) -> nn.Module:
    """A 2D network as somebody outside the project would write it."""
    network = nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, outputs, 1))
    if weights is not None:
        network.load_state_dict(torch.load(weights / "flat.pt", weights_only=True))
    return network


FLAT = {"kind": "custom", "function": f"{__name__}:build_flat", "finetune": "whole"}


def test_a_2d_network_from_outside_teaches() -> None:
    method = mn({"patch": [8, 8, 8]}, teacher={**FLAT, "settings": {"width": 5}, "enlarge": 2})
    torch.manual_seed(0)
    teacher = method.build()["teacher"]
    assert teacher(torch.randn(4, 1, 8, 8)).shape == (4, 3, 8, 8)
    assert count_parameters(teacher) == 5 * 9 + 5 + 3 * 5 + 3


def test_weights_of_a_2d_network_from_outside_come_from_a_folder_and_are_named(tmp_path: Path) -> None:
    torch.save(build_flat(1, 3).state_dict(), tmp_path / "flat.pt")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    section = TeacherConfig.model_validate({**FLAT, "weights": {"folder": str(tmp_path)}})
    kept = build_teacher(section, 1, 3).network.state_dict()
    assert all(torch.equal(kept[n], v) for n, v in torch.load(tmp_path / "flat.pt", weights_only=True).items())
    assert [(w.name, w.licence) for w in section.pretrained()] == [(tmp_path.name, "mit")]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({**FLAT, "finetune": "lora"}, "`finetune: lora` is not possible"),
        ({**FLAT, "finetune": "decoder"}, "needs `finetune: whole`"),
        ({"kind": "custom", "finetune": "whole"}, "`function` is required for a network of kind `custom`"),
        ({"finetune": "whole", "function": "a:b"}, "`function` is required for a network of kind `custom`"),
        ({**FLAT, "function": "no.such:thing"}, "cannot be imported"),
        ({**FLAT, "config": SEGFORMER_CONFIG}, "`config` is for SegFormer"),
    ],
)
def test_a_2d_network_from_outside_that_cannot_be_is_refused(section: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        mn(teacher=section)
