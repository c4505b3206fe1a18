"""Detects series that mix several images of the same body part: echoes, b-values, phases, before and after contrast.

Two images at the same position are visible in the geometry. If the positions of the images interleave, only the headers
tell a mixture from one acquisition that was made in several passes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from semiseg.errors import VolumeError
from semiseg.volumes.dicom_file import text
from semiseg.volumes.dicom_slices import Slice


@dataclass(frozen=True)
class _Contrast:
    """An attribute that distinguishes several images of the same body part.

    Attributes:
        words: Name of the attribute in messages.
        keyword: Keyword of the attribute in a single-frame image.
        group, inner: Functional group of a frame (PS3.3 C.7.6.16, C.8.13.5, C.8.15.3), and the attribute in it.
        per_slice: True if one acquisition may have another value for each slice; then only values that several slices
            share indicate a mixture.
        blocks: Scans in which the value may change from one part of the body to the next (CT, any, none), as between
            thin slices through the base of the skull and thick ones above; then only values that alternate indicate a
            mixture.
    """

    words: str
    keyword: str
    group: str
    inner: str
    per_slice: bool = False
    blocks: Literal["", "CT", "any"] = ""


_DECISIVE = (
    _Contrast("Echo Time", "EchoTime", "MREchoSequence", "EffectiveEchoTime"),
    _Contrast("echo number", "EchoNumbers", "MREchoSequence", "EchoNumbers"),
    _Contrast("temporal position", "TemporalPositionIdentifier", "FrameContentSequence", "TemporalPositionIndex"),
    _Contrast("b-value", "DiffusionBValue", "MRDiffusionSequence", "DiffusionBValue"),
    _Contrast("diffusion directionality", "DiffusionDirectionality", "MRDiffusionSequence", "DiffusionDirectionality"),
    _Contrast(
        "gradient direction", "DiffusionGradientOrientation", "DiffusionGradientDirectionSequence",
        "DiffusionGradientOrientation",
    ),
    _Contrast("Inversion Time", "InversionTime", "MRModifierSequence", "InversionTimes", per_slice=True),
    _Contrast("Flip Angle", "FlipAngle", "MRTimingAndRelatedParametersSequence", "FlipAngle", per_slice=True),
    _Contrast(
        "cardiac phase", "TriggerTime", "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime",
        per_slice=True,
    ),
    _Contrast(
        "cardiac phase", "NominalPercentageOfCardiacPhase", "CardiacSynchronizationSequence",
        "NominalPercentageOfCardiacPhase",
    ),
    _Contrast(
        "respiratory phase", "NominalPercentageOfRespiratoryPhase", "RespiratorySynchronizationSequence",
        "NominalPercentageOfRespiratoryPhase",
    ),
    _Contrast("Image Type", "ImageType", "MRImageFrameTypeSequence", "FrameType", blocks="CT"),
    _Contrast("Image Type", "ImageType", "CTImageFrameTypeSequence", "FrameType", blocks="CT"),
    _Contrast("complex part", "ComplexImageComponent", "MRImageFrameTypeSequence", "ComplexImageComponent"),
    _Contrast("contrast agent", "ContrastBolusAgent", "ContrastBolusUsageSequence", "ContrastBolusAgentAdministered"),
    _Contrast("sequence name", "SequenceName", "MRPulseSequenceSequence", "PulseSequenceName"),
    _Contrast("scanning sequence", "ScanningSequence", "MRPulseSequenceSequence", "ScanningSequence"),
    _Contrast("tube voltage", "KVP", "CTXRayDetailsSequence", "KVP", blocks="CT"),
    _Contrast("kernel", "ConvolutionKernel", "CTReconstructionSequence", "ConvolutionKernel", blocks="CT"),
    _Contrast("Repetition Time", "RepetitionTime", "MRTimingAndRelatedParametersSequence", "RepetitionTime", True),
    _Contrast("stack", "StackID", "FrameContentSequence", "StackID", blocks="any"),
    _Contrast("energy window", "EnergyWindowNumber", "EnergyWindowInformationSequence", "EnergyWindowNumber"),
)  # fmt: skip
_TELLING = (
    *_DECISIVE,
    _Contrast("Acquisition Number", "AcquisitionNumber", "FrameContentSequence", "FrameAcquisitionNumber"),
    _Contrast("acquisition time", "AcquisitionTime", "FrameContentSequence", "FrameAcquisitionDateTime"),
)
"""Includes attributes in which several passes of one acquisition differ; they describe images of the same place."""


def differing_attributes(slices: Sequence[Slice]) -> str:
    """Name the attributes in which slices at the same place differ; "" if none is found."""
    return ", ".join(dict.fromkeys(one.words for one in _TELLING if len(set(_values(one, slices))) > 1))


def require_single_image_type(slices: Sequence[Slice]) -> None:
    """Refuse slices that belong to several images although no two lie at the same place.

    Args:
        slices: Slices in their order along the normal.

    Raises:
        VolumeError: The slices belong to several images. The message names the attributes in which they differ, and
            the number of slices for each value of the first attribute.
    """
    found: dict[str, Counter[str]] = {}
    allowed = ("any", text(slices[0].header, "Modality", slices[0].path))
    for one in _DECISIVE:
        said = _values(one, slices)
        values = Counter(said)
        each = one.per_slice and 2 * len(values) > len(slices)
        parts = one.blocks in allowed and sum(a != b for a, b in pairwise(said)) == len(values) - 1
        if len(values) > 1 and not each and not parts:
            found.setdefault(one.words, values)
    if found:
        words, values = next(iter(found.items()))
        shown = ", ".join(f"{n} with {v}" if v else f"{n} without one" for v, n in values.most_common(4))
        also = f" They also differ in {', '.join(list(found)[1:])}." if len(found) > 1 else ""
        raise VolumeError(
            f"The slices belong to several images, which differ in {words} ({shown}).{also} Send one of them as a "
            "separate series."
        )


def _values(contrast: _Contrast, slices: Sequence[Slice]) -> list[str]:
    """Return each slice's value. Numbers are compared to four digits, since some are measured or rounded."""
    return [_plain(one.value(contrast.keyword, contrast.group, contrast.inner)) for one in slices]


def _plain(written: str) -> str:
    try:
        return f"{float(written):.4g}"
    except ValueError:
        return written[:64]
