"""A mask made on the network's grid lies on the scan's own voxels again, and intensities are what the contract says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import ndimage

from semiseg.bundle.preprocessing import Intensity, Preprocessing
from semiseg.errors import InputError, VolumeError
from semiseg.volumes.volume import Volume, affine_spacing
from tests.grids import AXIS_ORIENTATIONS, dice, ellipsoid, make_affine, numbered_volume, to_world

AS_IS = Intensity(clip=(0.0, 1.0), scale="window")
orientations = st.sampled_from(AXIS_ORIENTATIONS)
angles = st.tuples(*[st.floats(-80, 80)] * 3)
spacings = st.tuples(*[st.floats(0.3, 6)] * 3)
shapes = st.tuples(*[st.integers(1, 7)] * 3)


def labels_in_body(shape: tuple[int, int, int], crop: bool, seed: int) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """A scan with air around it (where it is to be cut off) and labels 0, 1, 2, 7 inside its body."""
    rng = np.random.default_rng(seed)
    image = rng.integers(1, 500, shape).astype(np.int16)
    labels = rng.choice(np.asarray([0, 1, 2, 7], np.uint8), shape)
    if crop:
        air = rng.random(shape) < 0.6
        image[air], labels[air] = 0, 0
    return image, labels


# --- the way there and back ------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(orientations, orientations, angles, spacings, shapes, st.booleans(), st.integers(0, 2**16))
@example("RAS", "SLP", (0.0, 45.0, 0.0), (1.0, 2.0, 3.0), (3, 4, 5), False, 0)
@example("RAS", "PIL", (0.0, 45.0, 0.0), (1.0, 2.0, 3.0), (3, 4, 5), True, 0)
@example("LPS", "RAS", (45.0, 45.0, 45.0), (1.0, 1.0, 1.0), (5, 4, 3), True, 1)
def test_orientation_and_crop_invert_exactly(
    own: str,
    wanted: str,
    tilt: tuple[float, float, float],
    spacing: tuple[float, float, float],
    shape: tuple[int, int, int],
    crop: bool,
    seed: int,
) -> None:
    """MOD-02."""
    # As NIfTI stores it: exact ties between two directions at 45 degrees are then decided by rounding.
    affine = make_affine(own, spacing, tilt).astype(np.float32).astype(np.float64)
    image, labels = labels_in_body(shape, crop, seed)
    preprocessing = Preprocessing(orientation=wanted, crop="nonzero" if crop else "none")
    prepared = preprocessing.apply({"image": Volume(image, affine)})
    there = preprocessing.apply_labels(labels, prepared)
    assert there.shape == prepared.array.shape[1:]
    back = preprocessing.restore(there, prepared.geometry)
    assert back.dtype == labels.dtype
    np.testing.assert_array_equal(back, labels)
    masks = np.stack([labels == 1, labels >= 1])
    there = preprocessing.apply_labels(masks, prepared)
    np.testing.assert_array_equal(preprocessing.restore(there, prepared.geometry), masks)


@pytest.mark.parametrize("own", AXIS_ORIENTATIONS)
def test_every_axis_orientation_becomes_the_models_own_and_comes_back(own: str) -> None:
    scan = numbered_volume((3, 4, 5), make_affine(own, tilt=(8.0, -5.0, 12.0)))
    preprocessing = Preprocessing(orientation="RAS", intensity=(Intensity(clip=(0, 1), scale="window"),))
    prepared = preprocessing.apply({"image": Volume(scan.array, scan.affine)})
    assert Volume(prepared.array[0], prepared.affine).axcodes == "RAS"
    labels = (scan.array % 251).astype(np.uint8)
    back = preprocessing.restore(preprocessing.apply_labels(labels, prepared), prepared.geometry)
    np.testing.assert_array_equal(back, labels)
    assert back.flags.c_contiguous


@settings(deadline=None, max_examples=30)
@given(orientations, orientations, angles, spacings, shapes, st.booleans())
def test_every_prepared_voxel_keeps_its_place_in_the_patient(
    own: str,
    wanted: str,
    tilt: tuple[float, float, float],
    spacing: tuple[float, float, float],
    shape: tuple[int, int, int],
    crop: bool,
) -> None:
    """MOD-02."""
    scan = numbered_volume(shape, make_affine(own, spacing, tilt))
    if crop:
        scan.array[0] = 0  # a plane of air to be cut off (or, where it is all there is, not)
    contract = Preprocessing(
        orientation=wanted,
        crop="nonzero" if crop else "none",
        intensity=(Intensity(clip=(0, 1000), scale="window"),),
    )
    prepared = contract.apply({"image": scan})
    numbers = np.rint(prepared.array[0] * 1000).astype(int)
    where = {int(v): to_world(scan.affine, np.asarray(i)) for i, v in np.ndenumerate(scan.array) if v}
    for index, number in np.ndenumerate(numbers):
        if number:
            np.testing.assert_allclose(to_world(prepared.affine, np.asarray(index)), where[int(number)], atol=1e-3)
    assert set(numbers[numbers > 0].tolist()) == set(where)


@settings(deadline=None, max_examples=20)
@given(orientations, angles, spacings, st.tuples(*[st.floats(0.4, 1.6)] * 3))
def test_resampling_returns_the_scans_shape_and_affine_and_keeps_a_smooth_mask(
    own: str,
    tilt: tuple[float, float, float],
    spacing: tuple[float, float, float],
    ratio: tuple[float, float, float],
) -> None:
    shape = (24, 20, 22)
    affine = make_affine(own, spacing, tilt)
    body = ellipsoid(shape, (9.0, 8.0, 8.5))
    labels = body.astype(np.uint8)
    labels[:12][body[:12]] = 2
    image = np.where(body, 700, 20).astype(np.int16)
    along = Preprocessing().apply({"image": Volume(image, affine)})
    x, y, z = (s * r for s, r in zip(affine_spacing(along.affine), ratio, strict=True))
    preprocessing = Preprocessing(spacing=(x, y, z))
    prepared = preprocessing.apply({"image": Volume(image, affine)})
    there = preprocessing.apply_labels(labels, prepared)
    assert there.shape == prepared.array.shape[1:] and set(np.unique(there)) <= {0, 1, 2}
    back = preprocessing.restore(there, prepared.geometry)
    assert back.shape == shape
    np.testing.assert_array_equal(prepared.geometry.affine, affine)
    for label in (1, 2):
        assert dice(back == label, labels == label) > 0.85
    masks = preprocessing.restore(preprocessing.apply_labels(np.stack([body, ~body]), prepared), prepared.geometry)
    assert masks.dtype == bool and dice(masks[0], body) > 0.9


@pytest.mark.parametrize("own", AXIS_ORIENTATIONS)
def test_resampled_voxels_keep_the_centre_of_mass_in_millimetres(own: str) -> None:
    affine = make_affine(own, (1.2, 0.8, 2.0), (15.0, 10.0, -20.0))
    shape = (30, 34, 20)
    centre = np.asarray([13.3, 18.1, 9.2])
    axes = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    blob = 1000 * np.exp(-sum(((a - c) / 2.5) ** 2 for a, c in zip(axes, centre, strict=True)) / 2)
    contract = Preprocessing(spacing=(1.5, 1.1, 1.3), intensity=(Intensity(clip=(0, 1000), scale="window"),))
    prepared = contract.apply({"image": Volume(blob, affine)})
    found = to_world(prepared.affine, np.asarray(ndimage.center_of_mass(prepared.array[0])))
    # A shift of half a voxel, as between centres and edges of a grid, would be 0.15 to 0.4 mm.
    np.testing.assert_allclose(found, to_world(affine, centre), atol=0.02)


def test_resampling_comes_as_close_to_the_wanted_spacing_as_the_box_allows() -> None:
    scan = numbered_volume((20, 20, 10), np.diag([1.0, 1.0, 3.0, 1.0]))
    prepared = Preprocessing(spacing=(2.0, 1.5, 1.0)).apply({"image": scan})
    assert prepared.array.shape == (1, 10, 13, 30)
    np.testing.assert_allclose(np.diag(prepared.affine)[:3], (2.0, 20 / 13, 1.0))


def test_outside_the_crop_there_is_background() -> None:
    array = np.zeros((6, 6, 6), np.int16)
    array[2:4, 1:5, 3:6] = 9
    contract = Preprocessing(crop="nonzero", intensity=(AS_IS,))
    prepared = contract.apply({"image": Volume(array, np.eye(4))})
    assert prepared.array.shape == (1, 2, 4, 3)
    back = contract.restore(np.full((2, 4, 3), 5, np.uint8), prepared.geometry)
    np.testing.assert_array_equal(back, np.where(array > 0, 5, 0))


def test_the_crop_keeps_a_voxel_that_only_one_channel_shows() -> None:
    first, second = np.zeros((5, 5, 5), np.int16), np.zeros((5, 5, 5), np.int16)
    first[1, 2, 2], second[3, 2, 4] = 1, 1
    contract = Preprocessing(crop="nonzero", intensity=(AS_IS, AS_IS))
    prepared = contract.apply({"t1": Volume(first, np.eye(4)), "t2": Volume(second, np.eye(4))})
    assert prepared.geometry.box == ((1, 4), (2, 3), (2, 5))


def test_an_empty_scan_is_not_cropped_away() -> None:
    contract = Preprocessing(crop="nonzero")
    prepared = contract.apply({"image": Volume(np.zeros((3, 4, 5), np.int16), np.eye(4))})
    assert prepared.array.shape == (1, 3, 4, 5) and not prepared.array.any()


# --- channels --------------------------------------------------------------------------------------------------------


def test_channels_keep_their_order_and_their_own_intensities() -> None:
    contract = Preprocessing(
        orientation="LPS",
        intensity=(Intensity(clip=(0, 100), scale="window"), Intensity(clip=(0, 1000), scale="window")),
    )
    scan = numbered_volume((2, 3, 4))
    prepared = contract.apply({"a": scan, "b": Volume(scan.array * 10, scan.affine)})
    np.testing.assert_allclose(prepared.array[0], scan.array[::-1, ::-1] / 100, rtol=1e-6)
    np.testing.assert_allclose(prepared.array[1], prepared.array[0], rtol=1e-6)
    assert prepared.array.dtype == np.float32


def test_another_number_of_channels_is_refused() -> None:
    scan = numbered_volume((3, 3, 3))
    with pytest.raises(InputError, match=r"takes 1 channel\(s\); 2 were given"):
        Preprocessing().apply({"a": scan, "b": scan})


@pytest.mark.parametrize(
    "other", [numbered_volume((3, 3, 4)), numbered_volume((3, 3, 3), np.diag([1.0, 1.0, 1.1, 1.0]))]
)
def test_channels_on_different_grids_are_refused_by_name(other: Volume) -> None:
    contract = Preprocessing(intensity=(Intensity(), Intensity()))
    with pytest.raises(VolumeError, match="Channel 't2' is not on the grid of the first channel"):
        contract.apply({"t1": numbered_volume((3, 3, 3)), "t2": other})


def test_labels_of_another_shape_than_the_scan_are_refused() -> None:
    prepared = Preprocessing().apply({"image": numbered_volume((3, 4, 5))})
    with pytest.raises(VolumeError, match=r"The labels have shape \(5, 4, 3\), the scan \(3, 4, 5\)"):
        Preprocessing().apply_labels(np.zeros((5, 4, 3), np.uint8), prepared)


# --- intensities -----------------------------------------------------------------------------------------------------


def cube(*values: float) -> NDArray[np.float64]:
    return np.asarray(values, np.float64).reshape(-1, 1, 1)


BY_HAND = [
    (Intensity(), cube(1, 3), cube(-1, 1)),
    (Intensity(over="nonzero"), cube(0, 1, 3), cube(-2, -1, 1)),
    (Intensity(clip=(0, 4)), cube(-50, 0, 4, 90), cube(-1, -1, 1, 1)),
    (Intensity(scale="minmax"), cube(10, 20, 50), cube(0, 0.25, 1)),
    (Intensity(scale="minmax", over="nonzero"), cube(0, 10, 20), cube(-1, 0, 1)),
    (Intensity(scale="minmax", clip=(0, 40)), cube(-10, 10, 90), cube(0, 0.25, 1)),
    (Intensity(scale="window", clip=(-100, 300)), cube(-500, -100, 100, 300, 900), cube(0, 0, 0.5, 1, 1)),
    # 0..100 in steps of 1: the 10th and 90th percentile are 10 and 90.
    (
        Intensity(scale="minmax", percentiles=(10, 90)),
        cube(*range(101)),
        cube(*[min(max((v - 10) / 80, 0), 1) for v in range(101)]),
    ),
]


@pytest.mark.parametrize(("intensity", "values", "expected"), BY_HAND)
def test_intensities_are_those_computed_by_hand(
    intensity: Intensity, values: NDArray[np.float64], expected: NDArray[np.float64]
) -> None:
    found = intensity.apply(values)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_percentiles_over_nonzero_voxels_do_not_see_the_air() -> None:
    values = np.concatenate([np.zeros(900), np.arange(1.0, 102.0)]).reshape(-1, 1, 1)
    found = Intensity(scale="minmax", percentiles=(10, 90), over="nonzero").apply(values)
    assert found[900:].max() == 1 and found[900 + 50, 0, 0] == pytest.approx(0.5)
    # Clipped with everything else, air lies at the lower percentile.
    assert found[0, 0, 0] == 0


@pytest.mark.parametrize("scale", ["zscore", "minmax"])
@pytest.mark.parametrize("value", [0.0, 7.0, -1000.0, 3e7])
@pytest.mark.parametrize("over", ["all", "nonzero"])
def test_a_constant_image_becomes_zeros(scale: str, value: float, over: str) -> None:
    found = Intensity.model_validate({"scale": scale, "over": over}).apply(np.full((4, 4, 4), value))
    np.testing.assert_array_equal(found, np.zeros((4, 4, 4)))


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("scale", ["zscore", "minmax"])
def test_the_unit_of_the_values_does_not_matter(unit: float, scale: str) -> None:
    # A diffusion coefficient in m^2/s is of the order of 1e-9: small values are not a constant image.
    values = np.random.default_rng(0).uniform(0.5, 2.0, (5, 5, 5))
    intensity = Intensity.model_validate({"scale": scale})
    np.testing.assert_allclose(intensity.apply(values * unit), intensity.apply(values), atol=1e-5)


def test_statistics_of_many_large_values_do_not_lose_digits() -> None:
    # A turned and cropped scan is a view that NumPy sums one value after the other: in float32 the mean of 3 million
    # values of 10000.3 +- 1.7 would be off by 0.06.
    values = np.full((1000, 1500, 3), 10002.0, np.float32)
    values[::2] = 9998.6
    found = Intensity().apply(values.transpose(2, 1, 0)[:2, ::-1])
    np.testing.assert_allclose(found[0, 0, :2], (-1, 1), atol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("intensity", [Intensity(), Intensity(clip=(0, 1), scale="window")])
def test_values_that_are_not_finite_are_refused(bad: float, intensity: Intensity) -> None:
    """INF-04."""
    values = np.ones((3, 3, 3))
    values[1, 2, 0] = bad
    with pytest.raises(VolumeError, match="not finite"):
        intensity.apply(values)


def test_the_scan_itself_is_left_as_it_was() -> None:
    scan = Volume(np.random.default_rng(0).normal(size=(4, 4, 4)).astype(np.float32), np.eye(4))
    before = scan.array.copy()
    for intensity in (Intensity(), Intensity(clip=(0, 0.5)), Intensity(percentiles=(5, 95), scale="minmax")):
        prepared = Preprocessing(intensity=(intensity,)).apply({"image": scan})
        prepared.array[:] = 9
    np.testing.assert_array_equal(scan.array, before)


# --- the document ----------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    orientations,
    st.none() | spacings,
    st.sampled_from(["none", "nonzero"]),
    st.integers(0, 2),
    st.sampled_from(["edge", "zero"]),
    st.lists(
        st.sampled_from([Intensity(), *(row[0] for row in BY_HAND), Intensity(clip=(-1 / 3, 1e7))]),
        min_size=1,
        max_size=4,
    ),
)
def test_the_contract_survives_json(
    orientation: str,
    spacing: tuple[float, float, float] | None,
    crop: str,
    axis: int,
    padding: str,
    intensity: list[Intensity],
) -> None:
    contract = Preprocessing.model_validate(
        {
            "orientation": orientation,
            "spacing": spacing,
            "crop": crop,
            "slice_axis": axis,
            "padding": padding,
            "intensity": tuple(intensity),
        }
    )
    assert Preprocessing.model_validate_json(contract.model_dump_json()) == contract


REFUSED = [
    ({"orientation": "RAA"}, "an orientation is three letters"),
    ({"orientation": "RASL"}, "an orientation is three letters"),
    ({"orientation": "XYZ"}, "an orientation is three letters"),
    ({"orientation": "RLA"}, "an orientation is three letters"),
    ({"spacing": (1.0, 0.0, 1.0)}, "a spacing is in mm and positive"),
    ({"spacing": (1.0, float("nan"), 1.0)}, "a spacing is in mm and positive"),
    ({"intensity": ()}, "one entry per channel"),
    ({"slice_axis": 3}, "Input should be 0, 1 or 2"),
    ({"rotate": True}, "Extra inputs"),
    ({"intensity": ({"clip": (0, 1), "percentiles": (1, 99)},)}, "not both"),
    ({"intensity": ({"clip": (5, 5)},)}, "the lower limit has to be below"),
    ({"intensity": ({"clip": (0, float("inf"))},)}, "finite"),
    ({"intensity": ({"percentiles": (99, 1)},)}, "the lower limit has to be below"),
    ({"intensity": ({"percentiles": (1, 101)},)}, "less than or equal to 100"),
    ({"intensity": ({"scale": "window"},)}, "needs `clip`"),
]


@pytest.mark.parametrize(("document", "sentence"), REFUSED)
def test_a_contract_that_contradicts_itself_is_refused(document: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Preprocessing.model_validate(document)
