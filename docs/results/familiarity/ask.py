"""What a hippocampus model says of scans like its own and of others.

    python docs/results/familiarity/ask.py BUNDLE DATA DICOM > docs/results/familiarity/answers.txt

BUNDLE comes of `semiseg train --recipe hippocampus --method supervised --labelled 4 --set updates=600` and an export;
DATA is the Medical Segmentation Decathlon's task 4 with a split.json, DICOM a folder of series.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from cli.models import open_model
from semiseg.dataset import load_dataset, read_channels
from semiseg.dataset.split_file import read_split
from semiseg.errors import SemisegError
from semiseg.inference.segmenter import Segmenter, SlidingWindowOptions
from semiseg.phantoms.anatomy import make_phantom
from semiseg.volumes.scan import open_scan
from semiseg.volumes.scan_warning import ScanWarning
from semiseg.volumes.series_rules import SeriesRule
from semiseg.volumes.volume import Volume


def say(name: str, segmenter: Segmenter, channels: Mapping[str, Volume]) -> None:
    """Print the volumes and the remarks of one scan."""
    segmentation, remarks = segmenter.segment_with_warnings(channels)
    volumes = ", ".join(f"{segment} {ml:.2f} ml" for segment, ml in segmentation.volumes_ml().items())
    print(f"== {name}: {volumes}")
    for remark in remarks:
        print(f"{remark.code}: {remark.text}")


def main() -> None:
    """Strange scans one by one, then how often the model says something of scans like its own."""
    bundle, data, dicom = (Path(argument) for argument in sys.argv[1:])
    opened = open_model(bundle, SlidingWindowOptions(), threads=1)
    segmenter = opened.segmenter
    (channel,) = opened.manifest.channel_names
    for folder in sorted(path for path in dicom.iterdir() if path.is_dir()):
        try:
            say(folder.name, segmenter, open_scan(folder, opened.manifest.rules).channels)
        except SemisegError as error:
            print(f"== {folder.name}: {error}")
            any_modality = open_scan(folder, {channel: SeriesRule()})
            # NIfTI knows no modality: the same voxels without it.
            say(f"{folder.name}, as NIfTI", segmenter, {channel: any_modality.channels[channel]})
    for name, shape, spacing in (
        ("phantom abdomen", (64, 56, 40), (4.0, 4.0, 5.0)),
        ("phantom abdomen, as small as a crop", (36, 50, 36), (1.0, 1.0, 1.0)),
    ):
        say(name, segmenter, {channel: make_phantom(3, shape, spacing).image})

    dataset = load_dataset(data)
    told: Counter[str] = Counter()
    scans: dict[str, tuple[ScanWarning, ...]] = {}
    for case in read_split(dataset, data / "split.json").test:
        channels = read_channels(dataset.case(case), dataset.channels)
        _, scans[case] = segmenter.segment_with_warnings(channels)
        told.update({remark.code for remark in scans[case]})
    quiet = sum(not remarks for remarks in scans.values())
    print(f"== {len(scans)} test scans: nothing is said of {quiet}; {dict(told)}")
    for case, remarks in scans.items():
        for remark in remarks:
            print(f"{case}, {remark.code}: {remark.text}")


main()
