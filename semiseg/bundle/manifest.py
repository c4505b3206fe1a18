"""What a model takes, gives and came from: ``run.json`` of a run, ``manifest.json`` of a bundle."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from semiseg.bundle.fingerprint import Fingerprint
from semiseg.bundle.mask_fingerprint import MaskFingerprint
from semiseg.bundle.postprocessing import Postprocessing
from semiseg.bundle.preprocessing import Preprocessing
from semiseg.bundle.variant import Gate, Precision, Variant, Window
from semiseg.volumes.segmentation import Segment
from semiseg.volumes.series_rules import SeriesRule

FORMAT = 1


def _shares(value: Any) -> Any:
    """Refuse what is no overlap in one sentence, instead of one for each form that it may have."""
    shares = value if isinstance(value, list | tuple) else [value]
    numbers = all(isinstance(share, int | float) and 0 <= share < 1 for share in shares)
    if len(shares) not in (1, 3) or not numbers or (len(shares) == 1 and shares is value):
        raise ValueError("an overlap is a number from 0 to below 1, or three of them, one for each axis")
    return value


_OneOverlap = Annotated[float, Field(ge=0, lt=1)]
Overlap = Annotated[_OneOverlap | tuple[_OneOverlap, _OneOverlap, _OneOverlap], BeforeValidator(_shares)]
EXPORT_OVERLAP = 0.5  # of a window: the overlap of every exported model, whatever its run was judged with
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Channel(_Document):
    """One input of the network.

    Attributes:
        name: what it is called.
        series: what a DICOM series has to be to serve it.
    """

    name: Annotated[str, Field(min_length=1, max_length=64)]
    series: SeriesRule | None = None


class PretrainedWeights(_Document):
    """Weights that training started from.

    Attributes:
        name: where they come from.
        revision: of them.
        licence: theirs, which travels with every model made from them.
    """

    name: str
    revision: str | None
    licence: str


class ValidationMetrics(_Document):
    """Mean figures over the validation scans.

    Attributes:
        scans: how many.
        dice: per segment.
    """

    scans: int
    dice: dict[str, float]


class DistillationTeacher(_Document):
    """The larger network that a distilled one learned from.

    Attributes:
        name: its model's.
        method: how it was trained.
        student: its section of the recipe.
        parameters: how many it has.
        labelled: scans whose labels it had seen.
        validation: its figures, if it was validated.
    """

    name: str
    method: str
    student: dict[str, Any]
    parameters: int
    labelled: int
    validation: ValidationMetrics | None


class Provenance(_Document):
    """How the model came about.

    Attributes:
        semiseg: the release that trained it.
        method: how.
        created: when, in UTC.
        dataset: on which one.
        labelled: scans whose labels were opened for training.
        unlabelled: scans that were seen without labels.
        validation: scans whose labels were opened to choose among checkpoints; with ``labelled`` the label budget.
        transductive: whether the scans that judge it were among the unlabelled ones.
        updates: of the student.
        seed: of the run.
        student: the recipe's section that describes the network.
        parameters: how many the network has.
        pretrained: weights that training started from.
        taught_by: the network that it was distilled from.
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
    """What a TensorRT plan was built from and on; it is used on exactly that.

    Attributes:
        onnx: SHA-256 of the graph.
        precision: of the graph.
        tensorrt: version.
        gpu: its name.
        driver: version.
        window: the sizes of windows that it takes.
        batch: the most windows at a time.
    """

    onnx: Sha256
    precision: Precision = "fp32"
    tensorrt: str
    gpu: str
    driver: str
    window: Window
    batch: int


class Manifest(_Document):
    """Everything that inference needs to know about a model, and what a reader wants to know about its origin.

    Attributes:
        format: of this document.
        name: the model's.
        channels: what it takes, in its order.
        segments: what it outlines, in the order of the network's outputs.
        activation: ``softmax`` (exclusive segments) or ``sigmoid`` (overlapping regions); the graph returns logits.
            With softmax the graph has one channel more than there are segments: channel 0 is the background.
        average: what is averaged over overlapping windows, logits or probabilities.
        preprocessing, postprocessing: of scans, and of masks.
        patch: the size in voxels that the network was trained on.
        fingerprint, masks: what the training scans, and the model's own masks of them, were like.
        window: the default sliding window.
        windows: the sizes allowed, all multiples of ``divisor``.
        divisor: of a window's sides.
        overlap: Share of a window covered again by the next, or one for each axis.
        blending: how the voxels of a window are weighted.
        provenance: how it came about.
        validation: figures on the validation scans; none where nothing was validated.
        gate: what each of the ``variants`` had to reach.
        variants: the graphs; of a bundle the first of them is fp32.
        plan: of the TensorRT plan, if there is one.
        files: SHA-256 of every file of the bundle but this one.
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
        return self

    @property
    def outputs(self) -> int:
        """Channels of the logits."""
        return len(self.segments) + (self.activation == "softmax")

    @property
    def overlaps(self) -> tuple[float, float, float]:
        """The overlap along each axis."""
        return self.overlap if isinstance(self.overlap, tuple) else (self.overlap, self.overlap, self.overlap)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Input channels in the network's order."""
        return tuple(c.name for c in self.channels)

    @property
    def rules(self) -> dict[str, SeriesRule]:
        """For each channel in order, what a DICOM series has to be to serve it."""
        return {c.name: c.series or SeriesRule() for c in self.channels}
