"""Where the strategy of an attempt comes from, and how often a missing one is read."""

from contextlib import suppress
from dataclasses import replace
from heapq import heappop, heappush
from itertools import pairwise
from typing import Any

import pytest

from engine_builders import NAMESPACE, STRATEGY, UID, Raw, job_raw, recorded
from ktrdr_api import names
from ktrdr_api.strategy import strategy_digest
from ktrdr_api.training_job import ConfigMapKeyRef, StrategySource
from ktrdr_client.cluster import CONFIG_MAPS, ApiError
from ktrdr_client.testing import FakeCluster, Request
from ktrdr_operator.snapshot import JobView, StrategyText
from ktrdr_operator.strategies import StrategyReader
from ktrdr_operator.views import view_job
from simulated_cluster import FaultyClient, Operator, SigKill, SimulatedCluster

REFERENCE = {"configMapKeyRef": {"name": "strategies", "key": "fx.yaml"}}
LIMIT = 64 * 1024


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def config_map(name: str = "strategies", owner: str | None = None, **data: str) -> Raw:
    metadata: Raw = {"namespace": NAMESPACE, "name": name}
    if owner is not None:
        controller = {"apiVersion": names.API_VERSION, "kind": names.KIND, "uid": owner}
        metadata["ownerReferences"] = [{**controller, "name": "fx", "controller": True}]
    return {"metadata": metadata, "data": data}


def fx(text: str) -> Raw:
    """The ConfigMap that REFERENCE names."""
    found = config_map()
    found["data"]["fx.yaml"] = text
    return found


def reader(*config_maps: Raw) -> tuple[StrategyReader, FakeCluster, Clock]:
    cluster, clock = FakeCluster(), Clock()
    for raw in config_maps:
        cluster.put(CONFIG_MAPS, raw)
    return StrategyReader(cluster, clock), cluster, clock


def job(strategy: Raw = REFERENCE, status: Raw | None = None, **fields: Any) -> JobView:
    return view_job(job_raw(strategy=strategy, status=status, **fields))


MISSING = 'ConfigMap "strategies" in namespace "ns" does not exist; create it and the job starts'
WRONG_KEY = (
    'ConfigMap "strategies" in namespace "ns" has no key "fx.yaml" (its keys: kubectl describe '
    "configmap strategies -n ns); add the key and the job starts"
)


