"""The thread of an event loop, which ends with the client that started it."""

from __future__ import annotations

import asyncio
import threading

import aiohttp

_CLOSE_SECONDS = 10.0


def serve(loop: asyncio.AbstractEventLoop) -> None:
    """Run a client's loop until it is stopped, then cancel the tasks that are left."""
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(_cancel_tasks())
        loop.close()


async def _cancel_tasks() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def close(
    loop: asyncio.AbstractEventLoop,
    sessions: list[aiohttp.ClientSession],
    thread: threading.Thread,
) -> None:
    """Close a client's connections and end its thread."""

    async def end() -> None:
        for session in sessions:
            await session.close()
        loop.stop()

    asyncio.run_coroutine_threadsafe(end(), loop)
    # The last task of a client may drop the client, in the client's own thread.
    if threading.current_thread() is not thread:
        thread.join(_CLOSE_SECONDS)
