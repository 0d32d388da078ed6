"""Experiment 2: how much does one rollout say? Nothing is trained.

  python benchmarks/experiments/signal_per_rollout.py --config=configs/bytes.py \\
    --agents=runs/warm/agents --out=docs/experiments

At a fixed policy a pool of trajectories is sampled, judged and graded. For every action
the gradient of its log-probability is taken once, and kept as a sketch: each weight is
added, with a random sign, to one of --sketch numbers (Charikar et al. 2002), so that
inner products stay what they were, within 1 / sqrt(sketch) of the lengths. On the
policy that has sampled, an update's gradient is then a sum over actions, weighed by
advantages that the product's own code gives (learning/credit.py), and may be had for
any estimator and any number of trajectories at no cost.

Half of the pool is for the truth of a scheme: its gradient from all of that half. From
the other half come estimates of n trajectories (whole groups of one problem's samples).
Reported for each agent: the mean cosine of estimate and truth; their signal-to-noise
ratio |truth|^2 / E|estimate - truth|^2, both of length one in the mean; and the cosine
with the outcome's own gradient (REINFORCE, outcome to all), the direction of success.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mappa_jax.commands import common

common.prepare_environment()

from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config", None, "The team's config file.")
_AGENTS = flags.DEFINE_string("agents", "", "A folder with a folder for each agent.")
_OUT = flags.DEFINE_string("out", None, "Where signal.json, .md and .png go.")
_PROBLEMS = flags.DEFINE_integer("problems", 512, "Of the pool.", lower_bound=8)
_SKETCH = flags.DEFINE_integer("sketch", 4096, "Numbers of a gradient's sketch.")
_DRAWS = flags.DEFINE_integer("draws", 64, "Estimates of every n.", lower_bound=2)
_CACHE = flags.DEFINE_string("cache_dir", common.CACHE, "Weights and programs.")
flags.mark_flags_as_required(["config", "out"])

SIZES = (4, 8, 16, 32, 64, 128, 256)
SCHEMES: dict[str, dict[str, Any]] = {
    "process": {},
    "outcome": {"process_weight": 0.0, "outcome_weight": 1.0},
    "both": {"outcome_weight": 1.0},
}
ESTIMATORS = ("reinforce_pp", "reinforce", "rloo", "grpo", "agent_baseline")
BATCH = 8  # actions whose gradients exist at a time


@dataclasses.dataclass(frozen=True)
class Pool:
    """Every agent's actions, as arrays of one row an action.

    Attributes:
      problem: [N] which problem.
      rewards: by scheme: [N].
      group, mask: as of `learning.batch.Actions`, [N] and [N, C].
      kind: [N].
      sketch: [N, K]: of the gradient of an action's log-probability.
    """

    problem: Any
    rewards: Mapping[str, Any]
    group: Any
    mask: Any
    kind: Any
    sketch: Any


async def sample(config: Any, models: Any, cache: Path, problems: int) -> Any:
    """Trajectories of the team as it starts; and its weights."""
    from mappa_jax.commands.assembly import stages
    from mappa_jax.data import load_data
    from mappa_jax.hosts import OneHost
    from mappa_jax.rollout import rollout

    tasks = load_data(config.data).train.tasks[:problems]
    trainable, frozen = models.init_weights(config)
    with tempfile.TemporaryDirectory() as folder:
        opened = stages(config, models, cache, workdir=Path(folder), hosts=OneHost())
        async with opened as (stage, _):
            stage.engine.warm_up(trainable, frozen)
            async with stage.engine.running(trainable, frozen):
                rolling = await rollout(
                    stage,
                    tasks,
                    samples=config.data.samples_per_prompt,
                    step=1,
                    evaluation=False,
                    on_done=lambda: None,
                )
            rolled = await rolling.close()
    return rolled.trajectories, trainable, frozen


def pools(
    config: Any, models: Any, trajectories: Any, weights: Any, sketch: int
) -> list[Pool]:
    """A pool for each agent."""
    import numpy as np

    from mappa_jax.learning import batch as batches

    names = list(config.agents)
    problems = {t.task.id: i for i, t in enumerate(trajectories)}
    owner = {id(a): problems[t.task.id] for t in trajectories for a in t.actions}
    most = max(
        sum(a.agent == name for t in trajectories for a in t.actions) for name in names
    )
    members = tuple(range(len(names)))
    group = batches.GroupShape(members, frozenset(members), len(names), most)
    packing = dataclasses.replace(
        config.packing, rows=1, row_tokens=config.sampler.context
    )
    longest = max(agent.max_new_tokens for agent in config.agents.values())
    shape = batches.Shape(most, longest, packing, (group,))
    packed = {
        name: batches.pack(
            trajectories,
            names,
            shape,
            reward=dataclasses.replace(config.reward, **scheme),
            objective=config.objective,
            actions_per_update=most,
            rng=np.random.default_rng(0),
        )
        for name, scheme in SCHEMES.items()
    }
    first = packed["process"]
    for name, other in packed.items():
        if (other.actions.mask != first.actions.mask).any():
            raise ValueError(f"{name!r} leaves out other actions than 'process' does")
    out = []
    for agent, _ in enumerate(names):
        ((minibatch,),) = first.minibatches
        slots = sorted(
            (s for s in minibatch.slots if s.agent == agent), key=lambda s: s.number
        )
        rows = np.asarray([s.number for s in slots])
        arrays = first.actions
        out.append(
            Pool(
                problem=np.asarray([owner[id(s.action)] for s in slots]),
                rewards={k: p.actions.reward[agent, rows] for k, p in packed.items()},
                group=arrays.group[agent, rows],
                mask=arrays.mask[agent, rows],
                kind=arrays.kind[agent, rows],
                sketch=sketches(
                    *(config, models, weights, agent),
                    [s.action for s in slots],
                    sketch,
                ),
            )
        )
    return out


def sketches(
    config: Any, models: Any, weights: Any, agent: int, actions: Any, size: int
) -> Any:
    """[N, size] sketches of the gradients of the actions' log-probabilities."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from mappa_jax.models.decoder import Decoder, logits
    from mappa_jax.models.policy import agent_params

    place = next(
        (g, group.members.index(agent))
        for g, group in enumerate(models.team)
        if agent in group.members
    )
    group = models.team[place[0]]
    trainable, frozen = weights
    params = agent_params(group, trainable[place[0]], frozen[place[0]], place[1])
    model, length = Decoder(group.cfg), config.sampler.context
    leaves = jax.tree.leaves(params)
    rng = np.random.default_rng(0)
    buckets = [jnp.asarray(rng.integers(0, size, x.size, np.int32)) for x in leaves]
    signs = [jnp.asarray(rng.choice([-1.0, 1.0], x.size).astype("f")) for x in leaves]

    def logprob(params, tokens, target, mask, temperature):
        row = jnp.arange(length)[None]
        hidden, _ = model.apply(
            {"params": params}, tokens[None], row, jnp.full((1, length), length)
        )
        scores = logits(params, group.cfg, hidden[0]) / temperature
        logp = jnp.take_along_axis(jax.nn.log_softmax(scores), target[:, None], 1)
        return (logp[:, 0] * mask).sum()

    def one(*row):
        grads = jax.tree.leaves(jax.grad(logprob)(params, *row))
        return sum(
            jax.ops.segment_sum(g.reshape(-1) * s, b, size)
            for g, s, b in zip(grads, signs, buckets, strict=True)
        )

    def arrays(action: Any) -> tuple[Any, ...]:
        ids = np.concatenate([action.prompt_ids, action.token_ids])
        tokens, target = np.zeros((2, length), np.int32)
        mask = np.zeros(length, np.float32)
        tokens[: len(ids) - 1] = ids[:-1]
        target[: len(ids) - 1] = ids[1:]
        mask[len(action.prompt_ids) - 1 : len(ids) - 1] = 1.0
        return tokens, target, mask, np.float32(action.temperature or 1.0)

    many = jax.jit(jax.vmap(one))
    found = []
    for at in range(0, len(actions), BATCH):
        part = [arrays(a) for a in actions[at : at + BATCH]]
        part += [part[-1]] * (BATCH - len(part))
        found.append(np.asarray(many(*map(np.stack, zip(*part, strict=True)))))
    return np.concatenate(found)[: len(actions)]


