"""Run the suite, or a part of it, under one condition, and count what became of the tests."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.conditions.condition import Condition, UnavailableError, python_executable

TAIL = 60
"""Lines of pytest's output that are shown of a run that failed."""


@dataclass(frozen=True)
class ConditionResult:
    """What became of the tests under a condition.

    Attributes:
        condition: The condition.
        passed, failed, skipped: Numbers of tests; errors count as failures.
        seconds: Time that it took.
        unavailable: Why this machine cannot make the condition; None where it can.
        output: pytest's last lines, where something failed.
    """

    condition: Condition
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    unavailable: str | None = None
    output: str = ""

    @property
    def is_failure(self) -> bool:
        """Whether a test failed, or none ran although the condition could be made."""
        return self.unavailable is None and (self.failed > 0 or self.passed + self.skipped == 0)

    def __str__(self) -> str:
        if self.unavailable is not None:
            return f"{self.condition.name:<20} not here: {self.unavailable}"
        counts = f"{self.passed:5} passed {self.failed:4} failed {self.skipped:4} skipped {self.seconds:6.0f} s"
        return f"{self.condition.name:<20} {counts}  {self.condition.description}"


def run(condition: Condition, arguments: Sequence[str]) -> ConditionResult:
    """Run pytest with ``arguments`` under a condition.

    A run that ends in an error of pytest's own, such as a file of tests that cannot be imported, counts as one failure.
    """
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="semiseg-condition-"))
    try:
        folder.chmod(0o755)
        try:
            (folder / "condition").mkdir()
            start = condition.make(folder / "condition")
        except UnavailableError as error:
            return ConditionResult(condition, unavailable=str(error))
        for name in ("report", "temporary"):
            (folder / name).mkdir()
            (folder / name).chmod(0o777)  # another user may have to write into it
        file = folder / "report" / "junit.xml"
        command = [python_executable(), "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={file}", *arguments]
        output = folder / "output"  # whoever cannot wait reads it there
        # Each command in an interpreter of its own, which begins under the condition.
        code = start.run(command, output, {"TMPDIR": str(folder / "temporary"), "SEMISEG_TESTS_FORK": "0"})
        passed, failed, skipped = read_counts(file)
        if code != 0 and failed == 0:
            failed = 1
        lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
        tail = "\n".join(lines[-TAIL:]) if failed else ""
        return ConditionResult(condition, passed, failed, skipped, time.monotonic() - began, output=tail)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_counts(report: Path) -> tuple[int, int, int]:
    """The numbers of tests that passed, failed and were skipped, of a JUnit file; none where there is no such file."""
    if not report.is_file():
        return 0, 0, 0
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    tests = failed = skipped = 0
    for suite in suites:
        tests += int(suite.get("tests", 0))
        failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped += int(suite.get("skipped", 0))
    return max(0, tests - failed - skipped), failed, skipped
