"""The suite under other conditions: `python -m tests.conditions [NAME ...] [--list] [--rotate N] [-- PYTEST OPTIONS]`.

Without names all conditions are run, one after the other. `pairs` stands for all that are called pairs-1, pairs-2, ...:
how many there are depends on what is installed. Without options for pytest the whole suite is run under each
of them, and with --rotate its quick core. A line is printed for each condition. The exit code is 1 when a test failed,
and 2 for a name that is unknown.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tests.conditions.catalogue import CORE_TESTS, catalogue, select_for_day
from tests.conditions.condition import Condition
from tests.conditions.runner import run

PAIRS = "pairs"


def is_pair(name: str) -> bool:
    """Whether a condition is one of those without a part of what is optional."""
    return name.startswith(f"{PAIRS}-")


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for; the exit code."""
    words, pytest_arguments = list(arguments), []
    if "--" in words:
        cut = words.index("--")
        words, pytest_arguments = words[:cut], words[cut + 1 :]
    parser = argparse.ArgumentParser(prog="python -m tests.conditions", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("names", nargs="*", metavar="NAME", help="a condition of --list; all by default")
    parser.add_argument("--list", action="store_true", help="list the conditions and run nothing")
    parser.add_argument("--rotate", type=int, metavar="N", help="the N conditions of today, on the core of the suite")
    asked = parser.parse_args(words)
    known = {condition.name: condition for condition in catalogue()}
    if unknown := [name for name in asked.names if name not in known and name != PAIRS]:
        print(f"There is no condition {unknown[0]!r}; there are {PAIRS}, {', '.join(known)}.", file=sys.stderr)
        return 2
    names = [each for name in asked.names for each in (filter(is_pair, known) if name == PAIRS else [name])]
    chosen = [known[name] for name in names] or list(known.values())
    if asked.rotate is not None:
        chosen = select_for_day(chosen, asked.rotate, int(time.time() // 86400))
        pytest_arguments = pytest_arguments or ["-q", "-n", "2", "--dist", "loadfile", *CORE_TESTS]
    if asked.list:
        for condition in chosen:
            print(f"{condition.name:<20} {condition.description}")
        return 0
    return run_all(chosen, pytest_arguments)


def run_all(conditions: Sequence[Condition], arguments: Sequence[str]) -> int:
    """Run pytest under each condition and print a line for each; 1 when one of them failed."""
    code = 0
    for condition in conditions:
        outcome = run(condition, arguments)
        print(outcome, flush=True)
        if outcome.is_failure:
            print(outcome.output, flush=True)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
