"""Waiting for what cannot be stopped."""

from __future__ import annotations

import asyncio
from typing import TypeVar

Result = TypeVar("Result")


async def to_its_end(work: asyncio.Future[Result]) -> Result:
    """The result of `work`, a thread's for example. Who is cancelled meanwhile goes
    when it has ended: it cannot be stopped, and what comes next is not to run beside.

    Raises:
      asyncio.CancelledError: then; `work.result()` can be had all the same.
    """
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:
                continue  # it has been told already, and is raised below
        raise