def gradient(pool: Pool, rows: Any, scheme: str, estimator: str) -> Any:
    """[K]: the sketch of the update's gradient from the actions `rows`, without KL; the
    loss is the mean over their tokens (aggregation "token")."""
    import numpy as np

    size = 1 << (len(rows) - 1).bit_length()  # few shapes, few programs

    def padded(values: Any) -> Any:
        return np.pad(values, [(0, size - len(rows))] + [(0, 0)] * (values.ndim - 1))

    def numbered(values: Any) -> Any:
        return padded(np.unique(values[rows], return_inverse=True)[1])

    mask = pool.mask[rows]
    advantage = _advantages(estimator)(
        padded(pool.rewards[scheme][rows]),
        np.zeros_like(padded(mask)),
        padded(mask),
        numbered(pool.group),
        numbered(pool.kind),
    )
    # Without KL all tokens of an action have one advantage.
    weights = np.asarray(advantage)[: len(rows), 0]
    return weights @ pool.sketch[rows] / mask.sum()


@functools.cache
def _advantages(estimator: str) -> Any:
    import jax

    from mappa_jax.learning import credit

    return jax.jit(
        functools.partial(
            credit.advantages, estimator=estimator, weight="token", beta=0.0
        )
    )


def measure(pool: Pool, per_problem: int, draws: int) -> dict[str, Any]:
    """Cosines and signal-to-noise ratios of an agent, by scheme, estimator and n."""
    import numpy as np

    problems = np.unique(pool.problem)
    order = np.random.default_rng(0).permutation(problems)
    half = len(order) // 2
    truth_of = np.flatnonzero(np.isin(pool.problem, order[:half]))
    rest = order[half:]
    by_problem = {p: np.flatnonzero(pool.problem == p) for p in rest}
    success = gradient(pool, truth_of, "outcome", "reinforce")
    out = {}
    for scheme in SCHEMES:
        for estimator in ESTIMATORS:
            truth = gradient(pool, truth_of, scheme, estimator)
            all_rest = np.concatenate([by_problem[p] for p in rest])
            other = gradient(pool, all_rest, scheme, estimator)
            row = {
                "ceiling": cosine(truth, other),
                "truth with success": cosine(truth, success),
                "n": {},
            }
            for n in SIZES:
                count = max(n // per_problem, 1)
                if count > len(rest):
                    continue
                rng = np.random.default_rng(n)  # the same draws for every scheme
                found = [
                    gradient(
                        pool,
                        np.concatenate(
                            [by_problem[p] for p in rng.permutation(rest)[:count]]
                        ),
                        scheme,
                        estimator,
                    )
                    for _ in range(draws)
                ]
                row["n"][str(n)] = estimates(np.stack(found), truth, success)
            out[f"{scheme}, {estimator}"] = row
    return out


def estimates(found: Any, truth: Any, success: Any) -> dict[str, float | None]:
    """Of [draws, K] estimates; no ratio where there is no gradient."""
    import numpy as np

    cosines = np.asarray([cosine(g, truth) for g in found])
    lengths = np.linalg.norm(found.mean(0)), np.linalg.norm(truth)
    snr = None  # of nothing
    if min(lengths) > 0:
        noise = ((found / lengths[0] - truth / lengths[1]) ** 2).sum(1).mean()
        snr = round(float(1 / noise), 5)
    return {
        "cosine": round(float(cosines.mean()), 4),
        "cosine_error": round(float(cosines.std() / np.sqrt(len(found))), 4),
        "snr": snr,
        "with_success": round(float(np.mean([cosine(g, success) for g in found])), 4),
    }


def cosine(a: Any, b: Any) -> float:
    """0 where one of them is nothing."""
    import numpy as np

    length = np.linalg.norm(a) * np.linalg.norm(b)
    return round(float(a @ b / length), 4) if length else 0.0


def markdown(found: Mapping[str, Any], n: int) -> str:
    lines = [
        "| agent | scheme, estimator | "
        + " | ".join(f"n={k}" for k in SIZES)
        + f" | SNR at {n} | with success at {n} | ceiling |",
        "|---|---|" + "---|" * (len(SIZES) + 3),
    ]
    for agent, rows in found.items():
        for name, row in rows.items():
            at = row["n"]
            known = (at.get(str(k)) for k in SIZES)
            cells = ["-" if one is None else f"{one['cosine']:.2f}" for one in known]
            extra = at.get(str(n), {})
            snr, success = (
                "-" if extra.get(key) is None else f"{extra[key]:.{digits}f}"
                for key, digits in (("snr", 3), ("with_success", 2))
            )
            lines.append(
                f"| {agent} | {name} | {' | '.join(cells)} | {snr} | {success} | "
                f"{row['ceiling']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def draw(found: Mapping[str, Any], out: Path) -> None:
    """A panel for each agent: cosine over n, of REINFORCE++ by scheme."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(12, 4.2), sharey=True)
    for panel, (agent, rows) in zip(panels, found.items(), strict=True):
        for scheme in SCHEMES:
            at = rows[f"{scheme}, reinforce_pp"]["n"]
            x = [int(n) for n in at]
            y = [row["cosine"] for row in at.values()]
            error = [2 * row["cosine_error"] for row in at.values()]
            panel.errorbar(x, y, yerr=error, marker="o", capsize=3, label=scheme)
        panel.set(xscale="log", xlabel="trajectories", title=agent, ylim=(-0.1, 1))
        panel.set_xticks(SIZES, [str(n) for n in SIZES])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("cosine with the pool's gradient")
    panels[-1].legend()
    figure.tight_layout()
    figure.savefig(out, dpi=120)


def main(argv: list[str]) -> None:
    common.begin(argv)
    from mappa_jax import assemble
    from mappa_jax.config import ConfigError

    config = assemble.seat_agents(common.resolve_flag(_CONFIG.value))
    if _AGENTS.value:
        agents = {
            name: dataclasses.replace(agent, model=f"{_AGENTS.value}/{name}")
            for name, agent in config.agents.items()
        }
        config = dataclasses.replace(config, agents=agents)
    if config.mode != "full":
        raise ConfigError(f"config.mode={config.mode!r}: this is for 'full'")
    out, cache = Path(_OUT.value), Path(_CACHE.value).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    assemble.enable_compilation_cache(cache / "xla")
    models = assemble.load_models(config, cache)
    trajectories, *weights = asyncio.run(sample(config, models, cache, _PROBLEMS.value))
    outcomes = [t.outcome.score for t in trajectories if t.outcome is not None]
    success = sum(outcomes) / len(outcomes)
    print(f"{len(trajectories)} trajectories, {success:.3f} of them right", flush=True)
    by_agent = pools(config, models, trajectories, weights, _SKETCH.value)
    found = {
        name: measure(pool, config.data.samples_per_prompt, _DRAWS.value)
        for name, pool in zip(config.agents, by_agent, strict=True)
    }
    about = {"trajectories": len(trajectories), "success": success}
    (out / "signal.json").write_text(
        json.dumps({"about": about, "agents": found}, indent=1) + "\n"
    )
    text = markdown(found, 32)
    (out / "signal.md").write_text(text)
    draw(found, out / "signal.png")
    print(text)


if __name__ == "__main__":
    common.run_app(main)
