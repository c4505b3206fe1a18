"""The answer: K named binary segments on a scan's own grid."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from semiseg.errors import InputError, VolumeError
from semiseg.volumes.volume import check_affine, voxel_ml

PRIVATE_SCHEME = "99SEMISEG"
PROBABILITY_LEVELS = 255
"""Probabilities are kept in 255ths: one byte a voxel, finer than any network is calibrated."""


class ConceptCode(BaseModel):
    """A coded concept (DICOM PS3.3 section 8).

    Attributes:
        value: the code.
        scheme: who gave it: SCT for SNOMED CT, DCM for DICOM.
        meaning: the same in words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: str = Field(min_length=1, max_length=16)
    scheme: str = Field(min_length=1, max_length=16)
    meaning: str = Field(min_length=1, max_length=64)


class Segment(BaseModel):
    """One structure that a model outlines.

    Attributes:
        name: what it is called.
        label: the integer that stands for it in a label map (1..255).
        values: for a region, the values of a reference label map that it is made of (whole tumour: oedema, core and
            enhancing part). Regions may overlap; a segment without values is one value, its label, and excludes others.
        painted: for a region, its value where all regions are to be one label map: each is painted with its own over
            those before it. None: nobody declared one.
        colour: red, green and blue, 0 to 255, in pictures and viewers.
        category, type: the DICOM codes of a SEG's Segmented Property Category and Type (PS3.3 C.8.20.2); see
            :attr:`coded_type` for a segment without one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=64)
    label: int = Field(ge=1, le=255)
    values: tuple[int, ...] = ()
    painted: int | None = Field(default=None, ge=1, le=255)
    colour: tuple[int, int, int] = (230, 60, 60)
    category: ConceptCode = ConceptCode(value="85756007", scheme="SCT", meaning="Tissue")
    type: ConceptCode | None = None

    @property
    def coded_type(self) -> ConceptCode:
        """Its type; without one a code of a private scheme (PS3.16 8.2) that means its name and is always the same."""
        value = hashlib.sha256(self.name.casefold().encode()).hexdigest()[:15].upper()
        return self.type or ConceptCode(value=f"S{value}", scheme=PRIVATE_SCHEME, meaning=self.name)

    @property
    def reference_values(self) -> tuple[int, ...]:
        """The values of a reference label map that belong to it."""
        return self.values or (self.label,)

    @property
    def display_name(self) -> str:
        """Its values and its name, for a sentence: ``2+3 core``."""
        return f"{'+'.join(map(str, self.reference_values))} {self.name}"


def are_overlapping(segments: Sequence[Segment]) -> bool:
    """Whether the segments are regions, of which a voxel may belong to several."""
    return any(segment.values for segment in segments)


def painted_values(segments: Sequence[Segment]) -> list[int]:
    """For each region the value that it is painted with where all are to be one label map.

    Raises:
        InputError: nobody declared one.
    """
    values = [segment.painted for segment in segments if segment.painted is not None]
    if len(values) < len(segments):
        silent = [segment.name for segment in segments if segment.painted is None]
        raise InputError(
            f"{', '.join(silent)} may overlap other regions, and it is not declared how all are painted into one label "
            "map: ask for nifti, which has a mask for each, or train with a value for each region under `segments` in "
            "the recipe (painted: 2) or in `regions_class_order` of dataset.json."
        )
    return values


@dataclass(frozen=True, eq=False)
class Segmentation:
    """K named binary segments on one grid.

    Attributes:
        segments: the K segments in order.
        array: exclusive classes are one label map, uint8 (X, Y, Z), holding ``Segment.label`` or 0; overlapping regions
            are K masks, bool (K, X, Y, Z).
        affine: (4, 4), voxel indices to RAS+ mm.
        probabilities: uint8 (K, X, Y, Z), how probable the network found each segment, in 255ths; None where nobody
            asked. They are the network's own: what postprocessing removed or filled does not show in them.
    """

    segments: tuple[Segment, ...]
    array: NDArray[Any]
    affine: NDArray[np.float64]
    probabilities: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        check_affine(np.asarray(self.affine, dtype=np.float64))
        if self.array.ndim == 4 and self.array.shape[0] != len(self.segments):
            raise VolumeError(f"{len(self.segments)} segments need as many masks; the array has {self.array.shape[0]}.")
        if self.array.ndim not in (3, 4):
            raise VolumeError(f"A segmentation is (X, Y, Z) or (K, X, Y, Z); this one has shape {self.array.shape}.")
        if self.probabilities is not None and self.probabilities.shape != (len(self.segments), *self.shape):
            raise VolumeError(
                f"The probabilities of {len(self.segments)} segments of shape {self.shape} have shape "
                f"{self.probabilities.shape}."
            )

    @property
    def exclusive(self) -> bool:
        """Whether each voxel belongs to at most one segment (a label map)."""
        return self.array.ndim == 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along X, Y, Z."""
        x, y, z = self.array.shape[-3:]
        return (x, y, z)

    def mask(self, index: int) -> NDArray[np.bool_]:
        """The binary mask (X, Y, Z) of segment ``index`` (0-based)."""
        if self.exclusive:
            return np.asarray(self.array == self.segments[index].label)
        return np.asarray(self.array[index], dtype=bool)

    def label_map(self) -> NDArray[np.uint8]:
        """One uint8 (X, Y, Z): exclusive segments by their labels, regions painted one over the other in their order.

        Raises:
            InputError: see :func:`painted_values`.
        """
        if self.exclusive:
            return self.array.astype(np.uint8)
        out = np.zeros(self.shape, dtype=np.uint8)
        for k, value in enumerate(painted_values(self.segments)):
            out[self.mask(k)] = value
        return out

    def volumes_ml(self) -> dict[str, float]:
        """Volume of each segment in ml, by name."""
        unit = voxel_ml(self.affine)
        return {s.name: float(np.count_nonzero(self.mask(k)) * unit) for k, s in enumerate(self.segments)}


def segmentation_from_labels(
    segments: tuple[Segment, ...], labels: NDArray[Any], affine: NDArray[np.float64]
) -> Segmentation:
    """What a reference label map (X, Y, Z) says of ``segments``; other values are background."""
    masks = [np.isin(labels, segment.reference_values) for segment in segments]
    if are_overlapping(segments):
        return Segmentation(segments, np.stack(masks), affine)
    array = np.zeros(labels.shape, dtype=np.uint8)
    for segment, mask in zip(segments, masks, strict=True):
        array[mask] = segment.label
    return Segmentation(segments, array, affine)
