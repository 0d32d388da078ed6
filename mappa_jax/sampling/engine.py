"""The slot engine: requests of all trajectories in flight, decoded together.

Workflows await `generate`; a driver task admits waiting requests into free slots,
advances all slots by a chunk, and hands finished rows back. Every executable is
compiled ahead of time for the declared shapes, so a shape outside the lattice
raises and nothing can recompile.

In mode "lora" rows of all agents share one pool of slots; in mode "full" each
agent has its own. An agent without requests costs nothing.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from mappa_jax.config import SamplerConfig
from mappa_jax.models.decoder import init_cache
from mappa_jax.models.policy import Policy
from mappa_jax.parallel import mesh as meshlib
from mappa_jax.sampling import sampler
from mappa_jax.types import FinishReason


class PromptTooLong(Exception):
    """A prompt does not fit the sampler's lattice; it is never cut."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How one request is sampled.

    `stopped_at` is called with the new tokens so far and returns how many of them
    to keep if a stop string has appeared, else None.
    """

    temperature: float
    top_k: int
    top_p: float
    min_new: int
    max_new: int
    stop_ids: tuple[int, ...]
    stopped_at: Callable[[list[int]], int | None] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """[T] int32 tokens, [T] float32 behaviour log-probabilities, and the reason."""

    token_ids: np.ndarray
    logprobs: np.ndarray
    finish: FinishReason


@dataclasses.dataclass(eq=False)
class _Row:
    """A request on its way: waiting, or in a slot."""

    agent: int
    prompt: np.ndarray
    options: Options
    address: tuple[int, ...]
    future: asyncio.Future[Sample]
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Stats:
    """Counts since the last `take_stats`; seconds are of the device calls."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0


class _Pool:
    """One set of slots and the requests that wait for it."""

    def __init__(self, slots: sampler.Slots, agent: int):
        rows = slots.token.shape[0]
        self.slots = slots
        self.agent = agent
        self.rows: list[_Row | None] = [None] * rows
        self.cancelled = np.zeros((rows,), bool)
        self.waiting: collections.deque[_Row] = collections.deque()

    @property
    def busy(self) -> bool:
        return bool(self.waiting) or any(r is not None for r in self.rows)


