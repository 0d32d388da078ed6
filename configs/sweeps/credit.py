"""Who gets the credit: docs/results.md, "Learning".

  python launch/sweep.py --sweep=configs/sweeps/credit.py --workdir=runs/credit

The team starts from what launch/sft.py left in runs/warm (configs/bytes.py says how).
"""

TEAM = ("solver", "coder", "verifier")
START = {f"agents.{name}.model": f"runs/warm/agents/{name}" for name in TEAM}
OUTCOME = {"reward.process_weight": 0.0, "reward.outcome_weight": 1.0}


def get_sweep():
    conditions = {
        "process": {},
        "outcome_all": {"reward.outcome_only": True},
        "outcome_last": OUTCOME | {"reward.outcome_to": "last"},
        "both": {"reward.outcome_weight": 1.0},
        "shuffled": {"reward.shuffle": True},
        "constant": {"judge.control.constant": 5.0},
    }
    return {
        "config": "configs/bytes.py",
        "conditions": {name: START | own for name, own in conditions.items()},
        "seeds": (0, 1, 2, 3, 4),
    }
