"""Workdirs and data in object storage, on fsspec's own storage in memory."""

import uuid

import fsspec
import pytest

from mappa_jax.checkpoints import Checkpoints
from mappa_jax.config import CheckpointConfig, DataConfig
from mappa_jax.data.errors import DataError
from mappa_jax.data.sources import load_tasks, parse_sources
from mappa_jax.remote import FETCHED, RemoteError, Workdir, fetch


@pytest.fixture
def bucket():
    """(file system, its address) of a new empty bucket."""
    return fsspec.filesystem("memory"), f"memory://{uuid.uuid4().hex}"


def opened(bucket, cache):
    workdir = Workdir(f"{bucket[1]}/run", cache)
    workdir.pull()
    return workdir


def stored(bucket):
    store, where = bucket
    root = where.removeprefix("memory:/") + "/run/"
    return {n.removeprefix(root): store.cat_file(n) for n in store.find(root)}


def write(workdir, name, text):
    path = workdir.local / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_local_workdir_is_a_folder(tmp_path):
    workdir = Workdir(str(tmp_path / "run"), tmp_path)
    assert workdir.local == tmp_path / "run"
    assert workdir.checkpoints == str(tmp_path / "run" / "checkpoints")
    workdir.pull()
    workdir.push()
    assert not workdir.local.exists()


def test_what_is_written_is_copied_out_once(bucket, tmp_path, monkeypatch):
    workdir = opened(bucket, tmp_path)
    write(workdir, "metrics.jsonl", "1\n")
    write(workdir, "trajectories/step_1.jsonl", "a\n")
    workdir.push()
    assert stored(bucket) == {
        "metrics.jsonl": b"1\n",
        "trajectories/step_1.jsonl": b"a\n",
    }
    sent, put = [], type(bucket[0]).put_file
    monkeypatch.setattr(
        type(bucket[0]),
        "put_file",
        lambda self, here, there, **kw: sent.append(there) or put(self, here, there),
    )
    write(workdir, "metrics.jsonl", "1\n2\n")
    workdir.push()
    assert [name.rpartition("/")[2] for name in sent] == ["metrics.jsonl"]
    assert stored(bucket)["metrics.jsonl"] == b"1\n2\n"


def test_another_machine_goes_on_from_the_storage(bucket, tmp_path):
    first = opened(bucket, tmp_path / "a")
    write(first, "judge_ledger.jsonl", "paid\n")
    first.push()
    second = opened(bucket, tmp_path / "b")
    assert (second.local / "judge_ledger.jsonl").read_text() == "paid\n"
    write(second, "judge_ledger.host1.jsonl", "too\n")
    second.push()
    assert set(stored(bucket)) == {"judge_ledger.jsonl", "judge_ledger.host1.jsonl"}


def test_hosts_leave_one_anothers_files_alone(bucket, tmp_path):
    """A host that only read a file does not write an older one over it."""
    one, two = opened(bucket, tmp_path / "a"), opened(bucket, tmp_path / "b")
    write(one, "metrics.jsonl", "1\n")
    one.push()
    two.pull()
    write(one, "metrics.jsonl", "1\n2\n")
    one.push()
    two.push()
    assert stored(bucket)["metrics.jsonl"] == b"1\n2\n"


def test_what_a_process_that_died_had_not_copied_out_is_gone(bucket, tmp_path):
    workdir = opened(bucket, tmp_path)
    write(workdir, "metrics.jsonl", "1\n")
    workdir.push()
    write(workdir, "metrics.jsonl", "1\n2")  # torn, and never copied out
    write(workdir, "new.jsonl", "x")
    again = opened(bucket, tmp_path)
    assert (again.local / "metrics.jsonl").read_text() == "1\n"
    assert not (again.local / "new.jsonl").exists()


def test_a_reader_beside_a_run_takes_nothing_from_it(bucket, tmp_path):
    """With one cache, as on one machine or with one home."""
    run = opened(bucket, tmp_path)
    write(run, "judge_ledger.jsonl", "paid\n")
    run.push()
    write(run, "judge_ledger.jsonl", "paid\npaid too\n")
    write(run, "trajectories/step_2.jsonl", "x")
    reader = opened(bucket, tmp_path)
    reader.push()
    run.push()
    assert stored(bucket) == {
        "judge_ledger.jsonl": b"paid\npaid too\n",
        "trajectories/step_2.jsonl": b"x",
    }


