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
    modes = ("full", "shared", "lora")
    return {
        "config": "configs/bytes.py",
        "conditions": {mode: START | {"mode": mode} for mode in modes},
        "seeds": (0, 1, 2, 3, 4),
    }
