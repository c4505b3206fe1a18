"""Selects the series of a study: the one named by its UID, or the only one that a declared rule accepts.

If several series fit, none is selected. The decision on every series has a reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from semiseg.errors import VolumeError
from semiseg.volumes.dicom_geometry import stack_planes
from semiseg.volumes.dicom_index import DicomObject

Positive = Annotated[float, Field(gt=0)]
Orientation = Literal["sagittal", "coronal", "axial"]
_ORIENTATIONS: tuple[Orientation, ...] = ("sagittal", "coronal", "axial")  # by the patient axis normal to the slices


class SeriesRule(BaseModel):
    """Conditions that a series has to meet to serve a channel; None or an empty value accepts every series.

    Attributes:
        modality: Modality, such as ``MR`` or ``CT`` (PS3.3 C.7.3.1.1.1).
        description: Patterns with ``*`` and ``?``, at least one of which must match the Series Description,
            ignoring case.
        not_description: Patterns none of which may match the Series Description.
        body_part: Patterns at least one of which must match Body Part Examined (PS3.3 C.7.3.1).
        orientation: Anatomical plane nearest to the slices.
        slice_gap: Smallest and largest allowed median distance of neighbouring slices, in mm.
        pixel_spacing: Smallest and largest allowed distance of pixels within a slice, in mm.
        least_slices, most_slices: Smallest and largest allowed number of slices.
        not_image_type: Values of Image Type (PS3.3 C.7.6.1.1.2) that exclude a series.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: str | None = None
    description: tuple[str, ...] = ()
    not_description: tuple[str, ...] = ()
    body_part: tuple[str, ...] = ()
    orientation: Orientation | None = None
    slice_gap: tuple[Positive, Positive] | None = None
    pixel_spacing: tuple[Positive, Positive] | None = None
    least_slices: Annotated[int, Field(ge=2)] = 2
    most_slices: Annotated[int, Field(ge=2)] | None = None
    not_image_type: tuple[str, ...] = ("LOCALIZER",)

    def mismatch(self, series: SeriesCandidate) -> str:
        """Give the reason why a series does not fit, as part of a sentence; "" if it fits."""
        if wrong := self.modality_mismatch(series):
            return wrong
        if self.description and not _matches(series.description, self.description):
            return f"its description '{series.description}' matches none of {', '.join(self.description)}"
        if _matches(series.description, self.not_description):
            return f"its description '{series.description}' is excluded"
        if self.body_part and not _matches(series.body_part, self.body_part):
            part = f"'{series.body_part}'" if series.body_part else "not given"
            return f"its body part is {part} and matches none of {', '.join(self.body_part)}"
        types = series.image_types & {name.upper() for name in self.not_image_type}
        if types:
            return f"its Image Type says {' and '.join(sorted(types))}"
        if series.slices < self.least_slices:
            return f"it has {series.slices} slice(s) and not at least {self.least_slices}"
        if self.most_slices is not None and series.slices > self.most_slices:
            return f"it has {series.slices} slices and not at most {self.most_slices}"
        return self._geometry_mismatch(series)

    def modality_mismatch(self, series: SeriesCandidate) -> str:
        """Give the reason why the modality does not fit; this is checked for a series chosen by its UID, too."""
        if self.modality and series.modality.upper() != self.modality.upper():
            return f"its modality is {series.modality} and not {self.modality}"
        return ""

    def _geometry_mismatch(self, series: SeriesCandidate) -> str:
        if self.orientation and series.orientation != self.orientation:
            return f"its slices are {series.orientation or 'of several orientations'} and not {self.orientation}"
        for words, name in (("slices lie", "slice_gap"), ("pixels lie", "pixel_spacing")):
            limits, found = getattr(self, name), getattr(series, name)
            if limits and not (found and limits[0] <= found <= limits[1]):
                measured = f"{found:.3g} mm" if found else "an unknown distance"
                return f"its {words} {measured} apart and not {limits[0]:g} to {limits[1]:g} mm"
        return ""


