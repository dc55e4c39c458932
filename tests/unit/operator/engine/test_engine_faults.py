"""Faults around one TrainingJob: what the user reads, what it costs, and that it recovers."""

import logging
from collections.abc import Callable
from typing import Any

import pytest

from engine_builders import JOB, NAMESPACE, STRATEGY, Raw, job_raw, pod_raw, waiting_pod
from engine_world import KEY, Operator, World, live
from ktrdr_api import names
from ktrdr_client.cluster import (
    CONFIG_MAPS,
    EVENTS,
    PODS,
    ROLE_BINDINGS,
    SERVICE_ACCOUNTS,
    TRAINING_JOBS,
    ApiError,
    Forbidden,
    Invalid,
    Resource,
)
from ktrdr_client.testing import Request
from ktrdr_operator.store import JobKey


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="ktrdr_operator")


async def turn(world: World, operator: Operator, seconds: float = 0.0) -> Raw:
    """List, reconcile, let time pass; returns the status."""
    operator.relist()
    await operator.work()
    world.wait(seconds)
    return world.status()


def requests(world: World, since: int) -> list[tuple[str, str]]:
    return [(request.method, request.kind) for request in world.cluster.requests[since:]]


REFERENCE = {"configMapKeyRef": {"name": "strategies", "key": "fx.yaml"}}
LARGE = {"inline": STRATEGY + "#" * names.STRATEGY_ANNOTATION_MAX_BYTES}


@pytest.mark.parametrize(
    "strategy", [{"inline": STRATEGY}, LARGE, REFERENCE], ids=["small", "large", "referenced"]
)
async def test_reconcile_refused_pod_costs_two_requests_a_try(strategy: Raw) -> None:
    world = World({1: "stay"})
    world.submit(strategy=strategy)
    metadata = {"namespace": NAMESPACE, "name": "strategies"}
    world.cluster.put(CONFIG_MAPS, {"metadata": metadata, "data": {"fx.yaml": STRATEGY}})
    operator = Operator(world)
    quota = Forbidden(403, "Forbidden", "exceeded quota: gpus")
    for _ in range(9):
        world.cluster.fail_next("create", quota, resource=PODS)
        await turn(world, operator, 61)
    for _ in range(3):
        world.cluster.fail_next("create", quota, resource=PODS)
        before = len(world.cluster.requests)
        await turn(world, operator, 61)
        assert requests(world, before) == [("apply", names.KIND), ("create", "Pod")]
    world.cluster._faults.clear()
    await live_until_running(world, operator)


async def live_until_running(world: World, operator: Operator) -> None:
    for _ in range(8):
        await turn(world, operator, 61)
        world.step()
    assert world.status()["phase"] == "Running"
    assert "waiting" not in world.status()


async def test_reconcile_invalid_pod_ends_the_job_with_the_words_of_the_server() -> None:
    world = World()
    world.submit()
    words = 'Pod "fx-1-0" is invalid: spec.nodeSelector: Invalid value: "a b"'
    world.cluster.fail_next("create", Invalid(422, "Invalid", words), resource=PODS)
    status = await turn(world, Operator(world))
    assert (status["phase"], status["reason"]) == ("Failed", "InvalidRequest")
    assert status["message"] == f"{words}; correct it in a new TrainingJob"
    assert "422" not in status["message"]


@pytest.mark.parametrize(
    "error",
    [
        Invalid(422, "Invalid", 'admission webhook "x.y" denied the request: no'),
        Invalid(
            422, "Invalid", "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no"
        ),
        ApiError(500, "InternalError", 'failed calling webhook "x.y": no endpoints available'),
        Forbidden(403, "Forbidden", "violates PodSecurity"),
    ],
    ids=["webhook 422", "policy 422", "webhook without endpoints", "pod security"],
)
async def test_reconcile_create_that_may_succeed_tomorrow_waits_with_the_words(
    error: ApiError,
) -> None:
    world = World({1: "stay"})
    world.submit()
    operator = Operator(world)
    world.cluster.fail_next("create", error, resource=PODS)
    status = await turn(world, operator)
    assert (status["phase"], status["reason"]) == ("Pending", "FailedCreate")
    assert status["waiting"]["message"].startswith(error.message)
    await live_until_running(world, operator)


