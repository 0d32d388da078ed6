"""The grammar of a source, and every kind of source through its public door."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest

from mappa_jax.config import DataConfig
from mappa_jax.data import DataError
from mappa_jax.data.sources import SourceSpec, load_tasks, parse_sources

ROOT = pathlib.Path(__file__).parents[2]
SHARED = ROOT / ".." / "shared" / "data"
needs_problems = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the competition problems are not in ../shared/data"
)


def _load(text, split="train", **config):
    (spec,) = parse_sources(text)
    return load_tasks(spec, split, DataConfig(**config))


def test_importing_the_package_is_light():
    code = (
        "import sys, mappa_jax.data, mappa_jax.answers, mappa_jax.records; "
        "import mappa_jax.tabular.submission; slow = {'jax', 'grain', 'pandas', "
        "'sklearn', 'tensorflow_datasets', 'reasoning_gym', 'sympy'}; "
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_several_sources_with_weights():
    assert parse_sources("reasoning_gym:chain_sum@2, jsonl:dir/a b.jsonl") == (
        SourceSpec("reasoning_gym", "chain_sum", 2.0),
        SourceSpec("jsonl", "dir/a b.jsonl", 1.0),
    )


def test_labels_are_fit_for_metrics_and_files():
    specs = parse_sources("jsonl:dir/a b.jsonl,tfds:math_dataset/mul,jsonl:x@y.jsonl@1")
    assert [spec.label for spec in specs] == ["a_b", "math_dataset_mul", "x_y"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("chain_sum", "'chain_sum' is no source"),
        ("", "'' is no source"),
        ("csv:a.csv", "one of jsonl, competition_math, tfds, reasoning_gym"),
        ("jsonl:", "'jsonl:' is no source"),
        ("jsonl:a@b.jsonl", "'b.jsonl' is no weight"),
        ("jsonl:a@0", "must be positive"),
        ("jsonl:a@nan", "must be positive"),
        ("jsonl:a/x.jsonl,jsonl:b/x.jsonl", "two sources .* are called 'x'"),
    ],
)
def test_a_bad_source_is_refused(text, message):
    with pytest.raises(DataError, match=message):
        parse_sources(text)


# --- jsonl ---------------------------------------------------------------------


def _jsonl(tmp_path, *lines):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return f"jsonl:{path}"


def test_json_lines_become_tasks(tmp_path):
    source = _jsonl(
        tmp_path,
        '{"prompt": "é\\u2028?", "answer": 33.0, "id": 7, "metadata": {"a": [1]}}',
        "",
        '{"prompt": "b", "answer": " 1/2 "}',
        '{"prompt": "c", "answer": 0.5}',
        '{"prompt": "d"}',
    )
    first, *others = _load(source)
    assert (first.id, first.prompt, first.answer) == ("7", "é\u2028?", "33")
    assert (first.source, first.grader) == ("mine", "math")
    assert first.metadata == {"a": [1]}
    assert [(t.id, t.answer) for t in others] == [
        ("line-3", "1/2"),
        ("line-4", "0.5"),
        ("line-5", None),
    ]


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"prompt": "a"', r"mine\.jsonl:2: not valid JSON .*column 15"),
        ("[1]", r"mine\.jsonl:2: not a JSON object"),
        ('{"question": "a"}', r"mine\.jsonl:2: .*'prompt' is missing .*question"),
        ('{"prompt": ""}', r"mine\.jsonl:2: 'prompt' must be non-empty"),
        ('{"prompt": 3}', r"mine\.jsonl:2: 'prompt' must be non-empty text, got 3"),
        ('{"prompt": "a", "answer": [1]}', r"mine\.jsonl:2: 'answer' must be"),
        ('{"prompt": "a", "answer": true}', r"mine\.jsonl:2: 'answer' must be"),
        ('{"prompt": "a", "answer": NaN}', r"mine\.jsonl:2: .*NaN is not JSON"),
        ('{"prompt": "a", "metadata": {"x": Infinity}}', r"mine\.jsonl:2: .*Infinity"),
        ('{"prompt": "a", "answer": ""}', r"mine\.jsonl:2: 'answer' must be"),
        ('{"prompt": "a", "id": 1.5}', r"mine\.jsonl:2: 'id' must be"),
        ('{"prompt": "a", "metadata": "x"}', r"mine\.jsonl:2: 'metadata' must be"),
        (
            '{"prompt": "a", "metadata": {"accepted_answers": "12"}}',
            r"mine\.jsonl:2: 'metadata.accepted_answers' must be a list",
        ),
        ('{"prompt": "a", "id": "one"}', r"mine\.jsonl:2: the id 'one' occurs twice"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    source = _jsonl(tmp_path, '{"prompt": "x", "id": "one"}', line)
    with pytest.raises(DataError, match=message):
        _load(source)


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"mine\.jsonl: holds no problems"):
        _load(_jsonl(tmp_path, "", ""))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no\.jsonl: cannot be read .*data\.source"):
        _load(f"jsonl:{tmp_path}/no.jsonl")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        _load(f"jsonl:{tmp_path}/b.jsonl")


# --- competition_math ----------------------------------------------------------


@needs_problems
def test_the_real_collections(tmp_path):
    def load(name):
        return _load(
            f"competition_math:{name}", folder=str(SHARED), cache_dir=str(tmp_path)
        )

    aime = load("aime_1983_2024")
    assert len(aime) == 933
    assert (aime[0].id, aime[0].answer, aime[0].metadata["year"]) == (
        "1983-1",
        "60",
        1983,
    )
    assert [t.id for t in aime[1:3]] == ["1983-2", "1983-3"]
    two = [t.metadata["accepted_answers"] for t in aime if "both" in t.answer]
    assert two == [["080", "081"]]
    assert len({t.id for t in load("aime_2025")}) == 30
    amc = load("amc")
    assert len(amc) == 117 and all("." not in t.answer for t in amc)
    assert amc[0].answer == "142"
    assert {t.prompt for t in load("amc_eval_32")} < {t.prompt for t in amc}
    assert "tensorflow" not in sys.modules


def _folder(tmp_path, text):
    (tmp_path / "aime_2025.json").write_text(text)
    return {"folder": str(tmp_path), "cache_dir": str(tmp_path / "cache")}


def test_a_changed_file_is_prepared_anew(tmp_path):
    one = _folder(tmp_path, json.dumps([{"prompt": "a", "answer": 33.0}]))
    assert [t.answer for t in _load("competition_math:aime_2025", **one)] == ["33"]
    two = _folder(tmp_path, '{"prompt": "a", "answer": "34"}\n')
    assert [t.answer for t in _load("competition_math:aime_2025", **two)] == ["34"]
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_prepared_problems_are_read_from_the_cache(tmp_path, monkeypatch):
    config = _folder(tmp_path, '[{"prompt": "a", "answer": "1"}]')
    before = _load("competition_math:aime_2025", **config)
    from mappa_jax.data import competition_math

    monkeypatch.setattr(competition_math, "parse_rows", None)  # a use would fail
    assert _load("competition_math:aime_2025", **config) == before


@pytest.mark.parametrize(
    "text, message",
    [
        ('[{"prompt": "a"}]', "aime_2025.json: item 0: 'answer' is missing"),
        ('[{"answer": "1"}]', "aime_2025.json: item 0: .*'prompt' is missing"),
        ("[", "aime_2025.json:1: not valid JSON"),
        ("[]", "holds no problems"),
        ("[3]", "item 0: not a JSON object"),
    ],
)
def test_a_bad_collection_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        _load("competition_math:aime_2025", **_folder(tmp_path, text))


def test_a_missing_collection_says_what_to_set(tmp_path):
    with pytest.raises(DataError, match=r"amc\.json: cannot be read .*data\.folder"):
        _load("competition_math:amc", folder=str(tmp_path))


def test_an_unknown_collection_lists_the_known():
    with pytest.raises(DataError, match="no collection 'aime'; it has aime_1983_2024"):
        _load("competition_math:aime")


def test_without_a_network_the_error_says_what_to_set(monkeypatch, tmp_path):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(DataError, match=r"set data\.folder .* aime_2025\.json"):
        _load("competition_math:aime_2025", cache_dir=str(tmp_path))


def test_a_collection_without_a_home_on_the_hub_says_what_to_set(tmp_path):
    with pytest.raises(DataError, match=r"set data\.folder .* amc_eval_32\.json"):
        _load("competition_math:amc_eval_32", cache_dir=str(tmp_path))


def _hub(monkeypatch, folder):
    import huggingface_hub

    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(folder)
    )


def test_hub_tables_are_read_as_the_folder_is(monkeypatch, tmp_path):
    import pyarrow
    from pyarrow import parquet

    hub = tmp_path / "hub"
    hub.mkdir()
    rows = {
        "id": list(range(83)),
        "problem": [f"p{i}" for i in range(83)],
        "answer": [float(i) for i in range(83)],
        "url": ["u"] * 83,
    }
    parquet.write_table(pyarrow.table(rows), hub / "train.parquet")
    _hub(monkeypatch, hub)
    tasks = _load("competition_math:amc", cache_dir=str(tmp_path / "cache"))
    assert len(tasks) == 83
    assert (tasks[2].id, tasks[2].prompt, tasks[2].answer) == ("2", "p2", "2")
    assert tasks[2].metadata == {"url": "u"}


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"problem": "a", "answer": "1", "id": "0"}\n', "1 problems where 30 are"),
        ('{"question": "a", "answer": "1"}\n', "column 'problem' is missing"),
    ],
)
def test_a_changed_repository_is_refused(monkeypatch, tmp_path, text, message):
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "test.jsonl").write_text(text)
    _hub(monkeypatch, hub)
    with pytest.raises(DataError, match=message):
        _load("competition_math:aime_2025", cache_dir=str(tmp_path / "cache"))


def test_csv_statements_may_have_several_lines(tmp_path):
    from mappa_jax.data.hub import read_table

    (tmp_path / "a.csv").write_text('Question,Answer\n"one\ntwo",3\n')
    assert read_table(tmp_path / "a.csv").to_pylist() == [
        {"Question": "one\ntwo", "Answer": 3}
    ]


# --- tfds ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_qa():
    import tensorflow_datasets as tfds

    class TinyQa(tfds.core.GeneratorBasedBuilder):
        """Three questions in the form of GSM8K."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = tfds.features.Text()
            features = tfds.features.FeaturesDict({"question": text, "answer": text})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(2), "validation": self._one()}

        def _one(self):
            yield 0, {"question": "held out", "answer": "5"}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"question": f"q{i}", "answer": f"so 1,{i}\n#### 1,00{i}"}

    return TinyQa


