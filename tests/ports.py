"""A port for a server that has to be told one."""

from __future__ import annotations

import random
import socket

# Below the ports that the system gives to whoever asks for any: between our look and the server's start no other test
# can be given it.
_RANGE = range(20_000, 32_000)


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    while True:
        port = random.SystemRandom().choice(_RANGE)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
