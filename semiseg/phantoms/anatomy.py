"""Procedural abdomen phantoms: synthetic scans for tests and demonstrations without patient data.

They have the difficulties of real scans: organs that vary between persons in position, size and shape; grey values that
overlap between organs and with unlabelled tissue (bowel, stomach, vessels, spine); noise, a bias field, partial volume
and thick slices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from semiseg.volumes.segmentation import ConceptCode, Segment, Segmentation
from semiseg.volumes.volume import Volume

Modality = Literal["MR", "CT"]
Array = NDArray[np.float32]
Triple = tuple[float, float, float]
Path = Callable[[Array], tuple[Array, Array]]
Fill = Callable[..., None]

_ANATOMY = ConceptCode(value="123037004", scheme="SCT", meaning="Anatomical Structure")
SEGMENTS = (
    Segment(
        name="liver",
        label=1,
        colour=(214, 96, 77),
        category=_ANATOMY,
        type=ConceptCode(value="10200004", scheme="SCT", meaning="Liver"),
    ),
    Segment(
        name="spleen",
        label=2,
        colour=(67, 147, 195),
        category=_ANATOMY,
        type=ConceptCode(value="78961009", scheme="SCT", meaning="Spleen"),
    ),
    Segment(
        name="kidneys",
        label=3,
        colour=(246, 190, 58),
        category=_ANATOMY,
        type=ConceptCode(value="64033007", scheme="SCT", meaning="Kidney"),
    ),
)
"""Segments of a phantom."""

# Mean grey value of each tissue, and its standard deviation between persons.
_GREY: dict[Modality, dict[str, tuple[float, float]]] = {
    "MR": {
        "air": (12, 3), "fat": (640, 40), "muscle": (230, 20), "gut": (380, 90), "stomach": (370, 50),
        "bone": (300, 60), "cord": (520, 40), "vessel": (560, 60), "liver": (390, 28), "spleen": (345, 30),
        "kidneys": (450, 32),
    },
    "CT": {
        "air": (-1000, 2), "fat": (-100, 6), "muscle": (52, 5), "gut": (70, 45), "stomach": (60, 30),
        "bone": (300, 60), "cord": (35, 5), "vessel": (165, 20), "liver": (108, 9), "spleen": (122, 9),
        "kidneys": (172, 16),
    },
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic scan and its exact labels, on one grid.

    Attributes:
        image: Image, int16 (X, Y, Z) in RAS+; arbitrary units (MR) or HU (CT).
        labels: Label map of :data:`SEGMENTS`.
    """

    image: Volume
    labels: Segmentation


def make_phantom(
    seed: int,
    shape: tuple[int, int, int] = (64, 64, 40),
    spacing: tuple[float, float, float] = (1.5, 1.5, 2.5),
    *,
    modality: Modality = "MR",
) -> Phantom:
    """Create one abdomen; the same arguments give the same voxels.

    Args:
        seed: Seed that determines the person.
        shape: Number of voxels along X, Y, Z; the abdomen fills the volume at any size.
        spacing: Voxel spacing in mm.
        modality: "MR" (arbitrary units, bias field, Rician noise) or "CT" (HU, Gaussian noise).
    """
    rng = np.random.default_rng([seed, 0x5E15E6])
    fine = _Space(rng, shape)
    grey, labels = _paint(rng, fine, modality)
    image = fine.voxel_means(grey)
    image = _scanned(rng, image, modality)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing
    low, high = np.iinfo(np.int16).min, np.iinfo(np.int16).max
    volume = Volume(np.rint(np.clip(image, low, high)).astype(np.int16), affine)
    return Phantom(volume, Segmentation(SEGMENTS, fine.voxel_labels(labels), affine))


