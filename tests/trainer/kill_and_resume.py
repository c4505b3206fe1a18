"""Runs `semiseg train` in processes of its own and kills them: ``kill_and_resume.py RUN SEED KILLS ARGUMENTS...``.

A process that has imported the libraries and started no thread forks one child a life, so that a life does not begin
with ten seconds of imports. Each child is the command line with ``--resume``; it dies by SIGKILL, half of the lives
while a checkpoint is being written, the others at a random moment. The last one is left to finish. What happened is
printed as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

CHECKPOINTS = 100  # that all lives write together at most, about
PATIENCE = 300.0  # seconds that a child may take before it shows itself


def main(run: Path, seed: int, kills: int, arguments: list[str]) -> None:
    """Kill the run ``kills`` times, then let it end."""
    import torch
    from transformers import SegformerForSemanticSegmentation  # noqa: F401 - a run of M&N imports it when it begins

    import trainer.training  # noqa: F401 - the imports are what this process is for
    from trainer.checkpoints import load_state

    torch.set_num_threads(1)
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        sys.exit(f"forking would be unsound: this process has {threads} threads")
    chance = random.Random(seed)
    lives = []
    while len(lives) < kills:
        child = _start(arguments)
        moment = chance.random()
        during = len(lives) % 2 == 0
        nth = chance.randint(1, CHECKPOINTS // kills)
        _wait(child, _checkpoint_is_being_written(run, nth) if during else _later(run, moment))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"after {len(lives)} kills the run had ended by itself (status {status})")
        half_written = [p.name for p in run.glob(".checkpoint.pt.*.part")]
        checkpoint = run / "checkpoint.pt"
        step = load_state(checkpoint, torch.device("cpu")).step if checkpoint.exists() else 0
        lives.append({"half_written": len(half_written), "step": step})
    _, status = os.waitpid(_start(arguments), 0)
    sys.stdout.write(json.dumps({"lives": lives, "exit": os.waitstatus_to_exitcode(status)}))


def _start(arguments: list[str]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        from cli.app import main as command_line

        command_line([*arguments, "--resume"])
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)
    finally:
        os._exit(70)


def _wait(child: int, reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not reached():
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return  # it has ended by itself, which the caller will notice
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            sys.exit(f"the run did nothing for {PATIENCE:g} seconds")


def _checkpoint_is_being_written(run: Path, nth: int) -> Callable[[], bool]:
    """True at the moment when the ``nth`` new checkpoint of this life lies half written in the folder."""
    old = {p.name for p in run.glob(".checkpoint.pt.*.part")} if run.exists() else set()
    seen: set[str] = set()

    def reached() -> bool:
        if run.exists():
            seen.update(n for n in os.listdir(run) if n.startswith(".checkpoint.pt.") and n not in old)  # noqa: PTH208
        return len(seen) >= nth

    return reached


def _later(run: Path, moment: float) -> Callable[[], bool]:
    """True some random time after the start, or soon after one of the first checkpoints of this life."""
    checkpoint = run / "checkpoint.pt"
    seen = {checkpoint.stat().st_mtime_ns} if checkpoint.exists() else set()
    wanted = len(seen) + 1 + int(moment * 8)
    started = time.monotonic()
    last: list[float] = []

    def reached() -> bool:
        if moment < 0.2:  # while it starts: scans, networks, restoring
            return time.monotonic() - started > moment * 3
        if not last and checkpoint.exists():
            seen.add(checkpoint.stat().st_mtime_ns)
            if len(seen) >= wanted:
                last.append(time.monotonic())
        return bool(last) and time.monotonic() - last[0] > moment * 0.05

    return reached


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
