"""SAM as CFR fine-tunes it: no prompts, one mask per class, low-rank adaptation of queries and values.

Segment Anything: Kirillov et al. 2023; the adaptation is SAMed's (Zhang and Liu 2023), which CFR follows.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from transformers import SamConfig, SamModel, SamVisionConfig
from transformers.models.sam.modeling_sam import SamMaskDecoder

from semiseg.bundle.manifest import PretrainedWeights
from trainer.errors import RecipeError
from trainer.networks.rgb_input import rgb_input_layer
from trainer.pretrained_weights import LOADING_ERRORS, WeightsSource, one_line_error
from trainer.recipe import Positive, Section

# Parameters that train, by the beginnings of their names; everything else is fixed. SAM's positional matrix
# (`network.shared_image_embedding`), a buffer in the original and a parameter in transformers, never trains.
TRAINED_PARAMETERS = {
    "lora": ("adapt.", "network.prompt_encoder.", "network.mask_decoder."),  # and the adaptation itself
    "decoder": ("adapt.", "network.mask_decoder."),
    "whole": ("adapt.", "network.vision_encoder.", "network.prompt_encoder.", "network.mask_decoder."),
}
FROZEN_PARAMETERS = ("network.shared_image_embedding.", "network.prompt_encoder.shared_embedding.")
LORA_PARAMETER = re.compile(r"\.qkv\.(query|value)_(down|up)\.")

# What of SAM's configuration decides its modules.
VISION_KEYS = (
    "hidden_size",
    "output_channels",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
    "qkv_bias",
    "use_abs_pos",
    "use_rel_pos",
    "window_size",
    "global_attn_indexes",
    "mlp_dim",
)
DECODER_KEYS = (
    "hidden_act",
    "mlp_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "attention_downsample_rate",
    "iou_head_depth",
    "iou_head_hidden_dim",
    "layer_norm_eps",
)

# These parts belong to the masks; with another number of them they start anew.
PER_MASK_PARAMETERS = (
    "mask_decoder.mask_tokens",
    "mask_decoder.output_hypernetworks_mlps",
    "mask_decoder.iou_prediction_head",
)


class SamSettings(Section):
    """The foundation model of a recipe.

    Attributes:
        weights: pretrained weights as ``transformers.SamModel`` saves them. Without them the network starts from
            scratch.
        vision, decoder: describe a network from scratch (keys of ``transformers.SamVisionConfig`` and
            ``SamMaskDecoderConfig``; by default SAM ViT-B).
        finetune: ``lora`` adapts queries and values of the image encoder and trains the rest but the encoder;
            ``decoder`` trains the mask decoder alone; ``whole`` trains everything. The random matrix of the positional
            encoding never trains.
        rank: of the adaptation.
        inputs: how channels become the three that natural images have: ``repeat`` one channel, or learn 1x1 ``conv``.
        side: pixels of the square image; None is what the weights or ``vision`` are made for. For another side the
            position embeddings are interpolated.
        chunk: images at a time while predicting.
    """

    weights: WeightsSource | None = None
    vision: dict[str, Any] = Field(default_factory=dict)
    decoder: dict[str, Any] = Field(default_factory=dict)
    finetune: Literal["lora", "decoder", "whole"] = "lora"
    rank: Positive = 4
    inputs: Literal["repeat", "conv"] = "repeat"
    side: Annotated[int, Field(ge=16)] | None = None
    chunk: Positive = 4

    @model_validator(mode="after")
    def _config_or_weights(self) -> SamSettings:
        if self.weights is not None and (self.vision or self.decoder):
            raise ValueError("`vision` and `decoder` describe a network from scratch; with `weights` they are theirs")
        return self

    def pretrained(self) -> tuple[PretrainedWeights, ...]:
        """What the manifest says about the weights.

        Raises:
            RecipeError: their licence is restrictive and not repeated, or their folder is missing.
        """
        return () if self.weights is None else (self.weights.manifest_entry("config.json"),)

    def config(self, outputs: int) -> SamConfig:
        """The network's configuration, with a mask for each output, before ``side`` changes its size.

        Raises:
            RecipeError: it makes no sense, or the weights' cannot be read.
        """
        try:
            if self.weights is not None:
                self.weights.manifest_entry("config.json")
                source, local = self.weights.source, self.weights.folder is not None
                config = SamConfig.from_pretrained(source, revision=self.weights.revision, local_files_only=local)
            else:
                vision = SamVisionConfig(**{"initializer_range": 0.02, **self.vision})
                width = vision.output_channels
                vision.num_pos_feats = width // 2
                prompts = {"hidden_size": width, "image_size": vision.image_size, "patch_size": vision.patch_size}
                decoder = {"hidden_size": width, **self.decoder}
                config = SamConfig(
                    vision_config=vision.to_dict(), prompt_encoder_config=prompts, mask_decoder_config=decoder
                )
            config.mask_decoder_config.num_multimask_outputs = outputs - 1
        except (OSError, *LOADING_ERRORS) as error:
            raise RecipeError(f"methods.cfr.sam does not make a SAM: {one_line_error(error)}") from None
        return config

    def without_weights(self, network: SamModel) -> SamSettings:
        """A section that builds the same modules as ``network`` without the weights that it began with."""
        if self.weights is None:
            return self
        vision, decoder = network.config.vision_config.to_dict(), network.config.mask_decoder_config.to_dict()
        return self.model_copy(
            update={
                "weights": None,
                "vision": {key: vision[key] for key in VISION_KEYS if key in vision},
                "decoder": {key: decoder[key] for key in DECODER_KEYS if key in decoder},
            }
        )

    def image_side(self) -> int:
        """Pixels of the images that the network sees."""
        if self.side is not None:
            return self.side
        return int(self.config(2).vision_config.image_size)


class SamSegmenter(nn.Module):
    """Images to one map of logits per class, without prompts."""

    def __init__(self, network: SamModel, inputs: int, section: SamSettings) -> None:
        super().__init__()
        self.adapt = rgb_input_layer(inputs, section.inputs)
        self.network = network
        self.chunk = section.chunk

    def forward(self, images: Tensor) -> Tensor:
        """(N, inputs, side, side) -> logits (N, classes, side, side)."""
        network = self.network
        features = network.vision_encoder(self.adapt(images)).last_hidden_state
        sparse, dense = network.prompt_encoder(None, None, None, None)
        count, _, high, wide = features.shape
        asked = {
            "image_embeddings": features,
            "image_positional_embeddings": network.get_image_wide_positional_embeddings().repeat(count, 1, 1, 1),
            "sparse_prompt_embeddings": sparse,
            "dense_prompt_embeddings": dense.expand(count, -1, high, wide),
        }
        # The decoder hands out its first mask or all the others, so it is asked twice (0.4 % of ViT-B's operations).
        first, others = (network.mask_decoder(**asked, multimask_output=more)[0] for more in (False, True))
        masks = torch.cat([first, others], dim=2)[:, 0]
        return functional.interpolate(masks, size=images.shape[-2:], mode="bilinear", align_corners=False)

    def predict(self, images: Tensor) -> Tensor:
        """The same, ``chunk`` images at a time."""
        # A graph has one call: the number of chunks would depend on the batch.
        parts = (images,) if torch.compiler.is_exporting() else images.split(self.chunk)
        return torch.cat([self(part) for part in parts])


class LowRankQueryValue(nn.Module):
    """A joint projection to queries, keys and values, of which queries and values get W + B A (Hu et al. 2022)."""

    def __init__(self, projection: nn.Linear, rank: int) -> None:
        super().__init__()
        width = projection.in_features
        self.projection = projection
        self.query_down, self.value_down = (nn.Linear(width, rank, bias=False) for _ in range(2))
        self.query_up, self.value_up = (nn.Linear(rank, width, bias=False) for _ in range(2))
        for down, up in ((self.query_down, self.query_up), (self.value_down, self.value_up)):
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
            nn.init.zeros_(up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., 3 width)."""
        query, key, value = self.projection(x).chunk(3, dim=-1)
        query = query + self.query_up(self.query_down(x))
        value = value + self.value_up(self.value_down(x))
        return torch.cat([query, key, value], dim=-1)


