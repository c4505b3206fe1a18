"""ARCHITECTURE.md: its two traced call lists are those of a real upload and a real batch; the files it names exist."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from starlette.testclient import TestClient

from semiseg.phantoms.writers import write_dicom_series
from semiseg.volumes.volume import Volume
from server.http.app import ServerContext
from server.http.limits import Limits
from server.http.model import ModelSettings
from server.http.models import ServedModels
from server.http.service import make_service
from server.keys import ApiKeys
from tests.bundles import make_threshold_bundle, scan_array
from tests.trainer.factories import make_tiny_recipe, train_on_cpu, write_phantoms

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def walk(heading: str) -> list[str]:
    """The functions of a section, as ``room/file.qualified.name``."""
    (section,) = re.findall(rf"^## {heading}$(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^    ([\w/]+\.\S+)", section, flags=re.MULTILINE)


@contextmanager
def traced(wanted: list[str]) -> Iterator[list[str]]:
    """The calls of ``wanted`` while the block runs, in any thread that it starts, in their order."""
    calls: list[str] = []
    names = {f"{ROOT}/{name.partition('.')[0]}.py:{name.partition('.')[2]}": name for name in wanted}

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            name = names.get(f"{frame.f_code.co_filename}:{frame.f_code.co_qualname}")
            if name is not None:
                calls.append(name)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def assert_way(calls: list[str], wanted: list[str]) -> None:
    """``wanted`` are called one after the other, with other calls of theirs in between."""
    left = iter(calls)
    for name in wanted:
        assert name in left, f"{name} is not called after what the walk says comes before it"


def test_the_way_of_a_dicom_upload(tmp_path: Path) -> None:
    wanted = walk("Call list: a DICOM upload")
    bundle = make_threshold_bundle(tmp_path / "bundle", spacing=(1.5, 1.5, 2.0))
    volume = Volume(scan_array((40, 36, 16)), np.diag([-1.0, -1.0, 2.0, 1.0]))
    files = write_dicom_series(tmp_path / "series", volume)
    models = ServedModels.open([ModelSettings(bundle=bundle.folder, threads=1)])
    service = make_service(ServerContext.create(models, Limits(), tmp_path, None), ApiKeys())
    with traced(wanted) as calls, TestClient(service.to_asgi()) as client:
        while client.get("/readyz").status_code != 200:
            pass
        calls.clear()
        answer = client.post("/segment", files=[("scan", (file.name, file.read_bytes())) for file in files])
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/dicom"
    assert_way(calls, wanted)
    assert len(wanted) < 20


def test_the_way_of_a_training_batch(tmp_path: Path) -> None:
    wanted = walk("Call list: a training batch")
    dataset = write_phantoms(tmp_path / "data")
    with traced(wanted) as calls:
        train_on_cpu(dataset, make_tiny_recipe("mean_teacher", {"updates": 2}), tmp_path / "run")
    assert_way(calls, wanted)
    assert len(wanted) < 20


def test_a_walk_that_is_not_true_is_noticed() -> None:
    with pytest.raises(AssertionError, match="b is not called"):
        assert_way(["b", "a", "c"], ["a", "b"])


def test_the_page_ends_with_the_table_of_additions_and_the_glossary() -> None:
    assert re.findall(r"^## (.*)$", PAGE, flags=re.MULTILINE)[-5:] == [
        "Call list: a study through the gateway",
        "Call list: a DICOM upload",
        "Call list: a training batch",
        "To add something, touch these files",
        "Glossary",
    ]
    assert len(re.findall(r"^\| ", PAGE.split("## Glossary")[1], flags=re.MULTILINE)) <= 32


def test_files_that_the_table_of_additions_names_exist() -> None:
    section = PAGE.split("## To add something, touch these files")[1].split("\n## ")[0]
    paths = {path for path in re.findall(r"`([\w.-]+/[\w./-]+)`", section) if "NAME" not in path}
    assert len(paths) > 30
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    proved = re.findall(r"\[(\w+)\.diff\]\(docs/examples/\1\.diff\)", section)
    assert sorted(proved) == sorted(file.stem for file in (ROOT / "docs" / "examples").glob("*.diff"))


def test_modules_on_the_way_of_a_study_exist() -> None:
    section = PAGE.split("## Call list: a study through the gateway")[1].split("\n## ")[0]
    for line in re.findall(r"^    gateway/(\S.*?)   ", section, flags=re.MULTILINE):
        for name in line.split(", "):
            assert (ROOT / "server" / "gateway" / f"{name}.py").is_file(), name
