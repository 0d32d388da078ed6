"""An answer as server-sent events, while it is being written."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from aiohttp import web

from mappa_jax.serving import replies
from mappa_jax.serving.episodes import Answer, Served, Watch, answer
from mappa_jax.serving.errors import ApiError
from mappa_jax.serving.limits import Admission
from mappa_jax.serving.partial import Deltas
from mappa_jax.serving.protocol import ChatRequest

KEEP_ALIVE = 15.0  # seconds without an event, after which a comment is sent
LAST_WORDS = 2.0  # seconds for telling a client why its stream ends

Event = dict[str, Any]


async def gathered(work: Sequence[Any]) -> list[Any]:
    """What all coroutines return; when one fails, the others are cancelled."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def events(
    served: Served, request: ChatRequest, admission: Admission, seed: int
) -> AsyncIterator[Event]:
    """The chunks of a request's stream.

    Raises:
      ApiError: as `episodes.answer`; where it comes first, nothing was sent.
    """
    head = replies.Head(request.model, served.fingerprint)
    queue: asyncio.Queue[Event | None] = asyncio.Queue()

    async def one(choice: int) -> Answer:
        deltas = Deltas(request.stops)

        def on_action(action: Any) -> None:
            if request.trace:
                told = replies.traced(action, choice)
                queue.put_nowait(replies.beside(head, trace=[told]))

        def on_content(content: str) -> None:
            if text := deltas.partial(content):
                queue.put_nowait(replies.piece(head, choice, content=text))

        async with admission.turn():
            begun = replies.piece(head, choice, role="assistant", content="")
            watch = Watch(on_action, on_content)
            queue.put_nowait(begun)
            done = await answer(served, request, choice, seed, watch)
        if text := deltas.final(done.content):
            queue.put_nowait(replies.piece(head, choice, content=text))
        queue.put_nowait(replies.piece(head, choice, done.finish))
        if done.files is not None:
            queue.put_nowait(replies.beside(head, files={choice: done.files}))
        return done

    async def everyone() -> list[Answer]:
        try:
            return await gathered([one(i) for i in range(request.choices)])
        finally:
            queue.put_nowait(None)

    working = asyncio.create_task(everyone())
    try:
        while (event := await queue.get()) is not None:
            yield event
        answers = await working
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    if request.wants_usage:
        yield replies.beside(head, usage=replies.usage(answers))


async def stream(
    http: web.Request, chunks: AsyncIterator[Event], response: web.StreamResponse
) -> None:
    """Sends `chunks`. The head of the response goes out with the first that is more
    than the beginning of an empty answer, so that an early error has its own status.
    """
    early: list[Event] = []
    async with contextlib.aclosing(_alive(chunks)) as alive:
        async for event in alive:
            if event is not None and not response.prepared and _empty(event):
                early.append(event)
                continue
            if not response.prepared:
                await response.prepare(http)
                for waiting in early:
                    await response.write(_event(waiting))
            await response.write(b": waiting\n\n" if event is None else _event(event))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()


async def _alive(chunks: AsyncIterator[Event]) -> AsyncIterator[Event | None]:
    """`chunks`, and None whenever there is none for a while."""
    async with contextlib.aclosing(chunks):
        coming = asyncio.ensure_future(anext(chunks, StopAsyncIteration))
        try:
            while True:
                ready, _ = await asyncio.wait([coming], timeout=KEEP_ALIVE)
                if not ready:
                    yield None
                    continue
                if (event := coming.result()) is StopAsyncIteration:
                    return
                coming = asyncio.ensure_future(anext(chunks, StopAsyncIteration))
                yield event
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)


def _empty(event: Event) -> bool:
    return all(c["delta"].get("content") == "" for c in event["choices"]) and bool(
        event["choices"]
    )


def _event(event: Event) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


async def end_badly(
    http: web.Request, response: web.StreamResponse, error: ApiError
) -> None:
    """Tells a client whose stream has begun why it ends, if it still listens."""
    try:
        async with asyncio.timeout(LAST_WORDS):
            await response.write(_event(error.body()))
            await response.write_eof()
    except (TimeoutError, ConnectionError):
        if http.transport is not None:
            http.transport.abort()
