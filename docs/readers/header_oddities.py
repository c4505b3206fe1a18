"""Generated series that are odd in one way each, in what their headers say, and what the standard says of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from docs.readers.generated_series import GAP, GeneratedSeries, GroundTruth, Layout, Rescale, write_series
from docs.readers.pixel_encoding import Format

Must = Literal["read", "refuse", "either"]
Maker = Callable[[Path, np.random.Generator], GroundTruth | None]
Change = Callable[[Dataset, int], None]


@dataclass(frozen=True)
class Oddity:
    """One odd series.

    Attributes:
        name: the case.
        must: duty of a reader: to read it, to refuse it, or either (but not read it wrongly).
        why: the paragraph of the standard.
        make: writes it and returns the truth; None where there is no volume.
    """

    name: str
    must: Must
    why: str
    make: Maker


HEADER_ODDITIES: list[Oddity] = []
HU = Rescale("hu", ((1, -1024),))
U12, S12 = Format(16, 12, False), Format(16, 12, True)


def plain_case(
    layout: Layout = "classic", form: Format = U12, *, modality: str = "MR", syntax: str = "explicit"
) -> GeneratedSeries:
    """The series that is changed."""
    rescale = HU if modality == "CT" else Rescale("absent")
    return GeneratedSeries("odd", layout, modality, syntax, form, rescale, "double_oblique")


def files_of(folder: Path) -> list[Path]:
    """The series' files, in the order of their slices."""
    found = [(pydicom.dcmread(path, stop_before_pixels=True), path) for path in folder.glob("*.dcm")]
    return [path for _, path in sorted(found, key=lambda one: int(one[0].InstanceNumber))]


def write_changed(case: GeneratedSeries, change: Change, folder: Path, rng: np.random.Generator) -> GroundTruth:
    """Write a series, then change each of its objects."""
    truth = write_series(case, folder, rng)
    for z, path in enumerate(files_of(folder)):
        dataset = pydicom.dcmread(path)
        change(dataset, z)
        dataset.save_as(path)
    return truth


def add_oddity(
    name: str,
    must: Must,
    why: str,
    case: GeneratedSeries,
    change: Change,
    *,
    volume: bool = True,
    into: list[Oddity] | None = None,
) -> None:
    """Register a series that differs from a plain one by a change of its objects."""

    def maker(folder: Path, rng: np.random.Generator) -> GroundTruth | None:
        truth = write_changed(case, change, folder, rng)
        return truth if volume else None

    where = HEADER_ODDITIES if into is None else into
    where.append(Oddity(f"odd-{name}", must, why, maker))


def setting(**values: object) -> Change:
    """A change that sets attributes of every object."""

    def change(dataset: Dataset, z: int) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return change


def setting_halves(keyword: str, values: tuple[object, object]) -> Change:
    """A change that gives every other slice another value of an attribute."""

    def change(dataset: Dataset, z: int) -> None:
        setattr(dataset, keyword, values[z % 2])

    return change


def sequence_item(**values: object) -> Dataset:
    """An item of a sequence."""
    out = Dataset()
    for keyword, value in values.items():
        setattr(out, keyword, value)
    return out


def frame_groups(dataset: Dataset) -> list[Dataset]:
    """The per-frame functional groups."""
    return list(dataset.PerFrameFunctionalGroupsSequence)


def _no_effect() -> None:
    classic, ct = plain_case(), plain_case(modality="CT")
    for name, why, case, change in (
        ("window", "PS3.3 C.11.2: display only", ct, setting(WindowCenter="40", WindowWidth="80")),
        ("presentation_inverse", "PS3.3 C.11.6: display only", ct, setting(PresentationLUTShape="INVERSE")),
        ("monochrome1_ct", "PS3.3 C.7.6.3.1.2: display only, HU stay HU", ct,
         setting(PhotometricInterpretation="MONOCHROME1")),
        ("instance_numbers_wrong", "PS3.3 C.7.6.2.1.1: positions place slices", classic,
         lambda d, z: setattr(d, "InstanceNumber", (7, 2, 9, 4)[z])),
        ("slice_location_wrong", "PS3.3 C.7.6.2.1.2: relative position, not defined", classic,
         lambda d, z: setattr(d, "SliceLocation", str(-z))),
        ("thickness_wrong", "PS3.3 C.7.6.2.1.1: thickness is no distance", classic, setting(SliceThickness="9")),
        ("spacing_between_wrong", "PS3.3 C.7.6.2.1.1", classic, setting(SpacingBetweenSlices="9")),
        ("patient_feet_first", "PS3.3 C.7.3.1.1.2: says nothing of axes", classic, setting(PatientPosition="FFP")),
        ("derived_mip", "PS3.3 C.7.6.1.1.2", classic, setting(ImageType=["DERIVED", "SECONDARY", "MIP"])),
        ("real_world_values", "PS3.3 C.7.6.16.2.11: beside the modality LUT, not in its place", ct,
         setting(RealWorldValueMappingSequence=[sequence_item(RealWorldValueSlope=3.0, RealWorldValueIntercept=5.0)])),
    ):  # fmt: skip
        add_oddity(name, "read", why, case, change)