def build_sam(section: SamSettings, inputs: int, outputs: int) -> SamSegmenter:
    """The foundation model of a recipe, with the parts frozen that its ``finetune`` leaves alone.

    Raises:
        RecipeError: the weights are not there, are another network's, or may not be used.
    """
    config = section.config(outputs)
    network = _from_scratch(config) if section.weights is None else _from_weights(section.weights, config)
    side = section.side
    if side is not None and side != config.vision_config.image_size:
        network = _of_other_side(network, side)
    if section.finetune == "lora":
        for layer in network.vision_encoder.layers:
            layer.attn.qkv = LowRankQueryValue(layer.attn.qkv, section.rank)
    segmenter = SamSegmenter(network, inputs, section)
    _freeze(segmenter, section.finetune)
    return segmenter


def _freeze(segmenter: SamSegmenter, finetune: str) -> None:
    """Leave the gradients of :data:`TRAINED_PARAMETERS` on and turn all others off.

    Raises:
        RecipeError: A name of the list is not among the network's, as with a version of transformers that renames them.
    """
    parameters = dict(segmenter.named_parameters())
    wanted = [
        start for start in (*TRAINED_PARAMETERS[finetune], FROZEN_PARAMETERS[0]) if start != "adapt."
    ]  # which may have none
    missing = [start for start in wanted if not any(name.startswith(start) for name in parameters)]
    adapted = finetune != "lora" or any(LORA_PARAMETER.search(name) for name in parameters)
    if missing or not adapted:
        raise RecipeError(
            f"SAM in this version of transformers has no {(missing or ['adapted projection'])[0]!r}, so what is to be "
            "trained of it cannot be told; install a version that pyproject.toml names."
        )
    for name, parameter in parameters.items():
        trains = name.startswith(TRAINED_PARAMETERS[finetune]) or (
            finetune == "lora" and LORA_PARAMETER.search(name) is not None
        )
        parameter.requires_grad_(trains and not name.startswith(FROZEN_PARAMETERS))


