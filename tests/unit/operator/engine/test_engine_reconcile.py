import json
import logging
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from engine_builders import JOB, NAMESPACE, STRATEGY, Raw, pod_raw
from engine_world import (
    KEY,
    ROUND_SECONDS,
    Operator,
    SigKill,
    Wire,
    World,
    live,
    yield_often,
)
from ktrdr_api import names
from ktrdr_api.strategy import strategy_digest
from ktrdr_client.cluster import (
    CONFIG_MAPS,
    PODS,
    ROLE_BINDINGS,
    SERVICE_ACCOUNTS,
    TRAINING_JOBS,
    ApiError,
    Forbidden,
    Unreachable,
)
from ktrdr_client.testing import Request

CANCEL_AT = {"cancelled while running": 4, "cancelled while pending": 1, "cancelled in backoff": 6}
STORIES: dict[str, tuple[dict[int, str], Raw]] = {
    "completes": ({}, {}),
    "fails, then completes": ({1: "fail"}, {}),
    "vanishes, then completes": ({1: "vanish"}, {}),
    "fails, vanishes, completes": ({1: "fail", 2: "vanish"}, {}),
    "fails too often": ({1: "fail", 2: "fail"}, {"backoffLimit": 1}),
    "rejected by the kubelet": ({1: "reject", 2: "reject"}, {"backoffLimit": 0}),
    "disrupted without a checkpoint": ({1: "disrupt", 2: "disrupt"}, {"backoffLimit": 0}),
    "disrupted too often": (dict.fromkeys((1, 2, 3), "disrupt"), {"disruptionLimit": 2}),
    "has a bad strategy": ({1: "bad"}, {}),
    "runs out of memory": ({1: "oom"}, {}),
    "cancelled at creation": ({}, {"cancel": True}),
    "cancelled while pending": ({}, {}),
    "cancelled while running": ({1: "stay"}, {}),
    "cancelled in backoff": ({1: "fail"}, {}),
}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="ktrdr_operator")


def begin(story: str) -> World:
    """A world at the beginning of a story."""
    script, spec = STORIES[story]
    world = World(script, cancel_at=CANCEL_AT.get(story))
    world.submit(**spec)
    return world


async def tell(story: str) -> tuple[World, Operator]:
    """A story without a mishap."""
    world = begin(story)
    operator = Operator(world)
    await live(world, operator)
    return world, operator


WANT = {
    "completes": ("Succeeded", "Completed", 1, 0, (1,)),
    "fails, then completes": ("Succeeded", "Completed", 2, 1, (1, 2)),
    "vanishes, then completes": ("Succeeded", "Completed", 2, 0, (1, 2)),
    "fails, vanishes, completes": ("Succeeded", "Completed", 3, 1, (1, 2, 3)),
    "fails too often": ("Failed", "BackoffLimitExceeded", 2, 1, (1, 2)),
    "rejected by the kubelet": ("Succeeded", "Completed", 3, 0, (1, 2, 3)),
    "disrupted without a checkpoint": ("Succeeded", "Completed", 3, 0, (1, 2, 3)),
    "disrupted too often": ("Failed", "DisruptionLimitExceeded", 3, 0, (1, 2, 3)),
    "has a bad strategy": ("Failed", "InvalidStrategy", 1, 0, (1,)),
    "runs out of memory": ("Failed", "OOMKilled", 1, 0, (1,)),
    "cancelled at creation": ("Cancelled", "Cancelled", 0, 0, ()),
    "cancelled while pending": ("Cancelled", "Cancelled", 1, 0, (1,)),
    "cancelled while running": ("Cancelled", "Cancelled", 1, 0, (1,)),
    "cancelled in backoff": ("Cancelled", "Cancelled", 1, 1, (1,)),
}


@pytest.mark.parametrize("story", STORIES)
async def test_reconcile_story_ends_as_told(story: str) -> None:
    world, _ = await tell(story)
    phase, reason, _, attempt, retries, _, attempts, alive = world.end()
    assert (phase, reason, attempt, retries, attempts) == WANT[story]
    assert alive == []


@pytest.mark.parametrize("story", STORIES)
async def test_reconcile_of_a_settled_job_writes_nothing(story: str) -> None:
    world, operator = await tell(story)
    before, count = world.job()["metadata"]["resourceVersion"], len(world.cluster.requests)
    for each in (operator, Operator(world)):
        each.relist()
        await each.work()
    assert world.job()["metadata"]["resourceVersion"] == before
    assert writes(world.cluster.requests[count:]) == []


