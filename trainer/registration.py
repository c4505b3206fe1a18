"""Registration of two scans with SimpleITK: an affine transform, followed by a displacement field.

The affine transform maximises the correlation of the images over a pyramid of resolutions. The displacement field is
computed by demons with symmetric forces (Thirion, "Image matching as a diffusion process: an analogy with Maxwell's
demons", 1998; ITK's FastSymmetricForcesDemons, whose fields are added up and need not be invertible). The demons use
locally normalised images, so that neither a bias field nor another contrast scale counts as a difference. Both steps
work on grids of isotropic voxels with the same spacing, with about :data:`VOXELS` voxels at most, so that thick slices
and large scans need no special treatment.

All computations use one thread (SimpleITK's setting for the whole process), so that results are bit-identical for the
same scans.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

VOXELS = 400_000  # largest number of voxels of the registration grid
SAMPLES = 40_000  # largest number of voxels per level at which the correlation is computed
NEIGHBOURHOOD = 4.0  # standard deviation in voxels of the Gaussian for local means and variances
SMOOTHING = 1.0  # standard deviation in voxels of the Gaussian that smooths the displacements
LEVELS = ((4, 40), (2, 30), (1, 15))  # shrink factor and iterations of the demons for each level of the pyramid
SMALLEST = 8  # smallest side of a level in voxels

Triple = tuple[float, float, float]
Image = Any  # SimpleITK has no usable type annotations


@dataclass(frozen=True)
class RegistrationScan:
    """A scan prepared for registration.

    Attributes:
        own: First channel on the grid of the scan, with the centre of the grid at the origin.
        work: First channel on isotropic voxels.
        local: Locally normalised ``work``.
    """

    own: Image
    work: Image
    local: Image


def to_sitk_image(array: NDArray[Any], spacing: Triple) -> Image:
    """Convert an array (X, Y, Z) with voxels of ``spacing`` mm to an image whose centre is at the origin.

    The axes of the image are those of the array in reverse order, because SimpleITK reverses axes.
    """
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing(spacing[::-1])
    image.SetOrigin([-(n - 1) / 2.0 * mm for n, mm in zip(image.GetSize(), image.GetSpacing(), strict=True)])
    return image


def prepare_scan(array: NDArray[np.float32], spacing: Triple, work: float) -> RegistrationScan:
    """Prepare a scan for registration.

    Args:
        array: Values (X, Y, Z).
        spacing: Size of a voxel in mm.
        work: Side in mm of the voxels of the registration grid (:func:`working_spacing`).
    """
    single_threaded()
    own = to_sitk_image(np.asarray(array, dtype=np.float32), spacing)
    coarse = _isotropic(own, work)
    return RegistrationScan(own, coarse, _locally_normalised(coarse))


def working_spacing(shapes: list[tuple[int, int, int]], spacings: list[Triple]) -> float:
    """Return the side in mm of the isotropic voxels on which scans are registered.

    It is the smallest voxel spacing of the scans, or larger if the largest scan would otherwise have more than
    :data:`VOXELS` voxels.
    """
    finest = min(min(spacing) for spacing in spacings)
    largest = max(
        math.prod(n * mm for n, mm in zip(s, mm, strict=True)) for s, mm in zip(shapes, spacings, strict=True)
    )
    return float(max(finest, (largest / VOXELS) ** (1 / 3)))


def register(fixed: RegistrationScan, moving: RegistrationScan) -> Image:
    """Return the transform from points of ``fixed`` to the corresponding points of ``moving``."""
    single_threaded()
    affine = _affine(fixed.work, moving.work)
    moved = _onto(moving.local, fixed.work, affine)
    both = SimpleITK.CompositeTransform(3)
    both.AddTransform(affine)
    both.AddTransform(_demons(fixed.local, moved))  # SimpleITK applies the transform that was added last first
    return both


def affine_transform(fixed: RegistrationScan, moving: RegistrationScan) -> Image:
    """Return only the affine transform from points of ``fixed`` to the corresponding points of ``moving``."""
    single_threaded()
    return _affine(fixed.work, moving.work)


def log_strain(affine: Image) -> NDArray[np.float64]:
    """Return the logarithmic strain log(A^T A) / 2 of an affine transform with the matrix A (Hencky 1928).

    It is zero for a translation or a rotation. The result has six numbers, the upper triangle of this symmetric matrix
    including its diagonal, with axes in the order of :func:`to_sitk_image`.
    """
    matrix = np.reshape(affine.GetParameters()[:9], (3, 3))
    squares, axes = np.linalg.eigh(matrix.T @ matrix)
    strain = (axes * (0.5 * np.log(np.maximum(squares, 1e-12)))) @ axes.T
    return np.asarray(strain[np.triu_indices(3)], dtype=np.float64)


def identity_transform() -> Image:
    """Return the identity transform."""
    return SimpleITK.Transform()


def warp(moving: Image, fixed: Image, transform: Image) -> NDArray[np.float32]:
    """Resample ``moving`` linearly on the grid of ``fixed``: (X, Y, Z), zero outside ``moving``."""
    found: NDArray[np.float32] = SimpleITK.GetArrayFromImage(_onto(moving, fixed, transform))
    return found


def inverse_inconsistency(there: Image, back: Image, fixed: RegistrationScan) -> float:
    """Return the median distance in mm between points of ``fixed`` and their images under ``there`` and ``back``.

    Args:
        there: Transform from ``fixed`` to another scan.
        back: Transform from the other scan to ``fixed``.
        fixed: The scan, of which a regular grid of points is used.
    """
    image = fixed.work
    size = image.GetSize()
    grid = np.stack(np.meshgrid(*(np.linspace(0.25, 0.75, 5) for _ in range(3)), indexing="ij"), -1).reshape(-1, 3)
    away = []
    for share in grid:
        point = image.TransformContinuousIndexToPhysicalPoint(
            [float(s * (n - 1)) for s, n in zip(share, size, strict=True)]
        )
        returned = back.TransformPoint(there.TransformPoint(point))
        away.append(math.dist(point, returned))
    return float(np.median(away))


def single_threaded() -> None:
    """Make SimpleITK use one thread, because its results depend on the number of threads."""
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def local_mean(array: NDArray[np.float32], spacing: Triple, sigma: float) -> NDArray[np.float32]:
    """Average an array (X, Y, Z) around each voxel with a Gaussian of ``sigma`` mm."""
    found: NDArray[np.float32] = SimpleITK.GetArrayFromImage(
        SimpleITK.DiscreteGaussian(to_sitk_image(array, spacing), sigma**2, useImageSpacing=True)
    )
    return found


def _isotropic(image: Image, side: float) -> Image:
    """Resample ``image`` on voxels of ``side`` mm, after smoothing along the axes that become coarser."""
    for axis, mm in enumerate(image.GetSpacing()):
        if side > 1.01 * mm and image.GetSize()[axis] >= 4:  # the filter needs at least four values
            image = SimpleITK.RecursiveGaussian(image, sigma=side / 2.0, direction=axis)
    size = [max(1, round(n * mm / side)) for n, mm in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    reference = SimpleITK.Image(size, SimpleITK.sitkFloat32)
    reference.SetSpacing([side] * 3)
    reference.SetOrigin([-(n - 1) / 2.0 * side for n in size])
    # The centre of a border voxel may be outside the finer grid's outermost voxel centres, where linear interpolation
    # gives zero; the nearest value is used there.
    nearest = SimpleITK.Resample(image, reference, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, 0.0)
    inside = SimpleITK.Resample(image * 0.0 + 1.0, reference, SimpleITK.Transform(), SimpleITK.sitkLinear, 0.0)
    linear = SimpleITK.Resample(image, reference, SimpleITK.Transform(), SimpleITK.sitkLinear, 0.0)
    chosen = SimpleITK.Cast(inside > 0.999, SimpleITK.sitkFloat32)
    return SimpleITK.Cast(linear * chosen + nearest * (1.0 - chosen), SimpleITK.sitkFloat32)


def _locally_normalised(image: Image) -> Image:
    """Return (I - local mean) / local standard deviation, which is zero in flat regions."""
    variance = (NEIGHBOURHOOD * image.GetSpacing()[0]) ** 2

    def smooth(of: Image) -> Image:
        return SimpleITK.DiscreteGaussian(of, variance, useImageSpacing=True)

    mean = smooth(image)
    away = image - mean
    # The floor, a share of the whole image's standard deviation, keeps noise in air from being amplified.
    floor = 0.1 * float(np.std(SimpleITK.GetArrayViewFromImage(image))) + 1e-6
    return SimpleITK.Cast(away / SimpleITK.Sqrt(smooth(away * away) + floor**2), SimpleITK.sitkFloat32)


def _onto(moving: Image, fixed: Image, transform: Image) -> Image:
    return SimpleITK.Resample(moving, fixed, transform, SimpleITK.sitkLinear, 0.0, SimpleITK.sitkFloat32)


def _affine(fixed: Image, moving: Image) -> Image:
    method = SimpleITK.ImageRegistrationMethod()
    method.SetMetricAsCorrelation()
    factors = _factors(fixed)
    if fixed.GetNumberOfPixels() > SAMPLES:
        method.SetMetricSamplingStrategy(method.REGULAR)
        shares = [min(1.0, SAMPLES * factor**3 / fixed.GetNumberOfPixels()) for factor in factors]
        method.SetMetricSamplingPercentagePerLevel(shares, seed=1)
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=0.01, numberOfIterations=60, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(factors)
    method.SetSmoothingSigmasPerLevel([factor / 2.0 for factor in factors])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    # The centres of both images are at the origin.
    method.SetInitialTransform(SimpleITK.AffineTransform(3), inPlace=False)
    try:
        return method.Execute(fixed, moving).GetNthTransform(0)
    except RuntimeError:  # the correlation is undefined for a constant image
        return SimpleITK.AffineTransform(3)


def _demons(fixed: Image, moved: Image) -> Image:
    """Compute the displacement field from ``fixed`` to ``moved``, from coarse to fine levels."""
    field = None
    for factor, (_, iterations) in zip(_factors(fixed), LEVELS[-len(_factors(fixed)) :], strict=True):
        small, other = (_shrunk(image, factor) for image in (fixed, moved))
        method = SimpleITK.FastSymmetricForcesDemonsRegistrationFilter()
        method.SetNumberOfIterations(iterations)
        method.SetSmoothDisplacementField(True)
        method.SetStandardDeviations(SMOOTHING)
        method.SetSmoothUpdateField(False)
        if field is None:
            field = method.Execute(small, other)
        else:
            start = SimpleITK.Resample(field, small, SimpleITK.Transform(), SimpleITK.sitkLinear, 0.0)
            field = method.Execute(small, other, start)
    return SimpleITK.DisplacementFieldTransform(SimpleITK.Cast(field, SimpleITK.sitkVectorFloat64))


def _factors(image: Image) -> list[int]:
    """Return the shrink factors of the pyramid with which no side becomes too short, or else the last factor."""
    found = [factor for factor, _ in LEVELS if min(image.GetSize()) // factor >= SMALLEST]
    return found or [LEVELS[-1][0]]


def _shrunk(image: Image, factor: int) -> Image:
    if factor == 1:
        return image
    spacing = image.GetSpacing()[0]
    smooth = SimpleITK.DiscreteGaussian(image, (spacing * factor / 2.0) ** 2, useImageSpacing=True)
    return SimpleITK.Shrink(smooth, [factor] * 3)
