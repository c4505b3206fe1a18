"""Description of a model's input, output and origin: ``run.json`` of a run, ``manifest.json`` of a bundle."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from semiseg.bundle.coarse_settings import CoarsePassSettings
from semiseg.bundle.fingerprint import Fingerprint
from semiseg.bundle.mask_fingerprint import MaskFingerprint
from semiseg.bundle.postprocessing import Postprocessing
from semiseg.bundle.preprocessing import Preprocessing
from semiseg.bundle.variant import Gate, Precision, Variant, Window
from semiseg.volumes.segmentation import Segment
from semiseg.volumes.series_rules import SeriesRule

FORMAT = 1


def _shares(value: Any) -> Any:
    """Refuse an invalid overlap with one message, instead of pydantic's message for each type of the union."""
    shares = value if isinstance(value, list | tuple) else [value]
    numbers = all(isinstance(share, int | float) and 0 <= share < 1 for share in shares)
    if len(shares) not in (1, 3) or not numbers or (len(shares) == 1 and shares is value):
        raise ValueError("an overlap is a number from 0 to below 1, or three of them, one for each axis")
    return value


_OneOverlap = Annotated[float, Field(ge=0, lt=1)]
Overlap = Annotated[_OneOverlap | tuple[_OneOverlap, _OneOverlap, _OneOverlap], BeforeValidator(_shares)]
EXPORT_OVERLAP = 0.5  # share of a window: the overlap of exported models, whatever overlap their run was validated with
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Channel(_Document):
    """One input of the network.

    Attributes:
        name: Name of the channel.
        series: Rule that a DICOM series must satisfy to serve the channel.
    """

    name: Annotated[str, Field(min_length=1, max_length=64)]
    series: SeriesRule | None = None


class PretrainedWeights(_Document):
    """Weights that training started from.

    Attributes:
        name: Origin of the weights.
        revision: Revision of the weights.
        licence: Licence of the weights, which applies to every model made from them.
    """

    name: str
    revision: str | None
    licence: str


class ValidationMetrics(_Document):
    """Mean metrics over the validation scans.

    Attributes:
        scans: Number of validation scans.
        dice: Mean Dice of each segment.
    """

    scans: int
    dice: dict[str, float]


class DistillationTeacher(_Document):
    """The larger network that a distilled one learned from.

    Attributes:
        name: Name of the teacher's model.
        method: Training method of the teacher.
        student: Section of the recipe that describes the teacher's network.
        parameters: Number of parameters of the teacher.
        labelled: Number of scans whose labels the teacher was trained on.
        validation: Metrics of the teacher, if it was validated.
    """

    name: str
    method: str
    student: dict[str, Any]
    parameters: int
    labelled: int
    validation: ValidationMetrics | None


class Provenance(_Document):
    """Origin of the model.

    Attributes:
        semiseg: Release of semiseg that trained the model.
        method: Name of the training method.
        created: Date and time of the training in UTC.
        dataset: Name of the dataset.
        labelled: Number of scans whose labels were opened for training.
        unlabelled: Number of scans that were used without labels.
        validation: Number of scans whose labels were opened to choose among checkpoints; with ``labelled`` this is the
            label budget.
        transductive: True if the test scans were among the unlabelled scans.
        updates: Number of updates of the student.
        seed: Seed of the run.
        student: Section of the recipe that describes the network.
        parameters: Number of parameters of the network.
        pretrained: Weights that training started from.
        taught_by: Network that the model was distilled from.
    """

    semiseg: str
    method: str
    created: str
    dataset: str
    labelled: int
    unlabelled: int
    validation: int
    transductive: bool = False
    updates: int
    seed: int
    student: dict[str, Any]
    parameters: int
    pretrained: tuple[PretrainedWeights, ...] = ()
    taught_by: DistillationTeacher | None = None


class PlanKey(_Document):
    """Graph, software and hardware that a TensorRT plan was built with; the plan is used only with exactly these.

    Attributes:
        onnx: SHA-256 of the graph.
        precision: Precision of the graph.
        tensorrt: Version of TensorRT.
        gpu: Name of the GPU.
        driver: Version of the GPU driver.
        window: Size of the windows in voxels.
        batch: Largest number of windows per call.
    """

    onnx: Sha256
    precision: Precision = "fp32"
    tensorrt: str
    gpu: str
    driver: str
    window: Window
    batch: int