@dataclass(frozen=True)
class SeriesCandidate:
    """The objects among some files that have one Series Instance UID, as their headers describe them."""

    uid: str
    objects: tuple[DicomObject, ...]

    @property
    def modality(self) -> str:
        """Modality."""
        return self.objects[0].modality

    @property
    def description(self) -> str:
        """Series Description, "" if absent."""
        return self.objects[0].description

    @property
    def body_part(self) -> str:
        """Body Part Examined, "" if absent."""
        return self.objects[0].body_part

    @property
    def images(self) -> tuple[DicomObject, ...]:
        """Objects that are images."""
        return tuple(one for one in self.objects if one.non_image_kind is None)

    @property
    def slices(self) -> int:
        """Number of frames of the images, including frames without a position."""
        return sum(one.frames for one in self.images)

    @property
    def image_types(self) -> frozenset[str]:
        """Values of Image Type that all images have."""
        values = [frozenset(_values(one.image_type)) for one in self.images]
        return frozenset.intersection(*values) if values else frozenset()

    @cached_property
    def orientation(self) -> Orientation | None:
        """Anatomical plane nearest to the slices; None if they have several or no orientation."""
        found = {
            _ORIENTATIONS[int(np.abs(np.cross(plane.along_row, plane.along_column)).argmax())]
            for one in self.images
            for plane in one.planes
        }
        return found.pop() if len(found) == 1 else None

    @cached_property
    def slice_gap(self) -> float | None:
        """Median distance of neighbouring slices in mm; None if they do not make a stack."""
        planes = [plane for one in self.images for plane in one.planes]
        if len(planes) < 2:
            return None
        try:
            return stack_planes(planes).gap
        except VolumeError:
            return None

    @property
    def pixel_spacing(self) -> float | None:
        """Larger distance of pixels in mm; None if it is not given."""
        spacings = [max(p.row_spacing, p.column_spacing) for one in self.images for p in one.planes]
        return max(spacings, default=None)

    @property
    def name(self) -> str:
        """Name of the series for messages."""
        return f"Series {self.uid or 'without UID'} ({self.modality}, {self.description or 'no description'})"


@dataclass(frozen=True)
class SeriesDecision:
    """Decision on one series.

    Attributes:
        uid: Series Instance UID.
        description: Series Description.
        channel: Name of the channel that it serves; None if it serves none.
        reason: Reason as a sentence.
    """

    uid: str
    description: str
    channel: str | None
    reason: str


def group_by_series(objects: Sequence[DicomObject]) -> list[SeriesCandidate]:
    """Group objects by their series, in the order in which the series first occur."""
    members: dict[str, list[DicomObject]] = {}
    for one in objects:
        members.setdefault(one.series, []).append(one)
    return [SeriesCandidate(uid, tuple(found)) for uid, found in members.items()]


