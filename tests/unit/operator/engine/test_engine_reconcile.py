import json
import logging
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from engine_builders import JOB, NAMESPACE, STRATEGY, Raw, pod_raw
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
from simulated_cluster import (
    KEY,
    ROUND_SECONDS,
    FaultyClient,
    Operator,
    SigKill,
    SimulatedCluster,
    run_to_end,
    yield_often,
)

CANCEL_AT = {"cancelled while running": 4, "cancelled while pending": 1, "cancelled in backoff": 6}
SCENARIOS: dict[str, tuple[dict[int, str], Raw]] = {
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


def begin(scenario: str) -> SimulatedCluster:
    """The simulation at the beginning of a scenario."""
    script, spec = SCENARIOS[scenario]
    simulation = SimulatedCluster(script, cancel_at=CANCEL_AT.get(scenario))
    simulation.submit(**spec)
    return simulation


async def run_scenario(scenario: str) -> tuple[SimulatedCluster, Operator]:
    """Run a scenario without faults."""
    simulation = begin(scenario)
    operator = Operator(simulation)
    await run_to_end(simulation, operator)
    return simulation, operator


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


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_reconcile_scenario_has_the_wanted_outcome(scenario: str) -> None:
    simulation, _ = await run_scenario(scenario)
    phase, reason, _, attempt, retries, _, attempts, alive = simulation.end()
    assert (phase, reason, attempt, retries, attempts) == WANT[scenario]
    assert alive == []


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_reconcile_of_finished_job_writes_nothing(scenario: str) -> None:
    simulation, operator = await run_scenario(scenario)
    before, count = (
        simulation.job()["metadata"]["resourceVersion"],
        len(simulation.cluster.requests),
    )
    for each in (operator, Operator(simulation)):
        each.relist()
        await each.work()
    assert simulation.job()["metadata"]["resourceVersion"] == before
    assert writes(simulation.cluster.requests[count:]) == []


def writes(requests: list[Request]) -> list[Request]:
    return [request for request in requests if request.method not in ("get", "list")]


@pytest.mark.parametrize("after_effect", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_reconcile_killed_at_every_call_has_the_same_outcome(
    scenario: str, after_effect: bool
) -> None:
    told, operator = await run_scenario(scenario)
    want, calls = settled(told), operator.client.calls
    for number in range(1, calls + 1):
        simulation = begin(scenario)
        doomed = Operator(
            simulation, FaultyClient(simulation, kill_at=number, after_effect=after_effect)
        )
        with pytest.raises(SigKill):
            await run_to_end(simulation, doomed)
        await run_to_end(simulation, Operator(simulation))
        assert settled(simulation) == want, f"killed at call {number} of {calls}"


def settled(simulation: SimulatedCluster) -> tuple[Any, ...]:
    """The end without its words, which may name times."""
    end = simulation.end()
    return (*end[:2], *end[3:])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scenario", ["fails, then completes", "cancelled while running"])
async def test_reconcile_by_two_operators_concurrently_has_the_same_outcome(
    scenario: str, seed: int
) -> None:
    told, _ = await run_scenario(scenario)
    random = Random(seed)  # noqa: S311 - repeatable, and no secret
    simulation = begin(scenario)
    both = [
        Operator(simulation, FaultyClient(simulation, pause=lambda: yield_often(random)))
        for _ in range(2)
    ]
    await run_to_end(simulation, *both)
    assert settled(simulation) == settled(told)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scenario", ["fails, then completes", "fails too often"])
async def test_reconcile_beside_an_outdated_operator_has_the_same_outcome(
    scenario: str, seed: int
) -> None:
    told, _ = await run_scenario(scenario)
    random = Random(seed)  # noqa: S311 - repeatable, and no secret
    simulation = begin(scenario)
    behind = Operator(simulation)
    for _ in range(20):
        if random.random() < 0.3:
            behind.relist()
        ahead = Operator(simulation)
        ahead.relist()
        await ahead.work()
        await behind.work()
        simulation.step()
    await run_to_end(simulation, Operator(simulation))
    assert settled(simulation) == settled(told)


@pytest.mark.parametrize("scenario", ["completes", "fails, vanishes, completes"])
async def test_reconcile_later_attempts_start_after_they_are_recorded(scenario: str) -> None:
    simulation, _ = await run_scenario(scenario)
    requests = writes(simulation.cluster.requests)
    pods = [n for n, request in enumerate(requests) if (request.kind, request.method) == POD]
    assert len(pods) == simulation.status()["attempt"]
    record = Request("apply", names.KIND, JOB, "status")
    for previous, number in pairwise(pods):
        assert record in requests[previous:number]
    kinds = [request.kind for request in requests[: pods[0]] if request.method == "create"]
    assert sorted(kinds) == ["RoleBinding", "ServiceAccount"]


POD = ("Pod", "create")
LARGE_STRATEGY = STRATEGY + "#" * names.STRATEGY_ANNOTATION_MAX_BYTES
"""Does not fit into the pod."""


async def test_reconcile_of_successful_job_costs_few_writes() -> None:
    simulation, _ = await run_scenario("completes")
    tally: dict[tuple[str, str], int] = {}
    for request in writes(simulation.cluster.requests):
        tally[request.method, request.kind] = tally.get((request.method, request.kind), 0) + 1
    assert tally == {
        ("create", "ServiceAccount"): 1,  # per namespace
        ("create", "RoleBinding"): 1,  # per namespace
        ("create", "Pod"): 1,
        ("apply", "TrainingJob"): 3,  # starting (the pod took 7 s), running, ended
    }


async def test_reconcile_of_pod_that_starts_soon_writes_status_once_until_it_runs() -> None:
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit()
    operator = Operator(simulation)
    for _ in range(4):
        operator.relist()
        await operator.work()
        simulation.step()
        simulation.wait(1 - ROUND_SECONDS)
    assert simulation.status()["phase"] == "Running"
    assert simulation.status()["attempt"] == 1
    assert count(simulation, "apply", names.KIND) == 1


async def test_reconcile_name_conflict_keeps_the_other_object_and_recovers() -> None:
    simulation = SimulatedCluster()
    simulation.submit()
    other = pod_raw(owner=None, uid="uid-other")
    del other["metadata"]["resourceVersion"]
    simulation.cluster.put(PODS, other)
    before = simulation.cluster.read(PODS, NAMESPACE, "fx-1-0")
    operator = Operator(simulation)
    for _ in range(5):
        operator.relist()
        await operator.work()
        simulation.wait(1)
    status = simulation.status()
    assert (status["phase"], status["reason"]) == ("Pending", "NameConflict")
    assert 'Pod "fx-1-0" exists and belongs to another owner' in status["message"]
    assert status["waiting"]["retryTime"]
    assert status["waiting"]["message"] == status["message"]
    assert simulation.cluster.read(PODS, NAMESPACE, "fx-1-0") == before
    simulation.cluster.remove(PODS, NAMESPACE, "fx-1-0")
    await run_to_end(simulation, operator)
    assert simulation.end()[:2] == ("Succeeded", "Completed")
    assert simulation.status()["attempt"] == 1


async def test_reconcile_rejected_create_shows_the_message_and_backs_off() -> None:
    simulation = SimulatedCluster()
    simulation.submit()
    words = "exceeded quota: gpus, requested: nvidia.com/gpu=1, used: 4, limited: 4"
    operator, tries = Operator(simulation), []
    for second in range(130):
        simulation.cluster.fail_next("create", Forbidden(403, "Forbidden", words), resource=PODS)
        before = count(simulation, "create", "Pod")
        operator.relist()
        await operator.work()
        await operator.work()  # the event of our own write
        tries += [second] * (count(simulation, "create", "Pod") - before)
        simulation.wait(1)
    status = simulation.status()
    assert (status["phase"], status["reason"]) == ("Pending", "FailedCreate")
    said = f"{words}; once this is corrected the job starts: see waiting.retryTime"
    assert status["message"] == status["waiting"]["message"] == said
    assert status["waiting"]["since"] == "2026-01-01T12:00:00Z"
    assert tries == [0, 1, 2, 4, 8, 16, 32, 64, 124]
    assert [event["reason"] for event in recorded_events(operator)] == ["FailedCreate"]
    simulation.cluster._faults.clear()
    await run_to_end(simulation, operator)
    assert simulation.end()[:2] == ("Succeeded", "Completed")
    assert simulation.attempts == [1]


def count(simulation: SimulatedCluster, method: str, kind: str) -> int:
    return sum((r.method, r.kind) == (method, kind) for r in simulation.cluster.requests)


def recorded_events(operator: Operator) -> list[Raw]:
    return operator.events.take_pending()


@pytest.mark.parametrize(
    "resource", [CONFIG_MAPS, SERVICE_ACCOUNTS, ROLE_BINDINGS], ids=lambda r: r.kind
)
async def test_reconcile_failed_child_creates_no_pod_without_it(resource: Any) -> None:
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit(strategy={"inline": LARGE_STRATEGY})
    simulation.cluster.fail_next(
        "create", ApiError(500, "InternalError", "boom"), resource=resource
    )
    operator = Operator(simulation)
    operator.relist()
    await operator.work()
    assert simulation.alive() == []
    operator.relist()
    await operator.work()
    assert simulation.alive() == ["fx-1-0"]
    assert len(simulation.cluster.read_all(resource)) == 1


async def test_reconcile_recreated_job_waits_for_pods_of_the_deleted_one() -> None:
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit()
    operator = Operator(simulation)
    for _ in range(4):
        operator.relist()
        await operator.work()
        simulation.step()
    assert simulation.status()["phase"] == "Running"
    first = simulation.job()["metadata"]["uid"]
    simulation.delete_job()
    simulation.submit()
    simulation.attempts.clear()
    seen = []
    for _ in range(6):
        operator.relist()
        await operator.work()
        seen.append((simulation.status()["phase"], simulation.status()["reason"]))
        simulation.step()
    assert simulation.job()["metadata"]["uid"] != first
    assert seen[0] == ("Pending", "Pending")
    # Nothing waits for the garbage collector.
    assert seen[-1] == ("Running", "Running")
    simulation.script[1] = "succeed"
    await run_to_end(simulation, operator)
    assert simulation.end()[:2] == ("Succeeded", "Completed")
    assert simulation.attempts == [1]


async def test_reconcile_deleted_job_deletes_its_pods() -> None:
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit()
    operator = Operator(simulation)
    for _ in range(3):
        operator.relist()
        await operator.work()
        simulation.step()
    assert simulation.alive() == ["fx-1-0"]
    simulation.delete_job()
    simulation.cluster.requests.clear()
    operator.store.drop_job(KEY, operator.store.jobs[KEY].uid)
    await operator.work()
    assert [(r.method, r.kind) for r in simulation.cluster.requests] == [("delete", "Pod")]
    simulation.step()
    assert simulation.alive() == []


async def test_reconcile_pods_known_before_their_job_are_kept() -> None:
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit()
    first = Operator(simulation)
    for _ in range(3):
        first.relist()
        await first.work()
        simulation.step()
    second = Operator(simulation)
    for pod in simulation.pods():
        second.store.put_pod(pod)
    await second.work()
    assert count(simulation, "delete", "Pod") == 0
    assert KEY in second.store.jobs


async def test_reconcile_pod_of_a_job_newer_than_the_store_is_kept() -> None:
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit()
    behind = Operator(simulation)
    behind.relist()
    simulation.delete_job()
    simulation.submit()
    ahead = Operator(simulation)
    for _ in range(3):
        ahead.relist()
        await ahead.work()
        simulation.step()
    for pod in simulation.pods():
        behind.store.put_pod(pod)
    await behind.work()
    assert simulation.alive() == ["fx-1-0"]
    assert count(simulation, "delete", "Pod") == 0


async def test_reconcile_edited_strategy_does_not_change_later_attempts() -> None:
    simulation = SimulatedCluster({1: "fail", 2: "fail"})
    ref = {"configMapKeyRef": {"name": "strategies", "key": "fx.yaml"}}
    simulation.submit(strategy=ref)
    config_map = {
        "metadata": {"namespace": NAMESPACE, "name": "strategies"},
        "data": {"fx.yaml": STRATEGY},
    }
    simulation.cluster.put(CONFIG_MAPS, config_map)
    operator = Operator(simulation)
    for _ in range(4):
        operator.relist()
        await operator.work()
        simulation.step()
    simulation.cluster.remove(CONFIG_MAPS, NAMESPACE, "strategies")
    await run_to_end(simulation, operator)
    assert simulation.end()[:2] == ("Succeeded", "Completed")
    uid = simulation.job()["metadata"]["uid"]
    stored = simulation.cluster.read(CONFIG_MAPS, NAMESPACE, names.strategy_name(JOB, uid))
    assert stored is not None
    assert (stored["data"], stored["immutable"]) == ({"strategy.yaml": STRATEGY}, True)
    assert len(simulation.cluster.read_all(CONFIG_MAPS)) == 1
    digests = {
        json.loads(pod["metadata"]["annotations"][names.REQUEST_ANNOTATION])["strategyDigest"]
        for pod in simulation.pods()
    }
    assert digests == {strategy_digest(STRATEGY)}


async def test_reconcile_missing_strategy_is_reported_and_the_job_starts_once_it_exists() -> None:
    simulation = SimulatedCluster()
    simulation.submit(strategy={"configMapKeyRef": {"name": "strategies", "key": "fx.yaml"}})
    operator = Operator(simulation)
    said = []
    for data in (None, {"other.yaml": "x"}, {"fx.yaml": STRATEGY}):
        if data is not None:
            metadata = {"namespace": NAMESPACE, "name": "strategies"}
            simulation.cluster.put(CONFIG_MAPS, {"metadata": metadata, "data": data})
        simulation.wait(60)
        operator.relist()
        await operator.work()
        simulation.step()
        operator.relist()
        await operator.work()
        said.append(simulation.status()["message"])
    assert said == [
        'ConfigMap "strategies" in namespace "ns" does not exist; create it and the job starts',
        'ConfigMap "strategies" in namespace "ns" has no key "fx.yaml" (its keys: kubectl describe '
        "configmap strategies -n ns); add the key and the job starts",
        'Pod "fx-1-0" is starting',
    ]


async def test_reconcile_server_errors_change_neither_condition_nor_attempt() -> None:
    simulation = SimulatedCluster()
    simulation.submit()
    operator = Operator(simulation)
    for error in (ApiError(500, "InternalError", "x"), Unreachable(0, "ClientOSError", "reset")):
        simulation.cluster.fail_next("create", error, resource=PODS, after_effect=True)
        simulation.cluster.fail_next("apply", error, resource=TRAINING_JOBS)
    await run_to_end(simulation, operator)
    assert simulation.end()[:2] == ("Succeeded", "Completed")
    assert simulation.attempts == [1]


async def test_reconcile_unreadable_spec_affects_this_job_only() -> None:
    simulation = SimulatedCluster()
    simulation.submit()
    raw = simulation.job()
    raw["spec"]["trainer"] = {"imagePullPolicy": "Sometimes"}
    simulation.cluster.put(TRAINING_JOBS, raw)
    operator = Operator(simulation)
    for _ in range(3):
        operator.relist()
        await operator.work()
    status = simulation.status()
    assert (status["phase"], status["reason"]) == ("Failed", "InvalidRequest")
    assert "spec.trainer.imagePullPolicy" in status["message"]
    assert count(simulation, "apply", names.KIND) == 1


async def test_reconcile_unreadable_progress_is_ignored() -> None:
    simulation = SimulatedCluster()
    simulation.submit()
    operator = Operator(simulation)
    operator.relist()
    await operator.work()
    raw = simulation.job()
    raw["status"]["progress"] = {"attempt": "first"}
    simulation.cluster.put(TRAINING_JOBS, raw)
    operator.relist()
    await operator.work()
    await run_to_end(simulation, operator)
    assert simulation.end()[:2] == ("Succeeded", "Completed")
