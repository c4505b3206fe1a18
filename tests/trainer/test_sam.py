"""SAM as CFR adapts it: what it puts out, what of it learns, and which weights it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SamModel

import trainer.sam
from tests.trainer.factories import SAM_CONFIG
from trainer.errors import RecipeError
from trainer.network_configs import count_parameters
from trainer.sam import LowRankQueryValue, SamSegmenter, SamSettings, _interpolated, build_sam


def sam(**changes: Any) -> SamSettings:
    return SamSettings.model_validate({**SAM_CONFIG, **changes})


def built(outputs: int = 3, inputs: int = 1, **changes: Any) -> SamSegmenter:
    torch.manual_seed(0)
    return build_sam(sam(**changes), inputs, outputs)


def saved(folder: Path, outputs: int = 3, card: str = "license: apache-2.0") -> Path:
    built(outputs, finetune="whole").network.save_pretrained(folder)
    (folder / "README.md").write_text(f"---\n{card}\n---\n")
    return folder


@pytest.mark.parametrize("outputs", [2, 3, 6])
@pytest.mark.parametrize("inputs", [1, 2, 3])
def test_there_is_a_map_for_every_class_the_background_included(outputs: int, inputs: int) -> None:
    logits = built(outputs, inputs)(torch.randn(2, inputs, 64, 64))
    assert logits.shape == (2, outputs, 64, 64)


@pytest.mark.parametrize("token", [0, 1, 2])
def test_each_mask_token_makes_the_channel_of_its_number(token: int) -> None:
    network, images = built(), torch.randn(1, 1, 64, 64)
    before = network(images)
    with torch.no_grad():
        network.network.mask_decoder.output_hypernetworks_mlps[token].proj_out.bias += 1.0
    moved = (network(images) - before).abs().amax(dim=(0, 2, 3)) > 1e-6
    assert moved.tolist() == [c == token for c in range(3)]


def test_at_the_start_the_adaptation_changes_nothing() -> None:
    plain, adapted = built(finetune="decoder"), built(finetune="lora")
    own = {k.replace(".qkv.projection", ".qkv"): v for k, v in adapted.state_dict().items()}
    names = plain.state_dict().keys()
    plain.load_state_dict({k: v for k, v in own.items() if k in names})
    images = torch.randn(2, 3, 64, 64)
    encoders = [network.network.vision_encoder for network in (plain, adapted)]
    before, after = (encoder(images).last_hidden_state for encoder in encoders)
    assert float(before.detach().std()) > 0.1
    torch.testing.assert_close(before, after)
    with torch.no_grad():
        encoders[1].layers[0].attn.qkv.value_up.weight.fill_(0.5)
    assert float((encoders[1](images).last_hidden_state - before).detach().abs().max()) > 1e-2


def test_queries_and_values_are_adapted_and_keys_are_not() -> None:
    torch.manual_seed(0)
    layer = LowRankQueryValue(torch.nn.Linear(6, 18), rank=2)
    x = torch.randn(4, 6)
    before = layer(x).chunk(3, dim=-1)
    with torch.no_grad():
        layer.query_up.weight.fill_(0.1)
        layer.value_up.weight.fill_(0.2)
    query, key, value = (a - b for a, b in zip(layer(x).chunk(3, dim=-1), before, strict=True))
    assert torch.equal(key, torch.zeros_like(key))
    torch.testing.assert_close(query, x @ layer.query_down.weight.T @ layer.query_up.weight.T)
    torch.testing.assert_close(value, x @ layer.value_down.weight.T @ layer.value_up.weight.T)


def test_of_sam_vit_b_the_papers_number_of_parameters_is_adapted() -> None:
    with torch.device("meta"):
        network = build_sam(SamSettings(), 1, 2)
    adapted = [m for m in network.modules() if isinstance(m, LowRankQueryValue)]
    added = sum(count_parameters(m) - count_parameters(m.projection) for m in adapted)
    assert (len(adapted), added) == (12, 147_456)
    inner = network.network
    free = sum(p.numel() for p in network.parameters() if p.requires_grad)
    matrix = inner.shared_image_embedding.positional_embedding.numel()
    assert free == added + count_parameters(inner.mask_decoder) + count_parameters(inner.prompt_encoder) - matrix
    assert 90e6 < count_parameters(network) < 95e6


@pytest.mark.parametrize(("finetune", "encoder"), [("lora", "adapters"), ("decoder", "none"), ("whole", "all")])
def test_what_learns_of_the_encoder(finetune: str, encoder: str) -> None:
    network = built(finetune=finetune)
    network(torch.randn(1, 1, 64, 64)).square().sum().backward()
    learned = {n for n, p in network.network.vision_encoder.named_parameters() if p.grad is not None}
    everything = {n for n, _ in network.network.vision_encoder.named_parameters()}
    adapters = {n for n in everything if "_down" in n or "_up" in n}
    assert learned == {"adapters": adapters, "none": set(), "all": everything}[encoder]
    assert all(p.grad is not None for p in network.network.mask_decoder.upscale_conv1.parameters())


@pytest.mark.parametrize("finetune", ["lora", "decoder", "whole"])
def test_the_positional_matrix_stays_as_it_is(finetune: str) -> None:
    network = built(finetune=finetune)
    matrix = network.network.shared_image_embedding.positional_embedding.detach().clone()
    free = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(free, lr=0.1, weight_decay=0.1)
    network(torch.randn(1, 1, 64, 64)).square().sum().backward()
    optimiser.step()
    assert torch.equal(network.network.shared_image_embedding.positional_embedding, matrix)


def test_a_sam_whose_parts_have_other_names_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trainer.sam.TRAINED_PARAMETERS, "decoder", ("adapt.", "network.mask_head."))
    with pytest.raises(RecipeError, match=r"has no 'network\.mask_head\.'"):
        built(finetune="decoder")


@pytest.mark.parametrize("outputs", [2, 3, 7])
def test_weights_are_taken_and_masks_start_anew_where_there_are_others(tmp_path: Path, outputs: int) -> None:
    folder = saved(tmp_path / "sam")
    network = build_sam(SamSettings.model_validate({"weights": {"folder": folder}}), 1, outputs)
    source = SamModel.from_pretrained(folder, local_files_only=True)
    taken = network.network.mask_decoder.state_dict()
    for name, value in source.mask_decoder.state_dict().items():
        if not any(part in name for part in ("mask_tokens", "hypernetworks", "iou_prediction_head")) or outputs == 3:
            assert torch.equal(taken[name], value), name
    assert torch.equal(network.network.vision_encoder.pos_embed, source.vision_encoder.pos_embed)
    for k in range(min(outputs, 3)):
        mlp = f"output_hypernetworks_mlps.{k}.proj_in.weight"
        assert torch.equal(taken[mlp], source.mask_decoder.state_dict()[mlp]) is (outputs == 3)
    assert network(torch.randn(1, 1, 64, 64)).shape == (1, outputs, 64, 64)


def test_weights_of_another_side_have_their_positions_interpolated(tmp_path: Path) -> None:
    folder = saved(tmp_path / "sam")
    network = build_sam(SamSettings.model_validate({"weights": {"folder": folder}, "side": 32}), 1, 3)
    assert network(torch.randn(1, 1, 32, 32)).shape == (1, 3, 32, 32)
    ramp = torch.linspace(0, 1, 8)[None, :, None, None].expand(1, 8, 8, 5)
    found = _interpolated(ramp, torch.Size((1, 4, 4, 5)))
    torch.testing.assert_close(found[0, :, 0, 0], torch.linspace(0.5, 6.5, 4) / 7, atol=0.03, rtol=0)
    assert torch.equal(found, found[:, :, :1, :1].expand_as(found))
    relative = torch.linspace(-1, 1, 15)[:, None].expand(15, 6)
    found = _interpolated(relative, torch.Size((7, 6)))
    torch.testing.assert_close(found[:, 0], torch.linspace(-0.92, 0.92, 7), atol=0.05, rtol=0)
    plain, small = (network.network.vision_encoder for network in (built(), built(side=32)))
    torch.testing.assert_close(small.pos_embed, _interpolated(plain.pos_embed, small.pos_embed.shape))
    with pytest.raises(RecipeError, match="not a multiple of SAM's patches of 8 pixels"):
        build_sam(sam(side=36), 1, 3)


def test_what_is_no_sam_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no folder .* with weights"):
        build_sam(SamSettings.model_validate({"weights": {"folder": tmp_path / "none"}}), 1, 3)
    folder = saved(tmp_path / "sam", card="license: other\nlicense_name: mine")
    with pytest.raises(RecipeError, match="restrictive licence 'mine'"):
        build_sam(SamSettings.model_validate({"weights": {"folder": folder}}), 1, 3)
    with pytest.raises(RecipeError, match="is not a valid configuration of SAM"):
        build_sam(SamSettings.model_validate({"vision": {"num_hidden_layers": "many"}}), 1, 3)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    parts = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in parts.items() if "layers.1." not in k}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RecipeError, match=r"lack .* tensors"):
        build_sam(SamSettings.model_validate({"weights": {"folder": folder}}), 1, 3)


def test_predicting_in_chunks_is_predicting_at_once() -> None:
    network = built(chunk=2).eval()
    images = torch.randn(5, 1, 64, 64)
    torch.testing.assert_close(network.predict(images), network(images))