def test_tfds_sets_become_tasks(tiny_qa, tmp_path):
    train = _load("tfds:tiny_qa", "train", cache_dir=str(tmp_path))
    assert {t.prompt: t.answer for t in train} == {"q0": "1,000", "q1": "1,001"}
    assert {t.id for t in train} == {"train-0", "train-1"}
    assert {t.source for t in train} == {"tiny_qa"}
    assert "so 1," in train[0].metadata["worked_answer"]
    (test,) = _load("tfds:tiny_qa", "test", cache_dir=str(tmp_path))
    assert (test.id, test.answer) == ("validation-0", "5")


def test_an_unknown_tfds_set_is_refused(tmp_path):
    with pytest.raises(DataError, match="TFDS has no data set 'nonsense_qa'"):
        _load("tfds:nonsense_qa", cache_dir=str(tmp_path))


def test_a_tfds_set_that_cannot_be_prepared_says_what_to_do(
    tiny_qa, tmp_path, monkeypatch
):
    def refuse(self, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(tiny_qa, "download_and_prepare", refuse)
    with pytest.raises(DataError, match=r"no network.*copy it to .*jsonl:<path>"):
        _load("tfds:tiny_qa", cache_dir=str(tmp_path))


def test_every_field_of_a_spec_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse_sources("jsonl:a")[0].weight = 2.0
