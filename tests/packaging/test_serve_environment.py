"""An environment with only the `serve` extra: no PyTorch in it, and a clinic can predict, evaluate and serve there.

One file, so that one of pytest-xdist's workers makes the environment and no other waits for it.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.bundles import expected_mask, make_threshold_bundle, scan_array
from tests.packaging.environments import REPOSITORY, SHIPPED_PACKAGES, Environment, assert_no_gpl, pip

# The first test of a process installs the environment.
pytestmark = [pytest.mark.timeout(600), pytest.mark.long]

ABSENT = (
    "torch", "monai", "transformers", "peft", "accelerate", "SimpleITK", "onnx", "onnxscript", "tensorrt", "matplotlib",
)  # fmt: skip

AFFINE = np.array([[0.0, -1.5, 0.0, 12.0], [0.8, 0.0, 0.0, -7.0], [0.0, 0.0, 2.0, 3.0], [0.0, 0.0, 0.0, 1.0]])
SCANS = 2


def test_nothing_of_training_is_installed(serve_environment: Environment) -> None:
    """DEP-01."""
    program = "import importlib.util, sys; print(*[name for name in sys.argv[1:] if importlib.util.find_spec(name)])"
    answer = serve_environment.run(serve_environment.python, "-c", program, *ABSENT)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == []


def test_exactly_one_onnx_runtime_is_installed(serve_environment: Environment) -> None:
    program = "from semiseg.engines.onnx import installed_runtimes; print(*installed_runtimes())"
    answer = serve_environment.run(serve_environment.python, "-c", program)
    assert answer.stdout.split() == ["onnxruntime"], answer.stderr


@pytest.mark.parametrize("command", [[], ["evaluate"], ["predict"], ["serve"], ["doctor"]], ids=str)
def test_the_commands_of_a_clinic_explain_themselves(serve_environment: Environment, command: list[str]) -> None:
    answer = serve_environment.run(serve_environment.semiseg, *command, "--help")
    assert answer.returncode == 0, answer.stderr
    assert "Usage" in answer.stdout


@pytest.mark.parametrize("command", ["train", "export"])
def test_a_command_of_another_extra_explains_itself_or_names_the_extra(
    serve_environment: Environment, command: str
) -> None:
    answer = serve_environment.run(serve_environment.semiseg, command, "--help")
    assert "Traceback" not in answer.stderr
    assert answer.returncode == 0 or (answer.returncode == 2 and "extra" in answer.stderr), answer.stderr


def test_every_module_of_the_core_and_the_server_can_be_imported(serve_environment: Environment) -> None:
    program = """
import importlib, pkgutil, sys
import semiseg, server
for package in (semiseg, server):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name.split(".")[:2] != ["server", "gateway"]:
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                if error.name != "highdicom":
                    raise
                print("without highdicom:", module.name)
            else:
                print(module.name)
