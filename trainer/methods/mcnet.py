"""MC-Net and MC-Net+: different decoders of one encoder, each trained on the others' sharpened probabilities.

Wu et al., "Semi-supervised left atrium segmentation with mutual consistency training", MICCAI 2021 (two decoders);
"Mutual consistency learning for semi-supervised medical image segmentation", Medical Image Analysis 2022 (three).
"""

from __future__ import annotations

import itertools
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from trainer.errors import RecipeError
from trainer.losses import dice_pooled, weighted_mean
from trainer.methods.method import Method, Networks, SegmentationTask, StepPlan, share_of_part
from trainer.methods.unsupported_keys import reject_deep_supervision
from trainer.network_configs import AnyNetworkConfig, parse_network_config
from trainer.networks.ensemble import NetworkEnsemble
from trainer.networks.outputs import further_outputs
from trainer.networks.shared_encoder import SharedEncoderNetwork
from trainer.patches import Batch
from trainer.recipe import Recipe, Section, Share
from trainer.targets import ExclusiveClasses


class MCNet(Method):
    """L = w_seg sum_i Dice(p_i, y) + w(t) sum_(i != j) mean (p_i - sharpened p_j)^2.

    A probability is sharpened as p^(1/T) / (p^(1/T) + (1 - p)^(1/T)).
    """

    name = "mcnet"
    former_members: ClassVar[dict[str, str]] = {"sections": "decoder_configs"}

    class Config(Section):
        """The paper's settings.

        Attributes:
            decoders: Number of decoders: 2 in MC-Net, 3 in MC-Net+.
            differ: Difference between the decoders: ``upsampling`` gives further decoders another kind of upsampling if
                the student's configuration offers several (``vnet``, ``resnet_vnet``); with ``start``, and for other
                students, decoders differ by their random initial weights alone.
            weight_seg: Weight of the supervised Dice loss.
            cross_entropy: Weight of the supervised cross-entropy; the paper's loss has none.
            weight: Largest weight w_max of the mutual consistency.
            ramp: Share of the updates over which w(t) rises.
            temperature: T of the sharpening.
            detach: If True, no gradient passes through sharpened probabilities. In the released code it does.
            labelled: Number of labelled patches per batch; by default half of the batch.
            export: Network that is kept: with the ``first`` decoder, or the ``mean`` of all.
        """

        decoders: Annotated[int, Field(ge=2, le=3)] = 3
        differ: Literal["upsampling", "start"] = "upsampling"
        weight_seg: Annotated[float, Field(ge=0)] = 0.5
        cross_entropy: Annotated[float, Field(ge=0)] = 0.0
        weight: Annotated[float, Field(ge=0)] = 1.0
        ramp: Share = 0.4
        temperature: Annotated[float, Field(gt=0)] = 0.1
        detach: bool = False
        labelled: Annotated[int, Field(ge=1)] | None = None
        export: Literal["first", "mean"] = "first"

    def __init__(self, recipe: Recipe, task: SegmentationTask) -> None:
        """See :class:`Method`.

        Raises:
            RecipeError: The student does not name the modules of its encoder, or deep supervision is requested.
        """
        super().__init__(recipe, task)
        reject_deep_supervision(self, "trains several decoders and does not read their levels")
        student = parse_network_config(recipe.student)
        if not student.encoder():
            raise RecipeError(
                f"mcnet gives several decoders one encoder, and the student ({student.kind}) does not name the modules "
                "of its encoder; name them in `student.encoding`, or take another student."
            )

    def decoder_configs(self) -> list[AnyNetworkConfig]:
        """Return the configuration of each decoder's network."""
        student = parse_network_config(self.recipe.student)
        offered = list(student.decoders()) if self.config.differ == "upsampling" else [student]
        cycled = itertools.islice(itertools.cycle(offered), self.config.decoders)
        return [parse_network_config(section.model_dump(mode="json")) for section in cycled]

    def build(self) -> Networks:
        """Build one encoder and its decoders."""
        sections = self.decoder_configs()
        networks = [s.build(self.task.inputs, self.targets.channels, self.recipe.size()) for s in sections]
        return {"student": SharedEncoderNetwork(networks, sections[0].encoder())}

    def step_plan(self, step: int) -> StepPlan:
        """Train all decoders on a batch of fixed composition in every step."""
        composition = self.composition(self.config.labelled)
        return StepPlan("train", {"student": self.student_rate(step)}, composition, step)

    def loss(self, networks: Networks, batch: Batch, step_plan: StepPlan) -> dict[str, Tensor]:
        """Return the supervised Dice of all decoders and their mutual consistency on all patches."""
        with further_outputs(networks["student"]) as heard:
            first = networks["student"](batch.images)
        logits = [first, *(heard[-1][1] if heard else ())]
        supervised = share_of_part(batch.labelled, step_plan.composition.labelled, batch, step_plan) * self.supervised(
            logits, batch
        )
        consistency = self.consistency([self.targets.probabilities(y) for y in logits])
        total = supervised + self.weight(step_plan.student_update) * consistency
        return {"total": total, "supervised": supervised.detach(), "consistency": consistency.detach()}

    def supervised(self, logits: list[Tensor], batch: Batch) -> Tensor:
        """Return the weighted Dice of the segments and the weighted cross-entropy, summed over the decoders."""
        n, weights = batch.labelled, batch.label_weights
        target = self.targets.encode(batch.labels[:n])
        wanted = self.targets.foreground(target)
        total = torch.zeros((), device=batch.images.device)
        for y in logits:
            found = self.targets.foreground(self.targets.probabilities(y[:n]))
            total = total + self.config.weight_seg * dice_pooled(found, wanted, weights)
            if self.config.cross_entropy:
                crossed = weighted_mean(self.targets.cross_entropy(y[:n], target), weights)
                total = total + self.config.cross_entropy * crossed
        return total

    def consistency(self, probabilities: list[Tensor]) -> Tensor:
        """Return the mean squared distance to another's sharpened probabilities, summed over ordered decoder pairs."""
        sharp = [self.sharpened(p) for p in probabilities]
        pairs = itertools.permutations(range(len(probabilities)), 2)
        return torch.stack([weighted_mean((probabilities[i] - sharp[j]).pow(2)) for i, j in pairs]).sum()

    def sharpened(self, p: Tensor) -> Tensor:
        """Return p^(1/T) / (p^(1/T) + (1 - p)^(1/T)), each channel by itself, as printed and released.

        It is computed as a sigmoid of the log-odds over T, whose gradient is finite at 0 and 1.
        """
        if self.config.detach:
            p = p.detach()
        return torch.sigmoid(torch.logit(p, eps=1e-6) / self.config.temperature)

    def exported(self, networks: Networks) -> nn.Module:
        """Return the encoder with its first decoder, or the mean over all decoders."""
        if self.config.export == "first":
            return networks["student"]
        decoders = networks["student"]
        assert isinstance(decoders, SharedEncoderNetwork)
        return NetworkEnsemble(decoders.members(), regions=not isinstance(self.targets, ExclusiveClasses))

    def exported_config(self) -> AnyNetworkConfig:
        """See :meth:`Method.exported_config`."""
        if self.config.export == "first":
            return self.decoder_configs()[0]
        members = [section.model_dump(mode="json") for section in self.decoder_configs()]
        regions = not isinstance(self.targets, ExclusiveClasses)
        return parse_network_config({"kind": "mean", "members": members, "regions": regions})

    def committee(self, networks: Networks) -> Networks:
        """Return the encoder with each of its decoders."""
        decoders = networks["student"]
        assert isinstance(decoders, SharedEncoderNetwork)
        return {f"decoder {k + 1}": member for k, member in enumerate(decoders.members())}
