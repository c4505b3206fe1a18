"""Registration: which point of one scan corresponds to each point of another, by SimpleITK.

An affine transform that maximises the correlation of the images comes first, over a pyramid of resolutions; then a
displacement field by demons with symmetric forces (Thirion, "Image matching as a diffusion process: an analogy with
Maxwell's demons", 1998; ITK's FastSymmetricForcesDemons, whose fields are added up and need not be invertible) on
images that are normalised locally, so that neither a bias field nor another contrast scale counts as a difference.
Both work on a grid of isotropic voxels that the two scans share, and of no more than :data:`VOXELS`, so that thick
slices and large scans take no special way.

Everything here is computed on one thread (SimpleITK's own setting, for the whole process): the same scans give the
same result, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

VOXELS = 400_000  # of the grid that registration works on
SAMPLES = 40_000  # most voxels of a level at which the affine transform's correlation is computed
NEIGHBOURHOOD = 4.0  # voxels: standard deviation of the Gaussian that local means and variances are taken with
SMOOTHING = 1.0  # voxels: standard deviation of the Gaussian that smooths the displacements
LEVELS = ((4, 40), (2, 30), (1, 15))  # shrink factor of each level of the pyramid, and its iterations of the demons
SMALLEST = 8  # voxels: no side is shrunk below this

Triple = tuple[float, float, float]
Image = Any  # SimpleITK's types say nothing


@dataclass(frozen=True)
class RegistrationScan:
    """A scan as registration sees it.

    Attributes:
        own: The first channel on its own grid, with the middle of the grid at the origin.
        work: The same on isotropic voxels.
        local: ``work``, normalised locally.
    """

    own: Image
    work: Image
    local: Image


def to_sitk_image(array: NDArray[Any], spacing: Triple) -> Image:
    """An array (X, Y, Z) with voxels of ``spacing`` mm as an image whose middle lies at the origin.

    Its axes are those of the array in reverse order, in which SimpleITK counts them.
    """
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing(spacing[::-1])
    image.SetOrigin([-(n - 1) / 2.0 * mm for n, mm in zip(image.GetSize(), image.GetSpacing(), strict=True)])
    return image


def prepare_scan(array: NDArray[np.float32], spacing: Triple, work: float) -> RegistrationScan:
    """Prepare a scan.

    Args:
        array: Values (X, Y, Z).
        spacing: Size of a voxel in mm.
        work: Side in mm of a voxel of the grid that registration works on (:func:`working_spacing`).
    """
    single_threaded()
    own = to_sitk_image(np.asarray(array, dtype=np.float32), spacing)
    coarse = _isotropic(own, work)
    return RegistrationScan(own, coarse, _locally_normalised(coarse))


def working_spacing(shapes: list[tuple[int, int, int]], spacings: list[Triple]) -> float:
    """Side in mm of the isotropic voxels on which scans are registered.

    It is the shortest side of a voxel of the scans, or longer where the largest scan would have more than
    :data:`VOXELS` of them.
    """
    finest = min(min(spacing) for spacing in spacings)
    largest = max(
        math.prod(n * mm for n, mm in zip(s, mm, strict=True)) for s, mm in zip(shapes, spacings, strict=True)
    )
    return float(max(finest, (largest / VOXELS) ** (1 / 3)))


def register(fixed: RegistrationScan, moving: RegistrationScan) -> Image:
    """The transform from points of ``fixed`` to the points of ``moving`` that correspond to them."""
    single_threaded()
    affine = _affine(fixed.work, moving.work)
    moved = _onto(moving.local, fixed.work, affine)
    both = SimpleITK.CompositeTransform(3)
    both.AddTransform(affine)
    both.AddTransform(_demons(fixed.local, moved))  # the transform that was added last is applied first
    return both


def affine_transform(fixed: RegistrationScan, moving: RegistrationScan) -> Image:
    """The affine transform from points of ``fixed`` to those of ``moving``, without a displacement field after it."""
    single_threaded()
    return _affine(fixed.work, moving.work)


def log_strain(affine: Image) -> NDArray[np.float64]:
    """The logarithmic strain log(A^T A) / 2 of an affine transform with the matrix A (Hencky 1928).

    It is zero for a shift or a rotation. Six numbers: the diagonal of this symmetric matrix and what is above it, with
    axes in the order of :func:`to_sitk_image`.
    """
    matrix = np.reshape(affine.GetParameters()[:9], (3, 3))
    squares, axes = np.linalg.eigh(matrix.T @ matrix)
    strain = (axes * (0.5 * np.log(np.maximum(squares, 1e-12)))) @ axes.T
    return np.asarray(strain[np.triu_indices(3)], dtype=np.float64)


def identity_transform() -> Image:
    """The transform that leaves every point where it is."""
    return SimpleITK.Transform()


def warp(moving: Image, fixed: Image, transform: Image) -> NDArray[np.float32]:
    """``moving`` on the grid of ``fixed``, interpolated linearly: (X, Y, Z), zero beyond what it shows."""
    found: NDArray[np.float32] = SimpleITK.GetArrayFromImage(_onto(moving, fixed, transform))
    return found


def inverse_inconsistency(there: Image, back: Image, fixed: RegistrationScan) -> float:
    """Median distance in mm between points of ``fixed`` and where the way to another scan and back leads them."""
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
    """Sums over threads depend on their number."""
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def local_mean(array: NDArray[np.float32], spacing: Triple, sigma: float) -> NDArray[np.float32]:
    """Mean of an array (X, Y, Z) around each voxel under a Gaussian of ``sigma`` mm."""
    found: NDArray[np.float32] = SimpleITK.GetArrayFromImage(
        SimpleITK.DiscreteGaussian(to_sitk_image(array, spacing), sigma**2, useImageSpacing=True)
    )
    return found


def _isotropic(image: Image, side: float) -> Image:
    """``image`` on voxels of ``side`` mm, smoothed first along the axes that become coarser."""
    for axis, mm in enumerate(image.GetSpacing()):
        if side > 1.01 * mm and image.GetSize()[axis] >= 4:  # the filter needs four values
            image = SimpleITK.RecursiveGaussian(image, sigma=side / 2.0, direction=axis)
    size = [max(1, round(n * mm / side)) for n, mm in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    reference = SimpleITK.Image(size, SimpleITK.sitkFloat32)
    reference.SetSpacing([side] * 3)
    reference.SetOrigin([-(n - 1) / 2.0 * side for n in size])
    # A voxel at the border lies half a voxel outside of the finer grid's outermost ones.
    nearest = SimpleITK.Resample(image, reference, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, 0.0)
    inside = SimpleITK.Resample(image * 0.0 + 1.0, reference, SimpleITK.Transform(), SimpleITK.sitkLinear, 0.0)
    linear = SimpleITK.Resample(image, reference, SimpleITK.Transform(), SimpleITK.sitkLinear, 0.0)
    chosen = SimpleITK.Cast(inside > 0.999, SimpleITK.sitkFloat32)
    return SimpleITK.Cast(linear * chosen + nearest * (1.0 - chosen), SimpleITK.sitkFloat32)


def _locally_normalised(image: Image) -> Image:
    """(I - local mean) / local standard deviation; flat places become zero."""
    variance = (NEIGHBOURHOOD * image.GetSpacing()[0]) ** 2

    def smooth(of: Image) -> Image:
        return SimpleITK.DiscreteGaussian(of, variance, useImageSpacing=True)

    mean = smooth(image)
    away = image - mean
    # A share of the whole image's deviation, so that noise in the air is not blown up.
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
    # Both middles lie at the origin.
    method.SetInitialTransform(SimpleITK.AffineTransform(3), inPlace=False)
    try:
        return method.Execute(fixed, moving).GetNthTransform(0)
    except RuntimeError:  # an image without any structure correlates with nothing
        return SimpleITK.AffineTransform(3)


def _demons(fixed: Image, moved: Image) -> Image:
    """The displacement field from ``fixed`` to ``moved``, coarse to fine."""
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
    """Shrink factors of the pyramid that leave every side of the image long enough; at least the last one."""
    found = [factor for factor, _ in LEVELS if min(image.GetSize()) // factor >= SMALLEST]
    return found or [LEVELS[-1][0]]


def _shrunk(image: Image, factor: int) -> Image:
    if factor == 1:
        return image
    spacing = image.GetSpacing()[0]
    smooth = SimpleITK.DiscreteGaussian(image, (spacing * factor / 2.0) ** 2, useImageSpacing=True)
    return SimpleITK.Shrink(smooth, [factor] * 3)