def _from_scratch(config: SamConfig) -> SamModel:
    try:
        return SamModel(config)
    except LOADING_ERRORS as error:
        raise RecipeError(f"methods.cfr.sam does not make a SAM: {one_line_error(error)}") from None


def _from_weights(weights: WeightsSource, config: SamConfig) -> SamModel:
    try:
        network, loaded = SamModel.from_pretrained(
            weights.source,
            config=config,
            revision=weights.revision,
            local_files_only=weights.folder is not None,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, SafetensorError, *LOADING_ERRORS) as error:
        raise RecipeError(f"SAM's weights {weights.source} cannot be loaded: {one_line_error(error)}") from None
    anew = [*loaded["missing_keys"], *(entry[0] for entry in loaded["mismatched_keys"])]
    if len(loaded["mismatched_keys"]):  # another number of masks
        fresh = SamMaskDecoder(config.mask_decoder_config)
        for name in PER_MASK_PARAMETERS:
            part = name.removeprefix("mask_decoder.")
            setattr(network.mask_decoder, part, fresh.get_submodule(part))
    strange = sorted(key for key in anew if not key.startswith(PER_MASK_PARAMETERS))
    if strange:
        raise RecipeError(
            f"SAM's weights {weights.source} lack {len(strange)} tensors, or have them in another size, such as "
            f"{strange[0]}; take the weights of a SAM."
        )
    return network


def _of_other_side(network: SamModel, side: int) -> SamModel:
    """The same network for images of another side, its position embeddings interpolated."""
    config = SamConfig.from_dict(network.config.to_dict())
    patch = config.vision_config.patch_size
    if side % patch:
        raise RecipeError(f"methods.cfr.sam.side: {side} is not a multiple of SAM's patches of {patch} pixels.")
    config.vision_config.image_size = config.prompt_encoder_config.image_size = side
    config.prompt_encoder_config.image_embedding_size = side // patch
    other = SamModel(config)
    wanted = other.state_dict()
    found = {name: _interpolated(t, wanted[name].shape) for name, t in network.state_dict().items()}
    other.load_state_dict(found)
    return other


def _interpolated(embedding: Tensor, shape: torch.Size) -> Tensor:
    if embedding.shape == shape:
        return embedding
    if embedding.ndim == 4:  # absolute positions (1, rows, columns, width)
        moved = embedding.movedim(-1, 1)
        return functional.interpolate(moved, size=shape[1:3], mode="bicubic", align_corners=False).movedim(1, -1)
    moved = embedding.T[None]  # relative positions (length, width)
    return functional.interpolate(moved, size=shape[0], mode="linear", align_corners=False)[0].T
