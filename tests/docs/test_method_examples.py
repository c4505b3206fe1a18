"""examples/: a script for each method, which runs as it stands, and a notebook whose cells run in their order."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from docs.generators.document import REPOSITORY
from semiseg.phantoms.writers import write_dataset
from trainer.methods.registry import BUILT_IN
from trainer.plan import make_plan
from trainer.training import prepare_training

EXAMPLES = REPOSITORY / "examples"
FEW = ("--set", "updates=4", "--set", "batch=2")  # the last change of a key counts
STAGES = {
    "mn": ["methods.mn.iterations=4"],
    "bcp": ["batch=4"],
    "ict": ["batch=4"],
    "cfr": ["methods.cfr.sam_updates=2"],
    "comparative": ["methods.comparative.feature_updates=2", "methods.comparative.output_updates=2"],
    "contrastive": ["methods.contrastive.feature_updates=2", "methods.contrastive.output_updates=2"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("examples") / "data"
    write_dataset(folder, cases=5, labelled=2, test=1, shape=(32, 32, 24), spacing=(3.0, 3.0, 4.0))  # as in example.py
    return folder


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(name: str, *options: str | Path) -> str:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_each_method_has_a_script_and_a_row_of_the_table() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")} - {"example"}
    assert scripts == set(BUILT_IN)
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| \[(\w+)\.py\]\(\1\.py\) \|", table, re.MULTILINE)) == scripts


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_settings_suit_the_default_recipe(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load(name, monkeypatch)
    assert module.__doc__ is not None and f"python examples/{name}.py" in module.__doc__
    settings = module.STUDENT if name == "distil" else module.SETTINGS
    training = prepare_training(data, tmp_path / "run", method=name, changes=settings, labelled=2)
    assert training.recipe.method == name
    if name != "distil":  # its teacher is a run that the script makes first
        make_plan(training.dataset, training.split, training.recipe)


def test_script_trains_and_evaluates(data: Path, tmp_path: Path) -> None:
    out = run_script("mean_teacher", "--data", data, "--out", tmp_path / "out", "--labelled", "2", *FEW)
    assert "| liver" in out and (tmp_path / "out" / "run" / "run.json").is_file()
    assert "student: " in out, "the decisions of the recipe are shown"


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_script_trains_and_evaluates(name: str, data: Path, tmp_path: Path) -> None:
    stages = [option for change in STAGES.get(name, ()) for option in ("--set", change)]
    out = run_script(name, "--data", data, "--out", tmp_path / "out", "--labelled", "2", *FEW, *stages)
    assert "| liver" in out


def test_notebook_runs_from_the_first_cell_to_the_last(tmp_path: Path) -> None:
    notebook = json.loads((EXAMPLES / "from_outlines_to_a_mask.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    program = "\n".join(cells)
    assert "updates=300" in program
    # IPython displays what it is given; the notebook takes nothing else from it.
    program, count = re.subn(r"from IPython.display import (\w+)", r"\1 = print", program)
    assert count == 2
    done = subprocess.run(
        [sys.executable, "-c", program.replace("updates=300", "updates=4")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| liver" in done.stdout and "ml" in done.stdout
    assert (tmp_path / "notebook-output" / "mask.seg.nrrd").is_file()
