"""Settings that every agent may have of its own: a list each, in the team's order."""

from __future__ import annotations

from mappa_jax.config import AgentConfig, Config


def _agents(config: Config) -> list[AgentConfig]:
    return list(config.agents.values())


def _own(value: float, shared: float) -> float:
    return shared if value == -1 else value


def learning_rates(config: Config) -> list[float]:
    return [agent.learning_rate for agent in _agents(config)]


def warmup_fractions(config: Config) -> list[float]:
    shared = config.optimizer.warmup_fraction
    return [_own(agent.warmup_fraction, shared) for agent in _agents(config)]


def final_fractions(config: Config) -> list[float]:
    shared = config.optimizer.final_fraction
    return [_own(agent.final_fraction, shared) for agent in _agents(config)]


def kl_betas(config: Config) -> list[float]:
    return [_own(agent.kl_beta, config.kl.beta) for agent in _agents(config)]


def lora_ranks(config: Config) -> list[int]:
    return [int(_own(agent.lora_rank, config.lora.rank)) for agent in _agents(config)]
