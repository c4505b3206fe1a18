"""SAM as CFR fine-tunes it: without prompts, with one mask per class and low-rank adaptation of queries and values.

SAM is the Segment Anything Model (Kirillov et al. 2023); the adaptation is that of SAMed (Zhang and Liu 2023), which
CFR follows.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from semiseg.bundle.manifest import PretrainedWeights
from trainer.errors import RecipeError
from trainer.networks.rgb_input import rgb_input_layer
from trainer.pretrained_weights import LOADING_ERRORS, WeightsSource, one_line_error
from trainer.recipe import Positive, Section

if TYPE_CHECKING:  # importing them takes a second, which runs of other methods save
    from transformers import SamConfig, SamModel

# Name prefixes of the trained parameters; all others are frozen. SAM's positional matrix
# (`network.shared_image_embedding`), a buffer in the original code and a parameter in transformers, is never trained.
TRAINED_PARAMETERS = {
    "lora": ("adapt.", "network.prompt_encoder.", "network.mask_decoder."),  # in addition to LORA_PARAMETER
    "decoder": ("adapt.", "network.mask_decoder."),
    "whole": ("adapt.", "network.vision_encoder.", "network.prompt_encoder.", "network.mask_decoder."),
}
FROZEN_PARAMETERS = ("network.shared_image_embedding.", "network.prompt_encoder.shared_embedding.")
LORA_PARAMETER = re.compile(r"\.qkv\.(query|value)_(down|up)\.")

# Keys of SAM's configuration that determine its modules.
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

# Parts whose size depends on the number of masks; they are initialised at random if this number differs.
PER_MASK_PARAMETERS = (
    "mask_decoder.mask_tokens",
    "mask_decoder.output_hypernetworks_mlps",
    "mask_decoder.iou_prediction_head",
)


class SamSettings(Section):
    """Settings of the foundation model in a recipe.

    Attributes:
        weights: Pretrained weights, as ``transformers.SamModel`` saves them; None to train from scratch.
        vision: Configuration of the image encoder of a network trained from scratch (keys of
            ``transformers.SamVisionConfig``; by default SAM ViT-B).
        decoder: Configuration of the mask decoder of a network trained from scratch (keys of
            ``transformers.SamMaskDecoderConfig``; by default that of SAM).
        finetune: ``lora`` adapts queries and values of the image encoder and trains everything outside the encoder;
            ``decoder`` trains only the mask decoder; ``whole`` trains everything. The random matrix of the positional
            encoding is never trained.
        rank: Rank of the low-rank adaptation.
        inputs: Conversion of the channels to three colour channels: ``repeat`` repeats a single channel, ``conv``
            learns a 1x1 convolution.
        side: Side of the square image in pixels; None for the side in the weights' configuration or ``vision``. For
            another side, the position embeddings are interpolated.
        chunk: Number of images per call of the network while predicting.
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
            raise ValueError("`vision` and `decoder` are for a network from scratch and cannot be used with `weights`")
        return self

    def pretrained(self) -> tuple[PretrainedWeights, ...]:
        """Return the manifest's entry for the pretrained weights, if there are any.

        Raises:
            RecipeError: Their licence is restrictive and not repeated, or their folder is missing.
        """
        return () if self.weights is None else (self.weights.manifest_entry("config.json"),)

    def config(self, outputs: int) -> SamConfig:
        """Return the network's configuration, with a mask for each output, before ``side`` is applied.

        Raises:
            RecipeError: The configuration is invalid, or that of the weights cannot be read.
        """
        from transformers import SamConfig, SamVisionConfig

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
            raise RecipeError(f"methods.cfr.sam is not a valid configuration of SAM: {one_line_error(error)}") from None
        return config

    def without_weights(self, network: SamModel) -> SamSettings:
        """Return settings that build the same modules as ``network`` without loading pretrained weights."""
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
        """Return the side in pixels of the network's images."""
        if self.side is not None:
            return self.side
        return int(self.config(2).vision_config.image_size)


