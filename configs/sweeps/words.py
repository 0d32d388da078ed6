"""Process against outcome with real weights, on word problems: docs/results.md, 5.

python launch/sweep.py --sweep=configs/sweeps/words.py --workdir=runs/words
"""


def get_sweep():
    return {
        "config": "configs/arithmetic.py:words",
        "conditions": {
            "process": {},
            "outcome_all": {"reward.outcome_only": True},
        },
        "seeds": (0, 1, 2),
    }
