"""Facts from which a recipe is decided: the training scans, the values inside their outlines, and the machine."""

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
MAX_OUTLINED_SCANS = 16  # largest number of labelled scans whose values inside the outlines are read
GIB = 2**30


@dataclass(frozen=True)
class DatasetFacts:
    """Facts about the training scans.

    Attributes:
        scans: Sizes and values of all training scans.
        modalities: Modality of each channel: ``CT``, ``MR``, ``PT``, or None if neither its name nor the recipe states
            it.
        foreground: For each channel, the 0.5th and the 99.5th percentile of the values inside the outlines.
        labelled: Number of labelled scans.
        unlabelled: Number of unlabelled scans.
    """

    scans: ScanFacts
    modalities: tuple[str | None, ...]
    foreground: tuple[tuple[float, float], ...]
    labelled: int
    unlabelled: int

    @property
    def fingerprint(self) -> Fingerprint:
        """The ranges of sizes and values over the training scans."""
        return self.scans.fingerprint


@dataclass(frozen=True)
class MachineFacts:
    """Facts about the machine that trains.

    Attributes:
        processor: Name of the processor.
        processors: Number of logical processors that this process may use.
        memory: Main memory in GiB.
        gpu: Name of the GPU; None for training on the processor.
        gpu_memory: Memory of the GPU in GiB.
        bf16: True if the GPU supports bfloat16.
    """

    processor: str
    processors: int
    memory: float
    gpu: str | None = None
    gpu_memory: float = 0.0
    bf16: bool = False

    @classmethod
    def detect(cls, device: str | None) -> MachineFacts:
        """Describe this machine, for training on ``device`` (``cpu``, ``cuda``, or None for a GPU if there is one)."""
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
    """Collect facts about the training scans and the values inside the outlines of the labelled ones.

    Args:
        dataset: The dataset.
        split: Labelled and unlabelled scans.
        orientation: Orientation of the network's grid.
        told: Modalities that the recipe states, by channel name.
        scans: Sizes and values of the scans, if they were read before.

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
    """Return the percentiles of values; both are 0 if there are no values."""
    if not values.size:
        return (0.0, 0.0)
    low, high = np.percentile(values, FOREGROUND_PERCENTILES)
    return (float(f"{low:.6g}"), float(f"{high:.6g}"))
