"""What is known before a recipe is decided: the training scans, what is outlined in them, and the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from semiseg.bundle.fingerprint import Fingerprint
from semiseg.dataset import Dataset, Split, read_channels, read_reference
from semiseg.errors import SemisegError
from semiseg.system.memory import physical_memory
from semiseg.system.processors import processor_name, usable_processors
from trainer.errors import RecipeError
from trainer.scan_facts import MODALITIES, ScanFacts, collect_scan_facts

FOREGROUND_PERCENTILES = (0.5, 99.5)  # percentiles of the values inside the outlines
MAX_OUTLINED_SCANS = 16  # labelled scans whose values are looked at
GIB = 2**30


@dataclass(frozen=True)
class DatasetFacts:
    """What the training scans are.

    Attributes:
        scans: Sizes and values of all of them.
        modalities: Of each channel: ``CT``, ``MR``, ``PT``, or None where neither its name nor the recipe tells.
        foreground: Of each channel: the 0.5th and the 99.5th percentile of the values inside the outlines.
        labelled: Number of labelled scans.
        unlabelled: Number of unlabelled ones.
    """

    scans: ScanFacts
    modalities: tuple[str | None, ...]
    foreground: tuple[tuple[float, float], ...]
    labelled: int
    unlabelled: int

    @property
    def fingerprint(self) -> Fingerprint:
        """Ranges over the training scans."""
        return self.scans.fingerprint


@dataclass(frozen=True)
class MachineFacts:
    """What trains.

    Attributes:
        processor: Its name.
        processors: Number of logical processors that this process may use.
        memory: GiB of memory.
        gpu: Name of the GPU; None where training is on the processor.
        gpu_memory: GiB of its memory.
        bf16: The GPU computes in bfloat16.
    """

    processor: str
    processors: int
    memory: float
    gpu: str | None = None
    gpu_memory: float = 0.0
    bf16: bool = False

    @classmethod
    def detect(cls, device: str | None) -> MachineFacts:
        """This one, training on ``device`` (``cpu``, ``cuda``, or None for a GPU where there is one)."""
        own = (processor_name(), usable_processors(), (physical_memory() or 0) / GIB)
        if device == "cpu" or not torch.cuda.is_available():
            return cls(*own)
        told = torch.cuda.get_device_properties(0)
        return cls(*own, told.name, told.total_memory / GIB, torch.cuda.is_bf16_supported())

    def __str__(self) -> str:
        if self.gpu is not None:
            return f"{self.gpu} with {self.gpu_memory:.0f} GiB"
        return f"{self.processors} processor(s) of {self.processor} with {self.memory:.0f} GiB of memory"


def collect_dataset_facts(
    dataset: Dataset, split: Split, orientation: str, told: Mapping[str, str | None], scans: ScanFacts | None = None
) -> DatasetFacts:
    """Look at the training scans, and at the outlines of the labelled ones.

    Args:
        dataset: The dataset.
        split: Which scans are labelled and unlabelled.
        orientation: Axes of the network's grid.
        told: Modality of channels by name, where a recipe tells it.
        scans: What is known of the scans already.

    Raises:
        RecipeError: A scan cannot be read.
    """
    scans = scans or collect_scan_facts(dataset, (*split.labelled, *split.unlabelled), orientation)
    modalities = tuple(told.get(name) or MODALITIES.get(name.upper()) for name in dataset.channels)
    inside: list[list[NDArray[np.float32]]] = [[] for _ in dataset.channels]
    for case_id in split.labelled[:MAX_OUTLINED_SCANS]:
        case = dataset.case(case_id)
        try:
            channels = read_channels(case, dataset.channels)
            mask = read_reference(case, next(iter(channels.values()))).array
            mask = (mask > 0) & (mask != dataset.ignore)
        except SemisegError as error:
            raise RecipeError(f"Case {case_id}: {error}") from error
        for values, volume in zip(inside, channels.values(), strict=True):
            values.append(np.asarray(volume.array, dtype=np.float32)[mask])
    ranges = tuple(_range(np.concatenate(values)) for values in inside)
    return DatasetFacts(scans, modalities, ranges, len(split.labelled), len(split.unlabelled))


def _range(values: NDArray[np.float32]) -> tuple[float, float]:
    """Percentiles; where nothing is outlined both are 0."""
    if not values.size:
        return (0.0, 0.0)
    low, high = np.percentile(values, FOREGROUND_PERCENTILES)
    return (float(f"{low:.6g}"), float(f"{high:.6g}"))
