"""Which unlabelled scan to outline next: the one on which trained networks disagree most.

Query by committee (Seung, Opper and Sompolinsky, COLT 1992), with the committee that semi-supervised training leaves:
the networks of one run, or the students of several. A scan's disagreement is the mean over segments, and over pairs of
networks, of 1 - Dice between their masks.
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
from trainer.recipe import make_recipe
from trainer.stages import StageSequence
from trainer.targets import make_targets
from trainer.validation import make_segmenter

MIN_DISAGREEMENT = 0.02
"""Networks whose median disagreement is below this were seen to rank scans hardly better than chance."""
NOISE_LEVEL = (
    0.1  # of the input that a network without companions sees the second time, in units of the normalised image
)


@dataclass(frozen=True)
class NetworkCommittee:
    """Networks that vote on scans, by name, and what kind of committee it is, in words."""

    members: Mapping[str, Segmenter]
    description: str
    manifest: Manifest


@dataclass(frozen=True, eq=False)
class ScanDisagreement:
    """What a committee says of one scan.

    Attributes:
        case_id: the scan.
        disagreement: 0 when all masks are equal, 1 when no two of them meet.
        by_segment: the same for each segment; NaN for one that nobody finds.
        image: the scan's first channel.
        masks: each voter's answer.
    """

    case_id: str
    disagreement: float
    by_segment: Mapping[str, float]
    image: Volume
    masks: Mapping[str, Segmentation]


def load_committee(runs: Sequence[Path], device: str | None = None) -> NetworkCommittee:
    """The networks of a finished run that vote, or the students of several runs.

    Raises:
        RunError: a run has not finished, or two of them segment different things.
    """
    check_device(device)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if len(runs) > 1:
        opened = {run.name: load_trained_network(run) for run in runs}
        if len(opened) != len(runs):
            raise RunError("Two of the runs have the same folder name; give each a name of its own.")
        first = next(iter(opened.values()))[0]
        for name, (manifest, _) in opened.items():
            if manifest.segments != first.segments or manifest.channel_names != first.channel_names:
                raise RunError(f"{name} has other channels or segments than {runs[0].name}; they cannot vote together.")
        voters = {name: make_segmenter(m, TorchEngine(network, device)) for name, (m, network) in opened.items()}
        return NetworkCommittee(voters, f"the students of {len(runs)} runs", first)
    manifest, networks = _voters_of(runs[0])
    words = f"the networks of one {manifest.provenance.method} run ({', '.join(networks)})"
    voters = {name: make_segmenter(manifest, TorchEngine(network, device)) for name, network in networks.items()}
    return NetworkCommittee(voters, words, manifest)


def _voters_of(run: Path) -> tuple[Manifest, dict[str, nn.Module]]:
    """What a finished run's checkpoint holds; a network alone votes a second time on a noisy scan."""
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
    """The scans of ``dataset`` that one of the runs learned from without labels and none with; no ``closed`` ones.

    Raises:
        InputError: there is none.
    """
    pools = [read_training_record(run)["split"] for run in runs]
    labelled = {i for pool in pools for i in (*pool["labelled"], *pool["validation"])}
    ids = dict.fromkeys(i for pool in pools for i in pool["unlabelled"])
    found = tuple(i for i in ids if i in dataset.cases and i not in closed and i not in labelled)
    if not found:
        raise InputError(
            f"{runs[0]} was trained without unlabelled scans that {dataset.folder} holds; name them with --scans."
        )
    return found


def measure_disagreement(
    committee: NetworkCommittee,
    dataset: Dataset,
    case_ids: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[ScanDisagreement]:
    """What the committee says of each scan, one after the other."""
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
    """A sentence for networks that agree too well for their order of scans to say much; "" for others."""
    found = [value for value in disagreements if not math.isnan(value)]
    if not found or (median := statistics.median(found)) >= MIN_DISAGREEMENT:
        return ""
    return (
        f"These networks agree almost everywhere (median disagreement {median:.4f}), so their order says little. "
        "Networks that learned apart say more: a run of mn, cps or dual, or several runs with other seeds."
    )


class NoisyInputNetwork(nn.Module):
    """A network that sees its windows under Gaussian noise, the same at every call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Windows (N, C, X, Y, Z) -> logits."""
        random = torch.Generator().manual_seed(0)
        noise = torch.randn(x.shape[1:], generator=random).to(x.device) * NOISE_LEVEL
        out: Tensor = self.network(x + noise)
        return out


def _mean(values: Sequence[float]) -> float:
    there = [v for v in values if not math.isnan(v)]
    return sum(there) / len(there) if there else math.nan
