"""Plans a collection from a folder of DICOM files: the series that become cases, their labels and structures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from semiseg.collection.label_file import LabelFile
from semiseg.collection.label_matching import LabelMatches, match_labels
from semiseg.collection.plan import CollectionPlan, CollectOptions
from semiseg.collection.pseudonyms import SourceRecord
from semiseg.collection.report import ReportEntry
from semiseg.collection.scans import FileScan, SeriesScan, SourceScan
from semiseg.collection.source_index import ImageSeries, SourceIndex, index_source
from semiseg.collection.structures import PartialLabels, Structures, extend_structures, number_names
from semiseg.dataset.dataset_json import abbreviate_ids
from semiseg.dataset.folder import Dataset
from semiseg.errors import InputError
from semiseg.volumes.formats.registry import format_names

_TELLING, _TELLING_WITHIN = 3, 5  # minimum length of a part of a patient's name as a whole word, and within a word


def plan_dicom(
    root: Path, options: CollectOptions, extended: Dataset | None = None, progress: Callable[[int], None] | None = None
) -> CollectionPlan:
    """Index ``root`` and decide on every image series in it.

    Args:
        root: Source folder.
        options: Selection by the user.
        extended: Dataset that new scans are added to, whose structures are kept; None for a new dataset.
        progress: Function that is called with the number of files read.

    Raises:
        InputError: There is nothing to collect, or the user has to decide something first.
    """
    found = index_source(root, progress)
    matches = match_labels(found, options.matches)
    series, left_out = _asked_for(found, options)
    if not series and not matches.images:
        raise InputError(_nothing(found, left_out))
    groups, refused = _by_channel(found, series, options)
    channels = tuple(options.channels) or (_one_modality(series, options) if series else "image",)
    labels_of = [[label for s in group for label in matches.by_series.get(s.key, ())] for group in groups]
    taken = {s.key for group in groups for s in group}
    orphans = [
        ReportEntry("left out", "label", found.display_path(label.path), "Its scan was refused or not selected.")
        for key, labels in matches.by_series.items()
        if key not in taken
        for label in labels
    ]
    everything = [label for labels in (*labels_of, *matches.images.values()) for label in labels]
    structures = _structures(found, everything, options, extended)
    scans: list[SourceScan] = [
        _scan(found, matches, group, labels, structures) for group, labels in zip(groups, labels_of, strict=True)
    ]
    if matches.images and len(channels) > 1:
        raise InputError("A volume in a file that the CSV names is one channel; --channels is for DICOM series.")
    for path, labels in matches.images.items():
        origin = SourceRecord(key=str(path), folder=str(path))
        scans.append(FileScan(origin, found.display_path(path), tuple(labels), structures, found.display_path, path))
    return CollectionPlan(
        channels=channels,
        scans=tuple(scans),
        labels=structures.labels_entry,
        absent=structures.absent_names,
        entries=(*found.entries, *left_out, *refused, *matches.entries, *orphans),
    )


def _asked_for(found: SourceIndex, options: CollectOptions) -> tuple[list[ImageSeries], list[ReportEntry]]:
    """Return the series of the selected modalities and descriptions, and a report entry for every other series."""
    chosen, entries = [], []
    for series in found.series.values():
        first = series.first
        if options.modalities and first.modality.upper() not in {m.upper() for m in options.modalities}:
            entries.append(
                ReportEntry("left out", "scan", _name(found, series), f"Modality {first.modality} was not selected.")
            )
        elif options.descriptions and not any(_matches(first.description, p) for p in options.descriptions):
            reason = f"Series Description '{first.description}' was not selected."
            entries.append(ReportEntry("left out", "scan", _name(found, series), reason))
        else:
            chosen.append(series)
    return chosen, entries


def _one_modality(series: list[ImageSeries], options: CollectOptions) -> str:
    """Return the modality as the name of the only channel."""
    counts = Counter(s.first.modality for s in series)
    if len(counts) == 1:
        return next(iter(counts))
    if options.modalities:  # the user has selected several modalities on purpose
        return "image"
    listed = ", ".join(f"{modality} ({n})" for modality, n in counts.most_common())
    raise InputError(f"The series have several modalities, {listed}: select one with --modality.")


def _by_channel(
    found: SourceIndex, series: list[ImageSeries], options: CollectOptions
) -> tuple[list[tuple[ImageSeries, ...]], list[ReportEntry]]:
    """Return each series as a group of one, or a group of one series for each channel from every study."""
    if not options.channels:
        return [(s,) for s in series], []
    studies: dict[str, list[ImageSeries]] = {}
    entries: list[ReportEntry] = []
    for one in series:
        studies.setdefault(one.first.study or f"no study {one.key}", []).append(one)
    groups = []
    for members in studies.values():
        fitting = {
            name: [s for s in members if _matches(s.first.description, p)] for name, p in options.channels.items()
        }
        taken = [s.key for fits in fitting.values() for s in fits]
        wrong = [f"{len(fits)} series for channel '{name}'" for name, fits in fitting.items() if len(fits) != 1]
        if wrong or len(set(taken)) < len(taken):
            reason = (
                f"The study has {', '.join(wrong) or 'one series for two channels'}; each channel needs one of its own."
            )
            entries += [ReportEntry("refused", "scan", _name(found, s), reason) for s in members]
            continue
        groups.append(tuple(fits[0] for fits in fitting.values()))
        rest = [s for s in members if s.key not in taken]
        entries += [ReportEntry("left out", "scan", _name(found, s), "Its description fits no channel.") for s in rest]
    return groups, entries


def _structures(
    found: SourceIndex, labels: Iterable[LabelFile], options: CollectOptions, extended: Dataset | None
) -> Structures:
    """Return the structures to read: those of the dataset, of ``--labels``, or all that the label files name."""
    files, partial = list(labels), options.partial
    called = {name for label in files for name in (*label.names, *label.unusable)}
    marked = {name for name in called if partial and partial.is_marker(name)}
    if partial and partial.marker and files and not marked:
        raise InputError(f"No label holds the structure '{partial.marker}' that marks outlined slices.")
    if extended is not None:
        kept = extend_structures(extended.segments, options.labels, options.overlap, extended.ignore)
        return _with_partial(kept, partial)
    names = {name for label in files for name in label.names} - marked
    if options.labels is not None:
        structures = _with_partial(Structures(options.labels, options.overlap), partial)
        named = {structures.value(name) for label in files for name in (*label.names, *label.unusable)}
        unknown = [name for value, name in structures.names.items() if value not in named]
        if files and unknown and all(label.kind != "label map" for label in files):
            raise InputError(
                f"No label holds {abbreviate_ids(unknown)}; "
                f"the labels hold these structures: {abbreviate_ids(sorted(names), 40)}."
            )
        return structures
    unnamed = [label for label in files if label.kind == "label map"]
    if unnamed:
        raise InputError(
            f"{unnamed[0].path} is a label map without names: name its values with --labels NAME=1,OTHER=2."
        )
    if not names:
        raise InputError(
            "None of the scans has a label that can be matched to it, so the structures of the dataset are unknown. "
            "Give --matches, or name the structures to be outlined later with --labels NAME=1,OTHER=2."
        )
    _require_no_patient(found, names)
    return Structures(number_names(names), options.overlap, partial=partial)


def _with_partial(structures: Structures, partial: PartialLabels | None) -> Structures:
    """Return the structures with the rule for partly outlined scans.

    Raises:
        InputError: The marker is one of the structures.
    """
    if partial is not None and structures.value(partial.marker) is not None:
        raise InputError(f"'{partial.marker}' marks outlined slices, so it cannot be a structure of the dataset.")
    return replace(structures, partial=partial)


def _require_no_patient(found: SourceIndex, names: set[str]) -> None:
    """Refuse names of structures that hold a patient's name or id, because they are written to the dataset."""
    patients = {(s.first.patient, s.first.patient_name) for s in found.series.values()}
    parts = {part for both in patients for field in both for part in _parts(field) if len(part) >= _TELLING}
    telling = [
        name
        for name in sorted(names)
        if any(part in _parts(name) or (len(part) >= _TELLING_WITHIN and part in name.casefold()) for part in parts)
    ]
    if telling:
        raise InputError(
            f"{abbreviate_ids(telling)}: the name of a structure holds a patient's name or id, and would be "
            "written to the dataset. Name the structures with --labels."
        )


