"""Who gets the credit, and from which judge: docs/results.md, 3 and 4.

  python launch/sweep.py --sweep=configs/sweeps/credit.py --workdir=runs/credit \\
    --only=process,outcome_all,outcome_last,both,shuffled,constant
  python launch/sweep.py --sweep=configs/sweeps/credit.py --workdir=runs/credit

The second goes on with the other conditions. One sweep, so that what all are compared
with, "process", runs once. The team starts from what launch/sft.py left in runs/warm
(configs/bytes.py says how).
"""

TEAM = ("solver", "coder", "verifier")
START = {f"agents.{name}.model": f"runs/warm/agents/{name}" for name in TEAM}
START |= {"eval.samples": 2}
OUTCOME = {"reward.process_weight": 0.0, "reward.outcome_weight": 1.0}

CREDIT = {
    "process": {},
    "outcome_all": {"reward.outcome_only": True},
    "outcome_last": OUTCOME | {"reward.outcome_to": "last"},
    "both": {"reward.outcome_weight": 1.0},
    "shuffled": {"reward.shuffle": True},
    "constant": {"judge.control.constant": 5.0},
}
# The next higher learning rate: what the two rewards gain and lose by it.
FAST = {
    f"{name}_fast": CREDIT[name]
    | {f"agents.{agent}.learning_rate": 1e-4 for agent in TEAM}
    for name in ("process", "outcome_all")
}
# 32 trajectories an iteration, as everywhere else.
SAMPLES = {
    f"samples_{n}": {"data.samples_per_prompt": n, "data.prompts_per_step": 32 // n}
    for n in (1, 4)
}
ESTIMATORS = {name: {"advantage.estimator": name} for name in ("grpo", "rloo")}
NOISE = {f"noise_{points}": {"judge.control.noise": points} for points in (1.0, 4.0)}
MISSING = {
    f"missing_{where}_{share}": {
        "judge.control.missing": share,
        "judge.control.missing_where": where,
        "judge.max_missing": share,
    }
    for where in ("random", "long")
    for share in (0.1, 0.3, 0.5)
}


def get_sweep():
    conditions = CREDIT | FAST | SAMPLES | ESTIMATORS | NOISE | MISSING
    return {
        "config": "configs/bytes.py",
        "conditions": {name: START | own for name, own in conditions.items()},
        "seeds": (0, 1, 2, 3, 4),
    }
