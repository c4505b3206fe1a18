"""What deploy/pip_settings.py writes for pip in another root: the settings of this machine, local folders moved."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.environments import REPOSITORY


@pytest.fixture
def lent(tmp_path: Path) -> Path:
    """The folder that the script filled, on a machine whose pip takes packages from local folders."""
    for folder in ("wheels", "index/simple", "rules"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "rules" / "constraints.txt").write_text("torch<3\n")
    (tmp_path / "authority.pem").write_text("certificates\n")
    (tmp_path / "pip.conf").write_text(
        f"[global]\nextra-index-url = file://{tmp_path}/index/simple\n    https://packages.example/simple\n"
        f"constraint = {tmp_path}/rules/constraints.txt\n"
        f"cert = {tmp_path}/authority.pem\ncache-dir = {tmp_path}/cache\n"
    )
    own = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    own |= {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PIP_FIND_LINKS": str(tmp_path / "wheels")}
    (tmp_path / "out").mkdir()
    command = [sys.executable, str(REPOSITORY / "deploy" / "pip_settings.py"), str(tmp_path / "out")]
    subprocess.run(command, env=own, check=True, timeout=120)
    return tmp_path / "out"


def test_local_folders_appear_at_the_places_where_they_will_be_mounted(lent: Path, tmp_path: Path) -> None:
    places = dict(line.rsplit(":", 2)[:2] for line in (lent / "volumes").read_text().splitlines())
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(lent / "pip_conf")
    index, other = settings["global"]["extra-index-url"].split()
    assert index == f"file://{places[str(tmp_path / 'index')]}/simple", "an index refers to files beside it"
    assert other == "https://packages.example/simple"
    assert settings["global"]["constraint"].strip() == f"{places[str(tmp_path / 'rules')]}/constraints.txt"
    assert f"export PIP_FIND_LINKS={places[str(tmp_path / 'wheels')]}\n" in (lent / "pip_env").read_text()


def test_no_file_of_this_machine_is_named_in_the_other_root(lent: Path, tmp_path: Path) -> None:
    assert str(tmp_path) not in (lent / "pip_conf").read_text() + (lent / "pip_env").read_text()
    assert (lent / "authority").read_text() == str(tmp_path / "authority.pem")
