"""The wheel and the source distribution: what is in them, and that each of them works outside the source tree."""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
from email import message_from_bytes
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.bundles import expected_mask, make_threshold_bundle, scan_array
from tests.packaging.conftest import Distributions
from tests.packaging.environments import (
    REPOSITORY,
    SHIPPED_PACKAGES,
    Environment,
    install_without_dependencies,
    make_minimal_environment,
)

# The first test of a process builds the distributions and installs the environment.
pytestmark = pytest.mark.timeout(600)

DATA_FILES = {".css", ".html", ".js", ".typed", ".txt", ".yaml"}


def files_of(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def files_of_sdist(sdist: Path) -> dict[str, bytes]:
    with tarfile.open(sdist) as archive:
        members = [one for one in archive.getmembers() if one.isfile()]
        return {one.name.partition("/")[2]: archive.extractfile(one).read() for one in members}  # type: ignore[union-attr]


def metadata_of(files: dict[str, bytes]) -> tuple[str, dict[str, list[str]]]:
    (name,) = (one for one in files if one.endswith(".dist-info/METADATA"))
    message = message_from_bytes(files[name])
    return name.rpartition("/")[0], {key: message.get_all(key) or [] for key in message}


def test_a_wheel_from_the_source_distribution_is_the_wheel_from_the_source(distributions: Distributions) -> None:
    assert files_of(distributions.wheel) == files_of(distributions.direct)


def test_the_wheel_holds_the_five_packages_with_their_data_files_and_nothing_else(
    distributions: Distributions, source: Path
) -> None:
    wanted = {
        path.relative_to(source).as_posix()
        for name in SHIPPED_PACKAGES
        for path in (source / name).rglob("*")
        if path.suffix == ".py" or path.suffix in DATA_FILES
    }
    files = files_of(distributions.wheel)
    assert {name for name in files if ".dist-info/" not in name} == wanted
    assert "trainer/recipes/demo.yaml" in wanted and "server/http/page/index.html" in wanted


def test_the_licences_of_the_viewer_are_among_the_licence_files(distributions: Distributions, source: Path) -> None:
    files = files_of(distributions.wheel)
    info, about = metadata_of(files)
    assert about["License-File"] == ["LICENSE", "server/http/page/niivue.licences.txt"]
    for name in about["License-File"]:
        assert files[f"{info}/licenses/{name}"] == (source / name).read_bytes()
    assert {"BSD-2-Clause", "MIT"} <= set(about["License-Expression"][0].split(" AND "))


def test_the_source_distribution_can_be_built_again_and_brings_the_tested_versions(
    distributions: Distributions, source: Path
) -> None:
    files = files_of_sdist(distributions.sdist)
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt", "deploy/viewer.py"):
        assert files[name] == (source / name).read_bytes()
    assert not [name for name in files if name.startswith(("tests/", "docs/", "build/")) or "__pycache__" in name]


def test_the_viewer_is_in_both(has_viewer: None, distributions: Distributions, source: Path) -> None:
    viewer = (source / "server/http/page/niivue.js").read_bytes()
    assert files_of(distributions.wheel)["server/http/page/niivue.js"] == viewer
    assert files_of_sdist(distributions.sdist)["server/http/page/niivue.js"] == viewer


@pytest.fixture(scope="module")
def from_sdist(
    distributions: Distributions, serve_environment: Environment, tmp_path_factory: pytest.TempPathFactory
) -> Environment:
    """The source distribution installed beside what the serve extra brought."""
    environment = make_minimal_environment(tmp_path_factory.mktemp("from") / "sdist", [serve_environment.packages])
    install_without_dependencies(distributions.sdist, environment)
    return environment


@pytest.mark.parametrize("kind", ["wheel", pytest.param("sdist", marks=pytest.mark.long)])
def test_an_installed_semiseg_explains_itself_looks_at_the_machine_and_segments(
    kind: str, serve_environment: Environment, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    environment = serve_environment if kind == "wheel" else request.getfixturevalue("from_sdist")
    bundle = make_threshold_bundle(tmp_path / "bundle").folder
    array = scan_array((18, 15, 20))
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "scan.nii.gz")
    for arguments in (["--help"], ["doctor", bundle], ["predict", bundle, "scan.nii.gz", "--out", "mask.nii.gz"]):
        answer = environment.run(environment.semiseg, *arguments, home=tmp_path)
        assert answer.returncode == 0, answer.stdout + answer.stderr
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj), expected_mask(array))
    origin = environment.run(environment.python, "-c", "import semiseg; print(semiseg.__file__)", home=tmp_path)
    assert Path(origin.stdout.strip()).parents[1] == environment.packages


def test_python_m_semiseg_is_the_command(serve_environment: Environment, tmp_path: Path) -> None:
    by_module = serve_environment.run(serve_environment.python, "-m", "semiseg", "--version", home=tmp_path)
    by_name = serve_environment.run(serve_environment.semiseg, "--version", home=tmp_path)
    assert by_module.returncode == by_name.returncode == 0
    assert by_module.stdout == by_name.stdout != ""


def test_the_bill_of_materials_names_the_viewer_with_its_version(
    has_viewer: None, serve_environment: Environment, tmp_path: Path
) -> None:
    answer = serve_environment.run(serve_environment.python, REPOSITORY / "deploy" / "sbom.py", home=tmp_path)
    assert answer.returncode == 0, answer.stderr
    packages = {one["name"]: one for one in json.loads(answer.stdout)["packages"]}
    assert {"semiseg", "numpy", "niivue"} <= set(packages)
    assert re.fullmatch(r"\d+\.\d+\.\d+", packages["niivue"]["versionInfo"])
    assert packages["niivue"]["externalRefs"][0]["referenceLocator"].startswith("pkg:")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_demo_runs_from_an_installed_wheel_in_a_folder_with_files_of_such_names(
    distributions: Distributions, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="the demo trains, and torch is not installed")
    names = ("numpy", "nibabel", "torch", "monai", "onnx", "onnxruntime", "bentoml", "typer")
    found = [find_spec(name) for name in names]
    packages = dict.fromkeys(Path(spec.origin).parents[1] for spec in found if spec is not None and spec.origin)
    environment = make_minimal_environment(tmp_path / "environment", packages)
    install_without_dependencies(distributions.wheel, environment)
    folder = tmp_path / "my scans"
    (folder / "trainer").mkdir(parents=True)
    (folder / "trainer" / "__init__.py").write_text("raise SystemExit('the user\\'s own file')")
    (folder / "server.py").write_text("raise SystemExit('the user\\'s own file')")
    command = [environment.semiseg, "demo", "--out", "out", "--updates", "8"]  # enough for every step of it
    answer = environment.run(*command, home=folder, timeout=1700)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert list((folder / "out").rglob("*.onnx"))
