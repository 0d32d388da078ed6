"""An exported team: the same weights, read back by ourselves and by others."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from mappa_jax import assemble, export, team_file
from mappa_jax.config import ConfigError, MeshConfig, resolve
from mappa_jax.models import hf, peft, policy, registry
from mappa_jax.models.config import ModelConfig, ModelError, Rope
from mappa_jax.models.decoder import Decoder, logits
from mappa_jax.parallel import mesh
from mappa_jax.records import RecordError
from mappa_jax.sampling.team import Address, EpisodeTeam
from mappa_jax.types import Message, Task

TEAM = ("solver", "coder", "verifier")
# As launch/evaluate.py writes it.
RESULT = {
    "step": 7,
    "label": "team",
    "sources": {
        "chain_sum": {
            **{"avg": 0.25, "avg_low": 0.125, "avg_high": 0.5},
            **{"pass": 0.5, "pass_low": 0.25, "pass_high": 0.75},
            **{"problems": 4, "samples": 2, "k": 2, "failed": 0},
        }
    },
}
UNTIED = ModelConfig(
    family="qwen3",
    vocab_size=registry.BYTE_VOCAB,
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    d_ff=48,
    max_context=2048,
    rope=Rope(5000.0),
    rms_norm_eps=1e-6,
    qk_norm=True,
)


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    """A folder of another family, whose head is a matrix of its own."""
    folder = tmp_path_factory.mktemp("untied") / "model"
    registry.write_random(UNTIED, 3, folder)
    return str(folder)


@pytest.fixture(scope="module")
def changes(untied):
    """By name, the changes to configs/tiny.py that make a kind of team."""
    return {
        "full": {},
        "lora": {"mode": "lora", "agents.coder.lora_rank": 3, "lora.alpha": 24.0},
        "shared": {"mode": "shared"},
        "unlike": {
            "agents.verifier.model": untied,
            "agents.coder.trainable": False,
            "agents.coder.model": "random:tiny/5",
        },
        "two bases": {"mode": "lora", "agents.verifier.model": untied},
    }


@pytest.fixture(scope="module")
def make(tiny, cache, changes):
    """(kind) -> a team after some training: every trained array has moved."""
    made = {}

    def one(kind):
        if kind not in made:
            config = assemble.seat_agents(resolve(tiny(changes[kind])))
            at = mesh.make_mesh(MeshConfig(), jax.devices()[:1])
            models = assemble.load_models(config, cache, at)
            trainable, frozen = models.init_weights(config)
            made[kind] = SimpleNamespace(
                config=config, models=models, weights=(moved(trainable), frozen)
            )
        return made[kind]

    return one


def moved(tree):
    """As far as training would: padding of adapters stays zero."""
    rng = np.random.default_rng(0)

    def one(path, x):
        noise = rng.normal(0, 0.05, x.shape).astype(np.float32)
        name = str(path[-1])
        if "'a'" in name:
            noise *= np.any(np.asarray(x) != 0, axis=-2, keepdims=True)
        if "'b'" in name and len(x) == len(TEAM):  # the coder's rank is lower
            noise[1, :, 3:] = 0
        return jax.device_put(np.asarray(x) + noise, x.sharding)

    return jax.tree_util.tree_map_with_path(one, tree)


@pytest.fixture(scope="module")
def exported(make, tmp_path_factory):
    """(kind, form) -> (the team, the folder)."""
    done = {}

    def one(kind, form="merged"):
        if (kind, form) not in done:
            team = make(kind)
            out = tmp_path_factory.mktemp("out") / "team"
            write(team, out, form)
            done[kind, form] = (team, out)
        return done[kind, form]

    return one


def write(team, out, form="merged"):
    return export.write_team(
        *(team.config, team.models, team.weights, out),
        **{"step": 7, "kind": form, "results": [RESULT | {"label": "trained"}]},
    )


def own_params(team, name):
    """An agent's whole weights, as the run has them."""
    number = list(team.config.agents).index(name)
    for group, *weights in zip(team.models.team, *team.weights, strict=True):
        if number in group.members:
            place = group.members.index(number)
            return group, policy.agent_params(group, *weights, place)
    raise AssertionError(name)


@pytest.mark.parametrize("kind", ["full", "lora", "shared", "unlike"])
def test_a_reimport_has_the_same_weights_to_the_bit(exported, kind):
    team, out = exported(kind)
    folders = {name: out / ("team" if kind == "shared" else name) for name in TEAM}
    for name, folder in folders.items():
        group, params = own_params(team, name)
        cfg, again = hf.numpy_params(folder)
        assert cfg == group.cfg
        same = jax.tree.map(lambda a, b: np.array_equal(a, b), params, again)
        assert jax.tree.all(same), name
    if kind == "full":  # and they are not one another's
        embed = [hf.numpy_params(folders[name])[1]["embed"] for name in TEAM]
        assert not np.array_equal(embed[0], embed[1])