async def test_reconcile_server_that_fails_for_long_is_reported_and_a_hiccup_is_not() -> None:
    world = World({1: "stay"})
    world.submit()
    operator = Operator(world)
    seen = []
    for _ in range(5):
        error = ApiError(500, "InternalError", "etcdserver: request timed out")
        world.cluster.fail_next("create", error, resource=PODS)
        seen.append((await turn(world, operator)).get("reason"))
    assert seen == [None, None, None, "FailedCreate", "FailedCreate"]
    await live_until_running(world, operator)


async def test_reconcile_child_that_is_being_deleted_is_not_adopted() -> None:
    world = World({1: "stay"})
    world.submit()
    uid = world.job()["metadata"]["uid"]
    leaving = pod_raw(owner=uid, deleting=30)
    del leaving["metadata"]["resourceVersion"], leaving["metadata"]["labels"]
    world.cluster.put(PODS, leaving)
    operator = Operator(world)
    status = await turn(world, operator, 5)
    assert status["reason"] == "NameConflict"
    assert 'Pod "fx-1-0" is being deleted' in status["message"]
    world.cluster.remove(PODS, NAMESPACE, "fx-1-0")
    await live_until_running(world, operator)


async def test_reconcile_many_jobs_of_a_namespace_make_its_account_once() -> None:
    world = World()
    operator = Operator(world)
    for number in range(5):
        raw = job_raw(f"job-{number}", uid=f"uid-job-{number}")
        del raw["metadata"]["resourceVersion"]
        world.cluster.put(TRAINING_JOBS, raw)
    operator.relist()
    for number in range(5):
        await operator.work(JobKey(NAMESPACE, f"job-{number}"))
    kinds = [r.kind for r in world.cluster.requests if r.method == "create"]
    assert sorted(kinds) == ["Pod"] * 5 + ["RoleBinding", "ServiceAccount"]
    assert world.cluster.read(ROLE_BINDINGS, NAMESPACE, names.TRAINER_ACCOUNT) is not None
    account = world.cluster.read(SERVICE_ACCOUNTS, NAMESPACE, names.TRAINER_ACCOUNT)
    assert account is not None
    assert account["automountServiceAccountToken"] is False


async def test_reconcile_account_that_was_deleted_is_made_again() -> None:
    world = World({1: "stay"})
    world.submit()
    operator = Operator(world)
    operator.reconciler.pods._prepared.add(NAMESPACE)
    words = (
        "error looking up service account ns/ktrdr-trainer: "
        'serviceaccount "ktrdr-trainer" not found'
    )
    world.cluster.fail_next("create", Forbidden(403, "Forbidden", words), resource=PODS)
    await turn(world, operator, 2)
    await live_until_running(world, operator)
    assert world.cluster.read(SERVICE_ACCOUNTS, NAMESPACE, names.TRAINER_ACCOUNT) is not None


async def test_reconcile_role_binding_of_another_role_is_named() -> None:
    world = World()
    world.submit()
    other = {
        "metadata": {"namespace": NAMESPACE, "name": names.TRAINER_ACCOUNT},
        "roleRef": {"kind": "ClusterRole", "name": "cluster-admin"},
    }
    world.cluster.put(ROLE_BINDINGS, other)
    status = await turn(world, Operator(world))
    assert status["reason"] == "NameConflict"
    assert 'RoleBinding "ktrdr-trainer" in namespace "ns" binds another role' in status["message"]
    assert world.alive() == []


async def test_reconcile_pod_that_its_events_explain_says_so_within_a_minute() -> None:
    world = World({1: "stay"})
    world.submit()
    operator = Operator(world)
    await turn(world, operator)
    pod = world.pods()[0]
    pod["spec"]["nodeName"] = "node-1"
    pod["status"] = {"phase": "Pending"}
    world._put(PODS, pod)
    words = 'MountVolume.SetUp failed for volume "data": hostPath type check failed: /x'
    for number, (kind, reason, message) in enumerate(
        [("Normal", "Scheduled", "assigned"), ("Warning", "FailedMount", words)]
    ):
        world.cluster.put(
            EVENTS,
            {
                "metadata": {"namespace": NAMESPACE, "name": f"e{number}"},
                "involvedObject": {"uid": pod["metadata"]["uid"]},
                "type": kind,
                "reason": reason,
                "message": message,
                "lastTimestamp": f"2026-01-01T12:00:0{number}Z",
            },
        )
    world.wait(10)
    status = await turn(world, operator)
    assert status["waiting"]["reason"] == "PodNotReady"
    assert status["waiting"]["message"].startswith(words)
    assert [event["reason"] for event in operator.events.take_pending()] == ["PodNotReady"]


