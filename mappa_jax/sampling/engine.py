"""The slot engine: requests of all trajectories in flight, decoded together.

Workflows await `generate`; a driver task admits waiting requests into free slots,
advances all slots by a chunk, and hands finished rows back. Every executable is
compiled ahead of time for the declared shapes, so a shape outside the lattice
raises and nothing can recompile.

A set of slots has three leading axes: G slices of the mesh (each for its own agents,
config.mesh.agent), W ways that the rows of a slice are divided into, and B rows. In
mode "lora" rows of all agents share one pool of slots, in mode "shared" too; in mode
"full" a pool's slice holds one agent's rows. Pools without requests cost nothing.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from mappa_jax.config import ConfigError, SamplerConfig
from mappa_jax.hosts import HostLost, Hosts, OneHost, Stopped
from mappa_jax.models import int8
from mappa_jax.models.cache import init_cache
from mappa_jax.models.decoder import logits
from mappa_jax.models.policy import Policy
from mappa_jax.parallel import mesh as meshlib
from mappa_jax.sampling import sampler
from mappa_jax.timeline import span
from mappa_jax.types import FinishReason

IDLE = 0.005  # seconds between two steps in which no host has anything to sample


class PromptTooLong(Exception):
    """A prompt does not fit the sampler's lattice; it is never cut."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How one request is sampled.

    `stopped_at` is called with the new tokens so far and returns how many of them
    to keep if a stop string has appeared, else None. `on_tokens` is told the new tokens
    so far after every chunk; it must neither wait nor raise.
    """

    temperature: float
    top_k: int
    top_p: float
    min_new: int
    max_new: int
    stop_ids: tuple[int, ...]
    stopped_at: Callable[[list[int]], int | None] | None = None
    on_tokens: Callable[[list[int]], None] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """[T] int32 tokens, [T] float32 behaviour log-probabilities, and the reason."""

    token_ids: np.ndarray
    logprobs: np.ndarray
    finish: FinishReason


@dataclasses.dataclass(frozen=True, eq=False)
class _Request:
    """What one host tells the others of a request; `agent` is the team's.

    Attributes:
      conversation: the number of the one that it is a turn of.
      cached: so much of the prompt is in that one's cache already.
      last: of its turns.
    """

    number: int
    agent: int
    prompt: np.ndarray
    options: Options
    address: tuple[int, ...]
    conversation: int | None
    cached: int
    last: bool


@dataclasses.dataclass
class _Message:
    """What a host has to say before a step of the schedule, which all hosts take alike.

    Attributes:
      requests: new ones.
      ended: (group, pool, slot) of rows that have met a stop string.
      over: conversations that have no further turn.
      closing: its workflows have ended.
    """

    requests: list[_Request] = dataclasses.field(default_factory=list)
    ended: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)
    over: list[int] = dataclasses.field(default_factory=list)
    closing: bool = False


@dataclasses.dataclass(eq=False)
class Conversation:
    """Turns of one agent, each of which goes on from the one before.

    Attributes:
      number: which it is, of this host's.
      cached: [T] int32, the tokens that its slot's cache holds.
      asking: whether a turn of it is being sampled.
    """

    number: int
    cached: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros((0,), np.int32)
    )
    asking: bool = False

    def common(self, prompt: np.ndarray) -> int:
        """How many tokens of a next turn's prompt are in the cache, but for its last:
        the first new token is sampled from that."""
        most = min(len(self.cached), len(prompt) - 1)
        differ = self.cached[:most] != prompt[:most]
        return int(np.argmax(differ)) if differ.any() else most


@contextlib.contextmanager
def _asking(conversation: Conversation | None) -> Iterator[None]:
    if conversation is None:
        yield
        return
    conversation.asking = True
    try:
        yield
    finally:
        conversation.asking = False


_Key = tuple[int, int]  # host and number of a conversation


@dataclasses.dataclass(eq=False)
class _Row:
    """A request on its way: waiting, or in a slot. `agent` is counted within its group;
    `future` is None for another host's; `filled` tokens of the prompt are in the cache;
    `keep` is the conversation for which the slot is kept afterwards."""

    agent: int
    prompt: np.ndarray
    options: Options
    address: tuple[int, ...]
    future: asyncio.Future[Sample] | None
    keep: _Key | None
    filled: int = 0
    ended: bool = False
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)

    @property
    def ready(self) -> bool:
        """Whether the whole prompt is in the cache."""
        return self.filled == len(self.prompt)


@dataclasses.dataclass
class Stats:
    """Counts since the last `take_stats`; seconds are of the device calls."""

    prompt_tokens: int = 0
    # Less: rows with one prompt are prefilled once, and a conversation's cache is kept.
    prefilled_tokens: int = 0
    new_tokens: int = 0
    row_steps: int = 0  # tokens that the decoded rows had room for
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Load:
    """What the sampler is at.

    Attributes:
      waiting: requests without a slot, by agent of the team.
      sampling: requests in one, likewise.
      tokens: new ones since the engine was made.
    """

    waiting: tuple[int, ...]
    sampling: tuple[int, ...]
    tokens: int


class Program:
    """The compiled functions of one group of agents, at their declared shapes.

    Args:
      policy: of the group.
      config: of the sampler.
      mesh: where it samples.
      stop_ids: the most of any agent.
      beside: whether an update, to which the weights are donated, may run while these
        programs read them.

    Raises:
      ConfigError: sampler.slots or one of sampler.widths does not divide the mesh.
    """

    def __init__(
        self,
        policy: Policy,
        config: SamplerConfig,
        mesh: Mesh,
        stop_ids: int,
        beside: bool = False,
    ):
        layout = policy.layout
        counts = [("slots=", config.slots)]
        counts += [("widths: ", width) for width in config.widths]
        for key, count in counts:
            if count % layout.ways:
                raise ConfigError(
                    f"config.sampler.{key}{count} does not divide the {layout.ways} "
                    f"devices of the mesh axes {layout.row_axes}; make it a multiple"
                )
        self.policy = policy
        self._config = config
        self._mesh = meshlib.Layout(mesh)
        self._stop_ids = stop_ids
        self._beside = beside
        self._model = policy.decoder(rows=None, cache_block=config.cache_block)
        self.grid = (layout.slices, layout.ways)
        self.rows = config.slots // layout.ways
        self.widths = (*(w // layout.ways for w in config.widths), self.rows)
        self.prefill_rows = -(-config.prefill_rows // layout.ways)
        self._on_grid = self._mesh.sharding(layout.agent_axis, layout.row_axes)
        self._whole = self._mesh.sharding()

    # -- shapes --------------------------------------------------------------

    def _empty_slots(self) -> sampler.Slots:
        config, policy = self._config, self.policy
        dtype = policy.dtype if config.kv_dtype == "compute" else config.kv_dtype
        cache = init_cache(policy.cfg, self.rows, config.context, dtype)
        one = sampler.empty_slots(cache, self._stop_ids)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (*self.grid, *x.shape)), one)

    def slot_shapes(self) -> sampler.Slots:
        """With shardings: rows on the grid, key and value heads over "tensor"."""
        cache = NamedSharding(
            self._on_grid.mesh,
            jax.sharding.PartitionSpec(*self._on_grid.spec, None, None, "tensor"),
        )

        def placed(path, leaf):
            heads = meshlib.path_name(path).startswith("cache")
            where = cache if heads else self._on_grid
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

        return jax.tree_util.tree_map_with_path(
            placed, jax.eval_shape(self._empty_slots)
        )

    def blank_prompts(self, bucket: int) -> sampler.Prompts:
        """A prefill that fills no slot: NumPy arrays [G, W, P, ...]."""
        p = (*self.grid, self.prefill_rows)
        slot, request = self.blank_requests()
        return sampler.Prompts(
            slot=slot,
            tokens=np.zeros((*p, bucket), np.int32),
            start=np.zeros(p, np.int32),
            length=np.ones(p, np.int32),
            ends=np.ones(p, bool),
            request=request,
        )

    def blank_requests(self) -> tuple[np.ndarray, sampler.Request]:
        """Slots that are none, and what they ask for: NumPy arrays [G, W, P, ...]."""
        p = (*self.grid, self.prefill_rows)
        request = sampler.Request(
            address=np.zeros((*p, 6), np.int32),
            agent=np.zeros(p, np.int32),
            temperature=np.ones(p, np.float32),
            top_k=np.zeros(p, np.int32),
            top_p=np.ones(p, np.float32),
            min_new=np.zeros(p, np.int32),
            max_new=np.zeros(p, np.int32),
            stop_ids=np.full((*p, self._stop_ids), -1, np.int32),
        )
        return np.full(p, self.rows, np.int32), request

    # -- programs ------------------------------------------------------------

    def lowered(self, trainable: Any, frozen: Any) -> dict[str, jax.stages.Lowered]:
        """Every program, for weights shaped and placed like these.

        Returns:
          By name: "empty", "decode", "clone", "prefill/512" and "extend/512" for a
          bucket of 512 tokens, if there are widths "move" and "narrow/8" for the
          decoding of 8 rows of every device, with weights in int8 "round", and beside
          an update "copy".
        """
        slots = self.slot_shapes()
        placed = jax.tree.map(lambda s: s.sharding, slots)
        weights = meshlib.shapes_of((trainable, frozen))
        handing = {}

        def hands(name: str, function: Callable, given: Any, kept: Any) -> None:
            places = jax.tree.map(lambda s: s.sharding, kept)
            handing[name] = jax.jit(function, out_shardings=places).lower(given)

        def copy(own: Any) -> Any:
            if self._beside:
                hands("copy", functools.partial(jax.tree.map, jnp.copy), own, own)
            return own

        def rounded(floats: Any) -> Any:
            kept = int8.param_shapes(floats)
            hands("round", _rounded, floats, kept)
            return kept

        weights = self._handed(*weights, copy, rounded)

        def whole(dtype: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((), dtype, sharding=self._whole)

        def on_grid(tree: Any) -> Any:
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(
                    x.shape, x.dtype, sharding=self._on_grid
                ),
                tree,
            )

        pool = whole(jnp.int32)
        cancelled = on_grid(np.zeros((*self.grid, self.rows), bool))

        def decode(width: int | None) -> jax.stages.Lowered:
            run = jax.jit(
                functools.partial(self._decode_fn, width=width),
                donate_argnums=(3,),
                out_shardings=(placed, self._whole),
            )
            return run.lower(*weights, pool, slots, cancelled, whole(jnp.uint32))

        def filled(function: Callable, bucket: int, *blocks: Any) -> jax.stages.Lowered:
            run = jax.jit(function, donate_argnums=(3,), out_shardings=placed)
            batch = on_grid(self.blank_prompts(bucket))
            return run.lower(*weights, pool, slots, batch, *blocks)

        out = {
            "empty": jax.jit(self._empty_slots, out_shardings=placed).lower(),
            "decode": decode(None),
        } | handing
        over = self.policy.layout

        def copies(function: Callable, *args: Any) -> jax.stages.Lowered:
            run = jax.jit(
                over.over_agents(over.over_ways(function)),
                donate_argnums=(0,),
                out_shardings=placed,
            )
            return run.lower(slots, *on_grid(args))

        slot, request = self.blank_requests()
        out["clone"] = copies(sampler.clone, slot, slot, request)
        if len(self.widths) > 1:
            out["move"] = copies(sampler.move, slot, slot)
            out |= {f"narrow/{w}": decode(w) for w in self.widths[:-1]}
        for bucket in self._config.prompt_buckets:
            out[f"prefill/{bucket}"] = filled(self._prefill_fn, bucket)
        for bucket in self._config.extend_buckets:
            out[f"extend/{bucket}"] = filled(self._extend_fn, bucket, whole(jnp.int32))
        return out

    def warm_up(self, trainable: Any, frozen: Any) -> None:
        lowered = self.lowered(trainable, frozen)
        self._run = {name: program.compile() for name, program in lowered.items()}

    def _start(self, name: str, *args: Any) -> Any:
        return meshlib.start(self._run[name], *args)

    def _over_grid(self, function: Callable, params: Any, own: Any) -> Callable:
        """`function` of (params, own, scales, *rows) over the grid."""
        layout = self.policy.layout

        def along(tree: Any) -> int | None:
            return None if tree is None else 0

        lora = self.policy.mode == "lora"
        heads = (None if lora else 0, along(own), along(own))

        def over(*args):
            rows = len(args) - len(heads)
            inner = layout.over_ways(function, (None,) * len(heads) + (0,) * rows)
            return layout.over_agents(inner, heads + (0,) * rows)(*args)

        return over

    def _weights(self, trainable, frozen) -> tuple[Any, Any, Any]:
        params, lora = self.policy.for_sampling(trainable, frozen)
        return params, *(lora or (None, None))

    def _adapters(self, own, scales, row_agent) -> Any:
        if own is None:
            return None
        return self.policy.adapters(own, scales, row_agent)

    def _prefill_fn(self, trainable, frozen, pool, slots, prompts):
        fill = self._fill_fn(sampler.prefill, trainable, frozen, pool)
        return fill(slots, prompts)

    def _extend_fn(self, trainable, frozen, pool, slots, prompts, blocks):
        extend = functools.partial(sampler.extend, blocks=blocks)
        return self._fill_fn(extend, trainable, frozen, pool)(slots, prompts)

    def _fill_fn(self, fill, trainable, frozen, pool) -> Callable:
        """`fill` of (model, slots, prompts) over the grid, with these weights."""
        params, own, scales = self._weights(trainable, frozen)

        def one(params, own, scales, slots, prompts):
            adapters = self._adapters(own, scales, prompts.request.agent)
            params, member = self.policy.of_pool(params, pool)
            run = functools.partial(
                self._model.apply, {"params": params}, adapters=adapters, member=member
            )
            return fill(run, slots, prompts)

        over = self._over_grid(one, params, own)
        return functools.partial(over, params, own, scales)

    def _decode_fn(self, trainable, frozen, pool, slots, cancelled, seed, *, width):
        params, own, scales = self._weights(trainable, frozen)
        agent = slots.request.agent[..., :width]

        def forward(tokens, positions, cache, blocks):
            def one(params, own, scales, agent, tokens, positions, cache):
                params, member = self.policy.of_pool(params, pool)
                hidden, cache = self._model.apply(
                    {"params": params},
                    tokens,
                    positions,
                    adapters=self._adapters(own, scales, agent),
                    cache=cache,
                    blocks=blocks,
                    member=member,
                )
                scores = logits(params, self.policy.cfg, hidden[:, 0])
                return self.policy.layout.constrain(scores, None, "tensor"), cache

            over = self._over_grid(one, params, own)
            return over(params, own, scales, agent, tokens, positions, cache)

        return sampler.decode(
            forward,
            slots,
            cancelled,
            seed,
            chunk=self._config.chunk,
            cache_block=self._config.cache_block,
            width=width,
        )

    def _whole_int(self, value: int, dtype: Any) -> jax.Array:
        return meshlib.place(np.asarray(value, dtype), self._whole)

    def _placed(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: meshlib.place(x, self._on_grid), tree)

    def _handed(
        self,
        trainable: Any,
        frozen: Any,
        copy: Callable[[Any], Any],
        rounded: Callable[[Any], Any],
    ) -> tuple[Any, Any]:
        """What the programs read as `weights`, of what `copy` and `rounded` make of the
        parts that are copied for them and rounded."""
        if self._config.weights == "compute":
            return copy(trainable), frozen
        if self.policy.mode == "lora":
            trainable = copy(trainable)
        return self.policy.in_int8(trainable, frozen, rounded)

    def hand_over(
        self, trainable: Any, frozen: Any, donated: bool = False
    ) -> tuple[Any, Any]:
        """What the other programs read as `weights`: these themselves, in int8, or, if
        `trainable` will be donated while they do, copies."""
        copy = functools.partial(self._start, "copy") if donated else lambda x: x
        rounded = functools.partial(self._start, "round")
        return self._handed(trainable, frozen, copy, rounded)

    def own_shapes(self, trainable: Any, frozen: Any) -> tuple[Any, Any]:
        """What `hand_over` may make for weights shaped like these, None where nothing:
        what the sampler holds besides."""
        floats = self._config.weights == "compute"
        return self._handed(
            trainable,
            None if floats else frozen,
            lambda x: x if self._beside else None,
            int8.param_shapes,
        )

    def empty(self) -> sampler.Slots:
        return self._start("empty")

    def prefill(
        self, weights: Any, pool: int, slots: sampler.Slots, prompts: sampler.Prompts
    ) -> sampler.Slots:
        """`slots` is donated; `prompts` as `blank_prompts` shapes them."""
        name = f"prefill/{prompts.tokens.shape[-1]}"
        index = self._whole_int(pool, np.int32)
        return self._start(name, *weights, index, slots, self._placed(prompts))

    def extend(
        self, weights: Any, pool: int, slots: sampler.Slots, prompts: sampler.Prompts
    ) -> sampler.Slots:
        """`slots` is donated; `prompts` as `blank_prompts` shapes them."""
        name = f"extend/{prompts.tokens.shape[-1]}"
        last = int((prompts.start + prompts.length).max()) - 1
        blocks = self._whole_int(last // self._config.cache_block + 1, np.int32)
        index = self._whole_int(pool, np.int32)
        return self._start(name, *weights, index, slots, self._placed(prompts), blocks)

    def clone(self, slots: sampler.Slots, batch: tuple[Any, ...]) -> sampler.Slots:
        """`slots` is donated; `batch`: sources, and what `blank_requests` shapes."""
        return self._start("clone", slots, *self._placed(batch))

    def move(
        self, slots: sampler.Slots, source: np.ndarray, slot: np.ndarray
    ) -> sampler.Slots:
        """`slots` is donated; from and to, as `blank_requests` shapes slots."""
        return self._start("move", slots, *self._placed((source, slot)))

    def decode(
        self,
        weights: Any,
        pool: int,
        slots: sampler.Slots,
        cancelled: np.ndarray,
        seed: int,
        width: int | None = None,
    ) -> tuple[sampler.Slots, sampler.Chunk]:
        """`slots` is donated. The chunk is NumPy, its rows in one axis: all of them,
        also if only `width` of each device are decoded (one of `widths`)."""
        width = width or self.rows
        name = "decode" if width == self.rows else f"narrow/{width}"
        slots, chunk = self._start(
            name,
            *weights,
            self._whole_int(pool, np.int32),
            slots,
            self._placed(cancelled.reshape(*self.grid, self.rows)),
            self._whole_int(seed, np.uint32),
        )
        chunk = jax.device_get(chunk)
        others = (0, self.rows - width)

        def whole(x: np.ndarray) -> np.ndarray:
            x = np.pad(x, ((0, 0), (0, 0), others) + ((0, 0),) * (x.ndim - 3))
            return x.reshape(-1, *x.shape[3:])

        return slots, jax.tree.map(whole, chunk)


@jax.named_scope("round")
def _rounded(weights: Any) -> Any:
    """Weights in int8; what stays as it is is a copy too."""
    return jax.tree.map(jnp.copy, int8.params(weights))


class _Pool:
    """One set of slots and the requests that wait for each slice of it.

    Slots are counted through: slice by slice, way by way.
    """

    def __init__(self, program: Program, group: int, number: int):
        slices, ways = program.grid
        self.program = program
        self.group = group
        self.number = number
        self.slots = program.empty()
        self.rows: list[_Row | None] = [None] * (slices * ways * program.rows)
        self.cancelled = np.zeros((len(self.rows),), bool)
        self.waiting: list[collections.deque[_Row]] = [
            collections.deque() for _ in range(slices)
        ]
        self.held: dict[_Key, int] = {}  # slots of conversations between two turns
        self.twins: dict[int, int] = {}  # slot -> the one with the same prompt

    @property
    def busy(self) -> bool:
        return any(self.waiting) or any(r is not None for r in self.rows)

    def occupied(self) -> set[int]:
        """Slots that are not free: rows are in them, or they are held."""
        rows = (slot for slot, row in enumerate(self.rows) if row is not None)
        return {*rows, *self.held.values()}

    def free(self, part: int) -> Iterator[int]:
        """Free slots of a slice, in turn from each way."""
        per_way, ways = self.program.rows, self.program.grid[1]
        first, occupied = part * ways * per_way, self.occupied()
        for row in range(per_way):
            for way in range(ways):
                slot = first + way * per_way + row
                if slot not in occupied:
                    yield slot

    def take(self, slot: int, row: _Row) -> None:
        """Puts a row into a slot."""
        self.rows[slot] = row
        self.cancelled[slot] = False  # that was about the slot's last row

    def vacate(self, slot: int) -> None:
        """A row has ended; its slot is free, unless its conversation goes on."""
        row, self.rows[slot] = self.rows[slot], None
        if row is not None and row.keep is not None:
            self.held[row.keep] = slot

    def release(self, conversation: _Key) -> None:
        """A conversation has no further turn."""
        self.held.pop(conversation, None)
        for row in [*itertools.chain(*self.waiting), *self.rows]:
            if row is not None and row.keep == conversation:
                row.keep = None

    def ready(self) -> list[int]:
        """Slots of the rows that can be decoded."""
        return [s for s, row in enumerate(self.rows) if row is not None and row.ready]

    def narrow(self) -> tuple[int, list[tuple[int, int]]]:
        """The fewest rows of a cell that can hold all that can be decoded, and which
        rows move for that, (from, to) slots: the pool's own list is moved already."""
        per_way = self.program.rows
        ready, occupied = self.ready(), self.occupied()

        def moves_to(width: int) -> list[tuple[int, int]] | None:
            moves = []
            for cell in range(0, len(self.rows), per_way):
                beyond = [s for s in ready if cell + width <= s < cell + per_way]
                free = [s for s in range(cell, cell + width) if s not in occupied]
                if len(free) < len(beyond):
                    return None
                moves += zip(beyond, free, strict=False)
            return moves

        tried = ((w, moves_to(w)) for w in self.program.widths)
        width, moves = next((w, m) for w, m in tried if m is not None)
        for source, slot in moves:
            self.rows[slot], self.rows[source] = self.rows[source], None
            self.cancelled[slot] = self.cancelled[source] = False
        return width, moves

    def cell(self, slot: int) -> tuple[int, int, int]:
        """(slice, way, row) of a slot."""
        part, rest = divmod(slot, self.program.grid[1] * self.program.rows)
        return (part, *divmod(rest, self.program.rows))


