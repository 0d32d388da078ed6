"""Settings: every file resolves, and what cannot work is named."""

import dataclasses
import json
import re
import typing
from collections.abc import Mapping
from pathlib import Path

import pytest
import scripts

from mappa_jax.assemble import seat_agents
from mappa_jax.config import (
    AgentConfig,
    Config,
    ConfigError,
    default_config,
    resolve,
    to_dict,
)

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs").glob("*.py"))
DOCUMENTED = re.compile(r"--config=configs/(\w+\.py)(?::([\w.,=-]+))?")


def variants():
    """(file, argument) for every file, and every argument that a docstring shows."""
    for path in FILES:
        shown = DOCUMENTED.findall(path.read_text())
        arguments = {arg for name, arg in shown if name == path.name and arg}
        yield from ((path, argument) for argument in [None, *sorted(arguments)])


@pytest.mark.parametrize(
    ("path", "argument"), variants(), ids=lambda v: getattr(v, "name", str(v))
)
def test_every_config_file_resolves(path, argument):
    config = scripts.load(path).get_config(argument)
    resolved = seat_agents(resolve(config))
    assert resolve(json.loads(json.dumps(to_dict(resolved)))) == resolved


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_a_config_file_shows_its_command_and_refuses_other_arguments(path):
    module = scripts.load(path)
    assert f"--config=configs/{path.name}" in module.__doc__
    with pytest.raises(ValueError, match="no-such-variant"):
        module.get_config("no-such-variant")


def plain(**changes):
    """A valid config as a dict, with dotted keys replaced."""
    tree = to_dict(Config(agents={"solver": AgentConfig()}))
    for key, value in changes.items():
        *path, last = key.split("__")
        group = tree
        for part in path:
            group = group[part]
        group[last] = value
    return tree


def test_the_defaults_resolve():
    assert resolve(plain()) == Config(agents={"solver": AgentConfig()})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"stepz": 1}, "config.stepz: no such key; did you mean steps?"),
        (
            {"agents__solver__temprature": 1.0},
            "config.agents.solver.temprature: no such key; did you mean "
            "agents.solver.temperature?",
        ),
        ({"data__xyzzy": 1}, "config.data.xyzzy: no such key"),
    ],
)
def test_an_unknown_key_is_named_with_the_likely_one(change, named):
    with pytest.raises(ConfigError) as e:
        resolve(plain(**change))
    assert str(e.value) == named


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("steps", "3", "int"),
        ("steps", 1.5, "int"),
        ("steps", True, "int"),
        ("data__stratify", 1, "bool"),
        ("kl__beta", "small", "float"),
        ("data__source", 3, "str"),
        ("sampler__prompt_buckets", 64, "tuple"),
        ("sampler__prompt_buckets", [64, "x"], "int"),
        ("agents__solver__stop", "END", "tuple"),
        ("data__params", 3, "group of keys"),
        ("kl", 0.1, "group of keys"),
        ("mode", "frozen", "'full', 'lora'"),
    ],
)
def test_a_wrong_type_is_named(key, value, wanted):
    with pytest.raises(ConfigError) as e:
        resolve(plain(**{key: value}))
    assert f"config.{key.replace('__', '.')}" in str(e.value)
    assert wanted in str(e.value)


def test_a_whole_number_may_stand_for_a_float():
    assert resolve(plain(kl__beta=1)).kl.beta == 1.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("agents", {}),
        ("steps", 0),
        ("agents__solver__max_new_tokens", 0),
        ("agents__solver__max_new_tokens", 1280),  # the whole context
        ("agents__solver__max_turns", 0),
        ("agents__solver__min_new_tokens", 300),
        ("agents__solver__temperature", -0.1),
        ("agents__solver__top_p", 0.0),
        ("agents__solver__top_p", 1.1),
        ("agents__solver__top_k", -1),
        ("agents__solver__top_p", 0.9),  # the trainer knows the whole distribution
        ("agents__solver__top_k", 5),
        ("agents__solver__min_new_tokens", 1),
        ("kl__target", 0.1),  # without a beta
        ("staleness", 2),
        ("staleness", 1),  # without importance weights
        ("sampler__weights", "int8"),
        ("reward__turn_discount", 1.5),
        ("sampler__slots", 0),
        ("sampler__prefill_rows", 0),
        ("sampler__chunk", 0),
        ("sampler__cache_block", 0),
        ("sampler__cache_block", 100),
        ("sampler__prompt_buckets", []),
        ("sampler__widths", (8, 4)),
        ("sampler__widths", (16,)),
        ("sampler__prompt_buckets", [512, 256]),
        ("sampler__prompt_buckets", [256, 2048]),
        ("data__prompts_per_step", 0),
        ("data__samples_per_prompt", 0),
        ("optimizer__actions_per_update", 0),
        ("optimizer__epochs", 0),
        ("packing__rows", 0),
        ("packing__row_action_tokens", 255),
        ("packing__row_tokens", 1279),
        ("judge__max_missing", 1.5),
        ("judge__concurrency", 0),
        ("judge__deadline_s", 0.0),
        ("judge__deadline_s", float("inf")),
        ("judge__deadline_s", float("nan")),
        ("judge__outage_s", float("nan")),
        ("judge__budget__usd", float("nan")),
        ("judge__budget__usd", float("inf")),
        ("judge__budget__usd", -1.0),
        ("judge__thinking_tokens", -2),
        ("judge__thinking_tokens", 9000),
        ("judge__provider", "oracle"),
        ("judge__members", "rubric"),  # without judge.provider="ensemble"
        ("judge__replay", "ledger.jsonl"),  # of the rubric
        ("sandbox__workers", 0),
        ("checkpoint__every", 0),
        ("checkpoint__keep", 0),
        ("eval__samples", 0),
        ("eval__pass_k", 5),
    ],
)
def test_an_impossible_value_is_named(key, value):
    with pytest.raises(ConfigError) as e:
        resolve(plain(**({"kl__beta": 0.0} | {key: value})))
    names = {
        "sampler__cache_block": "sampler.c",
        "sampler__prompt_buckets": "sampler.",
    }
    named = names.get(key, key.replace("__", "."))
    assert str(e.value).startswith(f"config.{named}")


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "", ".", "a b", "a.b", "é", "a\n", "team", "base", "base-2"]
)
def test_a_name_that_no_folder_or_model_can_have_is_refused(name):
    agents = {"agents": {name: dataclasses.asdict(AgentConfig())}}
    with pytest.raises(ConfigError, match="config.agents: an agent cannot be called"):
        resolve(plain() | agents)