async def test_reconcile_refused_status_is_written_without_foreign_parts() -> None:
    world = World()
    world.submit()
    operator = Operator(world)
    await turn(world, operator)
    for _ in range(3):
        world.step()
        await turn(world, operator)
    world.step()
    words = "status.checkpoint.time: Invalid value"
    world.cluster.fail_next("apply", Invalid(422, "Invalid", words), resource=TRAINING_JOBS)
    status = await turn(world, operator)
    assert status["phase"] == "Succeeded"
    assert "artifact" not in status["result"]
    assert words in status["message"]


async def test_reconcile_status_that_cannot_be_written_keeps_no_pod_alive() -> None:
    world = World({1: "stay"})
    world.submit(cancellation={"gracePeriodSeconds": 0})
    operator = Operator(world)
    for _ in range(4):
        await turn(world, operator)
        world.step()
    world.cancel()
    for nth in (1, 1):
        error = Invalid(422, "Invalid", "status: no")
        world.cluster.fail_next("apply", error, resource=TRAINING_JOBS, nth=nth)
    await turn(world, operator)
    assert ("delete", "Pod") in requests(world, 0)


async def test_reconcile_transition_is_told_although_a_pod_cannot_be_deleted() -> None:
    world = World({1: "stay"})
    world.submit()
    operator = Operator(world)
    await turn(world, operator)
    pod = waiting_pod("ImagePullBackOff", "Back-off pulling image")
    pod["metadata"] = world.pods()[0]["metadata"]
    world._put(PODS, pod)
    await turn(world, operator, 301)
    world.cluster.fail_next("delete", ApiError(500, "InternalError", "x"), resource=PODS)
    for _ in range(3):
        await turn(world, operator)
    assert world.status()["phase"] == "Failed"
    told = [event["message"] for event in operator.events.take_pending()]
    assert [("tried for 300 s" in words) for words in told] == [False, True]
    deletes = [r for r in world.cluster.requests if (r.method, r.kind) == ("delete", "Pod")]
    assert len(deletes) == 2


async def test_reconcile_field_that_another_manager_owns_as_well_is_removed() -> None:
    world = World({1: "stay"})
    world.submit()
    operator = Operator(world)
    operator.store.report_interval_seconds = 30
    for _ in range(4):
        await turn(world, operator)
        world.step()
    assert world.status()["reportPeriodSeconds"] == 30
    operator.store.report_interval_seconds = None
    original = world.cluster._merge

    def co_owned(key: Any, wanted: Raw, given: Raw, subresource: str) -> None:
        original(key, wanted, given, subresource)
        wanted["status"].setdefault("reportPeriodSeconds", 30)

    world.cluster._merge = co_owned  # type: ignore[method-assign] # another field manager
    await turn(world, operator)
    world.cluster._merge = original  # type: ignore[method-assign]
    assert "reportPeriodSeconds" not in world.status()
    before = len(world.cluster.requests)
    await turn(world, operator)
    assert requests(world, before) == []


async def test_reconcile_job_is_deleted_after_its_time_to_live_and_tells_its_result_before() -> (
    None
):
    world = World()
    world.submit(ttlSecondsAfterFinished=60)
    operator = Operator(world)
    await live(world, operator)
    await turn(world, operator, 50)
    assert world.cluster.read(TRAINING_JOBS, NAMESPACE, JOB) is not None
    world.wait(20)
    operator.relist()
    before = len(world.cluster.requests)
    await operator.work()
    assert world.cluster.read(TRAINING_JOBS, NAMESPACE, JOB) is None
    assert requests(world, before)[-2:] == [("create", "Event"), ("delete", names.KIND)]
    event = world.cluster.read_all(EVENTS)[-1]
    assert event["reason"] == "Expired"
    assert "the model is stored at models/fx_momentum/1h_v1" in event["message"]