def _decimal_strings() -> None:
    def padded(dataset: Dataset, z: int) -> None:
        dataset.ImagePositionPatient = [f" {float(v):+.6e} "[:16] for v in dataset.ImagePositionPatient]

    add_oddity("exponents_and_signs", "read", "PS3.5 6.2: DS", plain_case(), padded)

    def long(dataset: Dataset, z: int) -> None:
        dataset.ImagePositionPatient = [float(v) for v in dataset.ImagePositionPatient]
        for value in dataset.ImagePositionPatient:
            value.original_string = f"{float(value):.22f}"

    add_oddity("longer_than_16", "either", "PS3.5 6.2: DS is 16 characters at most", plain_case(), long)


def _mixtures() -> None:
    """Slices of two kinds in turn, at places of their own: two volumes of half the slices each."""
    kinds: tuple[tuple[str, tuple[object, object]], ...] = (
        ("EchoTime", ("3.1", "9.8")),
        ("DiffusionBValue", (0.0, 1000.0)),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M", "SE"], ["ORIGINAL", "PRIMARY", "P", "SE"])),
        ("InversionTime", ("100", "900")),
        ("TriggerTime", ("10", "500")),
        ("TemporalPositionIdentifier", (1, 2)),
        ("FlipAngle", ("5", "25")),
        ("ContrastBolusAgent", ("", "Gd")),
        ("RepetitionTime", ("500", "3000")),
        ("ConvolutionKernel", ("B30f", "B70f")),
        ("KVP", ("80", "140")),
    )
    for keyword, values in kinds:
        modality = "CT" if keyword in ("ConvolutionKernel", "KVP") else "MR"
        case = plain_case(modality=modality)
        add_oddity(f"mixed_{keyword}", "refuse", "PS3.3 C.7.3.1: one series, two kinds of image in turn", case,
            setting_halves(keyword, values), volume=False)  # fmt: skip
    add_oddity("interleaved_acquisition", "read",
        "PS3.3 C.7.6.1: odd and even slices may be acquired in two passes", plain_case(),
        setting_halves("AcquisitionNumber", (1, 2)))  # fmt: skip
    add_oddity("acquisition_times", "read", "PS3.3 C.7.6.1: slices are acquired one after the other", plain_case(),
        lambda d, z: setattr(d, "AcquisitionTime", f"12000{z}"))  # fmt: skip