def test_a_frozen_agent_is_written_as_it_began(exported, cache):
    _, out = exported("unlike")
    _, began = hf.numpy_params(registry.resolve("random:tiny/5", cache))
    _, again = hf.numpy_params(out / "coder")
    assert jax.tree.all(jax.tree.map(np.array_equal, began, again))


def test_merged_is_the_base_plus_the_scaled_product(exported, cache):
    """In NumPy, from the files of both exports."""
    _, merged = exported("lora")
    _, adapters = exported("lora", "peft")
    base = load_file(registry.resolve("random:tiny", cache) / "model-00001.safetensors")
    for name, rank in zip(TEAM, (16, 3, 16), strict=True):
        whole = load_file(merged / name / "model-00001.safetensors")
        parts = load_file(adapters / name / peft.WEIGHTS)
        changed = 0
        for tensor, value in base.items():
            module = "base_model.model." + tensor.removesuffix(".weight")
            want = value
            if f"{module}.lora_A.weight" in parts:
                a, b = (parts[f"{module}.lora_{f}.weight"] for f in "AB")
                want = value + 24.0 / rank * (b.astype(float) @ a)
                changed += 1
            np.testing.assert_allclose(whole[tensor], want, atol=1e-6)
        assert changed == 7 * 2  # targets, layers


def test_an_adapter_has_pefts_names_and_its_own_rank(exported):
    _, out = exported("lora", "peft")
    tensors = load_file(out / "coder" / peft.WEIGHTS)
    shapes = {key: value.shape for key, value in tensors.items()}
    at = "base_model.model.model.layers.1.mlp.down_proj"
    assert shapes[f"{at}.lora_A.weight"] == (3, 64)
    assert shapes[f"{at}.lora_B.weight"] == (32, 3)
    assert len(shapes) == 2 * 7 * 2
    described = json.loads((out / "coder" / peft.CONFIG).read_text())
    assert described["r"] == 3 and described["lora_alpha"] == 24
    assert described["base_model_name_or_path"] == "random:tiny"
    assert len(described["target_modules"]) == 7
    assert "q_proj" in described["target_modules"]
    assert json.loads((out / "solver" / peft.CONFIG).read_text())["r"] == 16


def test_a_base_that_only_we_know_lies_beside(exported, make, cache):
    team, out = exported("two bases", "peft")
    _, mine = hf.numpy_params(out / "base-2")
    _, base = hf.numpy_params(team.models.folders[2])
    assert jax.tree.all(jax.tree.map(np.array_equal, mine, base))
    told = json.loads((out / "team.json").read_text())["agents"]
    assert [told[name]["base_folder"] for name in TEAM] == ["base", "base", "base-2"]


@pytest.mark.parametrize("kind", ["lora", "two bases"])
def test_adapters_are_read_back(exported, kind, cache):
    """From the export alone: the same tree, its padding included."""
    team, out = exported(kind, "peft")
    again = team_file.read_team(out)
    assert (again.kind, again.step) == ("peft", 7)
    models = assemble.load_models(again.config, cache, team.models.mesh)
    trainable, frozen = export.load_weights(again, models)
    for one, other in ((trainable, team.weights[0]), (frozen, team.weights[1])):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        assert jax.tree.all(jax.tree.map(np.array_equal, one, other))


@pytest.mark.parametrize("kind", ["full", "lora", "shared", "unlike"])
def test_the_team_is_read_back_from_the_export_alone(exported, kind, cache):
    team, out = exported(kind)
    again = team_file.read_team(out)
    assert list(again.config.agents) == list(TEAM)
    assert again.config.sampler == team.config.sampler
    assert again.config.workflow == team.config.workflow
    for name, agent in team.config.agents.items():
        own = again.config.agents[name]
        for key in team_file.SAMPLING:
            assert getattr(own, key) == getattr(agent, key)
    models = assemble.load_models(again.config, cache, team.models.mesh)
    read = SimpleNamespace(
        config=again.config, models=models, weights=export.load_weights(again, models)
    )
    for name in TEAM:
        mine, theirs = own_params(read, name)[1], own_params(team, name)[1]
        assert jax.tree.all(jax.tree.map(np.array_equal, mine, theirs))


