import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

import virtual_time
from ktrdr_client.cluster import LEASES, ClusterApi, Raw, Resource, Unreachable
from ktrdr_client.testing import FakeCluster
from ktrdr_operator.leader import LEASE_NAME, Leader, LeaseLostError
from virtual_time import elapse, in_virtual_time, now

DOWN = Unreachable(0, "ClientOSError", "refused")
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Server:
    """The requests of one candidate; a test can hold them up before or after the server acts."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.after_get: Callable[[], Coroutine[Any, Any, Any]] | None = None
        self.hangs_at = float("inf")
        self.answer_seconds = 0.0
        """How long the answer to a write takes; its effect is immediate."""
        self.written_at = 0.0

    async def _hang(self) -> None:
        if now() >= self.hangs_at:
            await asyncio.Event().wait()

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Raw | None:
        await self._hang()
        found = await self.cluster.get(resource, namespace, name)
        if self.after_get is not None:
            await self.after_get()
        return found

    async def create(self, resource: Resource, obj: Raw) -> Raw:
        await self._hang()
        return await self.cluster.create(resource, obj)

    async def apply(self, resource: Resource, obj: Raw) -> Raw:
        await self._hang()
        answer = await self.cluster.apply(resource, obj)
        self.written_at = now()
        await asyncio.sleep(self.answer_seconds)
        return answer


def candidate(
    cluster: FakeCluster | Server, identity: str, *, lease_name: str = LEASE_NAME
) -> Leader:
    server = cluster if isinstance(cluster, Server) else Server(cluster)
    clock = asyncio.get_running_loop().time
    return Leader(
        cast(ClusterApi, server),
        "ns",
        lease_name,
        identity,
        lambda: EPOCH + timedelta(seconds=clock()),
        clock,
    )


def lease(cluster: FakeCluster, name: str = LEASE_NAME) -> Raw:
    found = cluster.read(LEASES, "ns", name)
    assert found is not None
    spec: Raw = found["spec"]
    return spec


def ignore() -> None:
    """A heartbeat that is not needed."""


@in_virtual_time
async def test_leader_alone_acquires_and_releases_for_the_next() -> None:
    cluster, began = FakeCluster(), now()
    first, second = (candidate(cluster, name) for name in "ab")
    await first.acquire(ignore)
    assert lease(cluster)["holderIdentity"] == "a"
    await first.release()
    assert "holderIdentity" not in lease(cluster)
    await second.acquire(ignore)
    assert (lease(cluster)["holderIdentity"], now()) == ("b", began)
    assert lease(cluster)["leaseTransitions"] == 1


@in_virtual_time
async def test_leader_of_another_release_in_the_same_namespace_has_its_own_lease() -> None:
    cluster = FakeCluster()
    await candidate(cluster, "a", lease_name="one-operator").acquire(ignore)
    other = candidate(cluster, "b", lease_name="two-operator")
    await asyncio.wait_for(other.acquire(ignore), 1)
    holding = asyncio.create_task(other.hold(ignore))
    await elapse(60)
    assert not holding.done()
    await virtual_time.stop(holding)
    await other.release()
    assert lease(cluster, "one-operator")["holderIdentity"] == "a"
    assert "holderIdentity" not in lease(cluster, "two-operator")


@in_virtual_time
async def test_leader_that_was_killed_is_followed_after_its_lease_has_expired() -> None:
    cluster, began = FakeCluster(), now()
    await candidate(cluster, "killed").acquire(ignore)
    heartbeats: list[float] = []
    await candidate(cluster, "next").acquire(lambda: heartbeats.append(now()))
    assert 15 <= now() - began <= 17
    assert lease(cluster)["holderIdentity"] == "next"
    assert len(heartbeats) == 8  # the standby is alive while it waits


@in_virtual_time
async def test_leader_that_renews_is_never_followed() -> None:
    cluster = FakeCluster()
    first = candidate(cluster, "a")
    await first.acquire(ignore)
    holding = asyncio.create_task(first.hold(ignore))
    waiting = asyncio.create_task(candidate(cluster, "b").acquire(ignore))
    await elapse(3600)
    assert not holding.done()
    assert not waiting.done()
    await virtual_time.stop(holding, waiting)


@in_virtual_time
async def test_leader_whose_lease_was_taken_stops() -> None:
    cluster = FakeCluster()
    leader = candidate(cluster, "a")
    await leader.acquire(ignore)
    obj = cluster.read(LEASES, "ns", LEASE_NAME)
    assert obj is not None
    obj["spec"]["holderIdentity"] = "b"
    cluster.put(LEASES, obj)
    with pytest.raises(LeaseLostError, match="held by b"):
        await leader.hold(ignore)


@in_virtual_time
async def test_leader_that_cannot_renew_stops_before_another_one_starts() -> None:
    cluster, began = FakeCluster(), now()
    leader = candidate(cluster, "a")
    await leader.acquire(ignore)
    for nth in range(1, 20):
        cluster.fail_next("get", DOWN, nth=nth)
    with pytest.raises(LeaseLostError, match="10 s"):
        await leader.hold(ignore)
    assert now() - began == 10


@pytest.mark.parametrize("hangs_after", [0.5, 2.5, 7])
@in_virtual_time
async def test_leader_whose_server_hangs_stops_before_another_one_starts(
    hangs_after: float,
) -> None:
    cluster = FakeCluster()
    server = Server(cluster)
    first = candidate(server, "a")
    await first.acquire(ignore)
    server.hangs_at = now() + hangs_after
    holding = asyncio.create_task(first.hold(ignore))
    waiting = asyncio.create_task(candidate(cluster, "b").acquire(ignore))
    with pytest.raises(LeaseLostError, match="10 s"):
        await holding
    stopped = now()
    assert stopped == server.written_at + 10
    assert not waiting.done()
    await waiting
    assert now() - stopped >= 5 - 2  # LEASE_SECONDS - RENEW_SECONDS, less one retry


@in_virtual_time
async def test_leader_counts_from_the_moment_when_a_slow_renewal_was_sent() -> None:
    server = Server(FakeCluster())
    server.answer_seconds = 4
    leader = candidate(server, "a")
    await leader.acquire(ignore)
    server.hangs_at = now()
    with pytest.raises(LeaseLostError, match="10 s"):
        await leader.hold(ignore)
    assert now() == server.written_at + 10


@in_virtual_time
async def test_leader_that_starts_to_hold_too_late_stops() -> None:
    leader = candidate(FakeCluster(), "a")
    await leader.acquire(ignore)
    await asyncio.sleep(24)  # an initial list that took so long: another one may lead by now
    with pytest.raises(LeaseLostError, match="10 s"):
        await leader.hold(ignore)


@in_virtual_time
async def test_leader_survives_a_short_outage() -> None:
    cluster, began = FakeCluster(), now()
    leader = candidate(cluster, "a")
    await leader.acquire(ignore)
    for nth in (1, 2, 3):
        cluster.fail_next("get", DOWN, nth=nth)
    heartbeats: list[float] = []
    task = asyncio.create_task(leader.hold(lambda: heartbeats.append(now() - began)))
    await elapse(11)
    await virtual_time.stop(task)
    assert heartbeats == [8, 10]


@in_virtual_time
async def test_leader_whose_server_hangs_while_it_acquires_tries_again() -> None:
    cluster = FakeCluster()
    server = Server(cluster)
    server.hangs_at = now()
    heartbeats: list[float] = []
    task = asyncio.create_task(candidate(server, "a").acquire(lambda: heartbeats.append(now())))
    await elapse(60)
    assert len(heartbeats) == 5
    server.hangs_at = float("inf")
    await asyncio.wait_for(task, 15)
    assert lease(cluster)["holderIdentity"] == "a"


async def race(cluster: FakeCluster) -> list[str]:
    """Let two candidates read the Lease before either writes it; those who believe they lead."""
    barrier = asyncio.Barrier(2)
    leaders = {}
    for name in "ab":
        server = Server(cluster)
        server.after_get = barrier.wait
        leaders[name] = asyncio.create_task(candidate(server, name).acquire(ignore))
    await elapse(60)
    winners = [name for name, task in leaders.items() if task.done() and not task.exception()]
    await virtual_time.stop(*leaders.values())
    return winners


@in_virtual_time
async def test_leader_race_for_a_new_lease_has_one_winner() -> None:
    cluster = FakeCluster()
    winners = await race(cluster)
    assert winners == [lease(cluster)["holderIdentity"]]


@in_virtual_time
async def test_leader_race_for_an_expired_lease_has_one_winner() -> None:
    cluster = FakeCluster()
    await candidate(cluster, "killed").acquire(ignore)
    winners = await race(cluster)
    assert winners == [lease(cluster)["holderIdentity"]]


@in_virtual_time
async def test_leader_race_for_a_released_lease_has_one_winner() -> None:
    cluster = FakeCluster()
    before = candidate(cluster, "before")
    await before.acquire(ignore)
    await before.release()
    winners = await race(cluster)
    assert winners == [lease(cluster)["holderIdentity"]]


@in_virtual_time
async def test_leader_release_keeps_the_lease_of_another() -> None:
    cluster = FakeCluster()
    await candidate(cluster, "a").acquire(ignore)
    requests = len(cluster.requests)
    await candidate(cluster, "b").release()
    assert lease(cluster)["holderIdentity"] == "a"
    assert len(cluster.requests) == requests


@in_virtual_time
async def test_leader_release_keeps_a_lease_that_was_taken_meanwhile() -> None:
    cluster = FakeCluster()
    late = candidate(cluster, "late")
    await late.acquire(ignore)
    await candidate(cluster, "next").acquire(ignore)
    await late.release()
    assert lease(cluster)["holderIdentity"] == "next"


@in_virtual_time
async def test_leader_release_does_not_wait_for_a_server_that_hangs() -> None:
    server = Server(FakeCluster())
    leader = candidate(server, "a")
    await leader.acquire(ignore)
    began = server.hangs_at = now()
    await leader.release()
    assert now() - began == 5
