"""Weights of their own, shared weights, or adapters: docs/results.md, 3.

  python launch/sft.py --config=configs/bytes.py --config.mode=shared \\
    --traces=traces.jsonl --workdir=runs/warm_shared --epochs=3 --learning_rate=1e-3
  python launch/sweep.py --sweep=configs/sweeps/weights.py --workdir=runs/weights

All start from the same weights, taught what every agent of the scripted team does.
"""

TEAM = ("solver", "coder", "verifier")
START = {f"agents.{name}.model": "runs/warm_shared/agents/team" for name in TEAM}
START |= {"eval.samples": 2}


def get_sweep():
    own = {mode: {"mode": mode} for mode in ("full", "shared", "lora")}
    for rate in (1e-4, 3e-4):  # adapters take higher rates than weights
        rates = {f"agents.{name}.learning_rate": rate for name in TEAM}
        own[f"lora_{rate:g}"] = {"mode": "lora"} | rates
    return {
        "config": "configs/bytes.py",
        "conditions": {name: START | changes for name, changes in own.items()},
        "seeds": (0, 1, 2, 3, 4),
    }