class SamSegmenter(nn.Module):
    """Network from images to one map of logits per class, without prompts."""

    def __init__(self, network: SamModel, inputs: int, section: SamSettings) -> None:
        super().__init__()
        self.adapt = rgb_input_layer(inputs, section.inputs)
        self.network = network
        self.chunk = section.chunk

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (N, classes, side, side) of images (N, inputs, side, side)."""
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
        # The decoder returns either its first mask or all others, so it is called twice (0.4 % of ViT-B's operations).
        first, others = (network.mask_decoder(**asked, multimask_output=more)[0] for more in (False, True))
        masks = torch.cat([first, others], dim=2)[:, 0]
        return functional.interpolate(masks, size=images.shape[-2:], mode="bilinear", align_corners=False)

    def predict(self, images: Tensor) -> Tensor:
        """Compute the logits of ``chunk`` images at a time."""
        # An exported graph contains a single call, since the number of chunks would depend on the batch.
        parts = (images,) if torch.compiler.is_exporting() else images.split(self.chunk)
        return torch.cat([self(part) for part in parts])


class LowRankQueryValue(nn.Module):
    """Joint projection to queries, keys and values; queries and values get updates W + B A (Hu et al. 2022)."""

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
        """Project (..., width) to (..., 3 width)."""
        query, key, value = self.projection(x).chunk(3, dim=-1)
        query = query + self.query_up(self.query_down(x))
        value = value + self.value_up(self.value_down(x))
        return torch.cat([query, key, value], dim=-1)


def build_sam(section: SamSettings, inputs: int, outputs: int) -> SamSegmenter:
    """Build the foundation model of a recipe, with the parameters frozen that ``finetune`` does not train.

    Raises:
        RecipeError: The weights are missing, belong to another network, or may not be used.
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
    """Freeze all parameters except :data:`TRAINED_PARAMETERS` and :data:`LORA_PARAMETER`.

    Raises:
        RecipeError: The network has no parameter of a listed name, as with a version of transformers that renames them.
    """
    parameters = dict(segmenter.named_parameters())
    wanted = [
        start for start in (*TRAINED_PARAMETERS[finetune], FROZEN_PARAMETERS[0]) if start != "adapt."
    ]  # "adapt." may have no parameters
    missing = [start for start in wanted if not any(name.startswith(start) for name in parameters)]
    adapted = finetune != "lora" or any(LORA_PARAMETER.search(name) for name in parameters)
    if missing or not adapted:
        raise RecipeError(
            f"SAM in this version of transformers has no {(missing or ['adapted projection'])[0]!r}, so its trainable "
            "parameters cannot be identified; install a version that pyproject.toml allows."
        )
    for name, parameter in parameters.items():
        trains = name.startswith(TRAINED_PARAMETERS[finetune]) or (
            finetune == "lora" and LORA_PARAMETER.search(name) is not None
        )
        parameter.requires_grad_(trains and not name.startswith(FROZEN_PARAMETERS))


def _from_scratch(config: SamConfig) -> SamModel:
    from transformers import SamModel

    try:
        return SamModel(config)
    except LOADING_ERRORS as error:
        raise RecipeError(f"methods.cfr.sam is not a valid configuration of SAM: {one_line_error(error)}") from None


def _from_weights(weights: WeightsSource, config: SamConfig) -> SamModel:
    from transformers import SamModel
    from transformers.models.sam.modeling_sam import SamMaskDecoder

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
            f"SAM's weights {weights.source} lack {len(strange)} tensors or have them in another size, such as "
            f"{strange[0]}; use the weights of a SAM."
        )
    return network


def _of_other_side(network: SamModel, side: int) -> SamModel:
    """Return a copy of the network for images of another side, with interpolated position embeddings."""
    from transformers import SamConfig, SamModel

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
