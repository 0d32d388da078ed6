"""The side-by-side runs: pairs, ratios, what is checked, and our own worker."""

import contextlib
import dataclasses
import json
import sys

import numpy as np
import pytest
import scripts


@pytest.fixture(scope="module")
def peers(launch_path):
    return scripts.load(launch_path.parent / "benchmarks" / "peers.py")


@pytest.fixture(scope="module")
def workers(peers):
    """The modules of benchmarks/peer_workers that need nothing but our environment."""
    sys.path.insert(0, str(peers.WORKERS))
    import ours
    import protocol

    yield ours, protocol
    sys.path.remove(str(peers.WORKERS))


@pytest.fixture(scope="module")
def work(peers, workers, tmp_path_factory):
    """The smoke run's, as a worker gets it."""
    _, protocol = workers
    folder = tmp_path_factory.mktemp("peers")
    cfg = peers.model_shape(peers.SMOKE.model)
    peers.write_weights(cfg, folder / "model")
    arrays = peers.make_arrays(peers.SMOKE, cfg.vocab_size)
    np.savez(folder / "work.npz", **arrays)
    told = {"folder": str(folder / "model"), "arrays": str(folder / "work.npz")}
    told |= {"part": "update", "device": "cpu", "dtype": "float32", "agents": 3}
    told |= {"microbatch": peers.SMOKE.microbatch, "eos": peers.EOS, "pad": peers.PAD}
    return protocol.read_work(told)


def timing(peers, seconds, before=1.0, after=1.0, **facts):
    return peers.Timing(seconds, facts, before, after)


def script(peers, log, name, *timings):
    """A side whose timings are given as (seconds, before, after)."""
    left = iter(timings)

    def take():
        log.append(name)
        return timing(peers, *next(left))

    return take


def test_the_sides_take_turns(peers):
    log = []
    ours = script(peers, log, "ours", *[(1.0, 1, 1)] * 3)
    peer = script(peers, log, "peer", *[(s, 1, 1) for s in (2.0, 5.0, 3.0)])
    pairs, again = peers.take_pairs(ours, peer, 3, 0.1, 5)
    assert log == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert [pair.ratio for pair in pairs] == [2, 5, 3]
    assert again == 0


def test_a_pair_is_taken_again_where_the_speed_moved(peers):
    log = []
    ours = script(peers, log, "ours", (1.0, 1, 1), (1.0, 1, 1), (1.0, 1, 1))
    peer = script(peers, log, "peer", (9.0, 1, 1.5), (2.0, 1, 1.05), (3.0, 1, 1))
    pairs, again = peers.take_pairs(ours, peer, 2, 0.1, 5)
    assert [pair.ratio for pair in pairs] == [2, 3]
    assert again == 1
    assert log == ["ours", "peer"] * 2 + ["peer", "ours"]


def test_retakes_end_and_the_steadiest_is_kept(peers):
    """The bound is of all pairs together."""
    log = []
    ours = script(peers, log, "ours", *[(1.0, 1, 1)] * 4)
    peer = script(peers, log, "peer", (7, 1, 2), (4, 1, 1.2), (5, 1, 1.5), (6, 1, 1.5))
    pairs, again = peers.take_pairs(ours, peer, 2, 0.1, 2)
    assert [pair.ratio for pair in pairs] == [4, 6]
    assert again == 2
    assert [round(pair.spread, 2) for pair in pairs] == [0.2, 0.5]


def test_a_comparison_goes_on_as_if_it_had_not_been_stopped(peers, tmp_path):
    """The takes of each pair, their order and the retakes that are left."""
    path, of = tmp_path / "new" / "pairs.jsonl", {"code": "a"}
    steady = peers.Pair(timing(peers, 1.0, tokens=3), timing(peers, 2.0))
    moved = peers.Pair(timing(peers, 1.0), timing(peers, 9.0, after=1.5))
    peers.append_pair(path, of, 0, steady, 0.7)
    peers.append_pair(path, of, 1, moved, 0.6)
    peers.append_pair(path, of, 1, moved, 0.6)
    peers.append_pair(path, {"code": "b"}, 2, steady, 0.1)  # of other code
    had, full = peers.read_pairs(path, of)
    assert {n: len(takes) for n, takes in had.items()} == {0: 1, 1: 2}
    assert dataclasses.asdict(had[0][0]) == dataclasses.asdict(steady)
    assert full == 0.6
    log, told = [], []
    ours = script(peers, log, "ours", (1.0, 1, 1), (1.0, 1, 1.5))
    peer = script(peers, log, "peer", (5.0, 1, 1), (6.0, 1, 1))
    pairs, again = peers.take_pairs(
        *(ours, peer, 3, 0.1, 2),
        tell=lambda number, pair: told.append((number, pair.ratio)),
        had=had,
    )
    assert log == ["peer", "ours", "ours", "peer"]
    assert told == [(1, 5), (2, 6)]
    assert [pair.ratio for pair in pairs] == [2, 5, 6]
    assert again == 2  # none is left for the last, which has moved