"""
    answer = serve_environment.run(serve_environment.python, "-c", program)
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert "semiseg.errors" in lines
    # No extra brings highdicom on Python 3.14 (pyproject.toml); what works without it must not import it.
    left_out = {line.rpartition(" ")[2] for line in lines if line.startswith("without")}
    if sys.version_info >= (3, 14):
        assert left_out == {
            ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
            for path in (REPOSITORY / "semiseg").rglob("*.py")
            if re.search(r"^(import|from) highdicom", path.read_text(encoding="utf-8"), re.MULTILINE)
        }
    else:
        assert not left_out


def test_files_that_are_not_python_are_installed_too(serve_environment: Environment) -> None:
    wanted = {
        path.relative_to(REPOSITORY)
        for room in SHIPPED_PACKAGES
        for path in (REPOSITORY / room).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and not path.name.startswith("package")
    }  # package.json and its lock say what `make page` brings; it is in niivue.js then
    assert Path("semiseg/py.typed") in wanted
    assert {path for path in wanted if not (serve_environment.packages / path).is_file()} == set()


def test_only_semiseg_brings_names_of_ours_and_it_brings_no_other(serve_environment: Environment) -> None:
    code = (
        "from importlib.metadata import files, packages_distributions as all; import json; "
        "print(json.dumps([{k: v for k, v in all().items()}, sorted({f.parts[0] for f in files('semiseg')})]))"
    )
    answer = serve_environment.run(serve_environment.python, "-c", code)
    assert answer.returncode == 0, answer.stderr
    brought, own = json.loads(answer.stdout)
    assert {name: brought.get(name) for name in SHIPPED_PACKAGES} == {name: ["semiseg"] for name in SHIPPED_PACKAGES}
    assert {name for name in own if not name.endswith(".dist-info") and name != ".."} == set(SHIPPED_PACKAGES)


def test_the_environment_has_no_contradictions(serve_environment: Environment) -> None:
    answer = pip("check", python=serve_environment.python)
    assert answer.returncode == 0, answer.stdout


def test_no_installed_package_is_under_the_gpl(serve_environment: Environment) -> None:
    """DEP-01."""
    assert_no_gpl(serve_environment, at_least=50)


def test_importing_the_runtime_leaves_no_device_identifier(serve_environment: Environment, tmp_path: Path) -> None:
    # Since 1.29 the official builds of ONNX Runtime report what they run to their maker, unless told not to before the
    # import; an identifier of the machine in the home folder is the visible trace of that.
    program = "from semiseg.engines.onnx import import_onnxruntime; import_onnxruntime().get_available_providers()"
    answer = serve_environment.run(serve_environment.python, "-c", program, home=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == []


def test_pip_refuses_both_runtimes_in_one_environment(package_index: None, source: Path) -> None:
    answer = pip("install", "--dry-run", "-c", source / "constraints.txt", f"{source}[serve,gpu]")
    assert answer.returncode != 0
    assert "conflicting dependencies" in answer.stderr
    assert "flatbuffers==" in answer.stdout + answer.stderr


def test_serving_with_a_missing_bundle_is_one_sentence(serve_environment: Environment, tmp_path: Path) -> None:
    answer = serve_environment.run(serve_environment.semiseg, "serve", tmp_path / "nothing", home=tmp_path)
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr
    assert "nothing" in answer.stderr


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose right answer is known for every voxel, made outside the serving environment."""
    folder = tmp_path_factory.mktemp("clinic") / "bundle"
    make_threshold_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder whose outlines are exactly what the bundle answers."""
    folder = tmp_path_factory.mktemp("clinic") / "data"
    for number in range(SCANS):
        array = scan_array((18, 15, 20), seed=number)
        for sub, values in (("imagesTr", array), ("labelsTr", expected_mask(array))):
            (folder / sub).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(values, AFFINE), folder / sub / f"s{number}.nii.gz")
    return folder


def assert_is_the_known_mask(mask_path: Path, scan_path: Path) -> None:
    mask, scan = nib.load(mask_path), nib.load(scan_path)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), expected_mask(np.asarray(scan.dataobj)))
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-5)


def test_predict_writes_the_mask(serve_environment: Environment, bundle: Path, data: Path, tmp_path: Path) -> None:
    scan = data / "imagesTr" / "s0.nii.gz"
    answer = serve_environment.run(
        serve_environment.semiseg, "predict", bundle, scan, "--out", tmp_path / "mask.nii.gz", home=tmp_path
    )
    assert answer.returncode == 0, answer.stderr
    assert_is_the_known_mask(tmp_path / "mask.nii.gz", scan)


def test_evaluate_measures_a_bundle(serve_environment: Environment, bundle: Path, data: Path, tmp_path: Path) -> None:
    answer = serve_environment.run(
        serve_environment.semiseg, "evaluate", bundle, "--data", data, "--on", "all", "--out", tmp_path / "scores",
        home=tmp_path,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    with (tmp_path / "scores" / "scores.csv").open(newline="") as table:
        dice = [float(row["dice"]) for row in csv.DictReader(table)]
    assert len(dice) == SCANS * 2
    assert dice == [1.0] * len(dice)


@pytest.fixture
def address(serve_environment: Environment, bundle: Path, tmp_path: Path) -> Iterator[str]:
    """Where `semiseg serve`, of the serving environment, answers with the bundle."""
    home = tmp_path / "home"
    home.mkdir()
    process = subprocess.Popen(
        [str(serve_environment.semiseg), "serve", str(bundle), "--port", "0", "--threads", "1"],
        cwd=home, env=serve_environment.variables(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    printed: list[str] = []
    found = ""
    for line in process.stdout:
        printed.append(line)
        if match := re.search(r"ready: POST a scan to (\S+)/segment", line):
            found = match.group(1)
            break
    # Whatever else it prints has to be read, or it would wait for a reader.
    rest = threading.Thread(target=process.stdout.read, daemon=True)
    rest.start()
    try:
        assert found, "".join(printed)
        yield found
    finally:
        process.terminate()
        process.wait(30)
        rest.join(10)


def test_a_scan_sent_to_the_server_comes_back_as_its_mask(address: str, data: Path, tmp_path: Path) -> None:
    scan = data / "imagesTr" / "s1.nii.gz"
    command = [sys.executable, "-m", "cli.app", "predict", scan, "--server", address, "--out", tmp_path / "mask.nii.gz"]
    answer = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    assert_is_the_known_mask(tmp_path / "mask.nii.gz", scan)


def test_the_page_of_an_installed_server_has_its_viewer_and_the_licences_of_it(
    has_viewer: None, source: Path, address: str
) -> None:
    for name in ("niivue.js", "niivue.licences.txt", "viewer.js"):
        with urllib.request.urlopen(f"{address}/page/{name}", timeout=60) as answer:
            assert answer.read() == (source / "server" / "http" / "page" / name).read_bytes()
    with urllib.request.urlopen(f"{address}/", timeout=60) as answer:
        page = answer.read().decode()
    assert "page/app.js" in page and "page/niivue.licences.txt" in page
