"""Imported by the fork server: the libraries that commands of semiseg import.

They are kept from the garbage collector, which would touch them in each forked process and so copy their memory.
"""

from __future__ import annotations

import contextlib
import gc
import importlib

MODULES = (
    "cli.app",
    "exporter.export",
    "server.gateway.gateway",
    "server.http.startup",
    "server.labelling.startup",
    "trainer.loop",
    "trainer.methods",
    "trainer.training",
)

gc.disable()
for name in MODULES:
    with contextlib.suppress(ImportError):  # an environment without the extra that brings it
        importlib.import_module(name)
gc.collect()
gc.freeze()
gc.enable()
