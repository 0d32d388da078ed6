"""Where a run is shown: TensorBoard, Weights & Biases, MLflow (`config.loggers`)."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mappa_jax.config import Config, ConfigError, flat_items, to_dict
from mappa_jax.loggers.base import Logger, Shown, shown

__all__ = ["LOGGERS", "Logger", "Remote", "Shown", "open_loggers", "shown"]

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A logger's class in a module of this package, the library that it needs, how to
    get that, and whether it reaches out to a server."""

    cls: str
    library: str
    install: str
    remote: bool = True


LOGGERS = {
    "tensorboard": Kind(
        "TensorBoard", "tensorboardX", "pip install tensorboardX", remote=False
    ),
    "wandb": Kind("WandB", "wandb", "pip install -e '.[wandb]'"),
    "mlflow": Kind("MLflow", "mlflow", "pip install -e '.[mlflow]'"),
}


class Remote:
    """A logger whose server may fail: it is then told nothing further, and the log
    says so. A run does not end for that, nor does it wait."""

    def __init__(self, name: str, inner: Logger):
        self._name, self._inner, self.failed = name, inner, False

    def write(self, step: int, numbers: Mapping[str, float], shown: Shown) -> None:
        self._call(self._inner.write, step, numbers, shown)

    def close(self) -> None:
        self._call(self._inner.close)

    def _call(self, function: Any, *args: Any) -> None:
        if self.failed:
            return
        try:
            function(*args)
        except Exception as e:  # of a library, whatever it raises
            self.failed = True
            log.warning(
                "config.loggers: %s failed (%s: %s) and is told nothing further; "
                "metrics.jsonl has everything",
                *(self._name, type(e).__name__, e),
            )


def open_loggers(config: Config, workdir: Path, resume_step: int) -> list[Logger]:
    """Those that the config names.

    Args:
      config: of the run.
      workdir: made where it is missing.
      resume_step: the first step that will be written.

    Raises:
      ConfigError: a library is not installed, or refuses to start.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    return [_open(name, config, workdir, resume_step) for name in config.loggers]


def _open(name: str, config: Config, workdir: Path, resume_step: int) -> Logger:
    kind = LOGGERS[name]
    if importlib.util.find_spec(kind.library) is None:
        raise ConfigError(
            f"config.loggers: {name!r} needs the package {kind.library}: "
            f"{kind.install}, or leave it out"
        )
    module = importlib.import_module(f"mappa_jax.loggers.{name}")
    make = getattr(module, kind.cls)
    if not kind.remote:
        return make(workdir, settings(config), resume_step)
    try:
        return Remote(name, make(workdir, settings(config), resume_step))
    except Exception as e:  # of a library, whatever it raises
        raise ConfigError(
            f"config.loggers: {name!r} does not start ({type(e).__name__}: {e}); mend "
            "that, or leave it out"
        ) from e


def settings(config: Config) -> dict[str, bool | int | float | str]:
    """The config by flat key, "sampler.slots"; what is no number or text as JSON."""
    plain = (bool, int, float, str)
    return {
        key: value if isinstance(value, plain) else json.dumps(value)
        for key, value in flat_items(to_dict(config))
    }
