"""deploy/*.lock: what the images are made of is what pyproject.toml asks for, in the versions that are tested."""

from __future__ import annotations

import re
from importlib import metadata

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.packaging.environments import REPOSITORY, SHIPPED_PACKAGES
from tests.packaging.test_extras import UNPINNED, asked, pins

LINE = re.compile(r"(?P<name>[a-z0-9._-]+)==(?P<version>[^ ]+) --hash=sha256:[0-9a-f]{64}")
LOCKS = sorted(path.stem for path in (REPOSITORY / "deploy").glob("*.lock"))


def locked(name: str) -> dict[str, str]:
    lines = (REPOSITORY / "deploy" / f"{name}.lock").read_text().splitlines()
    found = [LINE.fullmatch(line) for line in lines if not line.startswith("#")]
    assert all(found), name
    return {canonicalize_name(one["name"]): one["version"] for one in found if one}


def test_the_images_of_a_hospital_have_locks() -> None:
    assert LOCKS == ["gateway", "serve"]


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_what_is_asked_for_in_the_pinned_versions(name: str) -> None:
    """DEP-03."""
    versions = locked(name)
    pinned = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins()}
    for requirement in asked(name):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement
    for package, version in versions.items():
        if package not in UNPINNED:
            assert pinned.get(package) == version, f"{package}: run `python -m deploy.lock {name}` once more"


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_is_closed_under_what_its_packages_ask_for(name: str) -> None:
    """DEP-03."""
    versions = locked(name)
    environment = default_environment() | {"extra": ""}
    for package in versions:
        try:
            asked = metadata.requires(package) or []
        except metadata.PackageNotFoundError:
            continue
        for line in asked:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(environment):
                assert canonicalize_name(requirement.name) in versions, f"{package} asks for {line}"


def test_no_package_of_a_pinned_version_brings_a_name_of_ours() -> None:
    brought = metadata.packages_distributions()
    strangers = {name: set(brought.get(name, ())) - {"semiseg"} for name in (*SHIPPED_PACKAGES, "docs", "tests")}
    assert not any(strangers.values()), strangers
