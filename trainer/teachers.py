"""2D teacher networks, pretrained or trained from scratch, and their fine-tuning."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from semiseg.bundle.manifest import PretrainedWeights
from trainer.errors import RecipeError
from trainer.networks import efficientnet, resunet
from trainer.networks.custom import build_custom_network, import_network_function
from trainer.networks.rgb_input import rgb_input_layer
from trainer.pretrained_weights import LOADING_ERRORS, WeightsSource, one_line_error
from trainer.recipe import Positive, Section

if TYPE_CHECKING:  # importing it takes a second, which runs of other methods save
    from transformers import SegformerForSemanticSegmentation

# Keys of SegFormer's configuration that determine its modules.
ARCHITECTURE_KEYS = (
    "num_channels",
    "num_encoder_blocks",
    "depths",
    "sr_ratios",
    "hidden_sizes",
    "patch_sizes",
    "strides",
    "num_attention_heads",
    "mlp_ratios",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout_prob",
    "drop_path_rate",
    "layer_norm_eps",
    "decoder_hidden_size",
)


class Lora(Section):
    """Low-rank adaptation (Hu et al. 2022): W + (alpha / rank) B A, with dropout on its input.

    Attributes:
        rank: Rank of B A.
        alpha: Numerator of the scale alpha / rank.
        dropout: Probability of dropout.
    """

    rank: Positive = 64
    alpha: Annotated[float, Field(gt=0)] = 64.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class TeacherConfig(Section):
    """Settings of the 2D teacher in a recipe.

    Attributes:
        kind: ``segformer``; ``resunet``, a U-Net with a ResNet-50 encoder (M&N's table 4); ``efficientnet``, a U-Net
            with an EfficientNet-Lite0 encoder, whose ImageNet weights are freely available; or ``custom``, any other 2D
            network.
        function: Name ``package.module:function`` of the function that builds a custom network. It is called as
            ``function(inputs, outputs, **settings)`` and returns a module from slices (N, inputs, H, W) of any size to
            logits (N, outputs, H, W).
        settings: Keyword arguments of ``function``.
        weights: Pretrained weights; None to train from scratch. For ``resunet``, these are the weights of its encoder
            in a folder with ``model.safetensors``; for ``efficientnet``, a folder with
            ``efficientnet-lite0-57934424.pth``. The function of a custom network is called with their folder as
            ``weights``.
        config: Configuration of a SegFormer trained from scratch (keys of ``transformers.SegformerConfig``).
        finetune: ``lora`` adapts the encoder's linear layers and trains biases, layer norms and the new head; in an
            EfficientNet, it adapts the 1x1 convolutions and trains batch norms and the whole decoder. ``decoder``
            trains the decode head; ``whole`` trains everything.
        lora: Rank, alpha and dropout of the low-rank adaptation.
        inputs: Conversion of the channels to three colour channels: ``repeat`` repeats a single channel, ``conv``
            learns a 1x1 convolution.
        chunk: Number of slices per pass of the SegFormer's encoder in training. A smaller number saves memory and takes
            more time, because features are computed again in the backward pass; the result is the same. None processes
            all slices in one pass.
        enlarge: In-plane factor by which slices are enlarged before the network and reduced after it.
    """

    kind: Literal["segformer", "resunet", "efficientnet", "custom"] = "segformer"
    function: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    weights: WeightsSource | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    finetune: Literal["lora", "decoder", "whole"] = "lora"
    lora: Lora = Lora()
    inputs: Literal["repeat", "conv"] = "repeat"
    chunk: Positive | None = None
    enlarge: Positive = 1

    @model_validator(mode="after")
    def _config_or_weights(self) -> TeacherConfig:
        if self.weights is not None and self.config:
            raise ValueError("`config` is for a network from scratch and cannot be used with `weights`")
        if self.kind != "segformer":
            if self.config:
                raise ValueError(f"`config` is for SegFormer; a network of kind `{self.kind}` has none")
            if self.finetune == "lora" and self.kind != "efficientnet":
                raise ValueError(f"`finetune: lora` is not possible for a network of kind `{self.kind}`")
            if self.weights is not None and self.weights.folder is None:
                raise ValueError(f"a network of kind `{self.kind}` needs its weights in a `folder`")
        if (self.kind == "custom") != (self.function is not None):
            raise ValueError("`function` is required for a network of kind `custom` and not allowed for other kinds")
        if self.kind == "custom" and self.finetune != "whole":
            raise ValueError("a network of kind `custom` needs `finetune: whole`; it can freeze parameters itself")
        if self.function is not None:
            import_network_function(self.function)
        return self

    def pretrained(self) -> tuple[PretrainedWeights, ...]:
        """Return the manifest's entry for the pretrained weights, if there are any.

        Raises:
            RecipeError: Their licence is restrictive and not repeated, or their folder is missing.
        """
        files = {"resunet": resunet.WEIGHTS, "segformer": "config.json", "efficientnet": efficientnet.WEIGHTS}
        needed = files.get(self.kind)
        return () if self.weights is None else (self.weights.manifest_entry(needed),)

    def without_weights(self, network: nn.Module) -> TeacherConfig:
        """Return settings that build the same modules as ``network`` without loading pretrained weights."""
        if self.weights is None:
            return self
        config: dict[str, Any] = {}
        if isinstance(network, SegformerTeacher):
            known = network.network.config.to_dict()
            config = {key: known[key] for key in ARCHITECTURE_KEYS if key in known}
        return self.model_copy(update={"weights": None, "config": config})


class SegformerTeacher(nn.Module):
    """SegFormer on slices, with a transposed convolution of its decode head's features and the input at 1/4 size.

    As in M&N's released code, the classifier is left out, the features of the decode head (768 channels for MiT-B2) are
    concatenated with the subsampled input, and a 4x4 transposed convolution of stride 4 gives logits at full size.
    """

    def __init__(
        self, network: SegformerForSemanticSegmentation, inputs: int, outputs: int, section: TeacherConfig
    ) -> None:
        super().__init__()
        self.enlarge, self.chunk = section.enlarge, section.chunk
        self.stride = int(network.config.strides[0])
        colours = int(network.config.num_channels)
        self.adapt = rgb_input_layer(inputs, section.inputs, colours)
        network.decode_head.classifier = nn.Identity()
        self.network = network
        width = int(network.config.decoder_hidden_size) + colours
        self.head = nn.ConvTranspose2d(width, outputs, kernel_size=self.stride, stride=self.stride)

    def min_slice_size(self) -> int:
        """Return the smallest side of a slice for which each stage has enough features for its attention's pooling."""
        config = self.network.config
        stages = list(zip(config.patch_sizes, config.strides, config.sr_ratios, strict=True))

        def fits(side: int) -> bool:
            for kernel, stride, pooled in stages:
                side = (side + 2 * (kernel // 2) - kernel) // stride + 1
                if side < pooled:
                    return False
            return True

        return next(side for side in itertools.count(1) if fits(side * self.enlarge))

    def forward(self, slices: Tensor) -> Tensor:
        """Compute logits (N, outputs, H, W) of slices (N, inputs, H, W)."""
        size = slices.shape[-2:]
        x = self.adapt(slices)
        if self.enlarge > 1:
            x = functional.interpolate(x, scale_factor=self.enlarge, mode="bilinear", align_corners=False)
        fine = self.network.decode_head(self._encode(x))
        coarse_input = x[..., :: self.stride, :: self.stride]
        logits = self.head(torch.cat([fine, coarse_input.to(fine.dtype)], dim=1))[..., : x.shape[-2], : x.shape[-1]]
        if self.enlarge > 1:
            logits = functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return logits

    def _encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute features of four sizes.

        The encoder processes each slice independently (its norms are layer norms), so that chunks do not change the
        result. The decode head, which has a batch norm, needs all slices at once.
        """
        if self.chunk is None or len(x) <= self.chunk or not torch.is_grad_enabled():
            return self._features(x)
        parts = [checkpoint(self._features, chunk, use_reentrant=False) for chunk in x.split(self.chunk)]
        return tuple(torch.cat(level) for level in zip(*parts, strict=True))

    def _features(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network.segformer(pixel_values=x, output_hidden_states=True).hidden_states)


class SliceTeacher(nn.Module):
    """Another 2D network on slices, with enlargement of its input and reduction of its output."""

    def __init__(self, network: nn.Module, adapt: nn.Module, enlarge: int) -> None:
        super().__init__()
        self.enlarge = enlarge
        self.adapt = adapt
        self.network = network

    def min_slice_size(self) -> int:
        """Return 1, since these networks take slices of any size."""
        return 1

    def forward(self, slices: Tensor) -> Tensor:
        """Compute logits (N, outputs, H, W) of slices (N, inputs, H, W)."""
        x = self.adapt(slices)
        if self.enlarge == 1:
            logits: Tensor = self.network(x)
            return logits
        x = functional.interpolate(x, scale_factor=self.enlarge, mode="bilinear", align_corners=False)
        return functional.interpolate(self.network(x), size=slices.shape[-2:], mode="bilinear", align_corners=False)


Network2D = SegformerTeacher | SliceTeacher


def build_teacher(section: TeacherConfig, inputs: int, outputs: int) -> Network2D:
    """Build the 2D teacher of a recipe, with the parameters frozen that ``finetune`` does not train.

    Raises:
        RecipeError: The weights are missing, belong to another network, or may not be used.
    """
    if section.kind == "resunet":
        return _resunet(section, inputs, outputs)
    if section.kind == "efficientnet":
        return _efficientnet(section, inputs, outputs)
    if section.function is not None:
        return _custom(section, section.function, inputs, outputs)
    teacher = SegformerTeacher(_segformer(section), inputs, outputs, section)
    if section.finetune == "lora":
        _adapt_low_rank(teacher, section.lora)
    elif section.finetune == "decoder":
        teacher.network.segformer.requires_grad_(False)
    return teacher


def _custom(section: TeacherConfig, function: str, inputs: int, outputs: int) -> SliceTeacher:
    settings = dict(section.settings)
    if section.weights is not None:
        section.pretrained()  # refuses a licence that is not repeated, before anything is read
        settings["weights"] = section.weights.folder
    network = build_custom_network(function, inputs, outputs, settings)
    return SliceTeacher(network, nn.Identity(), section.enlarge)


def _load(section: TeacherConfig, load: Callable[[Path], None]) -> None:
    """Load pretrained weights from their folder, if the recipe names one."""
    if section.weights is not None and section.weights.folder is not None:
        section.pretrained()  # refuses a licence that is not repeated, before anything is read
        load(section.weights.folder)


def _resunet(section: TeacherConfig, inputs: int, outputs: int) -> SliceTeacher:
    network = resunet.ResUNet(outputs)
    _load(section, partial(resunet.load_encoder, network))
    if section.finetune == "decoder":
        network.encoder.requires_grad_(False)
    return SliceTeacher(network, rgb_input_layer(inputs, section.inputs), section.enlarge)


def _efficientnet(section: TeacherConfig, inputs: int, outputs: int) -> SliceTeacher:
    network = efficientnet.EfficientUNet(outputs)
    _load(section, partial(efficientnet.load_encoder, network))
    if section.finetune == "decoder":
        network.encoder.requires_grad_(False)
    elif section.finetune == "lora":
        _inject(network.encoder, section.lora, efficientnet.pointwise_convolutions(network.encoder))
        for module in network.encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(True)
    return SliceTeacher(network, rgb_input_layer(inputs, section.inputs), section.enlarge)


def _segformer(section: TeacherConfig) -> SegformerForSemanticSegmentation:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    if section.weights is None:
        unknown = sorted(set(section.config) - set(SegformerConfig().to_dict()))
        if unknown:
            raise RecipeError(f"The teacher's `config` has {unknown[0]!r}, which is not a key of SegFormer.")
        try:
            return SegformerForSemanticSegmentation(SegformerConfig(**section.config))
        except LOADING_ERRORS as error:
            raise RecipeError(f"The teacher's `config` is not valid for SegFormer: {one_line_error(error)}") from None
    section.pretrained()  # refuses a licence that is not repeated, before anything is read
    source = section.weights.source
    try:
        network, loaded = SegformerForSemanticSegmentation.from_pretrained(
            source,
            revision=section.weights.revision,
            local_files_only=section.weights.folder is not None,
            output_loading_info=True,
        )
    except (OSError, SafetensorError, *LOADING_ERRORS) as error:
        raise RecipeError(f"The teacher's weights {source} cannot be loaded: {one_line_error(error)}") from None
    missing = [key for key in loaded["missing_keys"] if not key.startswith("decode_head.classifier.")]
    # Missing tensors are initialised at random. A decode head can be trained from this, but LoRA would freeze it.
    if any(key.startswith("segformer.") for key in missing) or (missing and section.finetune == "lora"):
        raise RecipeError(
            f"The teacher's weights {source} lack {len(missing)} of the tensors that a SegFormer for segmentation has, "
            f"such as {sorted(missing)[0]}; use other weights, or `finetune: whole` if only the decode head is missing."
        )
    return network


def lora_targets(network: SegformerForSemanticSegmentation) -> list[str]:
    """Return the names of the linear layers in the encoder's attention and feed-forward blocks.

    They are found by their type and position, because their names differ between versions of transformers (query,
    q_proj, dense1, fc1, ...). The decode head's projections stay frozen, as in the released code.
    """
    encoder = {id(m) for m in network.segformer.modules()}
    return [n for n, m in network.named_modules() if isinstance(m, nn.Linear) and id(m) in encoder]


def _adapt_low_rank(teacher: SegformerTeacher, lora: Lora) -> None:
    """Apply LoRA to :func:`lora_targets`; all biases, the layer norms and the new parts are trained, others frozen."""
    _inject(teacher.network, lora, lora_targets(teacher.network))
    for module in teacher.network.modules():
        if isinstance(module, nn.LayerNorm):
            module.requires_grad_(True)


def _inject(network: nn.Module, lora: Lora, targets: list[str]) -> None:
    """Adapt the modules ``targets`` of a network; its biases and the adapters are trained, other parameters frozen."""
    from peft import LoraConfig, inject_adapter_in_model  # importing peft takes half a second

    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, bias="all", target_modules=targets
    )
    inject_adapter_in_model(config, network)