def test_checkpoints_are_the_storages_own(bucket, tmp_path):
    store, where = bucket
    store.pipe(f"{where}/run/checkpoints/1/big", b"x" * 10)
    workdir = opened(bucket, tmp_path)
    assert workdir.checkpoints == f"{where}/run/checkpoints"
    assert not any(workdir.local.rglob("big"))


def test_a_checkpoint_folder_on_gs_stays_an_address(monkeypatch):
    seen = {}

    class Manager:
        def __init__(self, folder, **_):
            seen["folder"] = str(folder)

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager", Manager)
    Checkpoints("gs://bucket/run/checkpoints", CheckpointConfig())
    assert seen["folder"] == "gs://bucket/run/checkpoints"


def test_files_and_folders_are_fetched(bucket, tmp_path):
    store, where = bucket
    store.pipe(f"{where}/data/a.json", b"1")
    store.pipe(f"{where}/data/sub/b.json", b"2")
    assert fetch(f"{where}/data/a.json", tmp_path).read_bytes() == b"1"
    folder = fetch(f"{where}/data", tmp_path)
    assert (folder / "sub" / "b.json").read_bytes() == b"2"
    with pytest.raises(FileNotFoundError, match="nothing"):
        fetch(f"{where}/nothing", tmp_path)
    assert fetch("/a/b", tmp_path).as_posix() == "/a/b"


def test_what_was_fetched_is_fetched_again_only_when_it_has_changed(
    bucket, tmp_path, monkeypatch
):
    store, where = bucket
    got, get = [], type(store).get_file
    monkeypatch.setattr(
        type(store), "get_file", lambda self, *a, **kw: got.append(a) or get(self, *a)
    )
    for text, files in ((b"1", 2), (b"1", 2), (b"22", 4)):
        if files == 4 or not got:
            store.pipe(f"{where}/data/a.json", text)
            store.pipe(f"{where}/data/b.json", text)
        assert (fetch(f"{where}/data", tmp_path) / "b.json").read_bytes() == text
        assert len(got) == files
    assert len([*(tmp_path / FETCHED).iterdir()]) == 2  # and nothing half-done


def test_a_storage_that_refuses_is_an_error_that_says_where_the_files_are(
    bucket, tmp_path, monkeypatch
):
    workdir = opened(bucket, tmp_path)
    write(workdir, "metrics.jsonl", "1\n")

    def refuse(*_, **__):
        raise ConnectionError("503")

    with monkeypatch.context() as patch:
        patch.setattr(type(bucket[0]), "put_file", refuse)
        with pytest.raises(RemoteError, match="metrics.jsonl .*503.*kept in") as e:
            workdir.push()
    assert str(workdir.local) in str(e.value)
    workdir.push()
    assert stored(bucket) == {"metrics.jsonl": b"1\n"}


def test_problems_are_read_from_storage(bucket, tmp_path):
    store, where = bucket
    store.pipe(f"{where}/tasks.jsonl", b'{"prompt": "1+1", "answer": "2"}\n')
    config = DataConfig(cache_dir=str(tmp_path))
    (spec,) = parse_sources(f"jsonl:{where}/tasks.jsonl")
    (task,) = load_tasks(spec, "train", config)
    assert (task.prompt, task.answer, task.source) == ("1+1", "2", "tasks")
    (gone,) = parse_sources(f"jsonl:{where}/gone.jsonl")
    with pytest.raises(DataError, match="gone.jsonl: cannot be read"):
        load_tasks(gone, "train", config)


def test_where_another_error_ends_the_run_files_are_sent_or_their_place_is_said(
    bucket, tmp_path, monkeypatch, capsys
):
    from mappa_jax.commands import common

    workdir = opened(bucket, tmp_path)
    write(workdir, "judge_ledger.host1.jsonl", "paid\n")
    common.push_or_say(workdir)
    assert stored(bucket) == {"judge_ledger.host1.jsonl": b"paid\n"}

    def refuse(self):
        raise RemoteError("no bucket")

    monkeypatch.setattr(Workdir, "push", refuse)
    common.push_or_say(workdir)
    said = capsys.readouterr().err
    assert "no bucket" in said and str(workdir.local) in said