def select_series(
    found: Sequence[SeriesCandidate], rules: Mapping[str, SeriesRule], named: Mapping[str, str] | None = None
) -> tuple[dict[str, SeriesCandidate], tuple[SeriesDecision, ...]]:
    """Select a series for each channel.

    Args:
        found: Series of a study.
        rules: Rule of each channel, in order.
        named: Series Instance UIDs that the user has chosen, by channel; the modality of the rule still applies.

    Returns:
        The series by channel, and the decision on each image series.

    Raises:
        VolumeError: A UID is unknown, there are no images, none or several series fit a channel, or one series fits two
            channels. The message gives the reason for each series.
    """
    named = named or {}
    images = [one for one in found if one.images]
    if not images:
        kinds = ", ".join(sorted({str(one.non_image_kind) for series in found for one in series.objects}))
        raise VolumeError(f"{found[0].objects[0].path}: no images among the DICOM files, only: {kinds}.")
    if not named and len(images) > 2 and all(one.slices == 1 for one in images):
        raise VolumeError(
            f"Each of the {len(images)} images has a Series Instance UID of its own, so nothing shows that they are "
            "slices of one series (some anonymisers and exporters do this). Give the slices of a series one UID, and "
            "send them again."
        )
    if len(images) < len(rules):
        missing = [name for name, rule in rules.items() if all(rule.mismatch(one) for one in images)]
        told = f"; no series fits {', '.join(missing)}" if missing else ""
        raise VolumeError(
            f"The model takes the channels {', '.join(rules)}, each from a separate series, but the files hold "
            f"{len(images)} image series ({_listed(images)}){told}."
        )
    chosen: dict[str, SeriesCandidate] = {}
    reasons: dict[str, dict[str, str]] = {}
    for channel, rule in rules.items():
        of = f" for channel '{channel}'" if len(rules) > 1 else ""
        if channel in named:
            chosen[channel] = _named(named[channel], found, rule)
            continue
        against = {one.uid: rule.mismatch(one) or _unusable(one, images) for one in images}
        fitting = [one for one in images if not against[one.uid]]
        if len(fitting) == 1:
            chosen[channel] = fitting[0]
            reasons[channel] = against
            continue
        if fitting:
            raise VolumeError(
                f"The files hold {len(fitting)} image series that fit{of}; name one of them: {_listed(fitting)}."
            )
        if len(images) == 1:
            raise VolumeError(f"{images[0].name} does not fit{of}: {against[images[0].uid]}.")
        told = "; ".join(f"{one.name}: {against[one.uid]}" for one in images[:20])
        raise VolumeError(f"None of the {len(images)} image series fits{of}. {told}.")
    uids = [one.uid for one in chosen.values()]
    if len(set(uids)) < len(uids):
        twice = next(one for one in chosen.values() if uids.count(one.uid) > 1)
        names = ", ".join(f"'{channel}'" for channel, one in chosen.items() if one is twice)
        raise VolumeError(f"{twice.name} fits the channels {names}; each needs a separate series.")
    return chosen, tuple(_decision_on(one, images, chosen, named, reasons) for one in images)


def _unusable(one: SeriesCandidate, images: Sequence[SeriesCandidate]) -> str:
    """Give the reason why a series without positions does not fit; "" for an only series, which the reader refuses."""
    if len(images) == 1 or any(image.planes for image in one.images):
        return ""
    return "none of its images is a grey-value image with a position"


def _named(uid: str, found: Sequence[SeriesCandidate], rule: SeriesRule) -> SeriesCandidate:
    for one in found:
        if one.uid == uid:
            if not one.images:
                raise VolumeError(f"{one.name} is not an image but a {one.objects[0].non_image_kind}.")
            if wrong := rule.modality_mismatch(one):
                raise VolumeError(f"{one.name} does not fit: {wrong}.")
            return one
    raise VolumeError(f"No series {uid} is among the files; there are: {_listed(found)}.")


def _decision_on(
    one: SeriesCandidate,
    images: Sequence[SeriesCandidate],
    chosen: Mapping[str, SeriesCandidate],
    named: Mapping[str, str],
    reasons: Mapping[str, Mapping[str, str]],
) -> SeriesDecision:
    for channel, series in chosen.items():
        if series is one:
            if channel in named:
                reason = "It was requested by its UID."
            elif len(images) == 1:
                reason = "It is the only image series."
            else:
                reason = f"It is the only one of {len(images)} image series that fits."
            return SeriesDecision(one.uid, one.description, channel, reason)
    told = {against[one.uid] for against in reasons.values() if against[one.uid]}
    reason = f"Left out: {'; '.join(sorted(told))}." if told else "Left out: another series was requested by its UID."
    return SeriesDecision(one.uid, one.description, None, reason)


def _listed(series: Sequence[SeriesCandidate]) -> str:
    shown = [f"{one.name.removeprefix('Series ')[:-1]}, {len(one.objects)} files)" for one in series[:20]]
    return "; ".join(shown) + ("" if len(series) <= 20 else f"; and {len(series) - 20} more")


def _matches(description: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(description.casefold(), pattern.casefold()) for pattern in patterns)


def _values(image_type: str) -> list[str]:
    return [part.strip(" '\"").upper() for part in image_type.strip("[]").replace("\\", ",").split(",") if part.strip()]
