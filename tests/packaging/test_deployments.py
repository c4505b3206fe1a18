"""compose.yaml and deploy/kubernetes say what their schemas allow, and nothing that the images do not have."""

from __future__ import annotations

import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from server.gateway.config import read_config
from tests.packaging.environments import REPOSITORY

DOCUMENTS = list(yaml.safe_load_all((REPOSITORY / "deploy" / "kubernetes" / "semiseg.yaml").read_text()))
COMPOSE = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
TARGETS = set(re.findall(r"^FROM \S+ AS (\S+)$", (REPOSITORY / "Dockerfile").read_text(), re.M))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_kubernetes_would_take_it(document: dict[str, Any]) -> None:
    """DEP-04."""
    kubernetes_validate.validate(document, "1.31", strict=True)


def test_the_check_can_fail() -> None:
    wrong = DOCUMENTS[0] | {"spec": DOCUMENTS[0]["spec"] | {"replica": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.31", strict=True)


def test_every_pod_is_nobody_and_changes_nothing_of_its_image() -> None:
    """DEP-02, DEP-04."""
    pods = [one["spec"]["template"]["spec"] for one in DOCUMENTS if one["kind"] in ("Deployment", "StatefulSet")]
    assert len(pods) == 2
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
        for container in pod["containers"]:
            limits = container["securityContext"]
            assert limits["readOnlyRootFilesystem"] and not limits["allowPrivilegeEscalation"]
            assert limits["capabilities"] == {"drop": ["ALL"]}


def test_compose_builds_what_the_dockerfile_has_and_hardens_it() -> None:
    """DEP-02, DEP-04."""
    built = {name: one for name, one in COMPOSE["services"].items() if "build" in one}
    assert {one["build"]["target"] for one in built.values()} <= TARGETS
    for one in built.values():
        assert one["read_only"] and one["cap_drop"] == ["ALL"] and "no-new-privileges:true" in one["security_opt"]
    assert COMPOSE["services"]["orthanc"]["profiles"] == ["orthanc"]


@pytest.mark.parametrize("file", ["gateway.yaml", "compose/gateway.yaml"])
def test_gateway_configurations_that_come_along_are_read(file: str) -> None:
    config = read_config(REPOSITORY / "deploy" / file)
    assert config.rules and config.destinations


def test_files_that_compose_mounts_are_there_or_are_told_how_to_make() -> None:
    told = (REPOSITORY / "deploy" / "compose" / "README.md").read_text()
    folder = REPOSITORY / "deploy" / "compose"
    for name in ("gateway.yaml", "orthanc.json", "keys", "server_key"):
        assert (folder / name).exists() or f"deploy/compose/{name}" in told
    assert {"keys", "server_key"} <= set((folder / ".gitignore").read_text().split())
