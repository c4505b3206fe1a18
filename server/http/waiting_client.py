"""Work that goes on in a thread while its client waits, and is given up when the client goes away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import anyio
from starlette.requests import Request

from semiseg.errors import Cancelled

Result = TypeVar("Result")


async def run_while_connected(
    pool: ThreadPoolExecutor, request: Request, work: Callable[[Callable[[], bool]], Result]
) -> Result:
    """Do ``work`` in a thread; give it up between two windows when the client goes away or the time is over.

    Args:
        pool: Threads.
        request: The request whose client waits.
        work: The work; it is given a function that tells whether to stop.

    Raises:
        Cancelled: The client went away before the work began.
    """
    stop = threading.Event()
    job = pool.submit(work, stop.is_set)
    done = asyncio.wrap_future(job)
    gone = asyncio.ensure_future(_disconnected(request))
    either: set[asyncio.Future[Any]] = {done, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        stop.set()
        if not job.done() and not job.cancel():
            with anyio.CancelScope(shield=True):
                await asyncio.wait({done})
    if done.cancelled():
        raise Cancelled("The client went away before its turn came.")
    return done.result()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
