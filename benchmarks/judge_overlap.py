"""What it saves not to wait for the judge: one MathChat batch, two schedules.

python benchmarks/judge_overlap.py --latency=2 --trajectories=8

A judge that takes `latency` seconds a call, at most 32 at a time, scores every action
of a batch by the random tiny team. Ours: agents go on while verdicts are on their way.
The other: each action is judged before the next agent of its trajectory acts, as the
authors' code does. Same sampler, same tasks, same random addresses, hence the same
actions; the two alternate, and the ratio is the median of the pairs'. The code
executor's samples are replaced by a program, which a random model does not write, so
that every trajectory has four actions. With more than 32 calls the judge's throughput
bounds both, and the ratio falls.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from mappa_jax.commands import common

common.prepare_environment()

from absl import flags  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
_LATENCY = flags.DEFINE_float("latency", 2.0, "Seconds of a judge call.")
_COUNT = flags.DEFINE_integer("trajectories", 8, "Of the batch; even.")
_PAIRS = flags.DEFINE_integer("pairs", 5, "Times that the two are compared.")
_JSON = flags.DEFINE_string("json", "", "Where to write the numbers, if anywhere.")
IN_FLIGHT = 32


class SlowJudge:
    """The rubric after a pause; says when all calls about an episode are done."""

    def __init__(self, judge: Any, latency: float):
        self._judge = judge
        self._latency = latency
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._open: dict[tuple[str, str], int] = {}
        self._changed = asyncio.Condition()

    async def score(self, request: Any) -> Any:
        _, _, task, sample, _ = request.address.split("/")
        episode = (task, sample)
        self._open[episode] = self._open.get(episode, 0) + 1
        async with self._slots:
            await asyncio.sleep(self._latency)
            verdict = await self._judge.score(request)
        async with self._changed:
            self._open[episode] -= 1
            self._changed.notify_all()
        return verdict

    async def judged(self, episode: tuple[str, str]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._open.get(episode))


class Waiting:
    """An engine whose requests wait until their episode's actions are judged."""

    def __init__(self, engine: Any, judge: SlowJudge, episodes: dict[Any, Any]):
        self._engine, self._judge, self._episodes = engine, judge, episodes

    async def generate(self, agent: int, prompt: Any, options: Any, address: Any):
        await asyncio.sleep(0)  # let the call about the last action begin
        await self._judge.judged(self._episodes[address[1:3]])
        return await self._engine.generate(agent, prompt, options, address)


class Coding:
    """A tokenizer in whose eyes everything sampled is a program."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def decode(self, ids: Any) -> str:
        return f"```python\nprint({len(ids)})\n```"


async def measure(latency: float, count: int, pairs: int) -> dict[str, Any]:
    """Seconds of both schedules, pair by pair."""
    from mappa_jax.assemble import seat_agents
    from mappa_jax.commands.assembly import assemble
    from mappa_jax.config import resolve
    from mappa_jax.plugins import run_file
    from mappa_jax.rollout import rollout
    from mappa_jax.sampling.team import Address
    from mappa_jax.testing import Silent

    config = run_file(ROOT / "configs" / "tiny.py").get_config()
    config.data.prompts_per_step = count // 2
    config.data.samples_per_prompt = 2
    config.sampler.slots = count
    config = seat_agents(resolve(config))
    cache = Path(common.CACHE).expanduser()
    with tempfile.TemporaryDirectory() as folder:
        async with assemble(config, Path(folder), cache, Silent()) as (run, state, _):
            tasks = run.data.train.batch(0)
            judge = SlowJudge(run.stage.judge, latency)
            addresses = [Address(1, t, s, False) for t in tasks for s in range(2)]
            episodes = {a.of(0, 0)[1:3]: (a.task.id, str(a.sample)) for a in addresses}
            coder = run.stage.seats["coder"]
            coding = dataclasses.replace(coder, tokenizer=Coding(coder.tokenizer))
            seats = run.stage.seats | {"coder": coding}
            ours = dataclasses.replace(run.stage, judge=judge, seats=seats)
            theirs = dataclasses.replace(
                ours, engine=Waiting(run.stage.engine, judge, episodes)
            )

            async def once(stage: Any) -> tuple[float, float, list[Any]]:
                async with run.stage.engine.running(state.trainable, run.frozen):
                    rolling = await rollout(
                        stage,
                        tasks,
                        samples=2,
                        step=1,
                        evaluation=False,
                        on_done=lambda: None,
                    )
                    rolled = await rolling.close()
                texts = [a.text for t in rolled.trajectories for a in t.actions]
                exposed = rolled.judge_exposed_seconds
                return rolled.seconds + exposed, exposed, texts

            await once(ours)  # warm
            rows = [(await once(ours), await once(theirs)) for _ in range(pairs)]
    if any(a[2] != b[2] for a, b in rows):
        raise RuntimeError("the two schedules sampled different actions")
    return {
        "latency_s": latency,
        "trajectories": count,
        "actions": len(rows[0][0][2]),
        "ours_s": [round(a[0], 2) for a, _ in rows],
        "one_by_one_s": [round(b[0], 2) for _, b in rows],
        "exposed_ours_s": round(statistics.median(a[1] for a, _ in rows), 2),
        "ratio": round(statistics.median(b[0] / a[0] for a, b in rows), 2),
    }


def main(argv: list[str]) -> None:
    common.begin(argv)
    found = asyncio.run(measure(_LATENCY.value, _COUNT.value, _PAIRS.value))
    print(json.dumps(found, indent=1))
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    common.run_app(main)
