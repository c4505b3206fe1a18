"""The tables of PS3.4 annex CC that say what a performer may set and what has to be there at the end, as functions."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pydicom
from pydicom.dataset import Dataset

PERFORMED, PROGRESS = "UnifiedProcedureStepPerformedProcedureSequence", "ProcedureStepProgressInformationSequence"
# Column "Final State": R for both, P for COMPLETED, X for CANCELED. The Output Information Sequence may have no items.
FINAL_STATE_REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "R": (
        "SOPClassUID",
        "SOPInstanceUID",
        "ScheduledProcedureStepPriority",
        "ScheduledProcedureStepModificationDateTime",
        "ScheduledProcedureStepStartDateTime",
        "InputReadinessState",
        "ProcedureStepState",
    ),
    "P": (
        PERFORMED,
        f"{PERFORMED}.PerformedStationNameCodeSequence",
        f"{PERFORMED}.PerformedProcedureStepStartDateTime",
        f"{PERFORMED}.PerformedWorkitemCodeSequence",
        f"{PERFORMED}.PerformedProcedureStepEndDateTime",
    ),
    "X": (
        PROGRESS,
        f"{PROGRESS}.ProcedureStepCancellationDateTime",
        f"{PROGRESS}.ProcedureStepDiscontinuationReasonCodeSequence",
    ),
}
# Column "N-SET", type 3/1: they may be left out, and need a value where they are there.
VALUED = (
    "ProcedureStepProgress",
    "ProcedureStepProgressDescription",
    "ProcedureStepCancellationDateTime",
    "ReasonForCancellation",
    "ProcedureStepDiscontinuationReasonCodeSequence",
    "ActualHumanPerformersSequence",
    "PerformedProcedureStepStartDateTime",
    "PerformedProcedureStepEndDateTime",
    "PerformedProcedureStepDescription",
    "CommentsOnThePerformedProcedureStep",
    "PerformedWorkitemCodeSequence",
    "PerformedProcessingParametersSequence",
)
MAY_BE_EMPTY = (
    "PerformedStationNameCodeSequence",
    "PerformedStationClassCodeSequence",
    "PerformedStationGeographicLocationCodeSequence",
    "OutputInformationSequence",
)
RETRIEVALS = (
    "WADORSRetrievalSequence",
    "DICOMRetrievalSequence",
    "DICOMMediaRetrievalSequence",
    "WADORetrievalSequence",
)


def missing_attributes(one: Dataset, state: str) -> list[str]:
    """What the final state requirements of table CC.2.5-3 miss."""
    found = []
    for path in FINAL_STATE_REQUIREMENTS["R"] + FINAL_STATE_REQUIREMENTS["P" if state == "COMPLETED" else "X"]:
        outer, _, inner = path.partition(".")
        items = list(one.get(outer) or []) if inner else [one]
        if not items or not all(item.get(inner or outer) for item in items):
            found.append(path)
    if state == "COMPLETED" and any("OutputInformationSequence" not in item for item in one.get(PERFORMED) or []):
        found.append("OutputInformationSequence")
    return found


def find_violation(changes: Dataset) -> str:
    """What of an N-SET by a performer breaks table CC.2.5-3, "" where nothing does."""
    for element in changes:
        if element.keyword not in ("TransactionUID", "SpecificCharacterSet", PROGRESS, PERFORMED):
            return f"{element.keyword} is not the performer's"
    for sequence in (PROGRESS, PERFORMED):
        if sequence in changes and len(changes[sequence].value) > 1:
            return f"{sequence} has one item"
        for item in changes.get(sequence) or []:
            for element in item:
                if element.keyword not in VALUED + MAY_BE_EMPTY:
                    return f"{element.keyword} is unknown"
                if element.keyword in VALUED and element.is_empty:
                    return f"{element.keyword} is empty"
    for item in changes.get(PERFORMED) or []:
        if "OutputInformationSequence" not in item:  # 2/2
            return "there is no OutputInformationSequence"
        for output in item.OutputInformationSequence:
            needed = ("TypeOfInstances", "StudyInstanceUID", "SeriesInstanceUID", "ReferencedSOPSequence")
            if absent := [keyword for keyword in needed if not output.get(keyword)]:
                return f"{absent} of an output"
            if not any(output.get(keyword) for keyword in RETRIEVALS):
                return "an output without a place"
    for code in _codes_in(changes):
        if not code.get("CodeMeaning") or not (code.get("CodeValue") or code.get("LongCodeValue")):
            return "a code without value or meaning"
    return ""


def _codes_in(dataset: Dataset) -> Iterator[Dataset]:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                if element.keyword.endswith("CodeSequence"):
                    yield item
                yield from _codes_in(item)


def code_item(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def input_information_item(objects: list[pydicom.Dataset], *, url: str = "", title: str = "") -> Dataset:
    """An item of the Input Information Sequence for a series, with where it can be had."""
    item = Dataset()
    item.TypeOfInstances = "DICOM"
    item.StudyInstanceUID, item.SeriesInstanceUID = objects[0].StudyInstanceUID, objects[0].SeriesInstanceUID
    item.ReferencedSOPSequence = []
    for one in objects:
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = one.SOPClassUID, one.SOPInstanceUID
        item.ReferencedSOPSequence.append(reference)
    if url:
        place = Dataset()
        place.RetrieveURL = f"{url}/studies/{item.StudyInstanceUID}/series/{item.SeriesInstanceUID}"
        item.WADORSRetrievalSequence = [place]
    if title:
        place = Dataset()
        place.RetrieveAETitle = title
        item.DICOMRetrievalSequence = [place]
    return item


def parse_payload(body: bytes) -> Dataset:
    """The one data set of a request; pydicom refuses what is no DICOM JSON."""
    found = json.loads(body)
    assert isinstance(found, list) and len(found) == 1
    return Dataset.from_json(found[0])