class _Space:
    """A grid twice as fine as the scan's, with randomly deformed coordinates.

    ``x, y, z`` run from -1 to 1 along right, anterior and superior, with a smooth random deformation, so that the same
    shape in these coordinates differs between persons.
    """

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        axes = [np.linspace(-1, 1, 4 * n + 1, dtype=np.float32)[1::2] for n in shape]
        straight = list(np.meshgrid(*axes, indexing="ij", sparse=True))
        bent = [np.broadcast_to(axis, tuple(2 * n for n in shape)).copy() for axis in straight]
        for coordinate in bent:
            for _ in range(4):
                coordinate += self._wave(rng, straight)
        self.x, self.y, self.z = bent

    @staticmethod
    def _wave(rng: np.random.Generator, axes: list[Array]) -> Array:
        wave = np.float32(rng.normal(0, 0.028))
        waves = [np.cos(np.float32(rng.uniform(0.5, 2.6)) * a + np.float32(rng.uniform(0, 2 * np.pi))) for a in axes]
        return np.asarray(wave * waves[0] * waves[1] * waves[2], dtype=np.float32)

    def ellipsoid(self, centre: Triple, radii: Triple, turn: float = 0.0) -> Array:
        """Return a function that is positive inside and 0 on the surface; ``turn`` is a rotation about z in radians."""
        c, s = float(np.cos(turn)), float(np.sin(turn))
        dx, dy = self.x - np.float32(centre[0]), self.y - np.float32(centre[1])
        out = np.square(dx * np.float32(c / radii[0]) + dy * np.float32(s / radii[0]))
        out += np.square(dy * np.float32(c / radii[1]) - dx * np.float32(s / radii[1]))
        out += np.square((self.z - np.float32(centre[2])) * np.float32(1 / radii[2]))
        return np.asarray(np.subtract(np.float32(1), out, out=out), dtype=np.float32)

    def tube(self, path: Path, radius: float) -> Array:
        """Return a function that is positive inside a tube along z whose centre at each height is ``path(z)``."""
        cx, cy = path(self.z)
        return np.asarray(1 - ((self.x - cx) ** 2 + (self.y - cy) ** 2) / radius**2, dtype=np.float32)

    def voxel_means(self, fine: Array) -> Array:
        """Average the fine grid over the scan's voxels, which creates partial volume."""
        x, y, z = self.shape
        return np.asarray(fine.reshape(x, 2, y, 2, z, 2).mean(axis=(1, 3, 5)), dtype=np.float32)

    def voxel_labels(self, fine: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the label with the largest share of each voxel."""
        shares = np.stack([self.voxel_means((fine == label).astype(np.float32)) for label in range(len(SEGMENTS) + 1)])
        return np.asarray(shares.argmax(axis=0), dtype=np.uint8)


def _paint(rng: np.random.Generator, space: _Space, modality: Modality) -> tuple[Array, NDArray[np.uint8]]:
    """Return grey values and labels on the fine grid; later tissues are painted over earlier ones."""
    tone = {tissue: rng.normal(mean, spread) for tissue, (mean, spread) in _GREY[modality].items()}
    grey = np.full(space.x.shape, tone["air"], dtype=np.float32)
    labels = np.zeros(grey.shape, dtype=np.uint8)

    def fill(inside: Array, tissue: str, *, shift: float = 0.0) -> None:
        where = inside > 0
        grey[where] = tone[tissue] + shift
        # Tissue that is painted over an organ is not part of it; vessels inside the liver are, and are added later.
        labels[where] = next((s.label for s in SEGMENTS if s.name == tissue), 0)

    width, depth = rng.uniform(0.84, 0.94), rng.uniform(0.66, 0.8)
    rim = rng.uniform(0.06, 0.14)
    fill(space.ellipsoid((0, 0, 0), (width, depth, 9.0)), "fat")
    fill(space.ellipsoid((0, 0, 0), (width - rim, depth - rim, 9.0)), "muscle")
    visceral = -0.07 * abs(tone["fat"])
    fill(space.ellipsoid((0, 0.08, 0), (width - rim - 0.07, depth - rim - 0.07, 9.0)), "fat", shift=visceral)
    _spine(rng, space, fill)
    _gut(rng, space, fill, modality)
    wall = space.ellipsoid((0, 0, 0), (width - rim - 0.03, depth - rim - 0.03, 9.0))
    _organs(rng, space, lambda inside, tissue: fill(np.minimum(inside, wall), tissue))  # organs end at the wall
    _vessels(rng, space, fill)
    hepatic = _hepatic_vessels(rng, space) & (labels == 1)
    grey[hepatic] = 0.5 * (tone["vessel"] + tone["liver"])
    texture = ndimage.gaussian_filter(rng.standard_normal(grey.shape, dtype=np.float32), 2.0)
    contrast = 14.0 if modality == "MR" else 4.0
    grey += np.where(grey > tone["air"] + 30, texture * np.float32(contrast / texture.std()), np.float32(0))
    return grey, labels


def _around(rng: np.random.Generator, values: Triple, spread: float) -> Triple:
    x, y, z = (float(v + rng.normal(0, spread)) for v in values)
    return (x, y, z)


def _sized(rng: np.random.Generator, radii: Triple) -> Triple:
    scale = rng.uniform(0.85, 1.15)
    x, y, z = (float(r * scale * rng.uniform(0.93, 1.07)) for r in radii)
    return (x, y, z)


def _organs(rng: np.random.Generator, space: _Space, fill: Fill) -> None:
    # Liver: a right lobe, a left lobe across the midline, and an indentation by gallbladder and gut.
    x, y, z = _around(rng, (0.36, 0.06, 0.22), 0.035)
    right = space.ellipsoid((x, y, z), _sized(rng, (0.36, 0.46, 0.52)), rng.normal(0, 0.12))
    left = space.ellipsoid(_around(rng, (x - 0.36, y + 0.2, z + 0.16), 0.03), _sized(rng, (0.36, 0.24, 0.26)))
    hollow = space.ellipsoid(_around(rng, (x - 0.2, y - 0.06, z - 0.44), 0.04), _sized(rng, (0.3, 0.34, 0.34)))
    fill(np.minimum(np.maximum(right, left), -hollow), "liver")
    # Spleen: a crescent, the outer shell of one ellipsoid cut by another.
    x, y, z = _around(rng, (-0.53, -0.12, 0.3), 0.035)
    whole = space.ellipsoid((x, y, z), _sized(rng, (0.22, 0.34, 0.36)), rng.normal(0.25, 0.12))
    cut = space.ellipsoid((x + 0.22, y + 0.1, z - 0.06), (0.19, 0.28, 0.36), 0.25)
    fill(np.minimum(whole, -cut), "spleen")
    # Kidneys: two beans, the hilum facing the spine, the right one lower.
    for side in (1, -1):
        x, y, z = _around(rng, (0.35 * side, -0.36, -0.36 if side > 0 else -0.26), 0.03)
        bean = space.ellipsoid((x, y, z), _sized(rng, (0.145, 0.16, 0.34)), -0.4 * side)
        hilum = space.ellipsoid((x - 0.13 * side, y + 0.05, z), (0.08, 0.08, 0.13))
        fill(np.minimum(bean, -hilum), "kidneys")


def _spine(rng: np.random.Generator, space: _Space, fill: Fill) -> None:
    y = float(rng.normal(-0.42, 0.02))
    body = space.tube(lambda z: (0 * z, y + 0.05 * z), 0.16)
    period = rng.uniform(0.3, 0.38)
    disc = np.abs(np.mod(space.z + rng.uniform(0, period), period) - period / 2) < 0.035
    fill(body, "bone")
    fill(np.where(disc, body, np.float32(-1)), "muscle")
    fill(space.tube(lambda z: (0 * z, y - 0.17 + 0.05 * z), 0.055), "cord")


def _vessels(rng: np.random.Generator, space: _Space, fill: Fill) -> None:
    for side, radius in ((-1, 0.065), (1, 0.075)):  # aorta on the left, vena cava on the right
        fill(space.tube(_bow(0.1 * side, rng.normal(0, 0.03), rng.uniform(0, np.pi)), radius), "vessel")


def _bow(x: float, bend: float, phase: float) -> Path:
    return lambda z: (x + bend * np.sin(2 * z + phase), np.full_like(z, -0.22))


def _line(x: float, y: float, slope: float) -> Path:
    return lambda z: (x + slope * (z - 0.2), y + 0.2 * z)


def _hepatic_vessels(rng: np.random.Generator, space: _Space) -> NDArray[np.bool_]:
    found = np.zeros(space.x.shape, dtype=bool)
    for _ in range(4):
        start, slope, radius = rng.uniform(0.15, 0.6), rng.normal(0, 0.45), rng.uniform(0.02, 0.035)
        found |= space.tube(_line(start, float(rng.normal(0.08, 0.16)), slope), radius) > 0
    return found


def _gut(rng: np.random.Generator, space: _Space, fill: Fill, modality: Modality) -> None:
    fill(space.ellipsoid(_around(rng, (-0.3, 0.28, 0.3), 0.04), _sized(rng, (0.26, 0.24, 0.3)), 0.4), "stomach")
    spread = _GREY[modality]["gut"][1]
    for _ in range(int(rng.integers(12, 20))):
        centre = (rng.uniform(-0.55, 0.55), rng.uniform(-0.05, 0.4), rng.uniform(-1.0, 0.15))
        radii = (rng.uniform(0.08, 0.2), rng.uniform(0.07, 0.14), rng.uniform(0.1, 0.24))
        turn, shift = rng.uniform(0, np.pi), rng.normal(0, spread)
        fill(space.ellipsoid(centre, radii, turn), "gut", shift=shift)
        if rng.random() < 0.35:  # gas inside
            hollow = (radii[0] * 0.45, radii[1] * 0.45, radii[2] * 0.45)
            fill(space.ellipsoid(centre, hollow, turn), "air")


def _scanned(rng: np.random.Generator, image: Array, modality: Modality) -> Array:
    """Add the effects of a scanner: blur, bias field (MR) or cupping (CT), and noise."""
    image = ndimage.gaussian_filter(image, 0.45)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in image.shape], indexing="ij", sparse=True)
    if modality == "CT":
        image = image + np.float32(rng.normal(0, 4)) * (x**2 + y**2)
        return np.asarray(image + rng.normal(0, 14, image.shape), dtype=np.float32)
    a = rng.normal(0, 0.12, 6)
    field = np.exp(a[0] * x + a[1] * y + a[2] * z + a[3] * x * y + a[4] * x**2 + a[5] * y**2)
    gain = rng.uniform(0.75, 1.35)  # MR has no units
    image = image * field * gain
    sigma = 20.0 * gain
    real, imaginary = rng.normal(0, sigma, (2, *image.shape))
    return np.asarray(np.hypot(image + real, imaginary), dtype=np.float32)
