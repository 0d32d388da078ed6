"""What an iteration asks of the compiled programs: calls, and turns of their loops."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence

from mappa_jax.config import AgentConfig, Config, ConfigError
from mappa_jax.learning.objective import HEAD_BLOCK
from mappa_jax.models.policy import Policy
from mappa_jax.plan.count import Expected

FILLING = ("prefill", "extend")  # programs that bring prompts into the cache


@dataclasses.dataclass(frozen=True)
class Load:
    """Lengths that a plan assumes of every action.

    Attributes:
      prompt: tokens of a prompt.
      new: sampled tokens, by agent in the team's order.
    """

    prompt: int
    new: tuple[int, ...]


def assumed(config: Config, prompt: int = 0, new: int = 0) -> Load:
    """Actions of these lengths; 0: each as long as the config lets it be.

    Raises:
      ConfigError: they do not fit the sampler's shapes.
    """
    limits = [agent.max_new_tokens for agent in config.agents.values()]
    tokens = tuple(min(new, most) if new else most for most in limits)
    room, key = config.sampler.context - max(tokens), "context"
    longest = config.sampler.prompt_buckets[-1]
    if longest < room and not config.sampler.extend_buckets:
        room, key = longest, "prompt_buckets"
    if prompt > room:
        raise ConfigError(
            f"--prompt_tokens={prompt}: sampler.{key} leaves room for {room}"
        )
    return Load(prompt or room, tokens)


@dataclasses.dataclass(frozen=True)
class Use:
    """How often a program is called in an iteration, and how its loops turn."""

    calls: float
    expected: Expected = Expected()


def actions(config: Config) -> list[int]:
    """Actions of each agent in an iteration, all turns taken."""
    return [rollouts(config) * a.max_turns for a in config.agents.values()]


def rollouts(config: Config) -> int:
    return config.data.prompts_per_step * config.data.samples_per_prompt


def pieces(config: Config, prompt: int) -> list[tuple[str, int]]:
    """How a prompt comes into the cache: the programs, each with its padded tokens."""

    def padded(length: int, buckets: Sequence[int]) -> int:
        return next((b for b in buckets if length <= b), buckets[-1])

    out = [("prefill", padded(prompt, config.sampler.prompt_buckets))]
    while (left := prompt - sum(length for _, length in out)) > 0:
        out.append(("extend", padded(left, config.sampler.extend_buckets)))
    return out


def _in_turn(policy: Policy, calls: Sequence[float]) -> float:
    """Calls of a group from those that each of its agents would need alone.

    Agents on different slices of the mesh are served by one call; the pools of one
    slice are served in turn, and so are the agents of one pool.
    """
    slices, pools = policy.layout.slices, policy.pools
    per_slice = [calls[i :: len(calls) // slices] for i in range(len(calls) // slices)]
    if pools > 1 or policy.agents == slices:  # an agent of every slice in each call
        return sum(map(max, per_slice))
    size = len(calls) // slices
    return max(sum(calls[i * size : (i + 1) * size]) for i in range(slices))


def fill(config: Config, policy: Policy, load: Load, name: str, length: int) -> Use:
    """A program that brings prompts into the cache, or pieces of them: full calls, for
    the prompts of all trajectories arrive together. What an agent's turns or a task's
    samples have in common counts every time."""
    ways = policy.layout.ways
    rows = -(-config.sampler.prefill_rows // ways) * ways
    every = actions(config)
    calls = _in_turn(policy, [-(-every[m] // rows) for m in policy.members])
    done, blocks = 0, []
    for piece in pieces(config, load.prompt):
        done += piece[1]
        if piece == (name, length):
            blocks.append(math.ceil(done / config.sampler.cache_block))
    mean = (sum(blocks) / len(blocks),) if blocks else ()
    return Use(calls * len(blocks), Expected(mean if name == "extend" else (), 0))


def decode(config: Config, policy: Policy, load: Load) -> Use:
    """Chunks with as many rows in flight as there are trajectories or slots.

    The cache is read up to the middle of the answer; conditionals take their first
    branch (no filter) unless an agent asks for a filter.
    """
    sampler, every = config.sampler, actions(config)
    together = min(rollouts(config), sampler.slots)
    chunks = [
        -(-every[m] // together) * -(-load.new[m] // sampler.chunk)
        for m in policy.members
    ]
    middle = load.prompt + max(load.new[m] for m in policy.members) / 2
    blocks = math.ceil(middle / sampler.cache_block)
    filters = any(_filters(a) for a in config.agents.values())
    expected = Expected((sampler.chunk, blocks), None if filters else 0)
    return Use(_in_turn(policy, chunks), expected)


def _filters(agent: AgentConfig) -> bool:
    return bool(agent.top_k or agent.top_p < 1 or agent.min_new_tokens)


def steps(config: Config) -> int:
    """Mini-batches of an iteration, epochs not counted."""
    agents = zip(actions(config), config.agents.values(), strict=True)
    most = max(n for n, agent in agents if agent.trainable)
    return -(-most // config.optimizer.actions_per_update)


def microbatches(config: Config, policy: Policy, load: Load) -> float:
    """Micro-batches that a lane goes through in a mini-batch, see `_lanes`: the mean
    over mini-batches and over the lanes of a slice."""
    found = _lanes(config, policy, load)
    return sum(map(sum, found)) / sum(map(len, found))


def _lanes(config: Config, policy: Policy, load: Load) -> list[list[int]]:
    """Micro-batches by mini-batch and lane of a slice, one lane after another: of the
    slices' lanes that lie side by side, the one with most (`Policy.over_lanes`)."""
    size, agents = config.optimizer.actions_per_update, list(config.agents.values())
    every, each = actions(config), policy.lanes // policy.layout.slices
    out = []
    for step in range(steps(config)):
        rows = [0] * policy.lanes
        for place, member in enumerate(policy.members):
            left = every[member] - step * size
            if agents[member].trainable and left > 0:
                more = _rows(config, min(left, size), load, member)
                rows[policy.lane_of(place)] += more
        turns = [-(-n // config.packing.rows) for n in rows]
        out.append([max(turns[i::each]) for i in range(each)])
    return out


def _rows(config: Config, actions: int, load: Load, member: int) -> int:
    """Rows that so many actions fill, none of them sharing a prefix.

    Raises:
      ConfigError: as `_fit`.
    """
    return -(-actions // _fit(config, load, member))


def _fit(config: Config, load: Load, member: int) -> int:
    """How many actions fit into a row.

    Raises:
      ConfigError: not one.
    """
    packing, new = config.packing, load.new[member]
    tokens = load.prompt + new - 1
    fit = min(packing.row_tokens // tokens, packing.row_action_tokens // new)
    if fit < 1:
        raise ConfigError(
            f"packing.row_tokens={packing.row_tokens}: an action of {tokens} tokens "
            "does not fit into a row"
        )
    return fit


def head_blocks(config: Config, policy: Policy, load: Load) -> float:
    """Blocks of action tokens that the head goes through in a full micro-batch
    (`objective.head_blocks`): the mean over those that the lanes of a slice go through,
    0 without any."""
    rows = -(-config.packing.rows // policy.layout.ways)
    each = policy.lanes // policy.layout.slices
    blocks = [0] * each
    for place, member in enumerate(policy.members):
        lane = policy.lane_of(place) % each
        tokens = rows * _fit(config, load, member) * load.new[member]
        blocks[lane] = max(blocks[lane], -(-tokens // HEAD_BLOCK))
    turns = [sum(lane) for lane in zip(*_lanes(config, policy, load), strict=True)]
    return sum(map(operator.mul, turns, blocks)) / max(sum(turns), 1)


def parts(name: str) -> tuple[str, int, int]:
    """(kind, padded tokens of what fills the cache or 0, group of agents) of a
    program's name: "prefill/512/1", "decode", where the first group goes without its
    number."""
    kind, *numbers = name.split("/")
    length = int(numbers.pop(0)) if kind in FILLING else 0
    return kind, length, int(numbers[0]) if numbers else 0


def uses(
    config: Config, team: Sequence[Policy], load: Load, names: Sequence[str]
) -> Mapping[str, Use]:
    """The use of every program that an iteration calls, by the program's name.

    Names are those of `Engine.lowered` and `Learner.lowered`; prefills of other lengths
    than the load's are called by nobody.

    Raises:
      KeyError: a name is not known.
    """
    updates = steps(config)
    turns = [
        (microbatches(config, policy, load), head_blocks(config, policy, load))
        for policy in team
    ]
    out: dict[str, Use] = {}
    for name in names:
        kind, length, group = parts(name)
        if kind in FILLING:
            out[name] = fill(config, team[group], load, kind, length)
        elif kind == "decode":
            out[name] = decode(config, team[group], load)
        elif kind in ("reference", "logprobs"):
            out[name] = Use(updates, Expected(turns[group]))
        elif kind == "update":  # groups side by side: the longest of them
            calls = updates * config.optimizer.epochs
            out[name] = Use(calls, Expected(max(turns)))
        elif kind in ("credit", "round"):
            out[name] = Use(1)
        else:
            raise KeyError(f"no use is known of the program {name!r}")
    return out
