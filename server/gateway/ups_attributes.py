"""Attributes that a performer writes into a workitem: progress, performed procedure, outputs, cancellation reason.

The final state requirements are those of PS3.4 table CC.2.5-3: for COMPLETED (P) the performed station, work item
code, start, end and output information; for CANCELED (X) the time and the code of the reason.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pydicom
from pydicom.dataset import Dataset

from server.gateway.destinations import DestinationBase, DicomwebDestination, DimseDestination
from server.gateway.ups_config import CodedConcept

SHORT_TEXT = 1024  # characters (PS3.5 table 6.2-1, ST)
LONG_TEXT = 10240
LONG_STRING = 64


class CancellationReason(NamedTuple):
    """Reason of a cancellation.

    Attributes:
        value: Code Value of the scheme DCM, from CID 9300 "Procedure Discontinuation Reason" (PS3.16).
        meaning: Code Meaning.
        sentence: Reason For Cancellation, without patient data.
    """

    value: str
    meaning: str
    sentence: str


UNSPECIFIED = ("110513", "Discontinued for unspecified reason")
EQUIPMENT = ("110501", "Equipment failure")
BAD_FORMAT = ("110521", "Objects incorrectly formatted")
BAD_TYPE = ("110522", "Object Types not supported")
INCOMPLETE = ("110523", "Object Set incomplete")
REJECTED = ("110530", "Workitem assignment rejected by assigned resource")
IMAGE_PROCESSING = ("110001", "DCM", "Image Processing")  # CID 9231
ALGORITHM_NAME, ALGORITHM_VERSION = ("111001", "DCM", "Algorithm Name"), ("111003", "DCM", "Algorithm Version")


def current_datetime() -> str:
    """Return the current time as DT with an offset from UTC."""
    return datetime.datetime.now().astimezone().strftime("%Y%m%d%H%M%S.%f%z")


def progress_changes(percent: int, description: str) -> Dataset:
    """Create the attributes that report the progress of a workitem.

    Args:
        percent: Progress, 0-100.
        description: Description of the current work.
    """
    item = Dataset()
    item.ProcedureStepProgress = str(percent)
    item.ProcedureStepProgressDescription = description[:SHORT_TEXT]
    changes = Dataset()
    changes.ProcedureStepProgressInformationSequence = [item]
    return changes


def performed_changes(
    station: CodedConcept,
    codes: Sequence[Sequence[str]],
    started: str,
    ended: str,
    model: str,
    outputs: Sequence[Dataset],
) -> Dataset:
    """Create the attributes that COMPLETED requires; they can also be written before the end.

    Args:
        station: Code that identifies this gateway.
        codes: Scheduled workitem codes, written as the performed codes; "Image Processing" if there are none.
        started: Performed Procedure Step Start DateTime.
        ended: Performed Procedure Step End DateTime; "" before the end.
        model: Name of the model; "" if it is unknown.
        outputs: Items of the Output Information Sequence.
    """
    item = Dataset()
    item.PerformedStationNameCodeSequence = [_coded((station.value, station.scheme, station.meaning))]
    item.PerformedStationClassCodeSequence = []
    item.PerformedStationGeographicLocationCodeSequence = []
    item.PerformedProcedureStepStartDateTime = started
    if ended:
        item.PerformedProcedureStepEndDateTime = ended
    item.PerformedProcedureStepDescription = _described(model)
    item.CommentsOnThePerformedProcedureStep = "RESEARCH USE ONLY"
    known = [one for one in codes if one[0] and one[1]]
    item.PerformedWorkitemCodeSequence = [_coded(one) for one in known or [IMAGE_PROCESSING]]
    item.PerformedProcessingParametersSequence = [
        _text(ALGORITHM_NAME, f"semiseg gateway{f', model {model}' if model else ''}"),
        _text(ALGORITHM_VERSION, f"semiseg {version('semiseg')}, Python {platform.python_version()}"),
    ]
    item.OutputInformationSequence = list(outputs)
    changes = Dataset()
    changes.UnifiedProcedureStepPerformedProcedureSequence = [item]
    return changes


def cancellation_changes(reason: CancellationReason, moment: str) -> Dataset:
    """Create the attributes that CANCELED requires."""
    item = Dataset()
    item.ProcedureStepCancellationDateTime = moment
    item.ReasonForCancellation = reason.sentence[:LONG_TEXT]
    item.ProcedureStepDiscontinuationReasonCodeSequence = [_coded((reason.value, "DCM", reason.meaning))]
    changes = Dataset()
    changes.ProcedureStepProgressInformationSequence = [item]
    return changes


def output_items(files: Mapping[Path, Iterable[DestinationBase]]) -> list[Dataset]:
    """Create the items of the Output Information Sequence, one for each series and set of destinations.

    Args:
        files: DICOM files of the results, each with the destinations that have confirmed it.
    """
    found: dict[tuple[str, str, tuple[str, ...], tuple[str, ...]], list[Dataset]] = {}
    for file, destinations in files.items():
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_IDENTITY)
        study, series = str(header.StudyInstanceUID), str(header.SeriesInstanceUID)
        there = list(destinations)
        urls = tuple(
            sorted(
                f"{one.url}/studies/{study}/series/{series}" for one in there if isinstance(one, DicomwebDestination)
            )
        )
        titles = tuple(sorted(one.ae_title for one in there if isinstance(one, DimseDestination)))
        reference = Dataset()
        reference.ReferencedSOPClassUID = header.SOPClassUID
        reference.ReferencedSOPInstanceUID = header.SOPInstanceUID
        found.setdefault((study, series, urls, titles), []).append(reference)
    return [_output(*where, references) for where, references in found.items()]


_IDENTITY: list[str] = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
]


def _output(
    study: str, series: str, urls: Sequence[str], titles: Sequence[str], references: Sequence[Dataset]
) -> Dataset:
    item = Dataset()
    item.TypeOfInstances = "DICOM"
    item.StudyInstanceUID, item.SeriesInstanceUID = study, series
    item.ReferencedSOPSequence = list(references)
    if urls:
        item.WADORSRetrievalSequence = [_with("RetrieveURL", url) for url in urls]
    if titles:
        item.DICOMRetrievalSequence = [_with("RetrieveAETitle", title) for title in titles]
    return item


def _with(keyword: str, value: str) -> Dataset:
    item = Dataset()
    setattr(item, keyword, value)
    return item


def _coded(code: Sequence[str]) -> Dataset:
    value, scheme, meaning = code
    item = Dataset()
    if len(value) <= 16:
        item.CodeValue = value
    elif value.startswith(("urn:", "http:", "https:")):
        item.URNCodeValue = value
    else:
        item.LongCodeValue = value
    item.CodingSchemeDesignator, item.CodeMeaning = scheme, (meaning or value)[:LONG_STRING]
    return item


def _text(name: Sequence[str], value: str) -> Dataset:
    item = Dataset()
    item.ValueType, item.ConceptNameCodeSequence, item.TextValue = "TEXT", [_coded(name)], value
    return item


def _described(model: str) -> str:
    return f"Automatic segmentation{f' by {model}' if model else ''}"[:LONG_STRING]
