"""All conditions, and the few of them that a day has."""

from __future__ import annotations

from collections.abc import Sequence

from tests.conditions.condition import Condition
from tests.conditions.dates import dates
from tests.conditions.optional_dependencies import pairs
from tests.conditions.process_environment import process_environments
from tests.conditions.processors import processors

CORE_TESTS = (
    "tests/bundle/test_card.py",
    "tests/cli/test_inspect.py",
    "tests/collection/test_privacy.py",
    "tests/dataset/test_dataset_folder.py",
    "tests/engines/test_openvino.py",
    "tests/evaluation/test_evaluation_result.py",
    "tests/gateway/test_instance_store.py",
    "tests/gateway/test_routing.py",
    "tests/inference/test_engine_selection.py",
    "tests/outputs/test_dicom_sr.py",
    "tests/releases",
    "tests/server/test_database.py",
    "tests/server/test_queue.py",
    "tests/volumes/test_scan.py",
    "tests/volumes/test_unpack.py",
)
"""What is tried under the conditions of the day: quick tests of what depends on the machine."""


def catalogue() -> list[Condition]:
    """Every condition, in the order in which they are run."""
    return [*dates(), *process_environments(), *processors(), *pairs()]


def select_for_day(conditions: Sequence[Condition], count: int, day: int) -> list[Condition]:
    """``count`` of the conditions, others each day, and all of them before one comes again.

    Args:
        conditions: What to choose from.
        count: How many; at most all of them.
        day: A number that grows by one a day.
    """
    count = min(count, len(conditions))
    return [conditions[(day * count + k) % len(conditions)] for k in range(count)]
