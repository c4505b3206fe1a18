"""An environment with only the `gateway` extra: it knows servers by their address and has no engine of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packaging.environments import Environment, assert_no_gpl, pip

# The first test of a process installs the environment.
# CI builds the gateway's image, which has nothing else.
pytestmark = [pytest.mark.timeout(600), pytest.mark.long]

ABSENT = (
    "torch",
    "monai",
    "bentoml",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "SimpleITK",
    "scipy",
    "nibabel",
    "highdicom",
)


def test_no_engine_and_no_bentoml_is_installed(gateway_environment: Environment) -> None:
    """DEP-01."""
    program = "import importlib.util, sys; print(*[name for name in sys.argv[1:] if importlib.util.find_spec(name)])"
    answer = gateway_environment.run(gateway_environment.python, "-c", program, *ABSENT)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == []


def test_every_module_of_the_gateway_can_be_imported(gateway_environment: Environment) -> None:
    program = """
import importlib, pkgutil
import server.gateway
for module in pkgutil.walk_packages(server.gateway.__path__, "server.gateway."):
    importlib.import_module(module.name)
    print(module.name)
"""
    answer = gateway_environment.run(gateway_environment.python, "-c", program)
    assert answer.returncode == 0, answer.stderr
    assert "server.gateway.storage_scp" in answer.stdout.split()


def test_the_command_explains_itself_and_names_what_is_wrong(gateway_environment: Environment, tmp_path: Path) -> None:
    answer = gateway_environment.run(gateway_environment.semiseg, "gateway", "--help")
    assert answer.returncode == 0 and "explain" in answer.stdout, answer.stderr
    file = tmp_path / "gateway.yaml"
    file.write_text("state: here")
    answer = gateway_environment.run(gateway_environment.semiseg, "gateway", "--config", file)
    assert answer.returncode == 2 and "servers: Field required" in answer.stderr, answer.stderr


def test_the_environment_has_no_contradictions(gateway_environment: Environment) -> None:
    answer = pip("check", python=gateway_environment.python)
    assert answer.returncode == 0, answer.stdout


def test_no_installed_package_is_under_the_gpl(gateway_environment: Environment) -> None:
    """DEP-01."""
    assert_no_gpl(gateway_environment, at_least=30)


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_command_that_needs_more_names_what_to_install(gateway_environment: Environment, command: str) -> None:
    answer = gateway_environment.run(gateway_environment.semiseg, command, "--help")
    assert answer.returncode == 2 and "extra" in answer.stderr and "Traceback" not in answer.stderr, answer.stderr
