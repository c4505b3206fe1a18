"""Results of a series that consists of several multi-frame objects refer to those objects and their frames."""

from __future__ import annotations

from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.uid import EnhancedMRImageStorage, generate_uid

from semiseg.outputs import dicom_common
from semiseg.outputs.dicom_common import Algorithm, write_dicom
from semiseg.outputs.dicom_seg import segmentation_to_seg
from semiseg.outputs.dicom_sr import segmentation_to_sr
from semiseg.phantoms.anatomy import SEGMENTS, make_phantom
from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.dicom_series import DicomSeries, read_series
from semiseg.volumes.segmentation import Segmentation
from tests.volumes.enhanced_multiframe import write_enhanced

ALGORITHM = Algorithm(name="phantom abdomen", version="1.2", model_sha256="ab" * 32)
CUT = 2


def in_parts(tmp_path: Path) -> tuple[DicomSeries, list[pydicom.Dataset]]:
    """A series of five slices in two objects, the upper one first, with the frames of the lower one in reverse."""
    phantom = make_phantom(21, (24, 20, 5), (4.0, 4.6, 20.0))
    files = write_dicom_series(tmp_path / "classic", phantom.image)
    files = sorted(files, key=lambda path: float(pydicom.dcmread(path).ImagePositionPatient[2]))
    parts = []
    for number, members in enumerate((files[CUT:], files[:CUT][::-1])):
        path = write_enhanced(tmp_path / f"part{number}.dcm", members)
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.save_as(path)
        parts.append(path)
    return read_series(parts), [pydicom.dcmread(path) for path in parts]


def drawn_on(series: DicomSeries) -> Segmentation:
    mask = np.zeros(series.volume.shape, np.uint8)
    for z in range(series.volume.shape[2]):
        mask[4 : 8 + z, 5:14, z] = 1 + z % 2
    return Segmentation(SEGMENTS, mask, series.volume.affine)


@pytest.mark.parametrize("form", ["binary", "labelmap"])
def test_a_seg_refers_to_the_frames_that_it_was_drawn_on(form: str, tmp_path: Path) -> None:
    series, objects = in_parts(tmp_path)
    mask = drawn_on(series)
    write_dicom(tmp_path / "seg.dcm", segmentation_to_seg(mask, series, algorithm=ALGORITHM, segmentation_type=form))  # type: ignore[arg-type]
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    by_uid = {one.SOPInstanceUID: one for one in objects}
    (referenced,) = seg.ReferencedSeriesSequence
    assert sorted(item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence) == sorted(by_uid)
    seen = set()
    for frame in seg.PerFrameFunctionalGroupsSequence:
        (derived,) = frame.DerivationImageSequence
        (source,) = derived.SourceImageSequence
        assert source.ReferencedSOPClassUID == EnhancedMRImageStorage
        of = by_uid[source.ReferencedSOPInstanceUID]
        place = of.PerFrameFunctionalGroupsSequence[source.ReferencedFrameNumber - 1].PlanePositionSequence[0]
        np.testing.assert_allclose(frame.PlanePositionSequence[0].ImagePositionPatient, place.ImagePositionPatient)
        seen.add((source.ReferencedSOPInstanceUID, source.ReferencedFrameNumber))
    assert len(seen) == series.volume.shape[2]
    read = hd.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    rows = np.asarray(read.array)  # (planes, rows, columns)
    expected = np.asarray(mask.array).T  # of the segmentation's labels, which are 1 and 2 as the segment numbers
    assert np.array_equal(rows, expected) or np.array_equal(rows[::-1], expected)


def test_a_report_refers_to_each_object_once(tmp_path: Path) -> None:
    series, objects = in_parts(tmp_path)
    report = segmentation_to_sr(drawn_on(series), series, algorithm=ALGORITHM)
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    items = [item for one in study.ReferencedSeriesSequence for item in one.ReferencedSOPSequence]
    uids = [item.ReferencedSOPInstanceUID for item in items]
    for one in objects:
        assert uids.count(one.SOPInstanceUID) == 1


def test_another_version_makes_objects_of_other_uids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series, _ = in_parts(tmp_path)
    mask = drawn_on(series)
    first = segmentation_to_seg(mask, series, algorithm=ALGORITHM)
    again = segmentation_to_seg(mask, series, algorithm=ALGORITHM)
    monkeypatch.setattr(dicom_common, "_package_version", lambda: "99.0")
    later = segmentation_to_seg(mask, series, algorithm=ALGORITHM)
    assert first.SOPInstanceUID == again.SOPInstanceUID != later.SOPInstanceUID
    assert first.SeriesInstanceUID == again.SeriesInstanceUID != later.SeriesInstanceUID
