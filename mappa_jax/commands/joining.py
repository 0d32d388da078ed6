"""The flags by which the processes of a run on several hosts find one another."""

from __future__ import annotations

from absl import flags

_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "One process of several; the others are found out from Cloud TPU, GKE or SLURM.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "Without such help: host:port of process 0."
)
_COUNT = flags.DEFINE_integer("num_processes", None, "Likewise: how many there are.")
_INDEX = flags.DEFINE_integer("process_id", None, "Likewise: which this is, from 0.")
_PATIENCE = flags.DEFINE_integer(
    "heartbeat_seconds", 60, "A process not heard of for so long is taken for lost."
)


def join_hosts():
    """This process among those of the run (`mappa_jax.hosts.Hosts`).

    Raises:
      ConfigError: some of the flags are missing.
    """
    from mappa_jax.config import ConfigError
    from mappa_jax.hosts import OneHost

    by_hand = {
        "coordinator_address": _COORDINATOR.value,
        "num_processes": _COUNT.value,
        "process_id": _INDEX.value,
    }
    missing = [f"--{name}" for name, value in by_hand.items() if value is None]
    if not _DISTRIBUTED.value and len(missing) == len(by_hand):
        return OneHost()
    if missing and len(missing) < len(by_hand):
        raise ConfigError(
            f"{', '.join(missing)}: give all of --coordinator_address, --num_processes "
            "and --process_id, or --distributed alone"
        )
    import jax

    from mappa_jax.parallel.hosts import JaxHosts

    try:
        jax.distributed.initialize(
            **by_hand,
            heartbeat_timeout_seconds=_PATIENCE.value,
            shutdown_timeout_seconds=_PATIENCE.value,
        )
    except (ValueError, RuntimeError) as e:
        raise ConfigError(
            f"--distributed: the processes did not find one another ({e}); outside "
            "Cloud TPU, GKE and SLURM give --coordinator_address, --num_processes and "
            "--process_id"
        ) from e
    return JaxHosts()
