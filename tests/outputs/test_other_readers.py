"""What dcmqi makes of a SEG, voxel by voxel; docs/results/readers_of_results asks more programs and more cases.

`pip install itkwasm-dicom` (dcmqi compiled to WebAssembly) takes 175 MB, so it is no requirement of the tests, and
these are skipped without it also where everything that is required was promised (``SEMISEG_TESTS_NEED_ALL``).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from semiseg.outputs.dicom_common import Algorithm, write_dicom
from semiseg.outputs.dicom_seg import segmentation_to_seg
from semiseg.phantoms.anatomy import SEGMENTS, make_phantom
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.dicom_series import DicomSeries, read_series
from semiseg.volumes.segmentation import Segmentation

ALGORITHM = Algorithm(name="phantom abdomen", version="1.2", model_sha256="ab" * 32)


def read_by_dcmqi(path: Path, series: DicomSeries) -> NDArray[np.bool_]:
    """Masks (K, X, Y, Z) on the grid of the series, by positions alone."""
    from itkwasm_dicom import read_overlapping_segmentation

    image, _ = read_overlapping_segmentation(path)
    voxels = np.asarray(image.data).transpose(3, 2, 1, 0) != 0
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(image.direction) * np.asarray(image.spacing)
    affine[:3, 3] = image.origin
    to_series = np.linalg.inv(series.volume.affine) @ np.diag([-1, -1, 1, 1]) @ affine
    out = np.zeros((len(voxels), *series.volume.shape), dtype=bool)
    for k, mask in enumerate(voxels):
        places = np.argwhere(mask) @ to_series[:3, :3].T + to_series[:3, 3]
        index = np.rint(places).astype(int)
        np.testing.assert_allclose(places, index, atol=0.01)
        out[(k, *index.T)] = True
    return out


@pytest.mark.skipif(find_spec("itkwasm_dicom") is None, reason="the package itkwasm-dicom is not installed")
@pytest.mark.parametrize("regions", [False, True])
def test_dcmqi_reads_every_voxel(regions: bool, tmp_path: Path) -> None:
    phantom = make_phantom(21, (32, 26, 12), (3.2, 3.6, 8.0))
    series = read_series(write_dicom_series(tmp_path / "series", phantom.image))
    labels = phantom.labels.array
    masks = np.stack([labels > 0, labels == 1, labels == 2])
    segmentation = Segmentation(SEGMENTS, masks if regions else labels, series.volume.affine)
    write_dicom(tmp_path / "seg.dcm", segmentation_to_seg(segmentation, series, algorithm=ALGORITHM))
    read = read_by_dcmqi(tmp_path / "seg.dcm", series)
    for k in range(len(SEGMENTS)):
        np.testing.assert_array_equal(read[k], segmentation.mask(k))
    assert read.any()