class Manifest(_Document):
    """All information about a model that inference needs, and its origin.

    Attributes:
        format: Version of this document's format.
        kind: Folder that the document describes: a training ``run`` or a ``bundle``.
        name: Name of the model.
        channels: Input channels, in the network's order.
        segments: Segments, in the order of the network's outputs.
        activation: ``softmax`` (exclusive segments) or ``sigmoid`` (overlapping regions); the graph returns logits.
            With softmax the graph has one more channel than there are segments; channel 0 is the background.
        average: Values that are averaged over overlapping windows: logits or probabilities.
        preprocessing: Preprocessing of scans.
        postprocessing: Postprocessing of masks.
        patch: Patch size in voxels that the network was trained on.
        fingerprint: Ranges over the training scans.
        masks: Ranges over the model's own masks of the training scans.
        window: Default size of the sliding window in voxels.
        windows: Allowed sizes of the window, all multiples of ``divisor``.
        divisor: Numbers that the sides of a window are multiples of.
        overlap: Share of a window covered again by the next, or one for each axis.
        blending: Weighting of the voxels of a window.
        provenance: Origin of the model.
        validation: Metrics on the validation scans; null if the model was not validated.
        gate: Requirements that each of the ``variants`` had to meet.
        variants: Graphs of the model; the first graph of a bundle is fp32.
        plan: Key of the TensorRT plan, if there is one.
        coarse_pass: Settings of the coarse pass and their proofs; null if there is none, and all windows are run.
        files: SHA-256 of every file of the bundle except this one.
    """

    format: Literal[1] = 1
    kind: Literal["run", "bundle"]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    channels: Annotated[tuple[Channel, ...], Field(min_length=1)]
    segments: Annotated[tuple[Segment, ...], Field(min_length=1)]
    activation: Literal["softmax", "sigmoid"] = "softmax"
    average: Literal["logits", "probs"] = "logits"
    preprocessing: Preprocessing
    postprocessing: Postprocessing = Postprocessing()
    patch: Window
    window: Window
    windows: tuple[Window, ...]
    divisor: Window
    overlap: Overlap = EXPORT_OVERLAP
    blending: Literal["constant", "gaussian"] = "gaussian"
    fingerprint: Fingerprint
    masks: MaskFingerprint | None = None
    provenance: Provenance
    validation: ValidationMetrics | None = None
    gate: Gate = Gate()
    variants: tuple[Variant, ...] = ()
    plan: PlanKey | None = None
    coarse_pass: CoarsePassSettings | None = None
    files: dict[str, Sha256] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        labels = [s.label for s in self.segments]
        names = [s.name for s in self.segments]
        if len(set(labels)) != len(labels) or len(set(names)) != len(names):
            raise ValueError("two segments share a name or a label")
        if len({c.name for c in self.channels}) != len(self.channels):
            raise ValueError("two channels share a name")
        if len(self.preprocessing.intensity) != len(self.channels):
            raise ValueError(f"{len(self.channels)} channels need as many intensity entries in the preprocessing")
        if self.window not in self.windows:
            raise ValueError(f"the default window {list(self.window)} is not among the allowed windows")
        for window in self.windows:
            if any(w % d for w, d in zip(window, self.divisor, strict=True)):
                raise ValueError(f"window {list(window)} is not a multiple of the divisor {list(self.divisor)}")
        precisions = [variant.precision for variant in self.variants]
        if len(set(precisions)) != len(precisions):
            raise ValueError("two variants have the same precision")
        unlisted = [variant.file for variant in self.variants if self.files and variant.file not in self.files]
        if unlisted:
            raise ValueError(f"the variant {unlisted[0]} is not among the files")
        unknown = set(self.postprocessing.segments) - set(names)
        if unknown:
            raise ValueError(f"postprocessing names segments that do not exist: {', '.join(sorted(unknown))}")
        unknown = set(self.coarse_pass.expected if self.coarse_pass else ()) - set(names)
        if unknown:
            raise ValueError(f"the coarse pass expects segments that do not exist: {', '.join(sorted(unknown))}")
        return self

    @property
    def outputs(self) -> int:
        """Number of channels of the logits."""
        return len(self.segments) + (self.activation == "softmax")

    @property
    def overlaps(self) -> tuple[float, float, float]:
        """Overlap along each axis, as a share of the window."""
        return self.overlap if isinstance(self.overlap, tuple) else (self.overlap, self.overlap, self.overlap)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the input channels, in the network's order."""
        return tuple(c.name for c in self.channels)

    @property
    def rules(self) -> dict[str, SeriesRule]:
        """Rule of each channel, in order, that a DICOM series must satisfy to serve it."""
        return {c.name: c.series or SeriesRule() for c in self.channels}
