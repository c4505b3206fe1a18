"""``semiseg collect``: makes a dataset folder without patients' names from a folder of clinical or nnU-Net data.

Everything is written into a temporary folder beside the dataset, which is renamed to the dataset when it is complete.
The mapping from case ids to patients is written before that: a dataset without its mapping could not be extended or
corrected.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from semiseg.collection.dicom import plan_dicom
from semiseg.collection.nnunet import is_nnunet, plan_nnunet
from semiseg.collection.plan import CollectionPlan, CollectOptions
from semiseg.collection.pseudonyms import Pseudonyms, assign_case_ids, read_mapping, write_mapping
from semiseg.collection.report import ReportEntry, write_report
from semiseg.collection.scans import LoadedScan, SourceScan
from semiseg.dataset.dataset_json import read_json
from semiseg.dataset.folder import Dataset, load_dataset
from semiseg.errors import DatasetError, InputError, VolumeError
from semiseg.system.durable_files import atomic_file, rename
from semiseg.volumes.nifti import write_nifti
from semiseg.volumes.volume import reorient

Progress = Callable[[str, int, int | None], None]
"""Function that is called with the current step, the number of items done, and their total (None if unknown)."""


@dataclass(frozen=True)
class CollectionResult:
    """Result of a collection.

    Attributes:
        folder: Folder of the dataset.
        mapping: File with the mapping from case ids to patients.
        known: Number of collected scans that had an id in the mapping already.
        report: Files with the report, as CSV and as JSON.
        entries: Entries of the report.
    """

    folder: Path
    mapping: Path
    known: int
    report: tuple[Path, Path]
    entries: tuple[ReportEntry, ...]


@dataclass(frozen=True)
class _Written:
    """A scan that was written to the working folder under a number."""

    scan: SourceScan
    number: int
    labelled: bool


def collect(
    source: Path,
    out: Path,
    options: CollectOptions | None = None,
    *,
    mapping: Path | None = None,
    add: bool = False,
    progress: Progress | None = None,
) -> CollectionResult:
    """Make a dataset of all scans in ``source``, or add them to an existing one.

    Args:
        source: Folder of DICOM files in any order, or folder with the structure of an nnU-Net dataset.
        out: Folder of the dataset.
        options: Selection of scans, channels and structures.
        mapping: File for the mapping from case ids to patients; ``OUT-mapping.csv`` beside ``out`` by default. Scans in
            an existing file keep their ids, and its rows are kept. The report is written beside it.
        add: If True, the existing dataset ``out`` is extended; if False, a new one is made.
        progress: Function that is called at every step.

    Raises:
        InputError: Nothing can be collected, or the user has to decide something first. At most the report was
            written.
    """
    out, path, existing = check_destination(source, out, mapping=mapping, add=add)
    names = read_mapping(path)
    if existing is not None and not names.rows:
        raise DatasetError(
            f"{path} does not hold the case ids of {out}; without them new scans cannot be told from existing ones."
        )
    tell = progress or (lambda what, done, of: None)
    plan = _plan(Path(source), options or CollectOptions(), existing, tell)
    if existing is not None and plan.channels != existing.channels:
        raise DatasetError(
            f"{out} has the channels {', '.join(existing.channels)}, the source {', '.join(plan.channels)}."
        )
    entries = list(plan.entries)
    report = path.with_name(f"{out.name}-report")
    with _working_folder(out) as work:
        written = _write_scans(plan, work, names, existing, entries, tell)
        if not written and any(entry.status == "already there" for entry in entries):
            return CollectionResult(out, path, 0, write_report(entries, report), tuple(entries))
        if not written:
            files = write_report(entries, report)
            raise InputError(f"No scan could be collected; {files[0]} says why.")
        ids = assign_case_ids(names, (w.scan.origin for w in written), existing.cases if existing else ())
        case_of = {w.scan.origin.key: ids.case_of[w.scan.origin.key] for w in written}
        entries = [
            replace(entry, case=case_of.get(entry.case, entry.case)) if entry.case else entry for entry in entries
        ]
        _name_files(written, work, case_of)
        document = _document(plan, out, existing, {case_of[w.scan.origin.key]: w.labelled for w in written})
        _write_json(work / "dataset.json", document)
        load_dataset(work)
        write_mapping(ids)
        if existing is None:
            rename(work, out)
        else:
            _move_into(work, out)
    entries += _remarks(plan, ids, {*case_of.values(), *(existing.cases if existing else ())})
    known = sum(key in names.case_of for key in case_of)
    return CollectionResult(out, path, known, write_report(entries, report), tuple(entries))


def check_destination(
    source: Path, out: Path, *, mapping: Path | None = None, add: bool = False
) -> tuple[Path, Path, Dataset | None]:
    """Check where a dataset would be written, before anything is read.

    Args:
        source, out, mapping, add: See :func:`collect`.

    Returns:
        Folder of the dataset, file of the mapping, and the dataset that is extended, if there is one.

    Raises:
        InputError: The dataset could not be written there.
    """
    out = Path(out).absolute()
    path = Path(mapping or out.with_name(f"{out.name}-mapping.csv")).absolute()
    _require_apart(Path(source), out, path)
    return out, path, _existing(out, add)


def _require_apart(source: Path, out: Path, mapping: Path) -> None:
    inside, real = source.resolve(), out.resolve()
    if real.is_relative_to(inside) or inside.is_relative_to(real):
        raise InputError(f"The dataset {out} and its source {source} must not contain each other.")
    if mapping.resolve().is_relative_to(real):
        raise InputError(f"The mapping {mapping} names patients, so it must not lie in the dataset {out}.")
    for folder in (out.parent, mapping.parent):
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; create it first.")


def _existing(out: Path, add: bool) -> Dataset | None:
    there = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if there and not add:
        raise DatasetError(f"{out} exists already; --add extends a dataset, or name another folder.")
    if add and not (out / "dataset.json").is_file():
        raise DatasetError(f"{out} has no dataset.json, so --add cannot extend it.")
    return load_dataset(out) if add else None


def _plan(source: Path, options: CollectOptions, existing: Dataset | None, tell: Progress) -> CollectionPlan:
    if is_nnunet(source):
        return plan_nnunet(source, options, existing)
    return plan_dicom(source, options, existing, lambda done: tell("Looking at files", done, None))


@contextlib.contextmanager
def _working_folder(out: Path) -> Iterator[Path]:
    """Create a folder beside ``out`` that is removed at the end of the context, unless it was renamed to ``out``."""
    work = out.with_name(f".{out.name}.part")
    if work.exists():
        raise InputError(f"{work} exists: another collection is running, or one was killed; then delete that folder.")
    try:
        for name in ("imagesTr", "labelsTr"):
            (work / name).mkdir(parents=True)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_scans(
    plan: CollectionPlan,
    work: Path,
    names: Pseudonyms,
    existing: Dataset | None,
    entries: list[ReportEntry],
    tell: Progress,
) -> list[_Written]:
    """Read every scan and write it under its number; a scan that cannot be used becomes an entry of the report."""
    written: list[_Written] = []
    seen: dict[str, str] = {}
    for number, scan in enumerate(plan.scans):
        tell("Reading scans", number, len(plan.scans))
        there = _there(scan, names, existing)
        if there:
            entries.append(ReportEntry("already there", "scan", scan.name, case=there))
            continue
        try:
            read = scan.read()
            _require_content(read)
            _require_new(read, scan, seen)
        except VolumeError as error:
            entries.append(ReportEntry("refused", "scan", scan.name, str(error)))
            entries += [
                ReportEntry("left out", "label", label, "Its scan was refused.") for label in scan.label_file_names
            ]
            continue
        grid = read.channels[0]
        write_nifti(work / "imagesTr" / f"{number}.nii.gz", read.image(), grid.affine)
        if read.label is not None:
            write_nifti(work / "labelsTr" / f"{number}.nii.gz", read.label, grid.affine)
        # The case id is not known yet: the key is used in its place until all scans are read.
        status = "unlabelled" if read.label is None else "labelled"
        key = scan.origin.key
        entries.append(ReportEntry("unlabelled" if status == "unlabelled" else "labelled", "scan", scan.name, case=key))
        entries += [replace(entry, case=key) for entry in read.entries]
        written.append(_Written(scan, number, read.label is not None))
    tell("Reading scans", len(plan.scans), len(plan.scans))
    return written


def _there(scan: SourceScan, names: Pseudonyms, existing: Dataset | None) -> str | None:
    """Return the case id of a scan that the dataset holds already; None if the scan is new or has its first label."""
    case = names.case_of.get(scan.origin.key)
    if existing is None or case is None or case not in existing.cases:
        return None
    return case if existing.cases[case].label is not None or not scan.label_file_names else None


def _require_content(read: LoadedScan) -> None:
    for volume in read.channels:
        low, high = volume.array.min(), volume.array.max()
        if low == high:
            raise VolumeError(f"Every voxel of the scan is {float(low):g}, so it has no content.")


def _require_new(read: LoadedScan, scan: SourceScan, seen: dict[str, str]) -> None:
    """Refuse a scan with the same voxels as another one of this collection: the same scan under two UIDs."""
    sum_ = hashlib.blake2b(digest_size=16)
    for volume in read.channels:
        array, _ = reorient(volume.array, volume.affine, "RAS")
        sum_.update(str(array.shape).encode())
        sum_.update(np.ascontiguousarray(array, dtype=np.float32).tobytes())
    first = seen.setdefault(sum_.hexdigest(), scan.name)
    if first != scan.name:
        raise VolumeError(f"It holds the same voxels as {first}.")


def _name_files(written: list[_Written], work: Path, case_of: dict[str, str]) -> None:
    for one in written:
        for folder in ("imagesTr", "labelsTr") if one.labelled else ("imagesTr",):
            numbered = work / folder / f"{one.number}.nii.gz"
            numbered.rename(work / folder / f"{case_of[one.scan.origin.key]}.nii.gz")


def _document(plan: CollectionPlan, out: Path, existing: Dataset | None, labelled: dict[str, bool]) -> dict[str, Any]:
    """Make dataset.json of the new dataset, or of the existing one with the new scans."""
    cases = dict(labelled)
    document: dict[str, Any] = {"name": out.name, "description": "Collected by semiseg collect"}
    old: dict[str, dict[str, str]] = {}
    if existing is not None:
        document = read_json(out / "dataset.json")
        for case in existing.cases.values():
            old[case.id] = {"image": _within(case.image, out)} | (
                {} if case.label is None else {"label": _within(case.label, out)}
            )
    for case_id, has_label in cases.items():
        old[case_id] = {"image": f"./imagesTr/{case_id}.nii.gz"}
        if has_label:
            old[case_id]["label"] = f"./labelsTr/{case_id}.nii.gz"
    channels = {str(number): name for number, name in enumerate(plan.channels)}
    return {
        **document,
        "tensorImageSize": "3D" if len(plan.channels) == 1 else "4D",
        "modality": channels,
        "channel_names": channels,
        "labels": plan.labels(),
        **({"regions_class_order": list(plan.painted)} if plan.painted else {}),
        "numTraining": len(old),
        "numTest": 0,
        "training": [old[case_id] for case_id in sorted(old)],
        "test": [],
    }


def _within(path: Path, folder: Path) -> str:
    return f"./{path.absolute().relative_to(folder).as_posix()}"


def _move_into(work: Path, out: Path) -> None:
    """Move the files first and ``dataset.json`` last; the scans become part of the dataset only with the latter."""
    for folder in ("imagesTr", "labelsTr"):
        (out / folder).mkdir(exist_ok=True)
        for path in sorted((work / folder).iterdir()):
            rename(path, out / folder / path.name)
    with atomic_file(out / "dataset.json") as file:
        file.write((work / "dataset.json").read_bytes())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def _remarks(plan: CollectionPlan, ids: Pseudonyms, cases: set[str]) -> list[ReportEntry]:
    """Make the notes that concern the dataset as a whole."""
    labels = plan.labels()
    kept = {*labels, *(name for name in labels.values() if isinstance(name, str))}
    entries = [
        ReportEntry(
            "note", "dataset", "", f"No scan holds a voxel of '{name}'" + ("." if name in kept else ": left out.")
        )
        for name in plan.absent()
    ]
    scans_of: dict[str, list[str]] = defaultdict(list)
    for case, origin in ids.rows.items():
        if origin.patient and case in cases:
            scans_of[origin.patient].append(case)
    for patient, several in scans_of.items():
        if len(several) > 1:
            reason = f"{', '.join(sorted(several))} are of one patient: keep them in one list of the split."
            entries.append(ReportEntry("note", "patient", patient, reason))
    return entries