async def test_reconcile_expiry_spares_a_job_that_changed_meanwhile() -> None:
    world = World()
    world.submit(ttlSecondsAfterFinished=0)
    operator = Operator(world)
    for _ in range(5):
        await turn(world, operator)
        world.step()
        if world.is_finished():
            break
    operator.relist()
    raw = world.job()
    raw["spec"]["ttlSecondsAfterFinished"] = 3600
    world._put(TRAINING_JOBS, raw)
    await operator.work()
    await operator.work()
    assert world.cluster.read(TRAINING_JOBS, NAMESPACE, JOB) is not None


async def expiring(meanwhile: Callable[[World, Operator], None]) -> tuple[World, Operator]:
    """A job whose time to live is over; `meanwhile` happens while the last Event is posted."""
    world = World()
    world.submit(ttlSecondsAfterFinished=60)
    operator = Operator(world)
    await live(world, operator)
    world.wait(70)
    operator.relist()
    create = world.cluster.create

    async def post(resource: Resource, obj: Raw) -> Raw:
        if obj.get("reason") == "Expired":
            world.cluster.create = create  # type: ignore[method-assign] # only once
            meanwhile(world, operator)
        return await create(resource, obj)

    world.cluster.create = post  # type: ignore[method-assign] # as above
    await operator.work()
    return world, operator


async def test_reconcile_expiry_spares_a_job_whose_time_to_live_is_raised_at_the_last_moment() -> (
    None
):
    def raise_ttl(world: World, operator: Operator) -> None:
        raw = world.job()
        raw["spec"]["ttlSecondsAfterFinished"] = 3600
        world._put(TRAINING_JOBS, raw)
        operator.store.put_job(world.job())

    world, operator = await expiring(raise_ttl)
    assert world.cluster.read(TRAINING_JOBS, NAMESPACE, JOB) is not None
    await operator.work()
    assert world.status()["observedGeneration"] == 2
    assert world.cluster.read(TRAINING_JOBS, NAMESPACE, JOB) is not None


async def test_reconcile_expiry_of_a_job_deleted_at_the_last_moment_is_no_failure() -> None:
    def delete(world: World, operator: Operator) -> None:
        raw = world.job()
        world.delete_job()
        operator.store.drop_job(KEY, raw["metadata"]["uid"])

    _, operator = await expiring(delete)
    assert operator.queue.failures(KEY) == 0


async def test_reconcile_first_start_decided_on_an_old_state_is_asked_about() -> None:
    world = World({1: "vanish", 2: "stay"})
    world.submit()
    behind = Operator(world)
    behind.relist()
    await live_vanished(world)
    before = len(world.alive())
    await behind.work()
    assert len(world.alive()) == before
    assert Request("get", names.KIND, JOB) in world.cluster.requests


async def live_vanished(world: World) -> None:
    """Attempt 1 runs and vanishes, attempt 2 runs."""
    ahead = Operator(world)
    for _ in range(12):
        await turn(world, ahead)
        world.step()
    assert world.status()["attempt"] == 2


async def test_reconcile_failed_create_is_not_put_on_a_job_created_meanwhile() -> None:
    """The user deletes the job and applies a corrected one while the pod is being created."""
    world = World({1: "stay"})
    world.submit()
    operator = Operator(world)
    operator.relist()
    create = world.cluster.create

    async def refuse(resource: Resource, obj: Raw) -> Raw:
        if resource != PODS:
            return await create(resource, obj)
        world.cluster.create = create  # type: ignore[method-assign] # only once
        world.delete_job()
        world.submit()
        operator.relist()
        raise Invalid(422, "Invalid", 'Pod "fx-1-0" is invalid: spec.nodeSelector: a b')

    world.cluster.create = refuse  # type: ignore[method-assign] # as above
    await operator.work()
    assert world.status()["observedGeneration"] == -1
    assert KEY in operator.queue._due
    await turn(world, operator)
    assert world.alive() == ["fx-1-0"]


async def test_reconcile_forgets_the_backoff_of_a_key_after_a_success() -> None:
    world = World({1: "stay"})
    world.submit()
    operator = Operator(world)
    world.cluster.fail_next("create", ApiError(500, "InternalError", "x"), resource=PODS)
    await turn(world, operator)
    assert operator.queue.failures(KEY) == 1
    await turn(world, operator)
    assert operator.queue.failures(KEY) == 0