class Engine:
    """Batched sampling for a team.

    Use as `async with engine.running(trainable, frozen): ... await generate(...)`.
    """

    def __init__(
        self,
        policy: Policy,
        config: SamplerConfig,
        mesh: Mesh,
        *,
        seed: int,
        stop_ids: int,
    ):
        self._policy = policy
        self._config = config
        self._mesh = mesh
        self._seed = np.uint32(seed)
        self._stop_ids = stop_ids
        self._model = policy.decoder(cache_block=config.cache_block)
        self._pools: dict[int, _Pool] = {}
        self._prefill: dict[int, Any] = {}
        self._decode: Any = None
        self._weights: tuple[Any, Any] | None = None
        self._error: Exception | None = None
        self._wake = asyncio.Event()
        self.stats = Stats()

    # -- compilation ---------------------------------------------------------

    def warm_up(self, trainable: Any, frozen: Any) -> None:
        """Compiles every executable for arrays shaped and placed like these."""
        placed = self._slot_shardings()
        empty = jax.jit(self._empty_slots, out_shardings=placed)
        self._make_empty = empty.lower().compile()
        shapes = jax.tree.map(
            lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
            jax.eval_shape(self._empty_slots),
            placed,
        )
        weights = jax.tree.map(_shape_of, (trainable, frozen))
        index = jax.ShapeDtypeStruct((), jnp.int32)
        decode = jax.jit(
            self._decode_fn,
            donate_argnums=(3,),
            out_shardings=(placed, meshlib.replicated(self._mesh)),
        )
        rows = jax.ShapeDtypeStruct((self._config.slots,), bool)
        seed = jax.ShapeDtypeStruct((), jnp.uint32)
        self._decode = decode.lower(*weights, index, shapes, rows, seed).compile()
        prefill = jax.jit(self._prefill_fn, donate_argnums=(3,), out_shardings=placed)
        for bucket in self._config.prompt_buckets:
            batch = jax.tree.map(_shape_of, self._blank_batch(bucket))
            self._prefill[bucket] = prefill.lower(
                *weights, index, shapes, *batch
            ).compile()

    def _empty_slots(self) -> sampler.Slots:
        config = self._config
        cache = init_cache(
            self._policy.cfg, config.slots, config.context, self._policy.dtype
        )
        return sampler.empty_slots(cache, self._stop_ids)

    def _slot_shardings(self) -> Any:
        mesh = self._mesh
        axes = ("layers", "batch", "heads", None, None)

        def place(path, leaf):
            logical = ("batch",) + (None,) * (leaf.ndim - 1)
            name = meshlib.path_name(path)
            logical = axes if name.startswith("cache") else logical
            meshlib.check_divides(mesh, f"sampler {name}", leaf.shape, logical)
            return NamedSharding(mesh, meshlib.spec(logical))

        return jax.tree_util.tree_map_with_path(
            place, jax.eval_shape(self._empty_slots)
        )

    def _prefill_fn(self, trainable, frozen, agent, slots, *batch):
        params, lora = self._policy.for_sampling(trainable, frozen, agent)
        return sampler.prefill(self._model, params, lora, slots, *batch)

    def _decode_fn(self, trainable, frozen, agent, slots, cancelled, seed):
        params, lora = self._policy.for_sampling(trainable, frozen, agent)
        return sampler.decode(
            self._model,
            params,
            lora,
            slots,
            cancelled,
            seed,
            chunk=self._config.chunk,
        )

    # -- the asynchronous side -----------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self, trainable: Any, frozen: Any):
        """Serves `generate` with these weights until the block ends."""
        self._weights = (trainable, frozen)
        self._error = None
        self._wake = asyncio.Event()
        driver = asyncio.create_task(self._drive())
        try:
            yield self
        finally:
            driver.cancel()
            await asyncio.gather(driver, return_exceptions=True)
            self._weights = None
            self._settle(asyncio.Future.cancel)
            self._pools.clear()

    async def generate(
        self,
        agent: int,
        prompt: np.ndarray,
        options: Options,
        address: tuple[int, ...],
    ) -> Sample:
        """Samples one action.

        Args:
          agent: index into the team.
          prompt: [P] int32.
          options: how to sample.
          address: six integers that the row's randomness is folded from; see
            `sampler.Request`.

        Raises:
          PromptTooLong: the prompt, or prompt and limit together, do not fit.
          RuntimeError: the driver has failed before.
        """
        if self._error is not None:
            raise RuntimeError("the sampler's driver has failed") from self._error
        largest = self._config.prompt_buckets[-1]
        if len(prompt) > largest:
            raise PromptTooLong(
                f"{len(prompt)} tokens, but sampler.prompt_buckets ends at {largest}"
            )
        if len(prompt) + options.max_new > self._config.context:
            raise PromptTooLong(
                f"{len(prompt)} tokens and {options.max_new} new ones exceed "
                f"sampler.context={self._config.context}"
            )
        future = asyncio.get_running_loop().create_future()
        row = _Row(agent, prompt, options, address, future)
        self._pool(agent).waiting.append(row)
        self._wake.set()
        return await future

    def _pool(self, agent: int) -> _Pool:
        key = agent if self._policy.mode == "full" else 0
        if key not in self._pools:
            self._pools[key] = _Pool(self._make_empty(), key)
        return self._pools[key]

    async def _drive(self) -> None:
        try:
            while True:
                await self._wake.wait()
                await asyncio.sleep(0)  # let every ready workflow ask first
                pools = [p for p in self._pools.values() if p.busy]
                if not pools:
                    self._wake.clear()
                for pool in pools:
                    admitted = self._admit(pool)
                    await asyncio.to_thread(self._fill, pool, admitted)
                    chunk = await asyncio.to_thread(self._advance, pool)
                    self._harvest(pool, chunk)
        except Exception as e:
            self._fail(e)
            raise

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._settle(lambda future: future.set_exception(error))

    def _settle(self, how: Callable[[asyncio.Future[Sample]], object]) -> None:
        """Ends every request that is still open, so that nobody waits for ever."""
        for pool in self._pools.values():
            for row in [*pool.waiting, *pool.rows]:
                if row is not None and not row.future.done():
                    how(row.future)

    def _admit(self, pool: _Pool) -> list[int]:
        """Moves waiting requests into free slots; returns the slots."""
        free = [i for i, row in enumerate(pool.rows) if row is None]
        taken = free[: len(pool.waiting)]
        for slot in taken:
            pool.rows[slot] = pool.waiting.popleft()
            pool.cancelled[slot] = False  # that was about the slot's last row
        return taken

    def _fill(self, pool: _Pool, taken: list[int]) -> None:
        """Prefills the prompts of newly taken slots, bucket by bucket."""
        start = time.perf_counter()
        by_bucket = collections.defaultdict(list)
        for slot in taken:
            by_bucket[self._bucket(len(pool.rows[slot].prompt))].append(slot)
        width = self._config.prefill_rows
        for bucket, slots in sorted(by_bucket.items()):
            for i in range(0, len(slots), width):
                batch = self._batch(pool, slots[i : i + width], bucket)
                pool.slots = self._prefill[bucket](
                    *self._weights, np.int32(pool.agent), pool.slots, *batch
                )
        if taken:
            jax.block_until_ready(pool.slots.token)
        self.stats.prompt_tokens += sum(len(pool.rows[s].prompt) for s in taken)
        self.stats.prefill_seconds += time.perf_counter() - start

    def _advance(self, pool: _Pool) -> sampler.Chunk:
        start = time.perf_counter()
        pool.slots, chunk = self._decode(
            *self._weights,
            np.int32(pool.agent),
            pool.slots,
            pool.cancelled,
            self._seed,
        )
        pool.cancelled = np.zeros_like(pool.cancelled)
        chunk = jax.device_get(chunk)
        self.stats.decode_seconds += time.perf_counter() - start
        return chunk

    def _harvest(self, pool: _Pool, chunk: sampler.Chunk) -> None:
        for slot, row in enumerate(pool.rows):
            if row is None:
                continue
            n = int(chunk.emitted[slot])
            self.stats.new_tokens += n
            row.tokens += chunk.tokens[slot, :n].tolist()
            row.logprobs += chunk.logprobs[slot, :n].tolist()
            kept = (
                row.options.stopped_at(row.tokens) if row.options.stopped_at else None
            )
            if kept is not None:
                pool.cancelled[slot] = not chunk.done[slot]
            elif not chunk.done[slot]:
                continue
            pool.rows[slot] = None
            if not row.future.done():  # its workflow may have been cancelled
                row.future.set_result(_sample(row, kept))

    def _bucket(self, length: int) -> int:
        return next(b for b in self._config.prompt_buckets if length <= b)

    def _blank_batch(self, bucket: int) -> tuple[Any, ...]:
        p = self._config.prefill_rows
        request = sampler.Request(
            address=np.zeros((p, 6), np.int32),
            agent=np.zeros((p,), np.int32),
            temperature=np.ones((p,), np.float32),
            top_k=np.zeros((p,), np.int32),
            top_p=np.ones((p,), np.float32),
            min_new=np.zeros((p,), np.int32),
            max_new=np.zeros((p,), np.int32),
            stop_ids=np.full((p, self._stop_ids), -1, np.int32),
        )
        slot = np.full((p,), self._config.slots, np.int32)
        return slot, np.zeros((p, bucket), np.int32), np.ones((p,), np.int32), request

    def _batch(self, pool: _Pool, slots: list[int], bucket: int) -> tuple[Any, ...]:
        slot_P, tokens, length, request = self._blank_batch(bucket)
        for i, slot in enumerate(slots):
            row = pool.rows[slot]
            slot_P[i] = slot
            tokens[i, : len(row.prompt)] = row.prompt
            length[i] = len(row.prompt)
            request.address[i] = row.address
            request.agent[i] = row.agent
            request.temperature[i] = row.options.temperature
            request.top_k[i] = row.options.top_k
            request.top_p[i] = row.options.top_p
            request.min_new[i] = row.options.min_new
            request.max_new[i] = row.options.max_new
            request.stop_ids[i, : len(row.options.stop_ids)] = row.options.stop_ids
        return slot_P, tokens, length, request

    def take_stats(self) -> Stats:
        """The counts so far; starts new ones."""
        stats, self.stats = self.stats, Stats()
        return stats


def _sample(row: _Row, kept: int | None) -> Sample:
    tokens = np.asarray(row.tokens[:kept], np.int32)
    logprobs = np.asarray(row.logprobs[:kept], np.float32)
    stopped = kept is not None or (
        len(tokens) > 0 and int(tokens[-1]) in row.options.stop_ids
    )
    return Sample(tokens, logprobs, "stop" if stopped else "length")


def _shape_of(x: Any) -> jax.ShapeDtypeStruct:
    sharding = x.sharding if isinstance(x, jax.Array) else None
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding)