@pytest.mark.parametrize("name", ["solver", "Solver_2", "team-lead", "abase", "7"])
def test_a_name_of_letters_and_digits_is_taken(name):
    agents = {"agents": {name: dataclasses.asdict(AgentConfig())}}
    assert [*resolve(plain() | agents).agents] == [name]


def test_a_cut_distribution_trains_with_recomputed_logprobs():
    changes = {"agents__solver__top_p": 0.9, "objective__old_logprobs": "recompute"}
    assert resolve(plain(**changes)).agents["solver"].top_p == 0.9


@pytest.mark.parametrize(("key", "value"), [("lora__rank", 0), ("lora__targets", [])])
def test_adapters_refuse_what_they_cannot_do(key, value):
    with pytest.raises(ConfigError, match=key.replace("__", ".")):
        resolve(plain(mode="lora", **{key: value}))


def test_a_team_must_have_the_workflows_roles():
    with pytest.raises(ConfigError, match="coder.*verifier"):
        seat_agents(resolve(plain()))


def test_agents_are_seated_in_the_order_in_which_they_act():
    agents = {n: AgentConfig() for n in ("verifier", "coder", "solver")}
    seated = seat_agents(Config(agents=agents))
    assert list(seated.agents) == ["solver", "coder", "verifier"]


def test_turns_that_the_workflow_does_not_give_are_refused():
    agents = {n: AgentConfig(max_turns=2) for n in ("verifier", "coder", "solver")}
    with pytest.raises(ConfigError, match="agents.verifier.max_turns=2"):
        seat_agents(Config(agents=agents))


def test_a_config_dict_is_locked_and_typed():
    config = default_config(solver=AgentConfig())
    with pytest.raises(AttributeError, match="stepz"):
        config.stepz = 1
    with pytest.raises(TypeError):
        config.steps = "three"


def fields(kind, path=""):
    """(class, path, name) of every leaf of the config tree."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if typing.get_origin(hint) is Mapping:
            hint = typing.get_args(hint)[1]
        if dataclasses.is_dataclass(hint):
            yield from fields(hint, f"{path}{field.name}.")
        else:
            yield kind, path, field.name


READERS = [
    path
    for path in sorted((ROOT / "mappa_jax").rglob("*.py"))
    if path != ROOT / "mappa_jax" / "config.py"
]


def is_read(kind, path, name, sources):
    """Whether some source reads `group.name`, or, where it speaks of the class, the
    name from something that is called like one of its objects."""
    group = path.split(".")[-2] if path else "config"
    own = re.compile(rf"\b{group}\.{name}\b")
    called = re.compile(rf"(config|agent|agents\[\w+\]|\ba|member|budget)\.{name}\b")
    return any(
        own.search(text)
        or ((kind.__name__ in text or f".{group}" in text) and called.search(text))
        for text in sources
    )


def test_every_setting_is_read_somewhere():
    sources = [path.read_text(encoding="utf-8") for path in READERS]
    unread = [
        path + name
        for kind, path, name in fields(Config)
        # The axes' sizes are read by their names, `getattr(config.mesh, axis)`.
        if not path.startswith("mesh.") and not is_read(kind, path, name, sources)
    ]
    assert not unread, unread
    assert not is_read(Config, "kl.", "nothing", sources)  # it can say no


@pytest.mark.parametrize("members", ["", "oracle:m", "ensemble", "rubric,rubric"])
def test_an_ensemble_needs_judges_that_there_are(members):
    changes = {"judge__provider": "ensemble", "judge__members": members}
    with pytest.raises(ConfigError, match=r"^config.judge.members: "):
        resolve(plain(**changes))


def test_an_ensemble_in_one_line():
    members = "rubric, gemini:gemini-2.5-pro"
    changes = {"judge__provider": "ensemble", "judge__members": members}
    assert resolve(plain(**changes)).judge.members == members
