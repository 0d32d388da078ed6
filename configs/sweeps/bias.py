"""A judge that likes one kind of task better: docs/results.md, 4.

  python benchmarks/experiments/traces.py --config=configs/bytes.py:two_kinds \\
    --out=traces_two.jsonl
  python launch/sft.py --config=configs/bytes.py:two_kinds --traces=traces_two.jsonl \\
    --workdir=runs/warm_two --epochs=3 --learning_rate=1e-3
  python launch/sweep.py --sweep=configs/sweeps/bias.py --workdir=runs/bias

The judge takes four points off every action on products, as the paper's caps do on
classification. judge.debias takes that off again, as far as scores are not at 0.
"""

TEAM = ("solver", "coder", "verifier")
START = {f"agents.{name}.model": f"runs/warm_two/agents/{name}" for name in TEAM}
START |= {"eval.samples": 2}
BIAS = {"judge.control.bias": "products:-4"}


def get_sweep():
    conditions = {"fair": {}, "biased": BIAS, "debiased": BIAS | {"judge.debias": True}}
    return {
        "config": "configs/bytes.py:two_kinds",
        "conditions": {name: START | own for name, own in conditions.items()},
        "seeds": (0, 1, 2, 3, 4),
    }
