"""The suite's core runs where nothing was installed for training or export (deploy/try_pythons.sh --quick)."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.conditions.condition import INTERPRETER
from tests.packaging.environments import REPOSITORY

LISTED = [REPOSITORY / "deploy" / "core_tests.sh"]
FOR_TRAINING = (
    "accelerate", "einops", "matplotlib", "monai", "onnxscript", "peft", "safetensors", "SimpleITK", "tensorboard",
    "torch", "transformers",
)  # fmt: skip


def listed(*options: str) -> list[str]:
    return subprocess.run([*LISTED, *options], capture_output=True, text=True, check=True).stdout.split()


def test_the_core_is_collected_without_what_training_needs() -> None:
    """A test of the core that reaches PyTorch through another file of the tests stops the whole run there."""
    environ = os.environ | {"PYTHONPATH": str(INTERPRETER), "TESTS_CONDITION_WITHOUT": ",".join(FOR_TRAINING)}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *listed()]
    done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_with_pytorch_the_core_has_more_files() -> None:
    assert set(listed()) < set(listed("--with-torch"))
