"""The model card: what a bundle's manifest says, for a person who has to decide whether to use the model."""

from __future__ import annotations

from collections.abc import Iterable

from semiseg.bundle.fingerprint import Range, format_range
from semiseg.bundle.manifest import Manifest

CARD = "MODEL_CARD.md"


def model_card(manifest: Manifest) -> str:
    """Markdown of what is known of a model: made from the manifest alone, so that it cannot say anything else."""
    parts = [
        f"# {manifest.name}",
        "**RESEARCH USE ONLY.** Not a medical device; not for diagnosis or treatment.",
        _purpose(manifest),
        _training(manifest),
        _figures(manifest),
        _graphs(manifest),
        _limits(manifest),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _purpose(manifest: Manifest) -> str:
    several = "Regions may overlap." if manifest.activation == "sigmoid" else "A voxel belongs to one at most."
    rows = [
        f"| {segment.name} | {segment.label} | {segment.coded_type.meaning} ({segment.coded_type.scheme} "
        f"{segment.coded_type.value}) |"
        for segment in manifest.segments
    ]
    table = "\n".join(["| segment | value | code |", "|---|---:|---|", *rows])
    return f"Outlines in a scan with the channel(s) {', '.join(manifest.channel_names)}. {several}\n\n{table}"


def _training(manifest: Manifest) -> str:
    origin = manifest.provenance
    lines = [
        f"- Data: {origin.dataset}. Labels of {origin.labelled} scan(s) were opened for training and of "
        f"{origin.validation} to choose a checkpoint; {origin.unlabelled} more were seen without labels."
        + (" Images of test scans were among them (transductive)." if origin.transductive else ""),
        f"- Method: `{origin.method}`, {origin.updates} updates, seed {origin.seed}, semiseg {origin.semiseg}, "
        f"{origin.created}.",
        f"- Network: {origin.student.get('kind', 'unknown')}, {origin.parameters:,} parameters.",
    ]
    if origin.taught_by is not None:
        teacher = origin.taught_by
        told = "not validated" if teacher.validation is None else _dice(teacher.validation.dice.items())
        lines.append(
            f"- Distilled from {teacher.name} (`{teacher.method}`, {teacher.student.get('kind', 'unknown')}, "
            f"{teacher.parameters:,} parameters, {teacher.labelled} labelled scans; {told})."
        )
    lines += [
        f"- Pretrained weights: {weights.name}"
        + (f" at {weights.revision}" if weights.revision else "")
        + f", licence {weights.licence}. That licence travels with this model."
        for weights in origin.pretrained
    ] or ["- Pretrained weights: none."]
    return "## Where it comes from\n\n" + "\n".join(lines)


def _figures(manifest: Manifest) -> str:
    if manifest.validation is None:
        return (
            "## Figures\n\nNot validated: no label was spent on it. Measure it on scans of your own before you look at "
            "what it draws: `semiseg evaluate BUNDLE --data DATA`."
        )
    figures = manifest.validation
    return f"## Figures\n\nOn {figures.scans} validation scan(s): {_dice(figures.dice.items())}."


def _graphs(manifest: Manifest) -> str:
    rows = [
        f"| {variant.precision} | {parity.engine} | {'x'.join(map(str, parity.window))} | {parity.windows} | "
        f"{parity.largest_difference:.2g} | {parity.least_dice:.5f} |"
        for variant in manifest.variants
        for parity in variant.parity
    ]
    if not rows:
        return ""
    head = ["| precision | engine | window | windows of real scans | largest difference of a logit | least Dice |"]
    table = "\n".join([*head, "|---|---|---|---:|---:|---:|", *rows])
    return f"## Graphs, against the trained network\n\n{table}"


def _limits(manifest: Manifest) -> str:
    seen = manifest.fingerprint
    axes = manifest.preprocessing.orientation
    lines = [
        f"- It knows scans like the {seen.scans} of its training: voxels of {_per_axis(seen.spacing)} mm along {axes}"
        + (f", that cover {_per_axis(seen.extent)} mm." if seen.extent else "."),
        "- A scan or a mask of another kind is answered with remarks. That there is none proves nothing.",
    ]
    modalities = sorted({c.series.modality for c in manifest.channels if c.series and c.series.modality})
    if modalities:
        lines.append(f"- Of DICOM it takes {', '.join(modalities)} and refuses other modalities.")
    return "## Limits\n\n" + "\n".join(lines)


def _per_axis(seen: Range) -> str:
    return " x ".join(format_range(low, high) for low, high in zip(seen.minimum, seen.maximum, strict=True))


def _dice(pairs: Iterable[tuple[str, float]]) -> str:
    return "Dice " + ", ".join(f"{name} {value:.3f}" for name, value in pairs)
