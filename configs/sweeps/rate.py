"""Which learning rate the sweeps on bytes take: docs/results.md, 3.

  python launch/sweep.py --sweep=configs/sweeps/rate.py --workdir=runs/rate

With a seed that no other sweep has, and for two rewards, so that the rate is not chosen
in favour of either.
"""

TEAM = ("solver", "coder", "verifier")
START = {f"agents.{name}.model": f"runs/warm/agents/{name}" for name in TEAM}
REWARDS = {"process": {}, "outcome_all": {"reward.outcome_only": True}}


def get_sweep():
    conditions = {}
    for rate in (3e-5, 1e-4, 3e-4):
        rates = {f"agents.{name}.learning_rate": rate for name in TEAM}
        for name, reward in REWARDS.items():
            conditions[f"{name}_{rate:g}"] = START | reward | rates | {"steps": 20}
    return {"config": "configs/bytes.py", "conditions": conditions, "seeds": (100,)}
