"""The ResNet-50-encoder U-Net as M&N's 2D network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainer.errors import RecipeError
from trainer.networks.resunet import ResUNet
from trainer.teachers import TeacherConfig, build_teacher


def resunet_of(inputs: int = 1, **section: object) -> torch.nn.Module:
    return build_teacher(TeacherConfig.model_validate({"kind": "resunet", "finetune": "whole", **section}), inputs, 3)


@pytest.mark.parametrize("enlarge", [1, 2])
@pytest.mark.parametrize("inputs", [1, 2, 3])
def test_logits_have_the_size_of_slices_that_are_no_multiple_of_32(inputs, enlarge):
    teacher = resunet_of(inputs, enlarge=enlarge).eval()
    with torch.no_grad():
        assert teacher(torch.randn(2, inputs, 40, 56)).shape == (2, 3, 40, 56)


def test_decoder_only_leaves_the_encoder_as_it_is():
    teacher = resunet_of(finetune="decoder")
    trained = {name for name, p in teacher.named_parameters() if p.requires_grad}
    assert trained and not any(".encoder." in name for name in trained)
    teacher(torch.randn(2, 1, 32, 32)).sum().backward()
    assert all(p.grad is None for p in teacher.network.encoder.parameters())
    assert all(p.grad is not None for n, p in teacher.named_parameters() if n in trained)


def weights_in(folder: Path, *, licence: str = "mit", drop: str = "") -> dict[str, torch.Tensor]:
    """A ResNet-50's tensors as the usual files hold them, with the classifier that is left out."""
    torch.manual_seed(5)
    tensors = {k: v.contiguous() for k, v in ResUNet(2).encoder.state_dict().items() if k != drop}
    tensors = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    folder.mkdir()
    save_file({**tensors, "fc.weight": torch.zeros(10, 2048), "fc.bias": torch.zeros(10)}, folder / "model.safetensors")
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    return tensors


def test_encoder_starts_from_the_weights_in_a_folder(tmp_path):
    tensors = weights_in(tmp_path / "resnet50")
    section = TeacherConfig.model_validate(
        {"kind": "resunet", "finetune": "whole", "weights": {"folder": str(tmp_path / "resnet50")}}
    )
    teacher = build_teacher(section, 1, 3)
    loaded = teacher.network.encoder.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert [(w.name, w.licence) for w in section.pretrained()] == [("resnet50", "mit")]


@pytest.mark.parametrize(
    ("licence", "drop", "words"),
    [("cc-by-nc-4.0", "", "restrictive licence"), ("mit", "layer1.0.conv1.weight", "layer1.0.conv1.weight")],
)
def test_weights_that_may_not_be_used_or_do_not_fit_are_refused(tmp_path, licence, drop, words):
    weights_in(tmp_path / "w", licence=licence, drop=drop)
    with pytest.raises(RecipeError, match=words):
        resunet_of(weights={"folder": str(tmp_path / "w")})


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"finetune": "lora"}, "finetune: lora"),
        ({"config": {"depths": [1, 1, 1, 1]}}, "is for SegFormer"),
        ({"weights": {"hub": "somebody/resnet50"}}, "folder"),
    ],
)
def test_what_does_not_go_with_a_resunet_is_refused_when_the_recipe_is_read(section, words):
    with pytest.raises(ValueError, match=words):
        TeacherConfig.model_validate({"kind": "resunet", "finetune": "whole", **section})