def _places() -> None:
    def copy_of(folder: Path, rng: np.random.Generator, *, same_uid: bool, same_pixels: bool) -> GroundTruth:
        truth = write_series(plain_case(), folder, rng)
        dataset = pydicom.dcmread(files_of(folder)[1])
        if not same_uid:
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        if not same_pixels:
            dataset.PixelData = bytes(len(dataset.PixelData))
        dataset.InstanceNumber = 99
        dataset.save_as(folder / "more.dcm")
        return truth

    for same_uid in (True, False):
        for same_pixels in (True, False):
            name = f"copy_{'same' if same_uid else 'other'}_uid_{'same' if same_pixels else 'other'}_pixels"
            must: Must = "read" if same_pixels else "refuse"

            def maker(
                folder: Path, rng: np.random.Generator, same_uid: bool = same_uid, same_pixels: bool = same_pixels
            ) -> GroundTruth | None:
                truth = copy_of(folder, rng, same_uid=same_uid, same_pixels=same_pixels)
                return truth if same_pixels else None

            HEADER_ODDITIES.append(Oddity(f"odd-{name}", must, "PS3.3 C.12.1: a SOP Instance UID is one object", maker))

    def imager_spacing(dataset: Dataset, z: int) -> None:
        dataset.ImagerPixelSpacing = dataset.PixelSpacing
        del dataset.PixelSpacing

    mr = plain_case()
    for name, why, change in (
        ("other_frame_of_reference", "PS3.3 C.7.4.1", setting_halves("FrameOfReferenceUID", ("1.2.3", "1.2.4"))),
        ("not_perpendicular", "PS3.3 C.7.6.2.1.1", setting(ImageOrientationPatient=["1", "0", "0", "0.5", "0.8", "0"])),
        ("not_unit", "PS3.3 C.7.6.2.1.1", setting(ImageOrientationPatient=["2", "0", "0", "0", "2", "0"])),
        ("spacing_zero", "PS3.3 10.7.1.3", setting(PixelSpacing=["0", "1"])),
        ("no_spacing", "PS3.3 10.7.1.3: imager spacing is not the patient's", imager_spacing),
        ("no_orientation", "PS3.3 C.7.6.2.1.1", lambda d, z: d.__delattr__("ImageOrientationPatient")),
        ("slope_zero", "PS3.3 C.11.1", setting(RescaleSlope="0", RescaleIntercept="5")),
        ("slope_nan", "PS3.5 6.2: DS", setting(RescaleSlope="1", RescaleIntercept="1e400")),
        ("rgb_words", "PS3.3 C.7.6.3.1.2", setting(PhotometricInterpretation="RGB", SamplesPerPixel=3)),
        ("palette", "PS3.3 C.7.6.3.1.2", setting(PhotometricInterpretation="PALETTE COLOR")),
        ("one_localiser", "PS3.3 C.8.2.1.1.1", lambda d, z: setattr(
            d, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER" if z == 0 else "AXIAL"])),
        ("spacings_differ", "PS3.3 10.7.1.3", setting_halves("PixelSpacing", (["1", "1"], ["2", "2"]))),
        ("mosaic", "vendor: tiles of many slices in one image", setting(
            ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"])),
    ):  # fmt: skip
        add_oddity(name, "refuse", why, mr, change, volume=False)
    add_oddity("intercept_without_slope", "either", "PS3.3 C.11.1: both or none", mr, setting(RescaleIntercept="0"))
    add_oddity("empty_rescale", "either", "PS3.3 C.11.1", mr, setting(RescaleSlope=None, RescaleIntercept=None))


def _enhanced() -> None:
    case, why = plain_case("enhanced"), "PS3.3 C.7.6.16"

    def each(change: Callable[[Dataset, int], None]) -> Change:
        def apply(dataset: Dataset, z: int) -> None:
            for number, frame in enumerate(frame_groups(dataset)):
                change(frame, number)

        return apply

    def echo(frame: Dataset, n: int) -> None:
        frame.MREchoSequence = [sequence_item(EffectiveEchoTime=(3.1, 9.8)[n % 2])]

    def b_value(frame: Dataset, n: int) -> None:
        frame.MRDiffusionSequence = [sequence_item(DiffusionBValue=(0.0, 1000.0)[n % 2])]

    def phase(frame: Dataset, n: int) -> None:
        kind = ("MAGNITUDE", "PHASE")[n % 2]
        frame.MRImageFrameTypeSequence = [sequence_item(
            FrameType=["ORIGINAL", "PRIMARY", "M", "NONE"], ComplexImageComponent=kind,
            PixelPresentation="MONOCHROME", VolumetricProperties="VOLUME", VolumeBasedCalculationTechnique="NONE",
            AcquisitionContrast="UNKNOWN")]  # fmt: skip

    def one_place(frame: Dataset, n: int) -> None:
        frame.PlanePositionSequence[0].ImagePositionPatient = ["0", "0", str((n // 2) * GAP)]
        frame.FrameContentSequence[0].TemporalPositionIndex = n % 2 + 1

    def own_spacing(frame: Dataset, n: int) -> None:
        frame.PixelMeasuresSequence = [sequence_item(PixelSpacing=[str(1 + n), "1"], SliceThickness="2")]

    def two_stacks(frame: Dataset, n: int) -> None:
        frame.FrameContentSequence[0].StackID = str(n % 2 + 1)

    for name, change in (
        ("echoes", echo), ("b_values", b_value), ("magnitude_and_phase", phase), ("time_points", one_place),
        ("own_spacings", own_spacing), ("two_stacks_in_turn", two_stacks),
    ):  # fmt: skip
        add_oddity(f"enhanced_{name}", "refuse", why, case, each(change), volume=False)

    def without_place(dataset: Dataset, z: int) -> None:
        del dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence

    def fewer_groups(dataset: Dataset, z: int) -> None:
        del dataset.PerFrameFunctionalGroupsSequence[3]

    def without_groups(dataset: Dataset, z: int) -> None:
        del dataset.PerFrameFunctionalGroupsSequence, dataset.SharedFunctionalGroupsSequence

    add_oddity("enhanced_frame_without_place", "refuse", why, case, without_place, volume=False)
    add_oddity("enhanced_groups_missing", "refuse", why, case, fewer_groups, volume=False)
    add_oddity(
        "multi_frame_without_groups",
        "refuse",
        "PS3.3 C.7.6.6: frames without places",
        case,
        without_groups,
        volume=False,
    )

    def real_world(frame: Dataset, n: int) -> None:
        frame.RealWorldValueMappingSequence = [sequence_item(RealWorldValueSlope=3.0, RealWorldValueIntercept=5.0)]

    add_oddity("enhanced_real_world_values", "read", "PS3.3 C.7.6.16.2.11", case, each(real_world))

    def other_place_at_root(dataset: Dataset, z: int) -> None:
        dataset.ImagePositionPatient, dataset.PixelSpacing = ["1", "2", "3"], ["9", "9"]
        dataset.ImageOrientationPatient = ["1", "0", "0", "0", "0", "-1"]

    def rescaled_in_part(dataset: Dataset, z: int) -> None:
        for frame in frame_groups(dataset)[:2]:
            frame.PixelValueTransformationSequence = [
                sequence_item(RescaleSlope="1", RescaleIntercept="-1024", RescaleType="HU")
            ]

    add_oddity("enhanced_other_place_at_root", "read", why, case, other_place_at_root)
    add_oddity("enhanced_rescaled_in_part", "refuse",
        "PS3.3 C.7.6.16.1.1: a group stands in every frame or in none", case,
        rescaled_in_part, volume=False)  # fmt: skip

    def as_root(dataset: Dataset, z: int) -> None:
        shared = dataset.SharedFunctionalGroupsSequence[0]
        dataset.PixelSpacing = shared.PixelMeasuresSequence[0].PixelSpacing
        dataset.ImageOrientationPatient = shared.PlaneOrientationSequence[0].ImageOrientationPatient
        del shared.PixelMeasuresSequence, shared.PlaneOrientationSequence

    add_oddity("enhanced_planes_at_root", "either", "PS3.3 C.7.6.16: belong into functional groups", case, as_root)

    for name, must, frames_of, sizes in (
        ("concatenation", "read", 2, (0, 1)),
        ("enhanced_of_one_frame_each", "read", 1, (0, 1, 2, 3)),
        ("concatenation_half", "refuse", 2, (0,)),
    ):

        def parts(
            folder: Path, rng: np.random.Generator, count: int = frames_of, kept: tuple[int, ...] = sizes
        ) -> GroundTruth | None:
            truth = write_series(case, folder, rng)
            for part in kept:
                _part_of(folder / "object.dcm", folder / f"part{part}.dcm", part, count)
            (folder / "object.dcm").unlink()
            return truth if len(kept) > 1 else None

        why = "PS3.3 C.7.6.16.2.2.4: In-concatenation Total Number"
        HEADER_ODDITIES.append(Oddity(f"odd-{name}", must, why, parts))  # type: ignore[arg-type]


def _part_of(whole: Path, path: Path, part: int, count: int) -> None:
    """Write ``count`` frames of an enhanced object as a part of a concatenation."""
    dataset = pydicom.dcmread(whole)
    size = len(dataset.PixelData) // int(dataset.NumberOfFrames) * count
    dataset.PixelData = dataset.PixelData[part * size : (part + 1) * size]
    dataset.PerFrameFunctionalGroupsSequence = frame_groups(dataset)[count * part : count * (part + 1)]
    if count > 1:
        dataset.ConcatenationUID, dataset.InConcatenationNumber = "2.25.1", part + 1
        dataset.InConcatenationTotalNumber = int(dataset.NumberOfFrames) // count
        dataset.ConcatenationFrameOffsetNumber = count * part
    dataset.NumberOfFrames = count
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.save_as(path)


_no_effect()
_decimal_strings()
_mixtures()
_places()
_enhanced()