def test_a_second_call_finds_the_pairs_of_the_first(peers, tmp_path, monkeypatch):
    runs = []

    class Side:
        def run(self):
            runs.append(self)
            return 2.0, {"lengths": [3]}

    monkeypatch.setattr(
        peers.Bench, "worker", lambda *_: contextlib.nullcontext(Side())
    )
    monkeypatch.setattr(peers.Probe, "__call__", lambda self: 1.0)
    arrays = {"stops": np.array([3]), "starts": np.zeros(1), "lengths": np.ones(1)}

    def compare(repeats):
        bench = peers.Bench(
            *(peers.SMOKE, "cpu", arrays, None, None, peers.Probe(0.01)),
            *(repeats, 0.15, 3, tmp_path / "pairs.jsonl"),
        )
        bench.probe.best = 1.0
        return bench.compare("sampling", "tunix", Side(), {"lengths": [3]})

    assert len(compare(2)["ratios"]) == 2
    assert len(runs) == 1 + 4  # theirs is warmed up
    assert len(compare(3)["ratios"]) == 3
    assert len(runs) == 5 + 1 + 2
    monkeypatch.setattr(peers, "code_digest", lambda: "other code")
    compare(1)
    assert len(runs) == 8 + 1 + 2


def test_a_ratio_is_the_median_of_the_pairs(peers):
    """Not the ratio of the medians, which here would be 1."""
    seconds = [(1.0, 2.0), (2.0, 6.0), (4.0, 1.0)]
    pairs = [peers.Pair(timing(peers, a), timing(peers, b)) for a, b in seconds]
    found = peers.summary(pairs, 1, 0.1, full=0.5)
    assert found["ratio"] == 2
    assert found["ours"]["median_seconds"] == found["peer"]["median_seconds"] == 2
    assert found["ours"]["share_of_full_speed"] == [0.5] * 3
    assert (found["taken_again"], found["moved"]) == (1, 0)


def test_the_probe_remembers_full_speed(peers):
    probe = peers.Probe(0.02)
    mean, before = probe(), probe.best
    assert 0 < before <= mean
    probe()
    assert probe.best <= before


def test_the_work_is_spread_evenly(peers):
    sizes = peers.Sizes("135m", 16, 512, 256, 64, 1024, 4, 3)
    arrays = peers.make_arrays(sizes, 49152)
    assert sorted(arrays["stops"])[:2] == [16, 32] and max(arrays["stops"]) == 256
    assert min(arrays["lengths"]) == 128 and max(arrays["lengths"]) == 1024
    assert arrays["prompts"].min() > max(peers.EOS, peers.PAD)
    assert ((arrays["tokens"] != peers.PAD).sum(1) == arrays["lengths"]).all()
    assert abs(arrays["advantages"][:64].mean()) < 1e-6
    assert (arrays["prompts"].shape, arrays["tokens"].shape) == ((16, 512), (64, 1024))


def test_unlike_work_is_refused(peers):
    arrays = {
        "stops": np.array([2, 3]),
        "starts": np.array([1, 1]),
        "lengths": np.array([3, 4]),
    }

    def check(part, *facts):
        peers.check_same_work(part, arrays, 2, 0.05, *facts)

    check("sampling", {"lengths": [2, 3]})
    check("update", *[{"tokens": 5, "grad_norm": n} for n in (1.0, 1.01)])
    check("iteration", {"lengths": [[2, 3]] * 2, "tokens": 10})
    for part, *facts in (
        ("sampling", {"lengths": [2, 3]}, {"lengths": [2, 2]}),
        ("update", *[{"tokens": n, "grad_norm": 1.0} for n in (5, 6)]),
        ("update", *[{"tokens": 5, "grad_norm": n} for n in (1.0, 1.1)]),
        ("update", *[{"tokens": 5, "grad_norm": n} for n in (1.0, float("nan"))]),
        ("iteration", {"lengths": [[2, 3]], "tokens": 5}),
    ):
        with pytest.raises(peers.OtherWork):
            check(part, *facts)


def test_sizes_must_fill_micro_batches(peers):
    peers.check_sizes(peers.SMOKE)
    with pytest.raises(ValueError, match="--sequences=7 is no multiple of"):
        peers.check_sizes(dataclasses.replace(peers.SMOKE, sequences=7))


def test_an_iteration_is_compared_with_the_fastest_peer(peers):
    def took(seconds):
        return {"peer": {"median_seconds": seconds}}

    found = {
        "sampling_vs_tunix": took(1),
        "update_vs_tunix": took(5),
        "sampling_vs_transformers": took(3),
        "update_vs_torch": took(4),
    }
    assert peers.best_whole(found, ["tunix", "torch"]) == "tunix"
    assert (
        peers.best_whole(found | {"update_vs_torch": took(2)}, peers.WHOLE) == "torch"
    )
    assert peers.best_whole({}, ["tunix", "torch"]) == "torch"
    assert peers.best_whole({}, ["tunix"]) == "tunix"


