"""A law: however a NIfTI file says where its voxels are and how they are stored, the mask lies on those voxels.

The independent reader is nibabel: it reads scan and mask, and finds one shape, one place and the expected values.
"""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semiseg.engines.onnx import OnnxEngine
from semiseg.inference.segmenter import Segmenter
from semiseg.outputs.formats import OUTPUT_FORMATS, FormatInput
from semiseg.outputs.report import ModelIdentity, Report
from semiseg.volumes.scan import open_scan
from tests.bundles import expected_mask, make_threshold_bundle, scan_array
from tests.grids import AXIS_ORIENTATIONS, make_affine

PLACES = ("sform", "qform", "both", "other qform", "neither")


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    bundle = make_threshold_bundle(tmp_path_factory.mktemp("bundle") / "bundle")
    return Segmenter(bundle.manifest, OnnxEngine(bundle.model, threads=1))


def placed(image: nib.Nifti1Image, affine: np.ndarray, place: str) -> nib.Nifti1Image:
    """``image`` with its place said by sform, by qform, by both, by two that differ, or by the voxel sizes alone."""
    image.set_sform(affine, code=1 if place in ("sform", "both", "other qform") else 0)
    image.set_qform(
        make_affine("LPI") if place == "other qform" else affine,
        code=1 if place in ("qform", "both", "other qform") else 0,
    )
    return image


@settings(deadline=None, max_examples=60)
@given(
    axcodes=st.sampled_from(AXIS_ORIENTATIONS),
    spacing=st.tuples(*[st.floats(0.3, 7.0)] * 3),
    tilt=st.tuples(*[st.floats(-60, 60)] * 3),
    place=st.sampled_from(PLACES),
    dtype=st.sampled_from(["uint8", "int16", "uint16", "int32", "float32", "float64"]),
    scaling=st.sampled_from([None, (2.0, -3.0), (4.0, 10.0)]),
    fourth=st.booleans(),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
    seed=st.integers(0, 99),
)
def test_the_mask_lies_on_the_scans_own_voxels(
    segmenter: Segmenter,
    tmp_path_factory: pytest.TempPathFactory,
    axcodes: str,
    spacing: tuple[float, float, float],
    tilt: tuple[float, float, float],
    place: str,
    dtype: str,
    scaling: tuple[float, float] | None,
    fourth: bool,
    suffix: str,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("scan")
    stored = scan_array((9, 7, 8), seed=seed)
    stored = (stored // 4 if dtype == "uint8" else stored).astype(dtype)
    voxels = nib.Nifti1Image(stored[..., None] if fourth else stored, None)
    image = placed(voxels, make_affine(axcodes, spacing, tilt), place)
    if scaling is not None and np.dtype(dtype).kind in "iu":
        image.header.set_slope_inter(*scaling)
    packed = image.to_bytes()
    (folder / f"scan{suffix}").write_bytes(gzip.compress(packed) if suffix == ".nii.gz" else packed)

    source, target = folder / f"scan{suffix}", folder / "mask.nii.gz"
    scan = open_scan(source, segmenter.manifest.rules)
    found = segmenter.segment(scan.channels)
    report = Report.from_segmentation(
        found, ModelIdentity.from_manifest(segmenter.manifest, "0" * 64), scan, (), windows=1, seconds={}
    )
    OUTPUT_FORMATS["nifti"].write(target, FormatInput(found, report, source=source))

    sent, mask = nib.load(source), nib.load(target)
    assert mask.shape == sent.shape
    np.testing.assert_array_equal(mask.affine, sent.affine)
    for code in ("sform_code", "qform_code"):
        assert mask.header[code] == sent.header[code]
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), expected_mask(np.asanyarray(sent.dataobj)))
