"""Segmentation of a list of scans, one after the other or in parallel; scans that are already done are skipped.

OUT/results.jsonl     one line per finished scan: the only record of what is done
OUT/00001-NAME.SUFFIX the result of the first scan of the list, and so on
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiseg.errors import InputError, SemisegError
from semiseg.outputs.formats import OUTPUT_FORMATS
from semiseg.predicting.predictor import Predictor
from semiseg.system.durable_files import full_fsync

RESULTS_FILE = "results.jsonl"


@dataclass(frozen=True)
class ScanItem:
    """A scan of the list.

    Attributes:
        scan: Path of the scan.
        out: Path of the result.
        output_format: Name of the output format of the result.
    """

    scan: Path
    out: Path
    output_format: str


def read_scan_list(file: Path, out: Path, output_format: str) -> list[ScanItem]:
    """Read a list of scans with one path per line; relative paths start at the folder of the list.

    Raises:
        InputError: The list cannot be read, is empty, or names a scan twice.
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
    suffix = OUTPUT_FORMATS[output_format].suffixes[0]
    return [
        ScanItem(path, out / f"{number:0{digits}d}-{path.name.split('.')[0] or 'scan'}{suffix}", output_format)
        for number, path in enumerate(paths, start=1)
    ]


def segment_item(model: Predictor, item: ScanItem) -> dict[str, Any]:
    """Segment a scan and return the outcome as an entry of the results; a failure is an outcome, not an exception."""
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
    """The record of a folder's outcomes; only one process at a time may use it."""

    def __init__(self, folder: Path) -> None:
        """Read the existing record, if there is one.

        Raises:
            InputError: The folder cannot be written, or a line of the file is not a result of semiseg.
        """
        self._file = folder / RESULTS_FILE
        self._last: dict[str, dict[str, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            text = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
        except OSError as error:
            raise InputError(f"The folder {folder} cannot be used ({error.strerror}).") from None
        whole, _, broken = text.rpartition("\n")
        if broken:  # an incomplete line of a process that was killed
            with self._file.open("r+b") as stream:
                stream.truncate(len(f"{whole}\n".encode()) if whole else 0)
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                one = json.loads(line)
                self._last[one["scan"]] = one
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{self._file}, line {number}: this is not a result of semiseg.") from None

    def add(self, outcome: dict[str, Any]) -> None:
        """Append the outcome of a scan and sync it to the disk."""
        with self._file.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(json.dumps(outcome) + "\n")
            stream.flush()
            full_fsync(stream.fileno())
        self._last[outcome["scan"]] = outcome

    def pending(self, items: Iterable[ScanItem], sha256: str | None) -> list[ScanItem]:
        """Return the scans that this model has not segmented in this format, or whose result file is missing."""
        return [item for item in items if not self._is_done(item, sha256)]

    def _is_done(self, item: ScanItem, sha256: str | None) -> bool:
        last = self._last.get(str(item.scan), {})
        same = (last.get("state"), last.get("out")) == ("done", item.out.name) and last["model"]["sha256"] == sha256
        return same and sha256 is not None and item.out.exists()


def segment_sequentially(model: Predictor, items: Sequence[ScanItem]) -> Iterator[dict[str, Any]]:
    """Segment scans one after the other and yield the outcome of each."""
    for item in items:
        yield segment_item(model, item)


def process_pending(
    items: Sequence[ScanItem],
    results: ResultLog,
    sha256: str | None,
    segment: Callable[[Sequence[ScanItem]], Iterable[dict[str, Any]]],
    on_outcome: Callable[[int, int, dict[str, Any]], None],
) -> tuple[int, int]:
    """Segment the scans that are not done yet, and record each outcome.

    Args:
        items: All scans of the list.
        results: Record of the outcomes.
        sha256: SHA-256 of the model's graph.
        segment: Function that segments scans and yields their outcomes in any order.
        on_outcome: Called with (ended, total, outcome) after each scan.

    Returns:
        Number of scans done in total, and number of scans that failed in this call.
    """
    left = results.pending(items, sha256)
    ended, failed = len(items) - len(left), 0
    for outcome in segment(left):
        results.add(outcome)
        ended += 1
        failed += outcome["state"] == "failed"
        on_outcome(ended, len(items), outcome)
    return ended - failed, failed
