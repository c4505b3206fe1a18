"""Work in a thread that is cancelled when the waiting client disconnects."""

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
    """Run ``work`` in a thread; stop it between two windows if the client disconnects or the time is over.

    Args:
        pool: Pool of threads.
        request: Request whose client waits.
        work: Function that is called with a function that returns True once the work is to stop.

    Raises:
        Cancelled: The client disconnected before the work began.
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
        raise Cancelled("The client disconnected before the work began.")
    return done.result()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
