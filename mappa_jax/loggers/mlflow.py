"""MLflow: one run for a workdir, found again when it goes on.

Where it goes is the library's own affair (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mappa_jax.loggers.base import Shown
from mappa_jax.loggers.names import kept_name

PER_CALL = 100  # parameters that the server takes at a time
LONGEST = 500  # characters of a parameter
EXPERIMENT = "mappa_jax"


class MLflow:
    """Metrics over steps, the config as parameters, and an action of each agent as a
    text artefact. It has no histograms. What a resumed run has changed of its config is
    a tag, "resumed.steps"."""

    def __init__(self, workdir: Path, settings: Mapping[str, Any], resume_step: int):
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._client, self._metric = MlflowClient(), Metric
        self._run = kept_name(workdir, "mlflow", lambda: self._begin(workdir))
        said = {key: str(value)[:LONGEST] for key, value in settings.items()}
        known = self._client.get_run(self._run).data.params
        new = [Param(key, text) for key, text in said.items() if key not in known]
        for part in _parts(new):
            self._client.log_batch(self._run, params=part)
        for key in said.keys() & known.keys():  # a parameter cannot be changed
            if said[key] != known[key]:
                self._client.set_tag(self._run, f"resumed.{key}", said[key])

    def _begin(self, workdir: Path) -> str:
        from mlflow.environment_variables import MLFLOW_EXPERIMENT_NAME

        name = MLFLOW_EXPERIMENT_NAME.get() or EXPERIMENT
        known = self._client.get_experiment_by_name(name)
        place = known.experiment_id if known else self._client.create_experiment(name)
        made = self._client.create_run(place, run_name=workdir.resolve().name)
        return made.info.run_id

    def write(self, step: int, numbers: Mapping[str, float], shown: Shown) -> None:
        now = int(time.time() * 1000)
        rows = [self._metric(name, float(v), now, step) for name, v in numbers.items()]
        for part in _parts(rows):
            self._client.log_batch(self._run, metrics=part)
        for agent, text in shown.texts.items():
            file = f"actions/{agent}/step_{step:06d}.md"
            self._client.log_text(self._run, text, file)

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _parts(rows: list[Any]) -> Iterator[list[Any]]:
    for at in range(0, len(rows), PER_CALL):
        yield rows[at : at + PER_CALL]