def test_a_damaged_adapter_is_named(exported, tmp_path):
    team, out = exported("lora", "peft")
    cfg = team.models.team[0].cfg
    with pytest.raises(ModelError, match="adapts what lora.targets does not"):
        peft.load_adapter(out / "coder", cfg, ("q", "k"))
    (tmp_path / peft.WEIGHTS).write_bytes(b"\x00" * 20)
    with pytest.raises(ModelError, match="no adapter could be read"):
        peft.load_adapter(tmp_path, cfg, ("q",))


def test_the_card_says_where_an_agent_comes_from(exported):
    team, out = exported("lora")
    _, front, text = (out / "coder" / "README.md").read_text().split("---\n", 2)
    told = yaml.safe_load(front)
    assert told["base_model"] == "random:tiny"
    assert told["library_name"] == "transformers"
    for said in (
        *("reasoning_gym:chain_sum", "rubric", "7 of", "checks the solver's work"),
        team_file.config_digest(team.config),
        "| trained | chain_sum | 7 | 0.250 [0.125, 0.500] | 0.500 [0.250, 0.750] | 2 |",
    ):
        assert said in text, said
    adapter = (exported("lora", "peft")[1] / "coder" / "README.md").read_text()
    assert "library_name: peft" in adapter and 'from_pretrained("base")' in adapter


def test_the_generation_config_is_the_agents_own(exported):
    team, out = exported("full")
    told = json.loads((out / "solver" / "generation_config.json").read_text())
    assert told["max_new_tokens"] == 16 and told["temperature"] == 1.0
    assert tuple(told["eos_token_id"]) == team.models.tokenizers[0].stop_ids


def test_results_are_of_that_step_and_of_the_baselines(tmp_path):
    lines = [
        RESULT | {"step": 3},
        RESULT | {"step": 0, "label": "untrained"},
        RESULT | {"label": "blind"},
        RESULT,
        RESULT | {"step": 9},
    ]
    path = tmp_path / "evaluations.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = export.read_results(tmp_path, 7)
    assert [(r["label"], r["step"]) for r in found] == [
        ("trained", 7),
        ("blind", 7),
        ("untrained", 0),
    ]
    assert export.read_results(tmp_path / "nowhere", 7) == []
    path.write_text(path.read_text() + '{"step": 7, "la')  # it is being written
    assert export.read_results(tmp_path, 7) == found
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(RecordError, match=r"evaluations\.jsonl:1: "):
        export.read_results(tmp_path, 7)


def test_an_out_with_something_else_is_refused(exported, tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="thesis.txt"):
        export.check_out(tmp_path)
    team, _ = exported("full")
    out = tmp_path / "out"
    write(team, out)
    write(team, out)  # its own export is replaced
    (out / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match="notes.txt"):
        write(team, out)
    assert (out / "notes.txt").exists() and (out / "team.json").exists()
    with pytest.raises(ConfigError, match="not a folder"):
        export.check_out(out / "notes.txt")


def test_the_current_folder_may_be_written(exported, tmp_path, monkeypatch):
    """Twice; who stands in it sees the export, and nothing beside it."""
    team, _ = exported("full")
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.chdir(own)
    for _ in range(2):
        written = write(team, Path())
        assert {path.name for path in Path().iterdir()} == {*TEAM, "team.json"}
        assert written["coder"].resolve() == own / "coder"
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_a_failure_leaves_the_earlier_export(exported, tmp_path, monkeypatch):
    team, _ = exported("full")
    out = tmp_path / "out"
    write(team, out)
    before = (out / "team.json").read_bytes()

    def broken(*args, **kwargs):
        raise OSError("disk")

    monkeypatch.setattr(export, "make_card", broken)
    with pytest.raises(OSError, match="disk"):
        write(team, out)
    assert (out / "team.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_there_are_no_adapters_without_lora(make, tmp_path):
    with pytest.raises(ConfigError, match="mode is 'full'"):
        write(make("full"), tmp_path / "out", "peft")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "format"),
        ({"version": 99}, "version 99"),
        ({"agents": {}}, "damaged"),
        ({"settings": {}}, "damaged"),
    ],
)
def test_a_team_file_of_another_kind_is_refused(exported, tmp_path, change, said):
    row = json.loads((exported("full")[1] / "team.json").read_text())
    (tmp_path / "team.json").write_text(json.dumps(row | change))
    with pytest.raises(ConfigError, match=said):
        team_file.read_team(tmp_path)
    with pytest.raises(ConfigError, match="not a team that"):
        team_file.read_team(tmp_path / "nowhere")


