"""The default weights, read from their GGUF, say what `transformers` says."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from mappa_jax.config import LoRAConfig, MeshConfig, SamplerConfig
from mappa_jax.models import hf, policy, registry
from mappa_jax.models.tokenizer import Tokenizer
from mappa_jax.parallel.mesh import make_mesh
from mappa_jax.sampling.engine import Engine, Options
from mappa_jax.types import Message

GOLDEN = Path(__file__).with_name("smollm2_greedy.json")
NEW_TOKENS = 24


@pytest.mark.slow
async def test_greedy_continuations_of_ten_prompts(cache):
    rows = json.loads(GOLDEN.read_text())
    folder = registry.resolve("smollm2-135m-instruct", cache)
    tokenizer = Tokenizer(folder)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    team = policy.Policy(
        cfg=hf.read_config(folder),
        mode="lora",
        members=(0,),
        lora=LoRAConfig(rank=1, targets=("q",)),
        dtype=np.float32,
        ranks=(1,),
    )
    weights = policy.init(team, [folder], mesh, 0, np.float32)
    sampler = SamplerConfig(
        slots=10, prefill_rows=2, prompt_buckets=(64,), context=128, chunk=8
    )
    engine = Engine([team], sampler, mesh, seed=0, stop_ids=1)
    trainable, frozen = weights
    engine.warm_up([trainable], [frozen])
    async with engine.running([trainable], [frozen]):
        for number, row in enumerate(rows):
            prompt = tokenizer.render([Message("user", row["prompt"])], thinking=False)
            options = Options(0.0, 0, 1.0, 0, NEW_TOKENS, tokenizer.stop_ids)
            found = await engine.generate(0, prompt, options, (0, number, 0, 0, 0, 0))
            assert found.token_ids.tolist() == row["tokens"], row["prompt"]
