"""The page that is served while a run goes on."""

import shutil

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from made_runs import write_run

from mappa_jax.config import ConfigError
from mappa_jax.report.build import Builder
from mappa_jax.report.live import Live, application, serve


@pytest.fixture
async def served(tmp_path):
    folder = write_run(tmp_path / "run", steps=2, attack=False)
    builder = Builder(folder)
    async with TestServer(application(Live(builder, builder.build()))) as server:
        async with aiohttp.ClientSession() as session:
            address = f"http://127.0.0.1:{server.port}"
            yield session, address, folder


async def version(session, address):
    async with session.get(f"{address}/version") as answer:
        return await answer.json()


async def test_the_version_changes_with_the_files_and_the_blocks_with_it(served):
    session, address, folder = served
    first = await version(session, address)
    assert first["error"] == "" and await version(session, address) == first
    async with session.get(f"{address}/block/index") as answer:
        before = await answer.read()
    source = folder / "trajectories" / "eval_000002_sums.jsonl"
    shutil.copy(source, folder / "trajectories" / "step_000003.jsonl")
    assert (await version(session, address))["version"] != first["version"]
    async with session.get(f"{address}/block/index") as answer:
        assert await answer.read() != before
    async with session.get(f"{address}/block/chunk/step_000003/0") as answer:
        assert answer.status == 200


async def test_a_damaged_file_is_told_and_the_last_good_report_stays(served):
    session, address, folder = served
    path = folder / "metrics.jsonl"
    path.write_text("{broken\n" + path.read_text())
    assert "metrics.jsonl:1" in (await version(session, address))["error"]
    async with session.get(f"{address}/block/overview") as answer:
        assert answer.status == 200


async def test_other_names_for_this_machine_are_refused(served):
    session, address, _ = served
    for host, status in (
        *(("elsewhere.example:80", 403), ("elsewhere.example", 403), ("[", 403)),
        *(("127.0.0.1", 200), ("localhost", 200), ("127.0.0.1:80", 200)),
    ):
        headers = {"Host": host}
        async with session.get(f"{address}/block/index", headers=headers) as answer:
            assert answer.status == status, host
    async with session.get(f"{address}/block/../../config.json") as answer:
        assert answer.status == 404


async def test_a_port_that_is_taken_is_named(served):
    _, address, folder = served
    port = int(address.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"--serve={port}: .*another port"):
        await serve(Builder(folder), port, print)
