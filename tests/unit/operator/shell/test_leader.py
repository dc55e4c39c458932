import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from ktrdr_client.cluster import LEASES, Raw, Unreachable
from ktrdr_client.testing import FakeCluster
from ktrdr_operator.leader import Leader, LeaseLostError

DOWN = Unreachable(0, "ClientOSError", "refused")


class Clock:
    """Time that passes only in sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    real_sleep = asyncio.sleep

    async def sleep(seconds: float) -> None:
        clock.now += seconds
        await real_sleep(0)

    monkeypatch.setattr("ktrdr_operator.leader.asyncio.sleep", sleep)
    return clock


def candidate(cluster: FakeCluster, clock: Clock, name: str) -> Leader:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return Leader(cluster, "ns", name, lambda: start + timedelta(seconds=clock()), clock)


def lease(cluster: FakeCluster) -> Raw:
    found = cluster.read(LEASES, "ns", "ktrdr-operator")
    assert found is not None
    spec: Raw = found["spec"]
    return spec


def ignore() -> None:
    """A beat nobody listens to."""


async def test_leader_alone_acquires_and_releases_for_the_next(clock: Clock) -> None:
    cluster = FakeCluster()
    first, second = (candidate(cluster, clock, name) for name in "ab")
    await first.acquire(ignore)
    assert (lease(cluster)["holderIdentity"], clock.now) == ("a", 0)
    await first.release()
    assert "holderIdentity" not in lease(cluster)
    await second.acquire(ignore)
    assert (lease(cluster)["holderIdentity"], clock.now) == ("b", 0)
    assert lease(cluster)["leaseTransitions"] == 1


async def test_leader_that_died_is_followed_after_its_lease(clock: Clock) -> None:
    cluster = FakeCluster()
    await candidate(cluster, clock, "dead").acquire(ignore)
    await candidate(cluster, clock, "heir").acquire(ignore)
    assert 15 <= clock.now <= 17
    assert lease(cluster)["holderIdentity"] == "heir"


async def test_leader_that_renews_is_never_followed(clock: Clock) -> None:
    cluster = FakeCluster()
    first = candidate(cluster, clock, "a")
    await first.acquire(ignore)
    holding = asyncio.create_task(first.hold(ignore))
    waiting = asyncio.create_task(candidate(cluster, clock, "b").acquire(ignore))
    while clock.now < 120:
        await asyncio.sleep(0)
    assert not holding.done()
    assert not waiting.done()
    for task in (holding, waiting):
        task.cancel()
    await asyncio.gather(holding, waiting, return_exceptions=True)


async def test_leader_taken_over_ends(clock: Clock) -> None:
    cluster = FakeCluster()
    leader = candidate(cluster, clock, "a")
    await leader.acquire(ignore)
    obj = cluster.read(LEASES, "ns", "ktrdr-operator")
    assert obj is not None
    obj["spec"]["holderIdentity"] = "b"
    cluster.put(LEASES, obj)
    with pytest.raises(LeaseLostError, match="held by b"):
        await leader.hold(ignore)


async def test_leader_that_cannot_renew_ends_before_others_start(clock: Clock) -> None:
    cluster = FakeCluster()
    leader = candidate(cluster, clock, "a")
    await leader.acquire(ignore)
    for nth in range(1, 20):
        cluster.fail_next("get", DOWN, nth=nth)
    with pytest.raises(LeaseLostError, match="10 s"):
        await leader.hold(ignore)
    assert clock.now < 15


async def test_leader_survives_a_short_outage(clock: Clock) -> None:
    cluster = FakeCluster()
    leader = candidate(cluster, clock, "a")
    await leader.acquire(ignore)
    for nth in (1, 2, 3):
        cluster.fail_next("get", DOWN, nth=nth)
    beats: list[float] = []
    task = asyncio.create_task(leader.hold(lambda: beats.append(clock.now)))
    while len(beats) < 2:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert beats[0] == 8.0


async def test_leader_race_of_two_has_one_winner(clock: Clock) -> None:
    cluster = FakeCluster()
    one, two = (candidate(cluster, clock, name) for name in "ab")
    wins = await asyncio.gather(one._try(), two._try())
    assert sorted(wins) == [False, True]


async def test_leader_release_spares_the_lease_of_another(clock: Clock) -> None:
    cluster = FakeCluster()
    await candidate(cluster, clock, "a").acquire(ignore)
    await candidate(cluster, clock, "b").release()
    assert lease(cluster)["holderIdentity"] == "a"
