"""Who does what on several hosts, without any."""

import asyncio

import pytest

from mappa_jax.hosts import HostLost, OneHost, Stopped, finish, share
from mappa_jax.judges.base import BudgetReached
from mappa_jax.parallel.hosts import is_lost
from mappa_jax.train import together


class Of:
    def __init__(self, index, count):
        self.index, self.count = index, count


@pytest.mark.parametrize(
    ("items", "hosts", "together"),
    [
        (12, 1, 2),
        (12, 2, 2),
        (12, 4, 2),
        (10, 4, 2),
        (3, 4, 1),
        (4, 4, 2),
        (0, 3, 2),
    ],
)
def test_hosts_share_everything_and_nothing_twice(items, hosts, together):
    parts = [share(range(items), Of(i, hosts), together) for i in range(hosts)]
    assert sorted(n for part in parts for n, _ in part) == [*range(items)]
    assert all(n == item for part in parts for n, item in part)
    if items >= hosts:
        assert all(parts)


def test_samples_of_a_task_stay_on_one_host():
    parts = [share(range(12), Of(i, 3), 2) for i in range(3)]
    assert [[n for n, _ in part] for part in parts] == [
        [0, 1, 6, 7],
        [2, 3, 8, 9],
        [4, 5, 10, 11],
    ]


def test_more_hosts_than_tasks_split_the_samples():
    parts = [share(range(4), Of(i, 4), 2) for i in range(4)]
    assert [len(part) for part in parts] == [1, 1, 1, 1]


async def test_one_host_gathers_what_it_has():
    assert await OneHost().gather("x") == ["x"]


class Told:
    """A host that hears what the others say."""

    def __init__(self, *others, index=0):
        self.others, self.index, self.count = others, index, len(others) + 1

    async def gather(self, value):
        return [value, *self.others]


async def test_hosts_that_differ_do_not_start(tmp_path):
    from mappa_jax.commands import common
    from mappa_jax.config import ConfigError

    seen = tmp_path / "config.json"
    seen.touch()
    await common.agree(Told(("a", True), ("a", True)), "config", "a", seen)
    with pytest.raises(ConfigError, match="hosts 0 and 2 differ in their config"):
        await common.agree(Told(("a", True), ("b", True)), "config", "a", seen)
    with pytest.raises(ConfigError, match="host 1 does not see .*config.json"):
        await common.agree(Told(("a", False)), "config", "a", seen)


@pytest.mark.parametrize(
    ("error", "count", "want"),
    [
        (RuntimeError(), 1, True),
        (RuntimeError(), 2, False),
        (HostLost(), 2, False),
        (Stopped(), 2, True),
        (BudgetReached(), 2, True),
        (BaseExceptionGroup("", [RuntimeError(), Stopped()]), 2, True),
        (BaseExceptionGroup("", [RuntimeError(), HostLost()]), 2, False),
    ],
)
def test_hosts_save_together_only_where_all_end_alike(error, count, want):
    assert together(Of(0, count), error) == want


@pytest.mark.parametrize(
    ("said", "want"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory allocating 4096 bytes.", False),
        ("INTERNAL: the address 0x10 is not aligned", False),
        ("UNAVAILABLE: the coordination service cannot be reached", True),
        ("UNKNOWN: Gloo all-gather failed: Connection closed by peer", True),
        ("DEADLINE_EXCEEDED: collective timed out", True),
    ],
)
def test_only_what_says_so_is_the_loss_of_another_host(said, want):
    """A host's own lack of memory is not."""
    assert is_lost(RuntimeError(said)) == want


class Meeting:
    """Two hosts in one event loop: a gather ends when both have come."""

    def __init__(self):
        self.turn = asyncio.Barrier(2)
        self.said = [None, None]
        self.told = False

    def host(self, index):
        meeting = self

        class Host:
            count = 2

            async def gather(self, value):
                meeting.said[index] = value
                await meeting.turn.wait()
                values, told = list(meeting.said), meeting.told
                await meeting.turn.wait()
                if told:
                    raise Stopped
                return values

        return Host()


async def test_hosts_wait_for_the_slowest_and_hear_of_a_stop_meanwhile(monkeypatch):
    monkeypatch.setattr("mappa_jax.hosts.TOLD_EVERY", 0.01)
    for stop in (False, True):
        meeting, slow = Meeting(), asyncio.create_task(asyncio.sleep(0.1 + stop * 60))
        waiting = asyncio.gather(
            finish(meeting.host(0), [slow]),
            finish(meeting.host(1), []),
            return_exceptions=True,
        )
        await asyncio.sleep(0.05)
        assert not waiting.done()
        meeting.told = stop
        ended = await asyncio.wait_for(waiting, 30)
        assert [type(e) for e in ended] == [Stopped if stop else type(None)] * 2
        await asyncio.wait([slow])
        assert slow.cancelled() == stop


async def test_what_fails_is_heard_at_once_and_the_rest_is_cancelled():
    async def fail():
        raise ValueError("x")

    slow = asyncio.create_task(asyncio.sleep(60))
    with pytest.raises(ValueError, match="x"):
        await finish(OneHost(), [slow, asyncio.create_task(fail())])
    await asyncio.wait([slow])
    assert slow.cancelled()
