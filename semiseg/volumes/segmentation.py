"""Segmentations: K named binary segments on the grid of a scan."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from semiseg.deprecation import RenamedMember
from semiseg.errors import InputError, VolumeError
from semiseg.volumes.volume import check_affine, voxel_ml

PRIVATE_SCHEME = "99SEMISEG"
PROBABILITY_LEVELS = 255
"""Probabilities are stored as multiples of 1/255: one byte per voxel, finer than the calibration of any network."""


class ConceptCode(BaseModel):
    """A coded concept (DICOM PS3.3 section 8).

    Attributes:
        value: Code value.
        scheme: Coding scheme: SCT for SNOMED CT, DCM for DICOM.
        meaning: Code meaning in words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: str = Field(min_length=1, max_length=16)
    scheme: str = Field(min_length=1, max_length=16)
    meaning: str = Field(min_length=1, max_length=64)


class Segment(BaseModel):
    """One structure that a model outlines.

    Attributes:
        name: Name of the structure.
        label: Value of the structure in a label map (1..255).
        values: Values of a reference label map that make up a region (whole tumour: oedema, core and enhancing part).
            Regions may overlap. A segment without values has one value, its label, and excludes the other segments.
        painted: Value of a region if all regions are painted into one label map, each with its own value over those
            before it; None if no value was declared.
        colour: Red, green and blue, 0 to 255, in pictures and viewers.
        category, type: DICOM codes of a SEG's Segmented Property Category and Type (PS3.3 C.8.20.2); see
            :attr:`coded_type` for a segment without a type.
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
        """Code of the type; if there is none, a private code (PS3.16 8.2) that depends on the name alone."""
        value = hashlib.sha256(self.name.casefold().encode()).hexdigest()[:15].upper()
        return self.type or ConceptCode(value=f"S{value}", scheme=PRIVATE_SCHEME, meaning=self.name)

    @property
    def reference_values(self) -> tuple[int, ...]:
        """Values of a reference label map that belong to the segment."""
        return self.values or (self.label,)

    @property
    def display_name(self) -> str:
        """Values and name as text for messages: ``2+3 core``."""
        return f"{'+'.join(map(str, self.reference_values))} {self.name}"


def are_overlapping(segments: Sequence[Segment]) -> bool:
    """Return True if the segments are regions, so that a voxel may belong to several of them."""
    return any(segment.values for segment in segments)


def painted_values(segments: Sequence[Segment]) -> list[int]:
    """Return the value with which each region is painted into one label map.

    Raises:
        InputError: A region has no declared value.
    """
    values = [segment.painted for segment in segments if segment.painted is not None]
    if len(values) < len(segments):
        silent = [segment.name for segment in segments if segment.painted is None]
        raise InputError(
            f"{', '.join(silent)} may overlap other regions, and there are no declared values for painting all into "
            "one label map: request the format nifti, which has a mask for each, or train with a value for each region "
            "under `segments` in the recipe (painted: 2) or in `regions_class_order` of dataset.json."
        )
    return values


@dataclass(frozen=True, eq=False)
class Segmentation:
    """K named binary segments on one grid.

    Attributes:
        segments: The K segments in order.
        array: One label map, uint8 (X, Y, Z), with ``Segment.label`` or 0 for exclusive classes; K masks, bool
            (K, X, Y, Z), for overlapping regions.
        affine: (4, 4) matrix from voxel indices to RAS+ mm.
        probabilities: Probability of each segment as multiples of 1/255, uint8 (K, X, Y, Z); None if not requested.
            They are the network's output: postprocessing does not change them.
    """

    segments: tuple[Segment, ...]
    array: NDArray[Any]
    affine: NDArray[np.float64]
    probabilities: NDArray[np.uint8] | None = None

    millilitres = RenamedMember("volumes_ml")

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
        """True if each voxel belongs to at most one segment (a label map)."""
        return self.array.ndim == 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along X, Y, Z."""
        x, y, z = self.array.shape[-3:]
        return (x, y, z)

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Return the binary mask (X, Y, Z) of segment ``index`` (0-based)."""
        if self.exclusive:
            return np.asarray(self.array == self.segments[index].label)
        return np.asarray(self.array[index], dtype=bool)

    def label_map(self) -> NDArray[np.uint8]:
        """Return one label map, uint8 (X, Y, Z), into which regions are painted one over the other in their order.

        Raises:
            InputError: See :func:`painted_values`.
        """
        if self.exclusive:
            return self.array.astype(np.uint8)
        out = np.zeros(self.shape, dtype=np.uint8)
        for k, value in enumerate(painted_values(self.segments)):
            out[self.mask(k)] = value
        return out

    def volumes_ml(self) -> dict[str, float]:
        """Return the volume of each segment in ml, by name."""
        unit = voxel_ml(self.affine)
        return {s.name: float(np.count_nonzero(self.mask(k)) * unit) for k, s in enumerate(self.segments)}


def segmentation_from_labels(
    segments: tuple[Segment, ...], labels: NDArray[Any], affine: NDArray[np.float64]
) -> Segmentation:
    """Make the segmentation of ``segments`` from a reference label map (X, Y, Z); other values are background."""
    masks = [np.isin(labels, segment.reference_values) for segment in segments]
    if are_overlapping(segments):
        return Segmentation(segments, np.stack(masks), affine)
    array = np.zeros(labels.shape, dtype=np.uint8)
    for segment, mask in zip(segments, masks, strict=True):
        array[mask] = segment.label
    return Segmentation(segments, array, affine)
