"""Scripts written for the former names of the public API still run, with a DeprecationWarning at their own line."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest

import semiseg
from semiseg.client import RequestRejectedError
from semiseg.deprecation import renamed_arguments
from semiseg.errors import VolumeError
from semiseg.evaluation.result import NO_SCORE, Evaluation, ScoreRow
from semiseg.inference.segmenter import SlidingWindowOptions
from semiseg.volumes.read_options import ReadOptions
from tests.bundles import make_threshold_bundle, scan_array
from tests.warnings_caught import deprecations

STRICT = ReadOptions(strict=True)
JOB = {
    "id": "1",
    "state": "done",
    "ahead": 0,
    "windows_done": 1,
    "windows_total": 1,
    "seconds_left": 0.0,
    "error": None,
    "status": None,
}
RESULT_HEADERS = {
    "content-type": "application/gzip",
    "server-timing": "network;dur=5",
    "x-semiseg-millilitres": "{}",
    "x-semiseg-model": "{}",
    "x-semiseg-remarks": "[]",
}


@dataclass
class Stage:
    """A model, a scan, and a client whose server accepts everything and keeps what it was sent."""

    bundle: Path
    model: semiseg.Predictor
    file: Path
    folder: Path
    client: Any
    sent: list[bytes]

    @property
    def scan(self) -> semiseg.Scan:
        return self.model.open(self.file)

    @property
    def array(self) -> Any:
        return self.model.manifest.preprocessing.apply(self.scan.channels).array

    @property
    def segmentation(self) -> Any:
        return self.model.predict(self.file).segmentation

    @property
    def selection(self) -> Any:
        return semiseg.choose_engine(semiseg.open_bundle(self.bundle), threads=1)


EVALUATION = Evaluation("t", ("low",), (ScoreRow("case", "low", NO_SCORE, error="unreadable"),), ("note",))
REJECTED = RequestRejectedError("no", 400, is_server_message=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_threshold_bundle(tmp_path_factory.mktemp("model") / "bundle").folder


@pytest.fixture
def stage(bundle: Path, tmp_path: Path) -> Iterator[Stage]:
    file = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(scan_array((16, 16, 16)), np.eye(4)), file)
    sent: list[bytes] = []

    def serve(request: httpx.Request) -> httpx.Response:
        sent.append(request.read())
        if request.url.path.startswith("/jobs"):
            return httpx.Response(200, json=JOB)
        return httpx.Response(200, headers=RESULT_HEADERS, content=b"mask")

    with semiseg.Client("http://127.0.0.1:1") as client:
        client._http = httpx.Client(transport=httpx.MockTransport(serve))
        yield Stage(bundle, semiseg.load_model(bundle, threads=1), file, tmp_path, client, sent)


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("semiseg.client", "Answer", "SegmentationResult"),
        ("semiseg.client", "Busy", "ServerBusyError"),
        ("semiseg.client", "Failed", "ServerFailureError"),
        ("semiseg.client", "Forms", "MultiFormatResult"),
        ("semiseg.client", "Job", "JobStatus"),
        ("semiseg.client", "NoAnswer", "ServerUnreachableError"),
        ("semiseg.client", "Refused", "RequestRejectedError"),
        ("semiseg.client", "Wishes", "ReadOptions"),
        ("semiseg.inference.segmenter", "Settings", "SlidingWindowOptions"),
        ("semiseg.volumes.wishes", "Wishes", "ReadOptions"),
    ],
)
def test_former_name_of_a_class_is_the_same_class(module: str, old: str, new: str) -> None:
    loaded = importlib.import_module(module)
    with pytest.warns(DeprecationWarning, match=rf"^{module}\.{old} is deprecated; its name is {new} now\.$") as caught:
        assert getattr(loaded, old) is getattr(loaded, new)
    assert [one.filename for one in deprecations(caught)] == [__file__]
    with pytest.raises(AttributeError, match=rf"^module '{module}' has no attribute 'Wish'$"):
        _ = loaded.Wish


@pytest.mark.parametrize(
    ("old", "former", "present"),
    [
        ("Evaluation.of", lambda _: EVALUATION.of("low"), lambda _: EVALUATION.segment_rows("low")),
        ("Evaluation.remarks", lambda _: EVALUATION.remarks(), lambda _: EVALUATION.footnotes()),
        ("RequestRejectedError.own_words", lambda _: REJECTED.own_words, lambda _: REJECTED.is_server_message),
        ("Scan.remarks", lambda s: s.scan.remarks, lambda s: s.scan.warnings),
        ("Scan.verdicts", lambda s: s.scan.verdicts, lambda s: s.scan.decisions),
        ("Segmentation.millilitres", lambda s: s.segmentation.millilitres(), lambda s: s.segmentation.volumes_ml()),
        ("EngineSelection.taken", lambda s: s.selection.taken.sha256, lambda s: s.selection.selected.sha256),
        (
            "EngineCandidate.where",
            lambda s: s.selection.selected.where,
            lambda s: s.selection.selected.engine_and_device,
        ),
        (
            "Segmenter.unfamiliar",
            lambda s: s.model.segmenter.unfamiliar(s.scan.channels),
            lambda s: s.model.segmenter.out_of_distribution_warnings(s.scan.channels),
        ),
        (
            "Segmenter.segment_with_remarks",
            lambda s: s.model.segmenter.segment_with_remarks(s.scan.channels)[1],
            lambda s: s.model.segmenter.segment_with_warnings(s.scan.channels)[1],
        ),
        (
            "Segmenter.segment_prepared",
            lambda s: s.model.segmenter.segment_prepared(s.array).tolist(),
            lambda s: s.model.segmenter.segment_preprocessed(s.array).tolist(),
        ),
        (
            "Segmenter.probabilities_of_prepared",
            lambda s: s.model.segmenter.probabilities_of_prepared(s.array).tolist(),
            lambda s: s.model.segmenter.probabilities_of_preprocessed(s.array).tolist(),
        ),
        (
            "Predictor.of_choice",
            lambda s: semiseg.Predictor.of_choice(s.model.manifest, s.selection).identity,
            lambda s: semiseg.Predictor.from_selection(s.model.manifest, s.selection).identity,
        ),
    ],
)
def test_former_name_of_a_member_gives_the_same(
    stage: Stage, old: str, former: Callable[[Stage], Any], present: Callable[[Stage], Any]
) -> None:
    expected = present(stage)
    with pytest.warns(DeprecationWarning, match=rf"^{old} is deprecated; its name is \w+ now\.$") as caught:
        assert former(stage) == expected
    assert [one.filename for one in deprecations(caught)] == [__file__]


class Observer:
    """An observer that counts the parts that it is shown."""

    def __init__(self) -> None:
        self.parts = 0

    def add(self, *_: object, **__: object) -> None:
        self.parts += 1


def watched(segment: Callable[..., Any], scan: Any) -> bool:
    observer = Observer()
    segment(scan, watchers=[observer])
    return observer.parts > 0


def updated(client: Any) -> list[str]:
    states: list[str] = []
    client.wait("1", told=lambda job: states.append(job.state))
    return states


def written(stage: Stage) -> bool:
    stage.model.predict(stage.file).write(stage.folder / "mask.json", kind="json")
    return (stage.folder / "mask.json").stat().st_size > 0


def asked_strictly(stage: Stage, ask: Callable[..., Any]) -> bool:
    ask(stage.file, wishes=STRICT)
    return b'name="strict"' in stage.sent[-1]


def refuses_a_series(read: Callable[..., Any], *arguments: object) -> bool:
    with pytest.raises(VolumeError, match="no DICOM series"):
        read(*arguments, wishes=ReadOptions(series="1.2"))
    return True


@pytest.mark.parametrize(
    ("call", "new", "use"),
    [
        ("Client.segment(wishes=...)", "options", lambda s: asked_strictly(s, s.client.segment)),
        ("Client.ask(wishes=...)", "options", lambda s: asked_strictly(s, s.client.ask)),
        ("Client.submit(wishes=...)", "options", lambda s: asked_strictly(s, s.client.submit)),
        ("Client.wait(told=...)", "on_update", lambda s: updated(s.client) == ["done"]),
        ("open_scan(wishes=...)", "options", lambda s: refuses_a_series(semiseg.open_scan, s.file)),
        ("Predictor.open(wishes=...)", "options", lambda s: refuses_a_series(s.model.open, s.file)),
        (
            "Predictor.predict_files(wishes=...)",
            "options",
            lambda s: refuses_a_series(s.model.predict_files, s.file, "nifti"),
        ),
        ("Prediction.write(kind=...)", "output_format", written),
        ("Segmenter.segment(watchers=...)", "observers", lambda s: watched(s.model.segmenter.segment, s.scan.channels)),
        (
            "Segmenter.segment_preprocessed(watchers=...)",
            "observers",
            lambda s: watched(s.model.segmenter.segment_preprocessed, s.array),
        ),
    ],
)
def test_former_name_of_an_argument_is_accepted(
    stage: Stage, call: str, new: str, use: Callable[[Stage], bool]
) -> None:
    with pytest.warns(DeprecationWarning) as caught:
        assert use(stage)
    assert [str(one.message) for one in deprecations(caught)] == [f"{call} is deprecated; its name is {new} now."]
    assert [one.filename for one in deprecations(caught)] == [__file__]


def test_an_argument_under_both_names_is_refused() -> None:
    @renamed_arguments(old="new")
    def take(new: int) -> int:
        return new

    with pytest.raises(TypeError, match=r"take\(\) got 'new' under its former name 'old' as well$"):
        take(new=1, old=2)  # type: ignore[call-arg]


def test_present_names_warn_of_nothing(stage: Stage, recwarn: pytest.WarningsRecorder) -> None:
    settings = SlidingWindowOptions(overlap=0.25)
    semiseg.Predictor.load(stage.bundle, settings, threads=1).predict(stage.file).write(stage.folder / "a.json", "json")
    stage.client.wait("1", on_update=lambda _: None)
    assert not [one for one in recwarn if issubclass(one.category, DeprecationWarning)]
