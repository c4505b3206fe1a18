"""EfficientNet-Lite0 as the encoder of a 2D network: its shape, its weights, what of it is tuned."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.trainer.factories import build_method, make_batch, make_tiny_recipe
from trainer.errors import RecipeError
from trainer.networks.efficientnet import WEIGHTS, EfficientNetLite0, EfficientUNet, SamePadding
from trainer.teachers import TeacherConfig, build_teacher


def teacher_of(inputs: int = 1, **section: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_teacher(
        TeacherConfig.model_validate({"kind": "efficientnet", "finetune": "whole", **section}), inputs, 3
    )


def weights_in(folder: Path, drop: str = "", card: str = "license: apache-2.0") -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    tensors = {k: v for k, v in EfficientNetLite0().state_dict().items() if k != drop}
    classifier = {"_conv_head.weight": torch.zeros(1280, 320, 1, 1), "_bn1.weight": torch.ones(1280)}
    folder.mkdir()
    torch.save({**tensors, **classifier, "_fc.weight": torch.zeros(1000, 1280)}, folder / WEIGHTS)
    (folder / "README.md").write_text(f"---\n{card}\n---\n")
    return tensors


def test_the_encoder_has_the_papers_parameters_and_sizes() -> None:
    encoder = EfficientNetLite0()
    classifier = 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    assert sum(p.numel() for p in encoder.parameters()) + classifier == 4_652_008
    found = encoder(torch.zeros(1, 3, 64, 96))
    assert [tuple(f.shape[1:]) for f in found] == [(16, 32, 48), (24, 16, 24), (40, 8, 12), (112, 4, 6), (320, 2, 3)]


@pytest.mark.parametrize("size", [7, 8, 9])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2)])
def test_padding_is_that_of_the_network_that_was_trained(size: int, kernel: int, stride: int) -> None:
    """TensorFlow's SAME: ceil(n / stride) pixels, and an odd one of the padding at the end."""
    padded = SamePadding(kernel, stride)(torch.ones(1, 1, size, size))
    made = nn.functional.conv2d(padded, torch.ones(1, 1, kernel, kernel), stride=stride)
    assert made.shape[-1] == -(-size // stride)
    before = int((padded[0, 0, padded.shape[2] // 2] == 0).int().argmin())
    assert padded.shape[-1] - size - before in (before, before + 1)


@pytest.mark.parametrize("enlarge", [1, 2])
@pytest.mark.parametrize("inputs", [1, 2, 3])
def test_logits_have_the_size_of_slices_that_are_no_multiple_of_32(inputs: int, enlarge: int) -> None:
    with torch.no_grad():
        assert teacher_of(inputs, enlarge=enlarge).eval()(torch.randn(2, inputs, 40, 56)).shape == (2, 3, 40, 56)


def test_what_of_the_encoder_is_tuned() -> None:
    tuned = {}
    for finetune in ("whole", "decoder", "lora"):
        network = teacher_of(finetune=finetune, lora={"rank": 4}).network
        assert isinstance(network, EfficientUNet)
        network(torch.randn(2, 3, 32, 32)).square().sum().backward()
        tuned[finetune] = {n for n, p in network.encoder.named_parameters() if p.grad is not None}
        assert all(p.grad is not None for p in network.decoder.parameters())
    assert tuned["decoder"] == set()
    assert len(tuned["whole"]) == len(list(EfficientNetLite0().parameters()))
    assert {n.split(".")[-2] if "lora" not in n else "lora" for n in tuned["lora"]} == {"_bn0", "_bn1", "_bn2", "lora"}
    assert not any(n.endswith("base_layer.weight") for n in tuned["lora"])


def test_at_the_start_the_adaptation_changes_nothing() -> None:
    plain, adapted = teacher_of(finetune="whole").eval(), teacher_of(finetune="lora").eval()
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), adapted(images))


def test_the_encoder_starts_from_the_weights_in_a_folder(tmp_path: Path) -> None:
    tensors = weights_in(tmp_path / "lite0")
    section = TeacherConfig.model_validate(
        {"kind": "efficientnet", "finetune": "whole", "weights": {"folder": str(tmp_path / "lite0")}}
    )
    loaded = build_teacher(section, 1, 3).network.encoder.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert [(w.name, w.licence) for w in section.pretrained()] == [("lite0", "apache-2.0")]


@pytest.mark.parametrize(
    ("card", "drop", "words"),
    [
        ("license: cc-by-nc-4.0", "", "restrictive licence"),
        ("license: apache-2.0", "_blocks.3._bn1.weight", "are not an EfficientNet-Lite0's; _blocks.3._bn1.weight"),
        ("title: none", "", "do not state their licence"),
    ],
)
def test_weights_that_may_not_be_used_or_do_not_fit_are_refused(
    tmp_path: Path, card: str, drop: str, words: str
) -> None:
    weights_in(tmp_path / "w", drop, card)
    with pytest.raises(RecipeError, match=words):
        teacher_of(weights={"folder": str(tmp_path / "w")})


def test_a_file_that_is_no_weights_is_refused(tmp_path: Path) -> None:
    weights_in(tmp_path / "w")
    (tmp_path / "w" / WEIGHTS).write_bytes(b"nothing of the kind")
    with pytest.raises(RecipeError, match="cannot be loaded"):
        teacher_of(weights={"folder": str(tmp_path / "w")})


def test_it_teaches_as_mns_2d_network() -> None:
    teacher = {"kind": "efficientnet", "finetune": "lora", "lora": {"rank": 2}}
    method = build_method(make_tiny_recipe("mn", {"batch": 4, "patch": [32, 32, 8]}, teacher=teacher))
    torch.manual_seed(0)
    networks = method.build()
    images = torch.randn(4, 1, 32, 32, 8)
    batch = make_batch(2, 2, side=8)
    batch = type(batch)(images, (images[:, 0] > 1).long(), 2, batch.cases, 6)
    step_plan = next(
        t for t in map(method.step_plan, range(method.steps)) if "teacher" in t.rates and t.composition.unlabelled
    )
    method.prepare(networks, step_plan)
    method.loss(networks, batch, step_plan)["total"].backward()
    assert any(p.grad is not None for n, p in networks["teacher"].named_parameters() if "lora" in n)


@pytest.mark.skipif("SEMISEG_LITE0" not in os.environ, reason=f"SEMISEG_LITE0 names no folder with {WEIGHTS}")
def test_the_published_weights_fit(tmp_path: Path) -> None:
    (tmp_path / "lite0").mkdir()
    (tmp_path / "lite0" / WEIGHTS).symlink_to(Path(os.environ["SEMISEG_LITE0"]) / WEIGHTS)
    teacher_of(weights={"folder": str(tmp_path / "lite0"), "licence": "apache-2.0"})
