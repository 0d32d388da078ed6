"""Puts the parts of a run together, checking each before the first iteration."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from mappa_jax import assemble as parts
from mappa_jax.answers import Grader
from mappa_jax.checkpoints import Checkpoints
from mappa_jax.commands import common
from mappa_jax.config import Config, JudgeConfig
from mappa_jax.data import load_data
from mappa_jax.grading import AnyGrader
from mappa_jax.hosts import Hosts, OneHost
from mappa_jax.judges import Judge, JudgeError, Ledger, make_judge
from mappa_jax.judges.prompts import hash_templates, load_templates
from mappa_jax.judges.registry import asks_a_model, is_free
from mappa_jax.learning.update import Learner, TeamState, init_state
from mappa_jax.loggers import open_loggers
from mappa_jax.metrics import MetricWriter
from mappa_jax.remote import Workdir
from mappa_jax.rollout import Stage
from mappa_jax.tabular.submission import SubmissionGrader
from mappa_jax.tools import make_sandbox
from mappa_jax.train import Progress, Run, check_best, check_bias, owes_evaluation
from mappa_jax.workflows import find_workflow
from mappa_jax.workflows.base import Workflow, brief, seated

log = logging.getLogger(__name__)
ONE_HOST = OneHost()


@contextlib.asynccontextmanager
async def stages(
    config: Config,
    models: parts.Models,
    cache: Path,
    *,
    workdir: Path | None,
    hosts: Hosts,
) -> AsyncIterator[tuple[Stage, Stage]]:
    """The stage of training and that of evaluation, which share an engine.

    Args:
      config: of the run.
      models: of the team.
      cache: where the weights of a local judge are kept.
      workdir: the judge's ledger lies there; None: nothing is judged.
      hosts: those of the run.

    Raises:
      ConfigError, SandboxError, JudgeError: something cannot be had; named.
    """
    workflow = seated(find_workflow(config.workflow.name), config)
    async with contextlib.AsyncExitStack() as stack:
        sandbox = make_sandbox(config.sandbox)
        stack.push_async_callback(sandbox.aclose)
        await sandbox.check()
        judge = ledger = None
        if workdir is not None:
            check_prompts(config.judge, workflow, workdir)
            opened = open_judge(config.judge, workflow, workdir, cache, hosts)
            judge, ledger = await stack.enter_async_context(opened)
        texts = Grader(workers=1, seconds=config.data.grade_seconds)
        grader = AnyGrader(texts, SubmissionGrader())
        stack.push_async_callback(grader.aclose)
        engine = parts.make_engine(config, models, hosts)
        free = is_free(config.judge.provider)  # and says the same each time

        def stage(judge: Any, temperature: float | None) -> Stage:
            return Stage(
                workflow=workflow,
                brief=brief(config, models.tokenizers[0].cut_middle),
                seats=parts.make_seats(config, models, temperature),
                engine=engine,
                tools=sandbox,
                judge=judge,
                grader=grader,
                show_reference=config.judge.show_reference,
                duplicates=0.0 if free else config.judge.duplicates,
                ledger=None if judge is None else ledger,
                hosts=hosts,
            )

        yield stage(judge, None), stage(None, config.eval.temperature)


def check_prompts(config: JudgeConfig, workflow: Workflow, workdir: Path) -> None:
    """Keeps a digest of the judge's templates in the workdir, and compares it.

    Raises:
      JudgeError: the run has begun with other templates, or some are of no use.
    """
    if not asks_a_model(config.provider):
        return
    try:
        templates = load_templates(
            [role.name for role in workflow.roles],
            config.prompts,
            workflow.name,
            config.rubric,
        )
    except ValueError as e:
        raise JudgeError(str(e)) from e
    path, mine = workdir / "judge_prompts.sha256", hash_templates(templates)
    if not path.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{uuid.uuid4().hex}.part")  # other hosts may write it
        part.write_text(mine + "\n")
        part.replace(path)
    elif path.read_text().strip() != mine:
        raise JudgeError(
            f"judge.prompts={config.prompts!r}: the templates are not those with which "
            f"the run in {workdir} has begun, so its scores would not go together; "
            "bring those back, or use another --workdir"
        )


@contextlib.asynccontextmanager
async def open_judge(
    config: JudgeConfig,
    workflow: Workflow,
    workdir: Path,
    cache: Path,
    hosts: Hosts = ONE_HOST,
) -> AsyncIterator[tuple[Judge, Ledger]]:
    """The judge, checked, and its ledger in `workdir`."""
    if config.replay:
        ledger = Ledger(Path(config.replay).expanduser(), read_only=True)
    else:
        # The rubric costs nothing and can be asked again: it leaves no file.
        paid = asks_a_model(config.provider)
        path = workdir / "judge_ledger.jsonl" if paid else None
        ledger = Ledger(path, host=hosts.index)
    with contextlib.closing(ledger):
        await hosts.gather(None)  # all have read the files before one is written to
        judge = make_judge(
            config,
            roles=[role.name for role in workflow.roles],
            keys=common.api_keys(),
            ledger=ledger,
            workflow=workflow.name,
            make_scorer=lambda model: parts.make_scorer(model, cache, config),
            host=hosts.index,
            hosts=hosts.count,
        )
        try:
            await judge.check()
            yield judge, ledger
        finally:
            await judge.aclose()


def restore(
    config: Config,
    models: parts.Models,
    workdir: Workdir,
    weights: tuple[Any, Any],
    wanted: str = "",
) -> tuple[tuple[Any, Any], int]:
    """The weights of a checkpoint, and its step.

    `wanted` is as for `Checkpoints.choose`, by default the latest.

    Raises:
      CheckpointError: the workdir has no such checkpoint.
    """
    trainable, frozen = weights
    checkpoints = Checkpoints(workdir.checkpoints, config.checkpoint)
    try:
        step = checkpoints.choose(wanted)
        like = init_state(trainable, models.team, config, models.mesh)
        state, _ = checkpoints.restore(step, like)
    finally:
        checkpoints.close()
    return (state.trainable, frozen), step


def open_writer(config: Config, workdir: Path, resume_step: int) -> MetricWriter:
    """metrics.jsonl and the loggers of the config.

    Raises:
      ConfigError: a logger cannot be had.
    """
    loggers = open_loggers(config, workdir, resume_step)
    return MetricWriter(workdir, resume_step, loggers)


@contextlib.asynccontextmanager
async def assemble(
    config: Config,
    where: Workdir | Path,
    cache: Path,
    progress: Progress,
    hosts: Hosts = ONE_HOST,
) -> AsyncIterator[tuple[Run, TeamState, int]]:
    """Yields the run, its state and the number of iterations already done."""
    if isinstance(where, Path):
        where = Workdir(str(where), cache)
    workdir = where.local
    parts.enable_compilation_cache(cache / "xla")
    progress.start(0, "data", 1)
    data = load_data(config.data)
    for found in data.overlap:
        log.warning("evaluation problem in the training pool: %s", found)
    check_best(config, data)
    check_bias(config, data)
    progress.start(0, "weights", 1)
    models = parts.load_models(config, cache)
    learner = Learner(models.team, config, models.mesh)
    opened = stages(config, models, cache, workdir=workdir, hosts=hosts)
    async with opened as (stage, eval_stage):
        trainable, frozen = models.init_weights(config)
        state = init_state(trainable, models.team, config, models.mesh)
        checkpoints = Checkpoints(where.checkpoints, config.checkpoint)
        start = 0
        if (latest := checkpoints.latest()) is not None:
            state, extra = checkpoints.restore(latest, state)
            start = data.train.restore(extra["data"])
        learns = start < config.steps
        if learns or owes_evaluation(config, workdir, start):
            progress.start(start, "compile", 1)
            stage.engine.warm_up(state.trainable, frozen)
        if learns:
            learner.warm_up(state, frozen)
        writer = open_writer(config, workdir, start + 1) if hosts.index == 0 else None
        try:
            yield (
                Run(
                    config=config,
                    workdir=workdir,
                    data=data,
                    stage=stage,
                    eval_stage=eval_stage,
                    learner=learner,
                    frozen=frozen,
                    checkpoints=checkpoints,
                    writer=writer,
                    progress=progress,
                    hosts=hosts,
                    publish=where.push,
                ),
                state,
                start,
            )
        finally:
            if writer is not None:
                writer.close()
            checkpoints.close()
