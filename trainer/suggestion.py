"""Selection of the unlabelled scans to outline next, on which trained networks disagree most.

This is query by committee (Seung, Opper and Sompolinsky, COLT 1992). The committee consists of the networks of one
semi-supervised run, or of the students of several runs. A scan's disagreement is the mean over segments, and over pairs
of networks, of 1 - Dice between their masks.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from semiseg.bundle.manifest import Manifest
from semiseg.dataset import Dataset, read_channels
from semiseg.errors import InputError
from semiseg.evaluation.metrics import overlap
from semiseg.inference.segmenter import Segmenter
from semiseg.volumes.segmentation import Segmentation, are_overlapping
from semiseg.volumes.volume import Volume
from trainer.checkpoints import RunFolder, load_state, read_training_record
from trainer.device import check_device
from trainer.engine import TorchEngine, load_trained_network
from trainer.errors import RunError
from trainer.methods import make_method
from trainer.methods.method import SegmentationTask
from trainer.recipe_files import make_recipe
from trainer.stages import StageSequence
from trainer.targets import make_targets
from trainer.validation import make_segmenter

MIN_DISAGREEMENT = 0.02
"""In experiments, networks with a median disagreement below this ranked scans hardly better than chance."""
NOISE_LEVEL = 0.1
"""Standard deviation of the noise for the second prediction of a single network, in units of the normalised image."""


@dataclass(frozen=True)
class NetworkCommittee:
    """Committee of networks.

    Attributes:
        members: Segmenters of the networks, by name.
        description: Description of the committee for the user.
        manifest: Manifest with the channels and segments of all networks.
    """

    members: Mapping[str, Segmenter]
    description: str
    manifest: Manifest


@dataclass(frozen=True, eq=False)
class ScanDisagreement:
    """Disagreement of a committee on one scan.

    Attributes:
        case_id: Name of the scan.
        disagreement: Disagreement between 0, if all masks are equal, and 1, if no two of them overlap.
        by_segment: Disagreement for each segment; NaN for a segment that no network finds.
        image: First channel of the scan.
        masks: Segmentations by the name of the network.
    """

    case_id: str
    disagreement: float
    by_segment: Mapping[str, float]
    image: Volume
    masks: Mapping[str, Segmentation]


def load_committee(runs: Sequence[Path], device: str | None = None) -> NetworkCommittee:
    """Load the committee of a finished run, or one of the students of several runs.

    Raises:
        RunError: A run has not finished, or the runs have different channels or segments or the same name.
    """
    check_device(device)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if len(runs) > 1:
        opened = {run.name: load_trained_network(run) for run in runs}
        if len(opened) != len(runs):
            raise RunError("Two of the runs have the same folder name; give each run a different name.")
        first = next(iter(opened.values()))[0]
        for name, (manifest, _) in opened.items():
            if manifest.segments != first.segments or manifest.channel_names != first.channel_names:
                raise RunError(
                    f"{name} has other channels or segments than {runs[0].name}; they cannot form a committee."
                )
        voters = {name: make_segmenter(m, TorchEngine(network, device)) for name, (m, network) in opened.items()}
        return NetworkCommittee(voters, f"the students of {len(runs)} runs", first)
    manifest, networks = _voters_of(runs[0])
    words = f"the networks of one {manifest.provenance.method} run ({', '.join(networks)})"
    voters = {name: make_segmenter(manifest, TorchEngine(network, device)) for name, network in networks.items()}
    return NetworkCommittee(voters, words, manifest)


def _voters_of(run: Path) -> tuple[Manifest, dict[str, nn.Module]]:
    """Load the committee in a finished run's checkpoint; a single network also predicts a noisy copy of the scan."""
    manifest, student = load_trained_network(run)
    document = read_training_record(run)
    targets = make_targets(len(manifest.segments), overlapping=are_overlapping(manifest.segments))
    origin = manifest.provenance
    slices = manifest.preprocessing.slice_axis
    task = SegmentationTask(len(manifest.channels), targets, slices, origin.labelled, origin.unlabelled)
    stages = StageSequence(make_method(make_recipe(document["recipe"]), task))
    networks = stages.build()
    state = load_state(RunFolder(run).checkpoint, torch.device("cpu"))
    for name, network in networks.items():
        network.load_state_dict(state.networks[name])
    voters = {name: voter.eval() for name, voter in stages.committee(networks).items()}
    if len(voters) == 1:
        return manifest, {"student": student, "student on a noisy scan": NoisyInputNetwork(student).eval()}
    return manifest, voters


def unlabelled_scans(runs: Sequence[Path], dataset: Dataset, closed: Sequence[str]) -> tuple[str, ...]:
    """Return the scans of ``dataset`` that a run used without labels and no run with labels, without ``closed`` scans.

    Raises:
        InputError: There is no such scan.
    """
    pools = [read_training_record(run)["split"] for run in runs]
    labelled = {i for pool in pools for i in (*pool["labelled"], *pool["validation"])}
    ids = dict.fromkeys(i for pool in pools for i in pool["unlabelled"])
    found = tuple(i for i in ids if i in dataset.cases and i not in closed and i not in labelled)
    if not found:
        raise InputError(
            f"{runs[0]} was not trained with any unlabelled scan in {dataset.folder}; name scans with --scans."
        )
    return found


def measure_disagreement(
    committee: NetworkCommittee,
    dataset: Dataset,
    case_ids: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[ScanDisagreement]:
    """Segment each scan with the committee and yield its disagreement."""
    for done, case_id in enumerate(case_ids, start=1):
        channels = read_channels(dataset.case(case_id), committee.manifest.channel_names)
        masks = {name: voter.segment(channels) for name, voter in committee.members.items()}
        by_segment = {
            segment.name: _mean(
                [1.0 - overlap(a.mask(k), b.mask(k))[0] for a, b in itertools.combinations(masks.values(), 2)]
            )
            for k, segment in enumerate(committee.manifest.segments)
        }
        yield ScanDisagreement(
            case_id, _mean(list(by_segment.values())), by_segment, next(iter(channels.values())), masks
        )
        if progress is not None:
            progress(done, len(case_ids))


def agreement_warning(disagreements: Sequence[float]) -> str:
    """Return a warning if the networks agree too well for a reliable order of the scans, or else an empty string."""
    found = [value for value in disagreements if not math.isnan(value)]
    if not found or (median := statistics.median(found)) >= MIN_DISAGREEMENT:
        return ""
    return (
        f"These networks agree almost everywhere (median disagreement {median:.4f}), so the order of the scans is "
        "unreliable. Networks that were trained separately are better suited: a run of mn, cps or dual, or several "
        "runs with different seeds."
    )


class NoisyInputNetwork(nn.Module):
    """Network that adds Gaussian noise, the same at every call, to its windows."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits of windows (N, C, X, Y, Z)."""
        random = torch.Generator().manual_seed(0)
        noise = torch.randn(x.shape[1:], generator=random).to(x.device) * NOISE_LEVEL
        out: Tensor = self.network(x + noise)
        return out


def _mean(values: Sequence[float]) -> float:
    there = [v for v in values if not math.isnan(v)]
    return sum(there) / len(there) if there else math.nan