@pytest.mark.parametrize(
    ("present", "want"),
    [
        (None, StrategyText(problem=MISSING, retry_seconds=5.0)),
        (config_map(other="x"), StrategyText(problem=WRONG_KEY, retry_seconds=5.0)),
        (config_map(), StrategyText(problem=WRONG_KEY, retry_seconds=5.0)),
        (fx(STRATEGY), StrategyText(text=STRATEGY)),
        (fx("x" * LIMIT), StrategyText(text="x" * LIMIT)),
        (
            fx("ü" * (LIMIT // 2) + "x"),
            StrategyText(
                problem='Key "fx.yaml" of ConfigMap "strategies" in namespace "ns" has 65537 '
                "bytes, the limit is 65536; make the strategy smaller",
                retry_seconds=5.0,
            ),
        ),
    ],
    ids=["missing", "another key", "empty", "present", "at the limit", "a byte too large"],
)
async def test_read_referenced_strategy_returns_text_or_problem(
    present: Raw | None, want: StrategyText
) -> None:
    strategies, cluster, _ = reader(*([present] if present else []))
    assert await strategies.read(job(), first_seen=0.0) == want
    assert cluster.requests == [Request("get", "ConfigMap", "strategies")]


async def test_read_config_map_without_data_has_no_key() -> None:
    strategies, _, _ = reader({"metadata": {"namespace": NAMESPACE, "name": "strategies"}})
    assert (await strategies.read(job(), first_seen=0.0)).problem == WRONG_KEY


async def test_read_missing_key_does_not_name_existing_keys() -> None:
    """Who may create TrainingJobs may not be allowed to read that ConfigMap."""
    strategies, _, _ = reader(config_map(credentials="x"))
    found = await strategies.read(job(), first_seen=0.0)
    assert "credentials" not in found.problem


async def test_read_inline_strategy_sends_no_request() -> None:
    strategies, cluster, _ = reader()
    source = {"inline": STRATEGY}
    for status in (None, recorded(3)):
        found = await strategies.read(job(source, status), first_seen=0.0)
        assert found == StrategyText(text=STRATEGY)
    assert cluster.requests == []


async def test_read_spec_without_a_source_is_a_problem() -> None:
    strategies, _, _ = reader()
    found = await strategies.read(job({}), first_seen=0.0)
    assert found.problem == "spec.strategy names no source; set inline or configMapKeyRef"


# A strategy is resolved once.


def stored(text: str, owner: str = UID) -> Raw:
    return {**config_map(names.strategy_name("fx", UID), owner), "data": {"strategy.yaml": text}}


@pytest.mark.parametrize("edited", [fx("name: edited\n"), None], ids=["edited", "deleted"])
@pytest.mark.parametrize(
    "status", [recorded(2), recorded(0)], ids=["second attempt", "first attempt was refused"]
)
async def test_read_stored_text_ignores_changes_of_its_source(
    edited: Raw | None, status: Raw
) -> None:
    strategies, _, _ = reader(stored(STRATEGY), *([edited] if edited else []))
    found = await strategies.read(job(status=status), first_seen=0.0)
    assert found == StrategyText(text=STRATEGY, is_stored=True)


@pytest.mark.parametrize("owner", ["uid-fx-of-an-earlier-job", None], ids=["earlier job", "user"])
async def test_read_stored_text_of_another_owner_is_ignored(owner: str | None) -> None:
    foreign = stored("name: foreign\n")
    foreign["metadata"].pop("ownerReferences")
    if owner is not None:
        foreign = stored("name: foreign\n", owner)
    strategies, _, _ = reader(foreign, fx(STRATEGY))
    found = await strategies.read(job(status=recorded(2)), first_seen=0.0)
    assert found == StrategyText(text=STRATEGY)


async def test_start_does_not_use_the_config_map_of_a_deleted_job_of_the_same_name() -> None:
    """Two UIDs may begin alike, and the garbage collector may be late."""
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit(strategy=REFERENCE)
    uid = simulation.job()["metadata"]["uid"]
    left = {**stored("name: old\n", "uid-earlier")}
    left["metadata"]["name"] = names.strategy_name("fx", uid)
    simulation.cluster.put(CONFIG_MAPS, left)
    simulation.cluster.put(CONFIG_MAPS, fx(STRATEGY))
    operator = Operator(simulation)
    operator.relist()
    await operator.work()
    assert simulation.alive() == []
    assert simulation.status()["reason"] == "NameConflict"
    assert "is left over from a deleted TrainingJob of this name" in simulation.status()["message"]
    simulation.cluster.remove(CONFIG_MAPS, NAMESPACE, left["metadata"]["name"])
    simulation.wait(60)
    operator.relist()
    await operator.work()
    assert digests(simulation) == [strategy_digest(STRATEGY)]


def digests(simulation: SimulatedCluster) -> list[str]:
    """What the pods are told, after a check that their files hold just that."""
    found = []
    for pod in simulation.pods():
        uid = pod["metadata"]["ownerReferences"][0]["uid"]
        held = simulation.cluster.read(CONFIG_MAPS, NAMESPACE, names.strategy_name("fx", uid))
        assert held is not None
        digest = strategy_digest(held["data"]["strategy.yaml"])
        assert f'"strategyDigest":"{digest}"' in pod["metadata"]["annotations"][
            names.REQUEST_ANNOTATION
        ].replace(" ", "")
        found.append(digest)
    return found


@pytest.mark.parametrize("call", range(1, 8))
async def test_start_interrupted_and_strategy_edited_digest_matches_the_stored_text(
    call: int,
) -> None:
    """With the digest of another text the trainer would fail, for good (exit code 2)."""
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit(strategy=REFERENCE)
    simulation.cluster.put(CONFIG_MAPS, fx(STRATEGY))
    doomed = Operator(simulation, FaultyClient(simulation, kill_at=call, after_effect=True))
    doomed.relist()
    with suppress(SigKill):
        await doomed.work()
    simulation.cluster.put(CONFIG_MAPS, fx("name: edited\n"))
    operator = Operator(simulation)
    operator.relist()
    await operator.work()
    assert len(digests(simulation)) == 1


# How often a missing one is read.

GET = Request("get", "ConfigMap", "strategies")


async def test_read_missing_strategy_is_read_with_growing_pauses() -> None:
    strategies, cluster, clock = reader()
    reads = []
    for second in range(300):
        clock.seconds = float(second)
        before = len(cluster.requests)
        found = await strategies.read(job(), first_seen=0.0)
        assert found.problem == MISSING
        reads += [second] * (len(cluster.requests) - before)
        due = second + found.retry_seconds
        assert due > second
    assert reads == [0, 5, 15, 35, 75, 135, 195, 255]
    assert max(b - a for a, b in pairwise(reads)) == 60


async def test_read_missing_strategy_says_when_it_is_read_again() -> None:
    strategies, cluster, clock = reader()
    await strategies.read(job(), first_seen=0.0)
    clock.seconds = 3.5
    found = await strategies.read(job(), first_seen=0.0)
    assert (found.problem, found.retry_seconds) == (MISSING, 1.5)
    clock.seconds += found.retry_seconds
    await strategies.read(job(), first_seen=0.0)
    assert cluster.requests == [GET, GET]


async def test_read_for_job_newer_than_the_answer_is_repeated_within_a_second() -> None:
    strategies, cluster, clock = reader()
    for second in (0.0, 5.0, 15.0, 35.0):
        clock.seconds = second
        await strategies.read(job(), first_seen=0.0)
    cluster.put(CONFIG_MAPS, fx(STRATEGY))
    clock.seconds = 35.4
    waits = await strategies.read(job(), first_seen=35.4)
    assert (waits.problem, round(waits.retry_seconds, 1)) == (MISSING, 0.6)
    clock.seconds += waits.retry_seconds
    assert await strategies.read(job(), first_seen=35.4) == StrategyText(text=STRATEGY)
    # And for everybody who waits.
    assert await strategies.read(job(), first_seen=0.0) == StrategyText(text=STRATEGY)


async def test_read_for_job_newer_than_the_answer_shortens_the_pause_for_all() -> None:
    strategies, _, clock = reader()
    for second in (0.0, 5.0, 15.0, 35.0):
        clock.seconds = second
        await strategies.read(job(), first_seen=0.0)
    clock.seconds = 60.0
    found = await strategies.read(job(), first_seen=60.0)
    assert (found.problem, found.retry_seconds) == (MISSING, 5.0)


async def test_read_error_is_not_remembered_as_missing() -> None:
    strategies, cluster, _ = reader(fx(STRATEGY))
    cluster.fail_next("get", ApiError(500, "InternalError", "x"), resource=CONFIG_MAPS)
    with pytest.raises(ApiError):
        await strategies.read(job(), first_seen=0.0)
    assert await strategies.read(job(), first_seen=0.0) == StrategyText(text=STRATEGY)


@pytest.mark.parametrize("key", ["a.yaml", "b.yaml"])
async def test_read_missing_key_does_not_affect_another_key(key: str) -> None:
    strategies, _, _ = reader(config_map(**{"b.yaml": STRATEGY, "c.yaml": STRATEGY}))
    await strategies.read(
        job({"configMapKeyRef": {"name": "strategies", "key": "a.yaml"}}), first_seen=0.0
    )
    found = await strategies.read(
        job({"configMapKeyRef": {"name": "strategies", "key": key}}), first_seen=0.0
    )
    assert bool(found.problem) == (key == "a.yaml")


JOBS = 1000


def jobs_with_own_strategy(count: int) -> list[JobView]:
    base = job()
    refs = [ConfigMapKeyRef(name=f"s-{number}", key="fx.yaml") for number in range(count)]
    sources = (StrategySource(config_map_key_ref=ref) for ref in refs)
    return [
        replace(base, spec=base.spec.model_copy(update={"strategy": source})) for source in sources
    ]


async def reads_by_minute(minutes: int, config_maps: int) -> list[int]:
    """Reads of ConfigMaps in each minute, for a thousand jobs that come within ten seconds.

    Each job is read for when it comes, and then whenever it was told to.
    """
    strategies, cluster, clock = reader()
    waiting = jobs_with_own_strategy(config_maps)
    due = [(number / 100, number) for number in range(JOBS)]
    found = [0] * minutes
    while due[0][0] < minutes * 60:
        clock.seconds, number = heappop(due)
        before = len(cluster.requests)
        answer = await strategies.read(waiting[number % config_maps], first_seen=number / 100)
        heappush(due, (clock.seconds + answer.retry_seconds, number))
        found[int(clock.seconds // 60)] += len(cluster.requests) - before
    return found


async def test_read_strategy_missing_for_a_thousand_jobs_costs_one_read_per_minute() -> None:
    first, second, *later = await reads_by_minute(10, 1)
    assert first <= 11 + 3  # one a second while jobs come, then 5, 15 and 35 s later
    assert second <= 2
    assert set(later) == {1}


async def test_read_a_thousand_missing_strategies_costs_one_read_each_per_minute() -> None:
    first, second, *later = await reads_by_minute(5, JOBS)
    assert first <= 4 * JOBS
    assert second <= 2 * JOBS
    assert set(later) == {JOBS}


async def test_read_many_missing_strategies_are_all_remembered() -> None:
    """One that is forgotten would be read every five seconds, for ever."""
    strategies, cluster, clock = reader()
    many = jobs_with_own_strategy(10_000)
    for waiting in many:
        await strategies.read(waiting, first_seen=0.0)
    before = len(cluster.requests)
    clock.seconds = 4.0
    for waiting in many:
        await strategies.read(waiting, first_seen=0.0)
    assert len(cluster.requests) == before