def test_what_is_written_names_every_ratio(peers):
    pair = peers.Pair(timing(peers, 1.0, tokens=5), timing(peers, 2.0, tokens=5))
    one = peers.summary([pair], 0, 0.1, 1.0) | {"peer_name": "torch"}
    found = {key: one for key in peers.TARGETS} | {"update_vs_trl": {"error": "a\nb"}}
    bench = peers.Bench(
        *(peers.SMOKE, "cpu", {}, None, None, peers.Probe(0.01)),
        *(5, 0.15, 3),
    )
    out = json.loads(json.dumps(peers.written(bench, found)))
    assert {key for key, ratio in out.items() if ratio == 2} == set(peers.TARGETS)
    assert out["update_vs_trl"] is None
    assert out["comparisons"]["sampling_vs_tunix"]["ours"]["median_seconds"] == 1
    assert "google-tunix==0.1.7" in out["about"]["packages"]
    said = peers.report(found)
    assert "update_vs_trl              failed: b" in said
    assert "target 1.3" in said


def test_every_part_has_the_peers_it_names(peers):
    for name, peer in peers.PEERS.items():
        assert (peers.WORKERS / peer.worker).exists()
        assert set(peer.does) <= set(peers.PARTS)
        assert peer.environment in peers.ENVIRONMENTS
        assert ("iteration" in peer.does) == (name in peers.WHOLE)


def test_a_worker_answers_until_the_pipe_closes(peers, tmp_path):
    """The real protocol, with a side that does nothing and prints."""
    code = (
        f"import sys; sys.path.insert(0, {str(peers.WORKERS)!r}); import protocol\n"
        "protocol.read_work = lambda setup: setup\n"
        "def prepare(work, part):\n"
        "    if part == 'none': raise ValueError('no such part')\n"
        "    print('noise'); return lambda: {'seconds': 2.5, 'part': part}\n"
        "protocol.serve(prepare)\n"
    )

    def start(part):
        log = tmp_path / "log"
        return peers.Worker([sys.executable, "-c", code], {}, log, {"part": part})

    worker = start("sampling")
    assert worker.run() == (2.5, {"part": "sampling"})
    worker.close()
    assert (tmp_path / "log").read_text() == "noise\n"
    with pytest.raises(peers.WorkerFailed, match="no such part"):
        start("none")


def test_we_stop_every_row_at_its_length(peers, workers, work):
    ours, _ = workers
    run = ours.prepare(work, "sampling")
    peers.check_same_work("sampling", vars(work), 1, 0, run(), run())


def test_we_train_on_all_tokens_with_the_gradient_of_the_definition(
    peers, workers, work
):
    """The gradient of mean over sequences of A * mean log pi, row by row."""
    import jax
    import jax.numpy as jnp

    from mappa_jax.models import hf
    from mappa_jax.models.decoder import Decoder, logits

    ours, _ = workers
    facts = ours.prepare(work, "update")()
    cfg, params = hf.numpy_params(work.folder)

    def loss(params, tokens, start, end, advantage):
        places = jnp.arange(tokens.shape[0])
        ends = jnp.where(places < end, end, 0)[None]
        args = (tokens[None], places[None], ends)
        hidden, _ = Decoder(cfg).apply({"params": params}, *args)
        scores = jax.nn.log_softmax(logits(params, cfg, hidden[0, :-1]))
        chosen = jnp.take_along_axis(scores, tokens[1:, None], 1)[:, 0]
        used = (places[1:] >= start) & (places[1:] < end)
        return -advantage * (chosen * used).sum() / used.sum()

    @jax.jit
    def gradient(params):
        def body(total, row):
            grad = jax.grad(loss)(params, *row)
            return jax.tree.map(jnp.add, total, grad), None

        count = len(work.lengths)
        rows = (work.tokens, work.starts, work.lengths, work.advantages[:count])
        zeros = jax.tree.map(jnp.zeros_like, params)
        total, _ = jax.lax.scan(body, zeros, jax.tree.map(jnp.asarray, rows))
        return jax.tree.map(lambda g: g / count, total)

    leaves = jax.tree.leaves(gradient(params))
    norm = float(np.sqrt(sum((np.asarray(g) ** 2).sum() for g in leaves)))
    other = {"tokens": facts["tokens"], "grad_norm": norm}
    peers.check_same_work("update", vars(work), 1, 1e-3, facts, other)


@pytest.mark.slow
def test_a_team_samples_and_trains(peers, workers, work):
    ours, _ = workers
    facts = ours.prepare(work, "iteration")()
    peers.check_same_work("iteration", vars(work), 3, 0, facts)