def _parts(field: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in field.casefold()).split()


def _scan(
    found: SourceIndex,
    matches: LabelMatches,
    group: tuple[ImageSeries, ...],
    labels: list[LabelFile],
    structures: Structures,
) -> SeriesScan:
    first = group[0].first
    origin = SourceRecord(
        key=" ".join(s.first.series or str(s.folder.resolve()) for s in group),
        patient=first.patient,
        study=first.study,
        series=" ".join(s.first.series for s in group),
        folder=found.display_path(group[0].folder),
        description="; ".join(s.first.description for s in group),
    )
    chosen = frozenset(label.path for label in labels if label.path.resolve() in matches.chosen)
    name = "; ".join(_name(found, s) for s in group)
    return SeriesScan(origin, name, tuple(labels), structures, found.display_path, group, chosen)


def _name(found: SourceIndex, series: ImageSeries) -> str:
    return f"{found.display_path(series.folder)} ({series.first.modality}, {series.first.series or 'no UID'})"


def _matches(description: str, pattern: str) -> bool:
    return fnmatchcase(description.casefold(), pattern.casefold())


def _nothing(found: SourceIndex, left_out: list[ReportEntry]) -> str:
    if left_out:
        return f"None of the {len(left_out)} image series in {found.root} has the selected modality and description."
    if found.volumes:
        return (
            f"{found.root} holds {len(found.volumes)} {format_names(found.volumes)} file(s) but no DICOM images. Name "
            "images and labels in the CSV of --matches, or give a folder with imagesTr/ and dataset.json."
        )
    return f"{found.root} holds no DICOM images."
