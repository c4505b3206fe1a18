"""Superseding results, for a series that got more instances after its first result.

The Series Description and the Instance Number of each object contain the number of the result. Objects refer to the
earlier ones in the sequences that the standard defines for it: Predecessor Documents Sequence of reports (PS3.3
C.17.2), Predecessor Structure Set Sequence of structure sets (C.8.8.5), and Related Series Sequence (C.7.3.1) of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from semiseg.system.durable_files import replace_file
from server.gateway.job_payloads import SegmentPayload
from server.jobs.lanes import Lane
from server.jobs.queue import Queue, QueuedJob

LONG_STRING, LONG_TEXT = 64, 10240  # characters (PS3.5 table 6.2-1, LO and LT)
_NOTICE = "RESEARCH USE ONLY"
_REPORT, _STRUCTURES = "SR", "RTSTRUCT"


def earlier_jobs(queue: Queue, kind: str, job: QueuedJob) -> list[QueuedJob]:
    """Return the jobs of the same study, rule and series that were added before ``job``, without cancelled ones.

    Args:
        queue: Queue of the gateway.
        kind: Kind of the jobs.
        job: Job of this kind, or one with the same fields in its payload.
    """
    found, scan = [], SegmentPayload.from_job(job)
    # The lane limits the query to one series, because a study may have thousands.
    same_series = Lane("series", (scan.series,))
    for one in queue.jobs("waiting", "running", "done", queue=kind, owner=scan.study, lane=same_series):
        if one.id == job.id:
            break
        if SegmentPayload.from_job(one).rule == scan.rule:
            found.append(one)
    return found


def mark_superseding(files: Sequence[Path], earlier: Sequence[Path], number: int) -> None:
    """Write into results that they supersede earlier ones; repeating it changes nothing.

    Args:
        files: DICOM files of the later result.
        earlier: DICOM files of the result before it.
        number: Number of the later result; the first one of a series has 1.
    """
    before = [pydicom.dcmread(file, stop_before_pixels=True) for file in earlier]
    for file in files:
        one = pydicom.dcmread(file)
        modality = one.get("Modality")
        # Only objects of the same SOP class, so that a report refers to the report before it and not to a segmentation.
        same = [other for other in before if other.SOPClassUID == one.SOPClassUID]
        sentence = f"Result {number} of this series, which supersedes result {number - 1}: more instances have arrived."
        one.SeriesDescription = _described(str(one.get("SeriesDescription", "")), number)
        if sum(other.SOPClassUID == one.SOPClassUID for other in before) == 1:
            one.InstanceNumber = number
        if same:
            one.RelatedSeriesSequence = [_series(other) for other in _one_a_series(same)]
        if modality == _REPORT:
            if same:
                one.PredecessorDocumentsSequence = [_document(other) for other in same]
            _comment(one, sentence)
        elif modality == _STRUCTURES and same:
            one.PredecessorStructureSetSequence = [_reference(other) for other in same]
        elif modality != _STRUCTURES:
            comments = str(one.get("ImageComments", "") or "")
            if sentence not in comments:
                one.ImageComments = f"{comments} {sentence}".strip()[:LONG_TEXT]
        encoded = BytesIO()
        one.save_as(encoded, enforce_file_format=True)
        replace_file(file, encoded.getvalue())


def _described(description: str, number: int) -> str:
    """Add the number to the Series Description, before the research notice and within 64 characters."""
    words = f"({number}, supersedes {number - 1})"
    if words in description:
        return description
    name = description.replace(_NOTICE, "").strip()
    room = LONG_STRING - len(words) - len(_NOTICE) - 2
    return f"{name[:room].strip()} {words} {_NOTICE}"


def _one_a_series(objects: Sequence[Dataset]) -> list[Dataset]:
    return list({str(one.SeriesInstanceUID): one for one in objects}.values())


def _series(other: Dataset) -> Dataset:
    item = Dataset()
    item.StudyInstanceUID, item.SeriesInstanceUID = other.StudyInstanceUID, other.SeriesInstanceUID
    item.PurposeOfReferenceCodeSequence = []  # type 2; the standard has no code for "superseded"
    return item


def _reference(other: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = other.SOPClassUID, other.SOPInstanceUID
    return item


def _document(other: Dataset) -> Dataset:
    """Create a hierarchical reference (PS3.3 table C.17-3)."""
    series, study = Dataset(), Dataset()
    series.SeriesInstanceUID, series.ReferencedSOPSequence = other.SeriesInstanceUID, [_reference(other)]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = other.StudyInstanceUID, [series]
    return study


def _comment(report: Dataset, sentence: str) -> None:
    """Add a comment to the report (PS3.16 code 121106, DCM), like its scan warnings, unless it has it already."""
    if any(item.get("TextValue") == sentence for item in report.ContentSequence):
        return
    item, name = Dataset(), Dataset()
    name.CodeValue, name.CodingSchemeDesignator, name.CodeMeaning = "121106", "DCM", "Comment"
    item.RelationshipType, item.ValueType, item.TextValue = "CONTAINS", "TEXT", sentence
    item.ConceptNameCodeSequence = [name]
    report.ContentSequence.append(item)