@pytest.fixture
def foreign(exported, tmp_path):
    """(changes of a group of settings, changes of every agent) -> the folder of a
    team.json that somebody has edited."""

    def make(settings=None, agents=None, form="merged"):
        kind = "full" if form == "merged" else "two bases"
        row = json.loads((exported(kind, form)[1] / "team.json").read_text())
        for group, changes in (settings or {}).items():
            row["settings"][group] |= changes
        for agent in row["agents"].values():
            agent |= agents or {}
        (tmp_path / "team.json").write_text(json.dumps(row))
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("group", "edits", "said"),
    [
        ("workflow", {"name": "evil.py:TEAM"}, "run the code at workflow.name="),
        ("workflow", {"name": "os.path:join"}, "run the code at workflow.name="),
        ("sandbox", {"unsafe": True}, "without walls"),
        (
            "sandbox",
            {"backend": "unsafe_subprocess", "unsafe": True},
            "sandbox.backend='unsafe_subprocess'",
        ),
        (
            "sandbox",
            {"backend": "sandbox_fusion", "base_url": "http://evil.example"},
            "http://evil.example",
        ),
    ],
)
def test_a_team_file_runs_no_code_and_drops_no_wall(foreign, group, edits, said):
    folder = foreign({group: edits})
    with pytest.raises(ConfigError, match=f"{said}.*--trust_team"):
        team_file.read_team(folder)
    trusted = team_file.read_team(folder, trusted=True).config
    for key, value in edits.items():
        assert getattr(getattr(trusted, group), key) == value


@pytest.mark.parametrize("name", ["../x", "/etc", "..", ".", "", "a/b", "a\\b"])
def test_folders_of_a_team_file_lie_beside_it(foreign, name):
    with pytest.raises(ConfigError, match="not the name of a folder beside"):
        team_file.read_team(foreign(agents={"folder": name}), trusted=True)
    with pytest.raises(ConfigError, match="not the name of a folder beside"):
        team_file.read_team(foreign(agents={"base_folder": name}, form="peft"))


# -- what others make of it ------------------------------------------------------------

CHAT = [{"role": "user", "content": "What is 2 + 3?"}]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs torch: pip install '.[export]'")


@pytest.fixture(scope="module")
def theirs(torch):
    """(the folder of an agent, its base) -> transformers' model and tokenizer."""
    import transformers

    def load(folder, base=None):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(base or folder)
        if base is not None:
            library = pytest.importorskip("peft", reason="pip install '.[export]'")
            model = library.PeftModel.from_pretrained(model, folder)
        return model.eval(), tokenizer

    return load


def our_logits(team, name, ids):
    group, params = own_params(team, name)
    tokens = jnp.asarray([ids], jnp.int32)
    positions = jnp.arange(len(ids))[None]
    hidden, _ = Decoder(group.cfg).apply(
        {"params": params}, tokens, positions, jnp.full_like(tokens, len(ids))
    )
    return np.asarray(logits(params, group.cfg, hidden))[0]


async def our_greedy(team, name):
    """What the agent says in the sampler, at temperature 0; tokens."""
    from mappa_jax.hosts import OneHost

    engine = assemble.make_engine(team.config, team.models, OneHost())
    engine.warm_up(*team.weights)
    seats = assemble.make_seats(team.config, team.models, 0.0)
    address = Address(0, Task("x", "x"), 0, True)
    async with engine.running(*team.weights):
        episode = EpisodeTeam(seats, engine, address, lambda *_: None)
        action = await episode[name].act([Message("user", CHAT[0]["content"])])
    return action


# Of transformers, about what peft calls.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize(
    ("kind", "form", "name"),
    [
        ("full", "merged", "solver"),  # tied embeddings
        ("unlike", "merged", "verifier"),  # a head of its own
        ("lora", "merged", "coder"),
        ("lora", "peft", "coder"),
    ],
)
async def test_transformers_has_the_same_logits_and_greedy_text(
    exported, theirs, torch, kind, form, name
):
    from transformers import GenerationConfig

    team, out = exported(kind, form)
    model, tokenizer = theirs(out / name, out / "base" if form == "peft" else None)
    asked = dict(add_generation_prompt=True, return_dict=True, return_tensors="pt")
    inputs = tokenizer.apply_chat_template(CHAT, **asked)
    ours = await our_greedy(team, name)
    assert inputs["input_ids"][0].tolist() == ours.prompt_ids.tolist()
    with torch.no_grad():
        said = model.generate(
            **inputs,
            generation_config=GenerationConfig.from_pretrained(out / name),
            do_sample=False,
        )[0]
        scores = model(said[None]).logits[0].numpy()
    new = said[inputs["input_ids"].shape[1] :].tolist()
    assert new == ours.token_ids.tolist()
    assert tokenizer.decode(new, skip_special_tokens=True) == ours.text
    np.testing.assert_allclose(
        our_logits(team, name, said.tolist()), scores, atol=2e-4, rtol=1e-4
    )
