"""The scans of a whole archive, one after the other or many at a time; what was done once is not done again.

OUT/results.jsonl     a line for each scan that ended: the one record of what is done
OUT/00001-NAME.SUFFIX the answer to the first scan of the list, and so on
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiseg.errors import InputError, SemisegError
from semiseg.outputs.formats import FORMAT_TRAITS, OutputFormat
from semiseg.predicting.predictor import Predictor
from semiseg.system.durable_files import full_fsync

RESULTS_FILE = "results.jsonl"


@dataclass(frozen=True)
class ScanItem:
    """A scan of the list.

    Attributes:
        scan: where it is.
        out: where its answer goes.
        output_format: the form of the answer.
    """

    scan: Path
    out: Path
    output_format: OutputFormat


def read_scan_list(file: Path, out: Path, output_format: OutputFormat) -> list[ScanItem]:
    """The scans that a file names, a path on each line; from the file's own folder where they are relative.

    Raises:
        InputError: it cannot be read, names nothing, or names a scan twice.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The list {file} cannot be read ({error}).") from None
    paths = [file.parent / line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not paths:
        raise InputError(f"The list {file} names no scan: write a path on each line.")
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise InputError(f"The list {file} names {twice} twice.")
    digits = max(5, len(str(len(paths))))
    suffix = FORMAT_TRAITS[output_format].suffixes[0]
    return [
        ScanItem(path, out / f"{number:0{digits}d}-{path.name.split('.')[0] or 'scan'}{suffix}", output_format)
        for number, path in enumerate(paths, start=1)
    ]


def segment_item(model: Predictor, item: ScanItem) -> dict[str, Any]:
    """Segment a scan; what became of it, as a line of the results. A scan that cannot be segmented stops nobody."""
    told: dict[str, Any] = {"scan": str(item.scan), "out": item.out.name, "model": model.identity.model_dump()}
    since = time.perf_counter()
    try:
        prediction = model.predict_files(item.scan, item.output_format)
        prediction.write(item.out, item.output_format)
    except SemisegError as error:
        return told | {"state": "failed", "error": str(error)}
    return told | {
        "state": "done",
        "millilitres": prediction.volumes,
        "remarks": prediction.warnings,
        "seconds": round(time.perf_counter() - since, 3),
    }


class ResultLog:
    """The record of a folder; only for one process at a time."""

    def __init__(self, folder: Path) -> None:
        """Read what is there.

        Raises:
            InputError: it cannot be written, or a line of it is none of ours.
        """
        self._file = folder / RESULTS_FILE
        self._last: dict[str, dict[str, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            text = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
        except OSError as error:
            raise InputError(f"The folder {folder} cannot be used ({error.strerror}).") from None
        whole, _, broken = text.rpartition("\n")
        if broken:  # what a process that was killed had begun to write
            with self._file.open("r+b") as stream:
                stream.truncate(len(f"{whole}\n".encode()) if whole else 0)
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                one = json.loads(line)
                self._last[one["scan"]] = one
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{self._file}, line {number}: no result of semiseg.") from None

    def add(self, outcome: dict[str, Any]) -> None:
        """Write down what became of a scan; on the disk when this returns."""
        with self._file.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(json.dumps(outcome) + "\n")
            stream.flush()
            full_fsync(stream.fileno())
        self._last[outcome["scan"]] = outcome

    def pending(self, items: Iterable[ScanItem], sha256: str | None) -> list[ScanItem]:
        """Those that this model has not segmented in this form, or whose answer is gone."""
        return [item for item in items if not self._is_done(item, sha256)]

    def _is_done(self, item: ScanItem, sha256: str | None) -> bool:
        last = self._last.get(str(item.scan), {})
        same = (last.get("state"), last.get("out")) == ("done", item.out.name) and last["model"]["sha256"] == sha256
        return same and sha256 is not None and item.out.exists()


def segment_sequentially(model: Predictor, items: Sequence[ScanItem]) -> Iterator[dict[str, Any]]:
    """The outcome of each scan, in order."""
    for item in items:
        yield segment_item(model, item)


def process_pending(
    items: Sequence[ScanItem],
    results: ResultLog,
    sha256: str | None,
    segment: Callable[[Sequence[ScanItem]], Iterable[dict[str, Any]]],
    on_outcome: Callable[[int, int, dict[str, Any]], None],
) -> tuple[int, int]:
    """Segment what is not done yet, and write down each outcome as it comes.

    Args:
        items: the list.
        results: the record.
        sha256: of the model's graph.
        segment: segments some scans, in whatever order.
        on_outcome: called with (ended, in all, outcome) after each.

    Returns:
        How many are done in all, and how many failed now.
    """
    left = results.pending(items, sha256)
    ended, failed = len(items) - len(left), 0
    for outcome in segment(left):
        results.add(outcome)
        ended += 1
        failed += outcome["state"] == "failed"
        on_outcome(ended, len(items), outcome)
    return ended - failed, failed