def writes(requests: list[Request]) -> list[Request]:
    return [request for request in requests if request.method not in ("get", "list")]


@pytest.mark.parametrize("after_effect", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("story", STORIES)
async def test_reconcile_killed_at_every_call_ends_the_same(story: str, after_effect: bool) -> None:
    told, operator = await tell(story)
    want, calls = settled(told), operator.wire.calls
    for number in range(1, calls + 1):
        world = begin(story)
        doomed = Operator(world, Wire(world, kill_at=number, after_effect=after_effect))
        with pytest.raises(SigKill):
            await live(world, doomed)
        await live(world, Operator(world))
        assert settled(world) == want, f"killed at call {number} of {calls}"


def settled(world: World) -> tuple[Any, ...]:
    """The end without its words, which may name times."""
    end = world.end()
    return (*end[:2], *end[3:])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("story", ["fails, then completes", "cancelled while running"])
async def test_reconcile_by_two_operators_at_once_ends_the_same(story: str, seed: int) -> None:
    told, _ = await tell(story)
    random = Random(seed)  # noqa: S311 - repeatable, and no secret
    world = begin(story)
    both = [Operator(world, Wire(world, pause=lambda: yield_often(random))) for _ in range(2)]
    await live(world, *both)
    assert settled(world) == settled(told)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("story", ["fails, then completes", "fails too often"])
async def test_reconcile_beside_an_operator_that_is_behind_ends_the_same(
    story: str, seed: int
) -> None:
    told, _ = await tell(story)
    random = Random(seed)  # noqa: S311 - repeatable, and no secret
    world = begin(story)
    behind = Operator(world)
    for _ in range(20):
        if random.random() < 0.3:
            behind.relist()
        ahead = Operator(world)
        ahead.relist()
        await ahead.work()
        await behind.work()
        world.step()
    await live(world, Operator(world))
    assert settled(world) == settled(told)


@pytest.mark.parametrize("story", ["completes", "fails, vanishes, completes"])
async def test_reconcile_starts_each_later_attempt_after_it_is_on_record(story: str) -> None:
    world, _ = await tell(story)
    requests = writes(world.cluster.requests)
    pods = [n for n, request in enumerate(requests) if (request.kind, request.method) == POD]
    assert len(pods) == world.status()["attempt"]
    record = Request("apply", names.KIND, JOB, "status")
    for previous, number in pairwise(pods):
        assert record in requests[previous:number]
    kinds = [request.kind for request in requests[: pods[0]] if request.method == "create"]
    assert sorted(kinds) == ["RoleBinding", "ServiceAccount"]


POD = ("Pod", "create")
LARGE_STRATEGY = STRATEGY + "#" * names.STRATEGY_ANNOTATION_MAX_BYTES
"""Does not fit into the pod."""


async def test_reconcile_of_a_plain_run_costs_few_writes() -> None:
    world, _ = await tell("completes")
    tally: dict[tuple[str, str], int] = {}
    for request in writes(world.cluster.requests):
        tally[request.method, request.kind] = tally.get((request.method, request.kind), 0) + 1
    assert tally == {
        ("create", "ServiceAccount"): 1,  # per namespace
        ("create", "RoleBinding"): 1,  # per namespace
        ("create", "Pod"): 1,
        ("apply", "TrainingJob"): 3,  # starting (the pod took 7 s), running, ended
    }


async def test_reconcile_of_a_pod_that_starts_soon_writes_status_once_until_it_runs() -> None:
    world = World({1: "stay"})
    world.submit()
    operator = Operator(world)
    for _ in range(4):
        operator.relist()
        await operator.work()
        world.step()
        world.wait(1 - ROUND_SECONDS)
    assert world.status()["phase"] == "Running"
    assert world.status()["attempt"] == 1
    assert count(world, "apply", names.KIND) == 1


async def test_reconcile_name_conflict_leaves_the_other_untouched_and_recovers() -> None:
    world = World()
    world.submit()
    other = pod_raw(owner=None, uid="uid-other")
    del other["metadata"]["resourceVersion"]
    world.cluster.put(PODS, other)
    before = world.cluster.read(PODS, NAMESPACE, "fx-1-0")
    operator = Operator(world)
    for _ in range(5):
        operator.relist()
        await operator.work()
        world.wait(1)
    status = world.status()
    assert (status["phase"], status["reason"]) == ("Pending", "NameConflict")
    assert 'Pod "fx-1-0" exists and belongs to another owner' in status["message"]
    assert status["waiting"]["retryTime"]
    assert status["waiting"]["message"] == status["message"]
    assert world.cluster.read(PODS, NAMESPACE, "fx-1-0") == before
    world.cluster.remove(PODS, NAMESPACE, "fx-1-0")
    await live(world, operator)
    assert world.end()[:2] == ("Succeeded", "Completed")
    assert world.status()["attempt"] == 1


async def test_reconcile_refused_create_shows_the_words_and_tries_less_and_less_often() -> None:
    world = World()
    world.submit()
    words = "exceeded quota: gpus, requested: nvidia.com/gpu=1, used: 4, limited: 4"
    operator, tries = Operator(world), []
    for second in range(130):
        world.cluster.fail_next("create", Forbidden(403, "Forbidden", words), resource=PODS)
        before = count(world, "create", "Pod")
        operator.relist()
        await operator.work()
        await operator.work()  # the event of our own write
        tries += [second] * (count(world, "create", "Pod") - before)
        world.wait(1)
    status = world.status()
    assert (status["phase"], status["reason"]) == ("Pending", "FailedCreate")
    said = f"{words}; once this is corrected the job starts: see waiting.retryTime"
    assert status["message"] == status["waiting"]["message"] == said
    assert status["waiting"]["since"] == "2026-01-01T12:00:00Z"
    assert tries == [0, 1, 2, 4, 8, 16, 32, 64, 124]
    assert [event["reason"] for event in recorded_events(operator)] == ["FailedCreate"]
    world.cluster._faults.clear()
    await live(world, operator)
    assert world.end()[:2] == ("Succeeded", "Completed")
    assert world.attempts == [1]


def count(world: World, method: str, kind: str) -> int:
    return sum((r.method, r.kind) == (method, kind) for r in world.cluster.requests)


def recorded_events(operator: Operator) -> list[Raw]:
    return operator.events.take_pending()


@pytest.mark.parametrize(
    "resource", [CONFIG_MAPS, SERVICE_ACCOUNTS, ROLE_BINDINGS], ids=lambda r: r.kind
)
async def test_reconcile_child_that_fails_leaves_no_pod_without_it(resource: Any) -> None:
    world = World({1: "stay"})
    world.submit(strategy={"inline": LARGE_STRATEGY})
    world.cluster.fail_next("create", ApiError(500, "InternalError", "boom"), resource=resource)
    operator = Operator(world)
    operator.relist()
    await operator.work()
    assert world.alive() == []
    operator.relist()
    await operator.work()
    assert world.alive() == ["fx-1-0"]
    assert len(world.cluster.read_all(resource)) == 1


async def test_reconcile_earlier_job_of_the_same_name_makes_room() -> None:
    world = World({1: "stay"})
    world.submit()
    operator = Operator(world)
    for _ in range(4):
        operator.relist()
        await operator.work()
        world.step()
    assert world.status()["phase"] == "Running"
    first = world.job()["metadata"]["uid"]
    world.delete_job()
    world.submit()
    world.attempts.clear()
    seen = []
    for _ in range(6):
        operator.relist()
        await operator.work()
        seen.append((world.status()["phase"], world.status()["reason"]))
        world.step()
    assert world.job()["metadata"]["uid"] != first
    assert seen[0] == ("Pending", "Pending")
    # Nothing waits for the garbage collector.
    assert seen[-1] == ("Running", "Running")
    world.script[1] = "succeed"
    await live(world, operator)
    assert world.end()[:2] == ("Succeeded", "Completed")
    assert world.attempts == [1]


async def test_reconcile_deleted_job_stops_its_pods() -> None:
    world = World({1: "stay"})
    world.submit()
    operator = Operator(world)
    for _ in range(3):
        operator.relist()
        await operator.work()
        world.step()
    assert world.alive() == ["fx-1-0"]
    world.delete_job()
    world.cluster.requests.clear()
    operator.store.drop_job(KEY, operator.store.jobs[KEY].uid)
    await operator.work()
    assert [(r.method, r.kind) for r in world.cluster.requests] == [("delete", "Pod")]
    world.step()
    assert world.alive() == []


async def test_reconcile_pods_known_before_their_job_are_spared() -> None:
    world = World({1: "stay"})
    world.submit()
    first = Operator(world)
    for _ in range(3):
        first.relist()
        await first.work()
        world.step()
    second = Operator(world)
    for pod in world.pods():
        second.store.put_pod(pod)
    await second.work()
    assert count(world, "delete", "Pod") == 0
    assert KEY in second.store.jobs


async def test_reconcile_pod_of_a_newer_job_than_the_store_knows_is_spared() -> None:
    world = World({1: "stay"})
    world.submit()
    behind = Operator(world)
    behind.relist()
    world.delete_job()
    world.submit()
    ahead = Operator(world)
    for _ in range(3):
        ahead.relist()
        await ahead.work()
        world.step()
    for pod in world.pods():
        behind.store.put_pod(pod)
    await behind.work()
    assert world.alive() == ["fx-1-0"]
    assert count(world, "delete", "Pod") == 0


async def test_reconcile_edited_strategy_does_not_change_later_attempts() -> None:
    world = World({1: "fail", 2: "fail"})
    ref = {"configMapKeyRef": {"name": "strategies", "key": "fx.yaml"}}
    world.submit(strategy=ref)
    config_map = {
        "metadata": {"namespace": NAMESPACE, "name": "strategies"},
        "data": {"fx.yaml": STRATEGY},
    }
    world.cluster.put(CONFIG_MAPS, config_map)
    operator = Operator(world)
    for _ in range(4):
        operator.relist()
        await operator.work()
        world.step()
    world.cluster.remove(CONFIG_MAPS, NAMESPACE, "strategies")
    await live(world, operator)
    assert world.end()[:2] == ("Succeeded", "Completed")
    uid = world.job()["metadata"]["uid"]
    stored = world.cluster.read(CONFIG_MAPS, NAMESPACE, names.strategy_name(JOB, uid))
    assert stored is not None
    assert (stored["data"], stored["immutable"]) == ({"strategy.yaml": STRATEGY}, True)
    assert len(world.cluster.read_all(CONFIG_MAPS)) == 1
    digests = {
        json.loads(pod["metadata"]["annotations"][names.REQUEST_ANNOTATION])["strategyDigest"]
        for pod in world.pods()
    }
    assert digests == {strategy_digest(STRATEGY)}


async def test_reconcile_missing_strategy_is_named_and_the_job_starts_when_it_appears() -> None:
    world = World()
    world.submit(strategy={"configMapKeyRef": {"name": "strategies", "key": "fx.yaml"}})
    operator = Operator(world)
    said = []
    for data in (None, {"other.yaml": "x"}, {"fx.yaml": STRATEGY}):
        if data is not None:
            metadata = {"namespace": NAMESPACE, "name": "strategies"}
            world.cluster.put(CONFIG_MAPS, {"metadata": metadata, "data": data})
        world.wait(60)
        operator.relist()
        await operator.work()
        world.step()
        operator.relist()
        await operator.work()
        said.append(world.status()["message"])
    assert said == [
        'ConfigMap "strategies" in namespace "ns" does not exist; create it and the job starts',
        'ConfigMap "strategies" in namespace "ns" has no key "fx.yaml" (its keys: kubectl describe '
        "configmap strategies -n ns); add the key and the job starts",
        'Pod "fx-1-0" is starting',
    ]


async def test_reconcile_server_trouble_is_no_condition_and_no_lost_attempt() -> None:
    world = World()
    world.submit()
    operator = Operator(world)
    for error in (ApiError(500, "InternalError", "x"), Unreachable(0, "ClientOSError", "reset")):
        world.cluster.fail_next("create", error, resource=PODS, after_effect=True)
        world.cluster.fail_next("apply", error, resource=TRAINING_JOBS)
    await live(world, operator)
    assert world.end()[:2] == ("Succeeded", "Completed")
    assert world.attempts == [1]


async def test_reconcile_unreadable_spec_is_a_condition_of_this_job_only() -> None:
    world = World()
    world.submit()
    raw = world.job()
    raw["spec"]["trainer"] = {"imagePullPolicy": "Sometimes"}
    world.cluster.put(TRAINING_JOBS, raw)
    operator = Operator(world)
    for _ in range(3):
        operator.relist()
        await operator.work()
    status = world.status()
    assert (status["phase"], status["reason"]) == ("Failed", "InvalidRequest")
    assert "spec.trainer.imagePullPolicy" in status["message"]
    assert count(world, "apply", names.KIND) == 1


async def test_reconcile_unreadable_progress_is_ignored() -> None:
    world = World()
    world.submit()
    operator = Operator(world)
    operator.relist()
    await operator.work()
    raw = world.job()
    raw["status"]["progress"] = {"attempt": "first"}
    world.cluster.put(TRAINING_JOBS, raw)
    operator.relist()
    await operator.work()
    await live(world, operator)
    assert world.end()[:2] == ("Succeeded", "Completed")