class Engine:
    """Batched sampling for a team.

    Use as `async with engine.running(trainable, frozen): ... await generate(...)`, the
    weights by group. `beside` is as for `Program`.
    """

    def __init__(
        self,
        team: Sequence[Policy],
        config: SamplerConfig,
        mesh: Mesh,
        *,
        seed: int,
        stop_ids: int,
        hosts: Hosts | None = None,
        beside: bool = False,
    ):
        self._hosts = hosts or OneHost()
        self._message = _Message()
        self._mine: dict[int, tuple[asyncio.Future[Sample], Options]] = {}
        self._numbers = itertools.count()
        self.beside = beside
        self._config = config
        self._seed = seed
        self._programs = [
            Program(policy, config, mesh, stop_ids, beside) for policy in team
        ]
        # Agent of the team -> its group, and its place there.
        self._seats = {
            member: (group, place)
            for group, policy in enumerate(team)
            for place, member in enumerate(policy.members)
        }
        self._pools: dict[tuple[int, int], _Pool] = {}
        self._weights: tuple[tuple[Any, Any], ...] | None = None  # by group
        self._error: Exception | None = None
        self._wake = asyncio.Event()
        self.stats = Stats()
        self._sampled = 0  # tokens, ever

    def lowered(
        self, trainable: Sequence[Any], frozen: Sequence[Any]
    ) -> dict[str, jax.stages.Lowered]:
        """Every program by name and group: "decode/0", "prefill/512/0"."""
        return {
            f"{name}/{g}": program
            for g, one in enumerate(self._programs)
            for name, program in one.lowered(trainable[g], frozen[g]).items()
        }

    def warm_up(self, trainable: Sequence[Any], frozen: Sequence[Any]) -> None:
        """Compiles every executable for arrays shaped and placed like these."""
        for program, own, base in zip(self._programs, trainable, frozen, strict=True):
            program.warm_up(own, base)

    # -- the asynchronous side -----------------------------------------------

    def running(
        self, trainable: Sequence[Any], frozen: Sequence[Any], *, donated: bool = False
    ) -> contextlib.AbstractAsyncContextManager[Engine]:
        """Serves `generate` with these weights, by group, until the block ends. If they
        will be `donated` meanwhile (an engine that is `beside`) this call copies
        them."""
        groups = zip(self._programs, trainable, frozen, strict=True)
        return self._serving(
            tuple(p.hand_over(*group, donated) for p, *group in groups)
        )

    @contextlib.asynccontextmanager
    async def _serving(self, weights: tuple[tuple[Any, Any], ...]):
        self._weights = weights
        self._message, self._mine = _Message(), {}
        self._error = None
        self._wake = asyncio.Event()
        driver = asyncio.create_task(self._drive())
        try:
            yield self
            if self._hosts.count > 1:
                self._message.closing = True  # the others may have episodes yet
                await driver  # raises if it was told to stop while nobody asked
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
        conversation: Conversation | None = None,
        *,
        last: bool = False,
    ) -> Sample:
        """Samples one action. Cancelled, it gives its slot back after the chunk that is
        under way.

        Args:
          agent: index into the team.
          prompt: [P] int32.
          options: how to sample.
          address: six integers that the row's randomness is folded from; see
            `sampler.Request`.
          conversation: what the prompt has in common with the turns so far is not
            computed again; one request at a time, always of one agent.
          last: the conversation's last turn, after which its slot is not held.

        Raises:
          PromptTooLong: the prompt, or prompt and limit together, do not fit.
          Stopped, HostLost: as `hosts.Hosts.gather`.
          RuntimeError: the driver has failed before, or the conversation's last
            request is still open.
        """
        if isinstance(self._error, (Stopped, HostLost)):
            raise self._error
        if self._error is not None:
            raise RuntimeError("the sampler's driver has failed") from self._error
        largest = self._config.prompt_buckets[-1]
        if len(prompt) > largest and not self._config.extend_buckets:
            raise PromptTooLong(
                f"{len(prompt)} tokens, but sampler.prompt_buckets ends at {largest}"
            )
        if len(prompt) + options.max_new > self._config.context:
            raise PromptTooLong(
                f"{len(prompt)} tokens and {options.max_new} new ones exceed "
                f"sampler.context={self._config.context}"
            )
        future = asyncio.get_running_loop().create_future()
        number = next(self._numbers)
        self._mine[number] = (future, options)
        # Others need not know.
        plain = dataclasses.replace(options, stopped_at=None, on_tokens=None)
        if conversation is not None and conversation.asking:
            raise RuntimeError(
                "a conversation's turns come one after the other; await the last one"
            )
        talk = conversation if self._config.extend_buckets else None
        request = _Request(
            *(number, agent, prompt, plain, address),
            conversation=None if talk is None else talk.number,
            cached=0 if talk is None else talk.common(prompt),
            last=last,
        )
        self._message.requests.append(request)
        self._wake.set()
        with _asking(conversation):
            sample = await future
        if talk is not None:  # the last new token has not been through the model
            talk.cached = np.concatenate([prompt, sample.token_ids[:-1]])
        return sample

    @contextlib.contextmanager
    def conversation(self) -> Iterator[Conversation]:
        """Turns of one agent, whose cache is kept from one to the next until the block
        ends, if there are `sampler.extend_buckets`. The slot is held meanwhile: what
        happens between two turns must not wait for another sample."""
        talk = Conversation(next(self._numbers))
        try:
            yield talk
        finally:
            self._message.over.append(talk.number)
            self._wake.set()

    def _enqueue(self, request: _Request, host: int) -> None:
        """Puts a request where its agent's rows wait, or into its own slot."""
        group, place = self._seats[request.agent]
        policy = self._programs[group].policy
        part, number = divmod(place, policy.agents // policy.layout.slices)
        number = number if policy.pools > 1 else 0  # else agents share the slots
        future, options = None, request.options
        if host == self._hosts.index:
            future, options = self._mine.pop(request.number)
        key = None if request.conversation is None else (host, request.conversation)
        keep = None if request.last else key
        row = _Row(place, request.prompt, options, request.address, future, keep)
        pool = self._pool(group, number)
        slot = pool.held.pop(key, None)
        if slot is None:
            pool.waiting[part].append(row)
            return
        row.filled = request.cached
        pool.take(slot, row)

    def _pool(self, group: int, number: int) -> _Pool:
        key = (group, number)
        if key not in self._pools:
            self._pools[key] = _Pool(self._programs[group], *key)
        return self._pools[key]

    async def _drive(self) -> None:
        try:
            while not await self._step():
                pass
        except Exception as e:
            self._fail(e)
            raise

    async def _step(self) -> bool:
        """One step of the schedule, the same on every host; whether it was the last."""
        if self._hosts.count == 1:
            await self._wake.wait()
        await asyncio.sleep(0)  # let every ready workflow ask first
        told = await self._hosts.gather(self._take_message())
        for host, message in enumerate(told):
            for group, number, slot in message.ended:
                pool = self._pools[group, number]
                pool.cancelled[slot] = True
                pool.vacate(slot)
            for request in message.requests:
                self._enqueue(request, host)
            for conversation, pool in itertools.product(
                message.over, self._pools.values()
            ):
                pool.release((host, conversation))
        pools, worked = [p for p in self._pools.values() if p.busy], False
        for pool in pools:
            self._admit(pool)
            filling = [s for s, r in enumerate(pool.rows) if r and not r.ready]
            worked |= bool(filling)
            if filling:
                with span("engine", "prefill"):
                    await asyncio.to_thread(self._fill, pool, filling)
            if not pool.ready():  # of long prompts only a piece is there
                continue
            worked = True
            with span("engine", "decode"):
                chunk = await asyncio.to_thread(self._advance, pool)
            self._harvest(pool, chunk)
        if worked:
            return False
        # Nobody asks, or all slots are held for a next turn.
        if self._hosts.count == 1:
            if not (self._message.requests or self._message.over):
                self._wake.clear()
            return False
        await asyncio.sleep(IDLE)
        return not pools and all(message.closing for message in told)

    def _take_message(self) -> _Message:
        told = self._message
        self._message = _Message(closing=told.closing)
        return told

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._settle(lambda future: future.set_exception(error))

    def _settle(self, how: Callable[[asyncio.Future[Sample]], object]) -> None:
        """Ends every request that is still open, so that nobody waits for ever."""
        for pool in self._pools.values():
            for row in [*itertools.chain(*pool.waiting), *pool.rows]:
                if row is not None and row.future and not row.future.done():
                    how(row.future)
        for future, _ in self._mine.values():
            if not future.done():
                how(future)
        self._mine = {}

    def _admit(self, pool: _Pool) -> None:
        """Moves waiting requests into free slots. Of those of a cell with one prompt in
        common, all but the first are its twins."""
        first: dict[tuple[Any, ...], int] = {}
        for part, waiting in enumerate(pool.waiting):
            if self._hosts.count == 1:  # others would have to be told
                asked = [row for row in waiting if not row.future.done()]
                waiting.clear()
                waiting.extend(asked)
            for slot in itertools.islice(pool.free(part), len(waiting)):
                row = waiting.popleft()
                pool.take(slot, row)
                key = (*pool.cell(slot)[:2], row.agent, row.prompt.tobytes())
                if first.setdefault(key, slot) != slot:
                    pool.twins[slot] = first[key]

    def _fill(self, pool: _Pool, filling: list[int]) -> None:
        """Brings the next piece of every prompt into the cache that is not all there,
        bucket by bucket. Twins get a copy of theirs when it is."""
        start = time.perf_counter()
        pieces = collections.defaultdict(list)
        for slot in filling:
            if slot not in pool.twins:
                pieces[self._program_for(pool.rows[slot])].append(slot)
        for (fill, bucket), slots in sorted(pieces.items()):
            program = getattr(pool.program, fill)
            for prompts in _batches(pool, slots, bucket):
                weights = self._weights[pool.group]
                pool.slots = program(weights, pool.number, pool.slots, prompts)
            for row in (pool.rows[s] for s in slots):
                length = min(bucket, len(row.prompt) - row.filled)
                row.filled += length
                self.stats.prefilled_tokens += length
        twins = [(a, b) for b, a in pool.twins.items() if pool.rows[a].ready]
        for batch in _copies(pool, twins):
            pool.slots = pool.program.clone(pool.slots, batch)
        for source, slot in twins:
            del pool.twins[slot]
            pool.rows[slot].filled = pool.rows[source].filled
        jax.block_until_ready(pool.slots.token)
        lengths = (len(r.prompt) for r in (pool.rows[s] for s in filling) if r.ready)
        self.stats.prompt_tokens += sum(lengths)
        self.stats.prefill_seconds += time.perf_counter() - start

    def _program_for(self, row: _Row) -> tuple[str, int]:
        """What brings the next piece of a row's prompt into the cache: the program's
        name, and its padded tokens."""
        name, buckets = "prefill", self._config.prompt_buckets
        if row.filled:
            name, buckets = "extend", self._config.extend_buckets
        left = len(row.prompt) - row.filled
        return name, next((b for b in buckets if left <= b), buckets[-1])

    def _advance(self, pool: _Pool) -> sampler.Chunk:
        start = time.perf_counter()
        width, moves = pool.narrow()
        for source, slot, _ in _copies(pool, moves):
            pool.slots = pool.program.move(pool.slots, source, slot)
        pool.slots, chunk = pool.program.decode(
            self._weights[pool.group],
            pool.number,
            pool.slots,
            pool.cancelled,
            self._seed,
            width,
        )
        pool.cancelled = np.zeros_like(pool.cancelled)
        steps, cells = int(chunk.emitted.max(initial=0)), np.prod(pool.program.grid)
        self.stats.row_steps += steps * width * int(cells)
        self.stats.decode_seconds += time.perf_counter() - start
        return chunk

    def _harvest(self, pool: _Pool, chunk: sampler.Chunk) -> None:
        for slot in pool.ready():
            row = pool.rows[slot]
            n = int(chunk.emitted[slot])
            self.stats.new_tokens += n
            self._sampled += n
            done, kept = bool(chunk.done[slot]), None
            if done:
                pool.vacate(slot)
            if row.future is None or row.ended:
                continue
            row.tokens += chunk.tokens[slot, :n].tolist()
            row.logprobs += chunk.logprobs[slot, :n].tolist()
            given_up = row.future.done()  # its workflow was cancelled
            if row.options.stopped_at and not given_up:
                kept = row.options.stopped_at(row.tokens)
            if row.options.on_tokens and not given_up:
                row.options.on_tokens(row.tokens[:kept])
            if kept is None and not (done or given_up):
                continue
            if not done:  # nobody else can know
                row.ended = True
                self._message.ended.append((pool.group, pool.number, slot))
            if not given_up:
                row.future.set_result(_sample(row, kept))

    def load(self) -> Load:
        """How busy it is; may be asked from another thread."""
        waiting, sampling = np.zeros((2, len(self._seats)), int)
        members = [program.policy.members for program in self._programs]
        for pool in [*self._pools.values()]:
            rows = [row for queue in pool.waiting for row in [*queue]]
            for count, found in ((waiting, rows), (sampling, [*pool.rows])):
                for row in found:
                    if row is not None:
                        count[members[pool.group][row.agent]] += 1
        return Load(tuple(waiting.tolist()), tuple(sampling.tolist()), self._sampled)

    @property
    def error(self) -> Exception | None:
        """What its driver has failed of, if it has: nothing is sampled any more."""
        return self._error

    def take_stats(self) -> Stats:
        """The counts so far; starts new ones."""
        stats, self.stats = self.stats, Stats()
        return stats


def _batches(pool: _Pool, slots: list[int], bucket: int) -> Iterator[sampler.Prompts]:
    """The next pieces of the prompts in `slots`, at most `bucket` tokens of each, in
    batches with as many rows of every cell as fit."""
    for mine in _by_cell(pool, slots):
        prompts = pool.program.blank_prompts(bucket)
        for at, slot in mine:
            row = pool.rows[slot]
            piece = row.prompt[row.filled :][:bucket]
            prompts.tokens[at][: len(piece)] = piece
            prompts.start[at], prompts.length[at] = row.filled, len(piece)
            prompts.ends[at] = row.filled + len(piece) == len(row.prompt)
            _write_request(prompts.slot, prompts.request, at, pool, slot)
        yield prompts


def _copies(pool: _Pool, pairs: list[tuple[int, int]]) -> Iterator[tuple[Any, ...]]:
    """Copies of rows, (from, to), each with as many of every cell as fit: sources,
    slots, and what their rows ask for."""
    source_of = {slot: source for source, slot in pairs}
    for mine in _by_cell(pool, [*source_of]):
        slot_P, request = pool.program.blank_requests()
        source_P = slot_P.copy()
        for at, slot in mine:
            source_P[at] = pool.cell(source_of[slot])[2]
            _write_request(slot_P, request, at, pool, slot)
        yield source_P, slot_P, request


def _by_cell(
    pool: _Pool, slots: list[int]
) -> Iterator[list[tuple[tuple[int, int, int], int]]]:
    """((slice, way, number), slot), in portions of `prefill_rows` of every cell."""
    cells = collections.defaultdict(list)
    for slot in slots:
        cells[pool.cell(slot)[:2]].append(slot)
    width = pool.program.prefill_rows
    for first in range(0, max(map(len, cells.values()), default=0), width):
        yield [
            ((*cell, i), slot)
            for cell, mine in cells.items()
            for i, slot in enumerate(mine[first : first + width])
        ]


def _write_request(
    slot_P: np.ndarray,
    request: sampler.Request,
    at: tuple[int, int, int],
    pool: _Pool,
    slot: int,
) -> None:
    row, options = pool.rows[slot], pool.rows[slot].options
    slot_P[at] = pool.cell(slot)[2]
    request.address[at] = row.address
    request.agent[at] = row.agent
    request.temperature[at] = options.temperature
    request.top_k[at] = options.top_k
    request.top_p[at] = options.top_p
    request.min_new[at] = options.min_new
    request.max_new[at] = options.max_new
    request.stop_ids[at][: len(options.stop_ids)] = options.stop_ids


def _sample(row: _Row, kept: int | None) -> Sample:
    tokens = np.asarray(row.tokens[:kept], np.int32)
    logprobs = np.asarray(row.logprobs[:kept], np.float32)
    stopped = kept is not None or (
        len(tokens) > 0 and int(tokens[-1]) in row.options.stop_ids
    )
    return Sample(tokens, logprobs, "stop" if stopped else "length")
