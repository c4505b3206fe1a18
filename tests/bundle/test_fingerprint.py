"""The fingerprint says what the training scans looked like, along the axes that the network sees."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from semiseg.bundle.fingerprint import Fingerprint, Range
from semiseg.volumes.volume import Volume
from tests.grids import AXIS_ORIENTATIONS, make_affine


def scan(shape: tuple[int, int, int], axcodes: str, spacing: tuple[float, float, float], value: int = 0) -> Volume:
    return Volume(np.full(shape, value, np.int16), make_affine(axcodes, spacing))


def test_a_range_is_the_smallest_the_median_and_the_largest() -> None:
    found = Range.from_rows([(1, 10), (5, 30), (2, 20)])
    assert (found.minimum, found.median, found.maximum) == ((1, 10), (2, 20), (5, 30))


def test_shape_spacing_orientation_and_intensity_of_a_few_scans() -> None:
    scans = [
        {"t1": scan((10, 20, 30), "RAS", (1, 2, 3), 5), "t2": scan((10, 20, 30), "RAS", (1, 2, 3), 50)},
        {"t1": scan((12, 20, 30), "RAS", (1, 2, 4), 7), "t2": scan((12, 20, 30), "RAS", (1, 2, 4), 70)},
        {"t1": scan((20, 14, 30), "PLS", (2, 1, 3), 9), "t2": scan((20, 14, 30), "PLS", (2, 1, 3), 90)},
    ]
    found = Fingerprint.collect(scans, "RAS")
    assert found.scans == 3
    assert found.shape == Range(minimum=(10, 20, 30), median=(12, 20, 30), maximum=(14, 20, 30))
    assert found.spacing == Range(minimum=(1, 2, 3), median=(1, 2, 3), maximum=(1, 2, 4))
    assert found.orientations == {"PLS": 1, "RAS": 2}
    assert found.intensity["t1"] == Range(minimum=(5, 5, 5), median=(7, 7, 7), maximum=(9, 9, 9))
    assert found.intensity["t2"].maximum == (90, 90, 90)


@pytest.mark.parametrize("axcodes", AXIS_ORIENTATIONS)
def test_axes_are_those_of_the_networks_orientation_whatever_the_files(axcodes: str) -> None:
    along = {"R": (10, 1.0), "A": (20, 2.0), "S": (30, 3.0)}
    own = [along[{"L": "R", "P": "A", "I": "S"}.get(code, code)] for code in axcodes]
    x, y, z = (n for n, _ in own)
    u, v, w = (s for _, s in own)
    found = Fingerprint.collect([{"image": scan((x, y, z), axcodes, (u, v, w))}], "ILP")
    assert found.shape.median == (30, 10, 20)
    assert found.spacing.median == (3, 1, 2)


def test_intensities_are_the_half_percent_the_median_and_the_upper_half_percent() -> None:
    volume = Volume(np.arange(1001, dtype=np.int16).reshape(1, 7, 143), np.eye(4))
    assert Fingerprint.collect([{"image": volume}], "RAS").intensity["image"].median == (5, 500, 995)


def test_no_more_than_two_scans_are_in_memory_at_a_time() -> None:
    seen: list[weakref.ref[Volume]] = []

    def scans() -> Iterator[Mapping[str, Volume]]:
        for _ in range(5):
            # The one just collected may still be held while the next one is read; those before it may not.
            assert not any(ref() for ref in seen[:-1])
            volume = scan((2, 2, 2), "RAS", (1, 1, 1))
            seen.append(weakref.ref(volume))
            yield {"image": volume}
            del volume

    assert Fingerprint.collect(scans(), "RAS").scans == len(seen) == 5


def test_it_survives_json() -> None:
    found = Fingerprint.collect([{"image": scan((3, 4, 5), "LPI", (1 / 3, 0.1, 2.5), 3)}], "RAS")
    assert Fingerprint.model_validate_json(found.model_dump_json()) == found
