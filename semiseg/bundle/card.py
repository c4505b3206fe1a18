"""The model card: the contents of a bundle's manifest for a person who decides whether to use the model."""

from __future__ import annotations

from collections.abc import Iterable

from semiseg.bundle.fingerprint import Range, format_range
from semiseg.bundle.manifest import Manifest

CARD = "MODEL_CARD.md"


def model_card(manifest: Manifest) -> str:
    """Return the model card in Markdown, made from the manifest alone so that it cannot contradict the manifest."""
    parts = [
        f"# {manifest.name}",
        "**RESEARCH USE ONLY.** Not a medical device; not for diagnosis or treatment.",
        _purpose(manifest),
        _training(manifest),
        _figures(manifest),
        _graphs(manifest),
        _coarse_pass(manifest),
        _limits(manifest),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _purpose(manifest: Manifest) -> str:
    several = "Segments may overlap." if manifest.activation == "sigmoid" else "A voxel belongs to at most one segment."
    rows = [
        f"| {segment.name} | {segment.label} | {segment.coded_type.meaning} ({segment.coded_type.scheme} "
        f"{segment.coded_type.value}) |"
        for segment in manifest.segments
    ]
    table = "\n".join(["| segment | value | code |", "|---|---:|---|", *rows])
    return f"Segments scans with the channel(s) {', '.join(manifest.channel_names)}. {several}\n\n{table}"


def _training(manifest: Manifest) -> str:
    origin = manifest.provenance
    lines = [
        f"- Data: {origin.dataset}. Labels of {origin.labelled} scan(s) were opened for training and of "
        f"{origin.validation} to choose a checkpoint; {origin.unlabelled} more were used without labels."
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
        + f", licence {weights.licence}. This licence also applies to this model."
        for weights in origin.pretrained
    ] or ["- Pretrained weights: none."]
    return "## Origin\n\n" + "\n".join(lines)


def _figures(manifest: Manifest) -> str:
    if manifest.validation is None:
        return (
            "## Metrics\n\nNot validated: no labels were used for validation. Evaluate the model on your own scans "
            "before you use its results: `semiseg evaluate BUNDLE --data DATA`."
        )
    figures = manifest.validation
    return f"## Metrics\n\nOn {figures.scans} validation scan(s): {_dice(figures.dice.items())}."


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


def _coarse_pass(manifest: Manifest) -> str:
    settings = manifest.coarse_pass
    if settings is None:
        return ""
    rows = [
        f"| {proof.precision} | {proof.engine} | {proof.scans} | {proof.scans_with_skips} | {proof.window_ratio:.1f} | "
        f"{proof.mean_dice:.5f} | {proof.least_dice:.5f} | {proof.lost_components} |"
        for proof in settings.proofs
    ]
    text = (
        "Before the full pass, a coarse pass searches the scan, and windows in which it finds only background are not "
        "run. A structure that the coarse pass misses, far from those that it finds, can therefore be missing in the "
        f"result. Settings: {settings.description}. The option `--full` runs all windows. All windows are also run if "
        "the coarse pass finds no segment, or not every expected one; if a segment reaches the border of the windows "
        "that were run; or if the voxel spacing, the orientation of the slices, the grey values or the volume of a "
        "segment are outside the ranges of the training scans. Proof, on whole scans that are not test scans:"
    )
    head = [
        "| precision | engine | scans | of these with skipped windows | times fewer windows | mean Dice to the full "
        "pass | least Dice | lost components |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    return "## Coarse pass, against the full pass\n\n" + text + "\n\n" + "\n".join([*head, *rows])


def _limits(manifest: Manifest) -> str:
    seen = manifest.fingerprint
    axes = manifest.preprocessing.orientation
    lines = [
        f"- It was trained on {seen.scans} scans with voxels of {_per_axis(seen.spacing)} mm along {axes}"
        + (f" that cover {_per_axis(seen.extent)} mm." if seen.extent else "."),
        "- Scans and masks that differ from those of training get warnings. The absence of warnings proves nothing.",
    ]
    modalities = sorted({c.series.modality for c in manifest.channels if c.series and c.series.modality})
    if modalities:
        lines.append(f"- It accepts DICOM series of the modality {', '.join(modalities)} and refuses other modalities.")
    return "## Limits\n\n" + "\n".join(lines)


def _per_axis(seen: Range) -> str:
    return " x ".join(format_range(low, high) for low, high in zip(seen.minimum, seen.maximum, strict=True))


def _dice(pairs: Iterable[tuple[str, float]]) -> str:
    return "Dice " + ", ".join(f"{name} {value:.3f}" for name, value in pairs)
