"""Another's `cli`, `server`, `trainer` or `exporter` is refused in a sentence that names it and what to do."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from semiseg.own_packages import PACKAGES, ForeignPackageError, require
from tests.packaging.conftest import Distributions
from tests.packaging.environments import (
    REPOSITORY,
    SHIPPED_PACKAGES,
    Environment,
    install_without_dependencies,
    make_minimal_environment,
    pip,
)

# A command that imports each of the packages, with what makes it stop soon afterwards when they are ours.
NEEDS = {
    "cli": ["--help"],
    "server": ["serve", "nothing"],
    "trainer": ["train", "--data", "nothing", "--out", "run"],
    "exporter": ["export", "nothing", "--out", "bundle"],
}


def command(*arguments: str, folder: Path, path: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """`python -m semiseg` in ``folder``, with ``path`` before the installed packages."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), str(REPOSITORY)]), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "semiseg", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_every_top_level_package_but_semiseg_is_guarded_and_is_ours() -> None:
    assert {*PACKAGES, "semiseg"} == set(SHIPPED_PACKAGES)
    for name in PACKAGES:
        require(name)


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("form", ["package", "module"])
def test_a_strangers_package_on_the_path_is_named_with_its_file(name: str, form: str, tmp_path: Path) -> None:
    stranger = tmp_path / "path" / (f"{name}/__init__.py" if form == "package" else f"{name}.py")
    stranger.parent.mkdir(parents=True)
    stranger.write_text("raise SystemExit('a stranger was run')\n")
    answer = command(*NEEDS[name], folder=tmp_path, path=tmp_path / "path")
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert answer.stderr.startswith(f"semiseg: semiseg needs its own package `{name}`, but Python finds {stranger}.")
    assert f"remove {tmp_path / 'path'} from PYTHONPATH" in answer.stderr
    assert "Traceback" not in answer.stderr and "a stranger was run" not in answer.stderr


def test_a_command_that_does_not_need_the_strangers_name_works(tmp_path: Path) -> None:
    stranger = tmp_path / "path" / "trainer" / "__init__.py"
    stranger.parent.mkdir(parents=True)
    stranger.touch()
    answer = command("doctor", folder=tmp_path, path=tmp_path / "path")
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("name", PACKAGES)
def test_files_of_such_names_in_the_working_folder_are_not_taken_for_ours(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger was run')\n")
    answer = command(*NEEDS[name], folder=tmp_path)
    assert "a stranger was run" not in answer.stderr and "own package" not in answer.stderr
    assert answer.returncode == (0 if name == "cli" else 2), answer.stderr  # 2: "nothing" does not exist


def test_a_program_that_only_imports_semiseg_may_import_another_trainer(tmp_path: Path) -> None:
    (tmp_path / "trainer.py").write_text("OWN = 'mine'\n")
    program = "import semiseg; semiseg.SemisegError; import trainer; print(trainer.OWN)"
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert answer.stdout.strip() == "mine", answer.stderr


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "meta_path", [])
    with pytest.raises(ForeignPackageError, match=r"package `trainer` is missing .* pip install"):
        require("trainer")


def write_wheel(folder: Path, name: str, files: dict[str, str]) -> Path:
    """A wheel of version 9.9 with these files."""
    info = f"{name.replace('-', '_')}-9.9.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},{hash_of(text)},{len(text.encode())}\n" for file, text in files.items())
    wheel = folder / f"{name.replace('-', '_')}-9.9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file, text in (files | {f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}).items():
            archive.writestr(file, text)
    return wheel


def hash_of(text: str) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_distribution_that_overwrote_our_files_is_named_and_the_advice_mends_it(
    distributions: Distributions, serve_environment: Environment, tmp_path: Path
) -> None:
    environment = make_minimal_environment(tmp_path / "environment", [serve_environment.packages])
    install_without_dependencies(distributions.wheel, environment)
    install_without_dependencies(
        write_wheel(tmp_path, "training-kit", {"server/__init__.py": "", "server/other.py": ""}), environment
    )
    arguments = (environment.semiseg, *NEEDS["server"])

    answer = environment.run(*arguments, home=tmp_path)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert "installed by training-kit 9.9" in answer.stderr
    assert "pip uninstall training-kit" in answer.stderr and "--force-reinstall --no-deps semiseg" in answer.stderr

    removed = pip("--python", environment.python, "uninstall", "-q", "--yes", "training-kit")
    assert removed.returncode == 0, removed.stderr
    assert not (environment.packages / "server" / "__init__.py").exists()
    install_without_dependencies(distributions.wheel, environment)
    answer = environment.run(*arguments, home=tmp_path)
    assert answer.returncode == 2 and "nothing" in answer.stderr, answer.stderr
