"""DICOM structured reports with the volumes of a segmentation (Comprehensive 3D SR, TID 1500, PS3.16).

Each segment is a volumetric region of interest (TID 1411) that refers to its segment in the SEG of the same scan. The
UID of that SEG is known, because it is derived from the series and the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import highdicom as hd
import pydicom
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from semiseg.errors import SemisegError
from semiseg.outputs.dicom_common import (
    LONG_STRING,
    MANUFACTURER,
    PATIENT_AND_STUDY,
    SERIES_NUMBERS,
    Algorithm,
    content_hash,
    copy_patient_and_study,
    derive_uid,
    series_description,
    software_versions,
)
from semiseg.outputs.dicom_seg import segmentation_to_seg, to_coded_concept
from semiseg.outputs.report import NOTICE
from semiseg.outputs.seg_sources import source_images
from semiseg.volumes.dicom_series import DicomSeries
from semiseg.volumes.segmentation import Segment, Segmentation

_COMMENT = hd.sr.CodedConcept("121106", "DCM", "Comment")
_MILLILITRE = hd.sr.CodedConcept("mL", "UCUM", "milliliter")


def segmentation_to_sr(
    segmentation: Segmentation,
    series: DicomSeries,
    *,
    algorithm: Algorithm,
    remarks: Sequence[str] = (),
) -> pydicom.Dataset:
    """Create a report of the volume of each segment in millilitres; ``remarks`` become its comments.

    The report is complete and unverified, because no person has reviewed it.

    Raises:
        VolumeError: The grids differ, or the source lacks UIDs that a report must refer to.
        SemisegError: The source's attributes cannot be copied into a valid report.
    """
    seg = segmentation_to_seg(segmentation, series, algorithm=algorithm, remarks=remarks)
    identity = content_hash(series, algorithm, segmentation.segments)
    millilitres = segmentation.volumes_ml()
    groups = [
        _group(number, segment, millilitres[segment.name], seg, algorithm, identity)
        for number, segment in enumerate(segmentation.segments, start=1)
    ]
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=derive_uid(algorithm.model_sha256, "device"),
        name=algorithm.name[:LONG_STRING],
        manufacturer_name=MANUFACTURER,
        model_name=algorithm.version[:LONG_STRING] or MANUFACTURER,
        serial_number=algorithm.model_sha256[:LONG_STRING],
    )
    observer = hd.sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=hd.sr.CodedConcept("363679005", "SCT", "Imaging procedure"),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    for sentence in (f"{NOTICE}.", *remarks):
        comment = hd.sr.TextContentItem(
            name=_COMMENT, value=sentence, relationship_type=hd.sr.RelationshipTypeValues.CONTAINS
        )
        content[0].ContentSequence.append(comment)
    try:
        report: pydicom.Dataset = hd.sr.Comprehensive3DSR(
            evidence=[_nameless(seg), *source_images(series)],
            content=content[0],
            series_number=SERIES_NUMBERS["SR"],
            series_instance_uid=derive_uid(identity, "report series"),
            sop_instance_uid=derive_uid(identity, "report"),
            instance_number=1,
            manufacturer=MANUFACTURER,
            is_complete=True,
            is_final=False,
            is_verified=False,
            series_description=series_description(algorithm),
            manufacturer_model_name=algorithm.name[:LONG_STRING],
            software_versions=software_versions(algorithm),
            device_serial_number=algorithm.model_sha256[:LONG_STRING],
            transfer_syntax_uid=ExplicitVRLittleEndian,
            specific_character_set="ISO_IR 192",
            record_evidence=True,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SemisegError(f"Series {series.uid}: no valid report can be made for it ({error}).") from error
    copy_patient_and_study(report, series.instances[0])
    return report


def _nameless(seg: pydicom.Dataset) -> pydicom.Dataset:
    """Return a copy without the patient, because highdicom's warnings quote names that it considers invalid."""
    out = pydicom.Dataset()
    out.update(seg)
    for keyword in PATIENT_AND_STUDY:
        setattr(out, keyword, "")
    return out


def _group(
    number: int, segment: Segment, millilitres: float, seg: pydicom.Dataset, algorithm: Algorithm, identity: str
) -> hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    """Return the measurement group of one segment: finding, reference to the SEG, volume, and algorithm."""
    series = seg.ReferencedSeriesSequence[0]
    identification = hd.sr.AlgorithmIdentification(
        name=algorithm.name[:LONG_STRING],
        version=algorithm.version[:LONG_STRING],
        parameters=[f"model_sha256 {algorithm.model_sha256}"],
    )
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=derive_uid(identity, f"segment {number}"), identifier=segment.name
        ),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=seg.SOPClassUID,
            sop_instance_uid=seg.SOPInstanceUID,
            segment_number=number,
            source_series=hd.sr.SourceSeriesForSegmentation(series.SeriesInstanceUID),
        ),
        finding_category=to_coded_concept(segment.category),
        finding_type=to_coded_concept(segment.coded_type),
        algorithm_id=identification,
        measurements=[hd.sr.Measurement(name=codes.SCT.Volume, value=round(millilitres, 6), unit=_MILLILITRE)],
    )
