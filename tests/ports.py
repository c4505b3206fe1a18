"""A port for a server that has to be told one."""

from __future__ import annotations

import os
import random
import socket

# Below the ports that the system gives to whoever asks for any: between our look and the server's start no other test
# can be given it. Each process of a run has a part of the range for itself.
_RANGE = range(20_000, 32_000)
_GIVEN: set[int] = set()


def free_port() -> int:
    """A port of this machine that nobody has bound, and that no test of this run has been given before."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    mine = _RANGE[worker :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]
    while True:
        port = random.SystemRandom().choice(mine)
        if port not in _GIVEN and _is_free(port):
            _GIVEN.add(port)
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do, for connections that just ended
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
