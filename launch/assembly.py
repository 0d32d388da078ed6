"""Puts the parts of a run together, checking each before the first iteration."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import common
from mappa_jax import assemble as parts
from mappa_jax.answers import Grader
from mappa_jax.checkpoints import Checkpoints
from mappa_jax.config import Config, ConfigError, JudgeConfig
from mappa_jax.data import load_data
from mappa_jax.grading import AnyGrader
from mappa_jax.judges import Judge, JudgeError, Ledger, make_judge
from mappa_jax.judges.prompts import hash_templates, load_templates
from mappa_jax.learning.update import Learner, TeamState, init_state
from mappa_jax.metrics import MetricWriter
from mappa_jax.rollout import Stage
from mappa_jax.tabular.submission import SubmissionGrader
from mappa_jax.tools import make_sandbox
from mappa_jax.train import FREE, Progress, Run, check_best, owes_evaluation
from mappa_jax.workflows import WORKFLOWS
from mappa_jax.workflows.base import Workflow, brief, seated

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def stages(
    config: Config, models: parts.Models, cache: Path, *, workdir: Path | None
) -> AsyncIterator[tuple[Stage, Stage]]:
    """The stage of training and that of evaluation, which share an engine.

    Args:
      config: of the run.
      models: of the team.
      cache: where the weights of a local judge are kept.
      workdir: the judge's ledger lies there; None: nothing is judged.

    Raises:
      ConfigError, SandboxError, JudgeError: something cannot be had; named.
    """
    workflow = seated(WORKFLOWS[config.workflow.name], config)
    async with contextlib.AsyncExitStack() as stack:
        sandbox = make_sandbox(config.sandbox)
        stack.push_async_callback(sandbox.aclose)
        await sandbox.check()
        judge = None
        if workdir is not None:
            check_prompts(config.judge, workflow, workdir)
            opened = open_judge(config.judge, workflow, workdir, cache)
            judge = await stack.enter_async_context(opened)
        texts = Grader(workers=1, seconds=config.data.grade_seconds)
        grader = AnyGrader(texts, SubmissionGrader())
        stack.push_async_callback(grader.aclose)
        engine = parts.make_engine(config, models)
        free = config.judge.provider in FREE  # and says the same each time

        def stage(judge: Any, temperature: float | None) -> Stage:
            return Stage(
                workflow=workflow,
                brief=brief(config, models.tokenizer.cut_middle),
                seats=parts.make_seats(config, models, temperature),
                engine=engine,
                tools=sandbox,
                judge=judge,
                grader=grader,
                show_reference=config.judge.show_reference,
                duplicates=0.0 if free else config.judge.duplicates,
            )

        yield stage(judge, None), stage(None, config.eval.temperature)


def check_prompts(config: JudgeConfig, workflow: Workflow, workdir: Path) -> None:
    """Keeps a digest of the judge's templates in the workdir, and compares it.

    Raises:
      JudgeError: the run has begun with other templates, or some are of no use.
    """
    if config.provider == "rubric":
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
        path.write_text(mine + "\n")
    elif path.read_text().strip() != mine:
        raise JudgeError(
            f"judge.prompts={config.prompts!r}: the templates are not those with which "
            f"the run in {workdir} has begun, so its scores would not go together; "
            "bring those back, or use another --workdir"
        )


@contextlib.asynccontextmanager
async def open_judge(
    config: JudgeConfig, workflow: Workflow, workdir: Path, cache: Path
) -> AsyncIterator[Judge]:
    """The judge, checked, with its ledger in `workdir`."""
    if config.replay:
        ledger = Ledger(Path(config.replay).expanduser(), read_only=True)
    else:
        # The rubric costs nothing and can be asked again: it leaves no file.
        paid = config.provider != "rubric"
        ledger = Ledger(workdir / "judge_ledger.jsonl" if paid else None)
    with contextlib.closing(ledger):
        judge = make_judge(
            config,
            roles=[role.name for role in workflow.roles],
            keys=common.api_keys(),
            ledger=ledger,
            workflow=workflow.name,
            make_scorer=lambda model: parts.make_scorer(model, cache, config),
        )
        try:
            await judge.check()
            yield judge
        finally:
            await judge.aclose()


def restore(
    config: Config, models: parts.Models, workdir: Path, weights: tuple[Any, Any]
) -> tuple[tuple[Any, Any], int]:
    """The weights of the latest checkpoint, and its step.

    Raises:
      ConfigError: the workdir has no checkpoint.
    """
    trainable, frozen = weights
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint)
    try:
        if (step := checkpoints.latest()) is None:
            raise ConfigError(f"{workdir}: no checkpoint yet; train first")
        like = init_state(trainable, config, models.mesh)
        state, _ = checkpoints.restore(step, like)
    finally:
        checkpoints.close()
    return (state.trainable, frozen), step


@contextlib.asynccontextmanager
async def assemble(
    config: Config, workdir: Path, cache: Path, progress: Progress
) -> AsyncIterator[tuple[Run, TeamState, int]]:
    """Yields the run, its state and the number of iterations already done."""
    parts.enable_compilation_cache(cache / "xla")
    progress.start(0, "data", 1)
    data = load_data(config.data)
    for found in data.overlap:
        log.warning("evaluation problem in the training pool: %s", found)
    check_best(config, data)
    progress.start(0, "weights", 1)
    models = parts.load_models(config, cache)
    learner = Learner(models.policy, config, models.mesh)
    async with stages(config, models, cache, workdir=workdir) as (stage, eval_stage):
        trainable, frozen = models.init_weights(config)
        state = init_state(trainable, config, models.mesh)
        checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint)
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
        writer = MetricWriter(workdir, resume_step=start + 1)
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
                ),
                state,
                start,
            )
        finally:
            writer.close()
            checkpoints.close()
