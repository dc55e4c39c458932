"""Faults around one TrainingJob: what the user reads, what it costs, and that it recovers."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from engine_builders import JOB, NAMESPACE, STRATEGY, Raw, job_raw, pod_raw, waiting_pod
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
    Unreachable,
)
from ktrdr_client.testing import Request
from ktrdr_operator.store import JobKey
from simulated_cluster import KEY, Operator, SimulatedCluster, run_to_end


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="ktrdr_operator")


async def turn(simulation: SimulatedCluster, operator: Operator, seconds: float = 0.0) -> Raw:
    """List, reconcile, let time pass; returns the status."""
    operator.relist()
    await operator.work()
    simulation.wait(seconds)
    return simulation.status()


def requests(simulation: SimulatedCluster, since: int) -> list[tuple[str, str]]:
    return [(request.method, request.kind) for request in simulation.cluster.requests[since:]]


REFERENCE = {"configMapKeyRef": {"name": "strategies", "key": "fx.yaml"}}
LARGE = {"inline": STRATEGY + "#" * names.STRATEGY_ANNOTATION_MAX_BYTES}


@pytest.mark.parametrize(
    "strategy", [{"inline": STRATEGY}, LARGE, REFERENCE], ids=["small", "large", "referenced"]
)
async def test_reconcile_rejected_pod_costs_two_requests_per_try(strategy: Raw) -> None:
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit(strategy=strategy)
    metadata = {"namespace": NAMESPACE, "name": "strategies"}
    simulation.cluster.put(CONFIG_MAPS, {"metadata": metadata, "data": {"fx.yaml": STRATEGY}})
    operator = Operator(simulation)
    quota = Forbidden(403, "Forbidden", "exceeded quota: gpus")
    for _ in range(9):
        simulation.cluster.fail_next("create", quota, resource=PODS)
        await turn(simulation, operator, 61)
    for _ in range(3):
        simulation.cluster.fail_next("create", quota, resource=PODS)
        before = len(simulation.cluster.requests)
        await turn(simulation, operator, 61)
        assert requests(simulation, before) == [("apply", names.KIND), ("create", "Pod")]
    simulation.cluster._faults.clear()
    await live_until_running(simulation, operator)


async def live_until_running(simulation: SimulatedCluster, operator: Operator) -> None:
    for _ in range(8):
        await turn(simulation, operator, 61)
        simulation.step()
    assert simulation.status()["phase"] == "Running"
    assert "waiting" not in simulation.status()


async def test_reconcile_invalid_pod_fails_the_job_with_the_servers_message() -> None:
    simulation = SimulatedCluster()
    simulation.submit()
    words = 'Pod "fx-1-0" is invalid: spec.nodeSelector: Invalid value: "a b"'
    simulation.cluster.fail_next("create", Invalid(422, "Invalid", words), resource=PODS)
    status = await turn(simulation, Operator(simulation))
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
async def test_reconcile_create_that_may_succeed_later_waits_with_the_servers_message(
    error: ApiError,
) -> None:
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit()
    operator = Operator(simulation)
    simulation.cluster.fail_next("create", error, resource=PODS)
    status = await turn(simulation, operator)
    assert (status["phase"], status["reason"]) == ("Pending", "FailedCreate")
    assert status["waiting"]["message"].startswith(error.message)
    await live_until_running(simulation, operator)


async def test_reconcile_lasting_server_failure_is_reported_and_a_short_one_is_not() -> None:
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit()
    operator = Operator(simulation)
    seen = []
    for _ in range(5):
        error = ApiError(500, "InternalError", "etcdserver: request timed out")
        simulation.cluster.fail_next("create", error, resource=PODS)
        seen.append((await turn(simulation, operator)).get("reason"))
    assert seen == [None, None, None, "FailedCreate", "FailedCreate"]
    await live_until_running(simulation, operator)


async def test_reconcile_create_without_an_answer_is_not_told_in_the_words_of_http() -> None:
    """A webhook may take 30 s, and the client waits for 15 s only."""
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit()
    operator = Operator(simulation)
    silence = Unreachable(0, "TimeoutError", "POST /api/v1/namespaces/ns/pods?x=y: TimeoutError")
    for _ in range(4):
        simulation.cluster.fail_next("create", silence, resource=PODS)
        await turn(simulation, operator, 1)
    status = simulation.status()
    assert status["reason"] == "FailedCreate"
    assert "did not answer a create of this job (TimeoutError)" in status["message"]
    assert "POST" not in status["message"]


async def test_reconcile_child_that_is_being_deleted_is_not_adopted() -> None:
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit()
    uid = simulation.job()["metadata"]["uid"]
    leaving = pod_raw(owner=uid, deleting=30)
    del leaving["metadata"]["resourceVersion"], leaving["metadata"]["labels"]
    simulation.cluster.put(PODS, leaving)
    operator = Operator(simulation)
    status = await turn(simulation, operator, 5)
    assert status["reason"] == "NameConflict"
    assert 'Pod "fx-1-0" is being deleted' in status["message"]
    simulation.cluster.remove(PODS, NAMESPACE, "fx-1-0")
    await live_until_running(simulation, operator)


async def test_reconcile_many_jobs_of_a_namespace_create_its_account_once() -> None:
    simulation = SimulatedCluster()
    operator = Operator(simulation)
    for number in range(5):
        raw = job_raw(f"job-{number}", uid=f"uid-job-{number}")
        del raw["metadata"]["resourceVersion"]
        simulation.cluster.put(TRAINING_JOBS, raw)
    operator.relist()
    for number in range(5):
        await operator.work(JobKey(NAMESPACE, f"job-{number}"))
    kinds = [r.kind for r in simulation.cluster.requests if r.method == "create"]
    assert sorted(kinds) == ["Pod"] * 5 + ["RoleBinding", "ServiceAccount"]
    assert simulation.cluster.read(ROLE_BINDINGS, NAMESPACE, names.TRAINER_ACCOUNT) is not None
    account = simulation.cluster.read(SERVICE_ACCOUNTS, NAMESPACE, names.TRAINER_ACCOUNT)
    assert account is not None
    assert account["automountServiceAccountToken"] is False


async def test_reconcile_deleted_account_is_created_again() -> None:
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit()
    operator = Operator(simulation)
    operator.reconciler.pods._prepared.add(NAMESPACE)
    words = (
        "error looking up service account ns/ktrdr-trainer: "
        'serviceaccount "ktrdr-trainer" not found'
    )
    simulation.cluster.fail_next("create", Forbidden(403, "Forbidden", words), resource=PODS)
    await turn(simulation, operator, 2)
    await live_until_running(simulation, operator)
    assert simulation.cluster.read(SERVICE_ACCOUNTS, NAMESPACE, names.TRAINER_ACCOUNT) is not None


async def test_reconcile_role_binding_of_another_role_is_a_name_conflict() -> None:
    simulation = SimulatedCluster()
    simulation.submit()
    other = {
        "metadata": {"namespace": NAMESPACE, "name": names.TRAINER_ACCOUNT},
        "roleRef": {"kind": "ClusterRole", "name": "cluster-admin"},
    }
    simulation.cluster.put(ROLE_BINDINGS, other)
    status = await turn(simulation, Operator(simulation))
    assert status["reason"] == "NameConflict"
    assert 'RoleBinding "ktrdr-trainer" in namespace "ns" binds another role' in status["message"]
    assert simulation.alive() == []


async def test_reconcile_pod_explained_by_its_events_is_reported_within_a_minute() -> None:
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit()
    operator = Operator(simulation)
    await turn(simulation, operator)
    pod = simulation.pods()[0]
    pod["spec"]["nodeName"] = "node-1"
    pod["status"] = {"phase": "Pending"}
    simulation._put(PODS, pod)
    words = 'MountVolume.SetUp failed for volume "data": hostPath type check failed: /x'
    for number, (kind, reason, message) in enumerate(
        [("Normal", "Scheduled", "assigned"), ("Warning", "FailedMount", words)]
    ):
        simulation.cluster.put(
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
    simulation.wait(15)
    status = await turn(simulation, operator)
    assert status["waiting"]["reason"] == "PodNotReady"
    assert status["waiting"]["message"].startswith(words)
    assert [event["reason"] for event in operator.events.take_pending()] == ["PodNotReady"]


async def test_reconcile_rejected_status_is_written_without_foreign_values() -> None:
    simulation = SimulatedCluster()
    simulation.submit()
    operator = Operator(simulation)
    await turn(simulation, operator)
    for _ in range(3):
        simulation.step()
        await turn(simulation, operator)
    simulation.step()
    words = "status.checkpoint.time: Invalid value"
    simulation.cluster.fail_next("apply", Invalid(422, "Invalid", words), resource=TRAINING_JOBS)
    status = await turn(simulation, operator)
    assert status["phase"] == "Succeeded"
    assert "artifact" not in status["result"]
    assert words in status["message"]


async def test_reconcile_status_that_cannot_be_written_does_not_keep_pods() -> None:
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit(cancellation={"gracePeriodSeconds": 0})
    operator = Operator(simulation)
    for _ in range(4):
        await turn(simulation, operator)
        simulation.step()
    simulation.cancel()
    for nth in (1, 1):
        error = Invalid(422, "Invalid", "status: no")
        simulation.cluster.fail_next("apply", error, resource=TRAINING_JOBS, nth=nth)
    await turn(simulation, operator)
    assert ("delete", "Pod") in requests(simulation, 0)


async def test_reconcile_transition_is_told_although_a_pod_cannot_be_deleted() -> None:
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit()
    operator = Operator(simulation)
    await turn(simulation, operator)
    pod = waiting_pod("ImagePullBackOff", "Back-off pulling image")
    pod["metadata"] = simulation.pods()[0]["metadata"]
    simulation._put(PODS, pod)
    await turn(simulation, operator, 301)
    simulation.cluster.fail_next("delete", ApiError(500, "InternalError", "x"), resource=PODS)
    for _ in range(3):
        await turn(simulation, operator)
    assert simulation.status()["phase"] == "Failed"
    told = [event["message"] for event in operator.events.take_pending()]
    assert [("tried for 300 s" in words) for words in told] == [False, True]
    deletes = [r for r in simulation.cluster.requests if (r.method, r.kind) == ("delete", "Pod")]
    assert len(deletes) == 2


async def test_reconcile_field_of_two_managers_is_removed() -> None:
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit()
    operator = Operator(simulation)
    operator.store.report_interval_seconds = 30
    for _ in range(4):
        await turn(simulation, operator)
        simulation.step()
    assert simulation.status()["reportPeriodSeconds"] == 30
    operator.store.report_interval_seconds = None
    original = simulation.cluster._merge

    def co_owned(key: Any, wanted: Raw, given: Raw, subresource: str) -> None:
        original(key, wanted, given, subresource)
        wanted["status"].setdefault("reportPeriodSeconds", 30)

    simulation.cluster._merge = co_owned  # type: ignore[method-assign] # another field manager
    await turn(simulation, operator)
    simulation.cluster._merge = original  # type: ignore[method-assign]
    assert "reportPeriodSeconds" not in simulation.status()
    before = len(simulation.cluster.requests)
    await turn(simulation, operator)
    assert requests(simulation, before) == []


async def test_reconcile_job_after_its_ttl_posts_its_result_and_is_deleted() -> None:
    simulation = SimulatedCluster()
    simulation.submit(ttlSecondsAfterFinished=60)
    operator = Operator(simulation)
    await run_to_end(simulation, operator)
    await turn(simulation, operator, 50)
    assert simulation.cluster.read(TRAINING_JOBS, NAMESPACE, JOB) is not None
    simulation.wait(20)
    operator.relist()
    before = len(simulation.cluster.requests)
    await operator.work()
    assert simulation.cluster.read(TRAINING_JOBS, NAMESPACE, JOB) is None
    assert requests(simulation, before)[-2:] == [("create", "Event"), ("delete", names.KIND)]
    event = simulation.cluster.read_all(EVENTS)[-1]
    assert event["reason"] == "Expired"
    assert "the model is stored at models/fx_momentum/1h_v1" in event["message"]


async def test_reconcile_expiry_of_job_changed_meanwhile_keeps_it() -> None:
    simulation = SimulatedCluster()
    simulation.submit(ttlSecondsAfterFinished=0)
    operator = Operator(simulation)
    for _ in range(5):
        await turn(simulation, operator)
        simulation.step()
        if simulation.is_finished():
            break
    operator.relist()
    raw = simulation.job()
    raw["spec"]["ttlSecondsAfterFinished"] = 3600
    simulation._put(TRAINING_JOBS, raw)
    await operator.work()
    await operator.work()
    assert simulation.cluster.read(TRAINING_JOBS, NAMESPACE, JOB) is not None


async def expiring(
    meanwhile: Callable[[SimulatedCluster, Operator], None],
) -> tuple[SimulatedCluster, Operator]:
    """A job whose time to live is over; `meanwhile` happens while the last Event is posted."""
    simulation = SimulatedCluster()
    simulation.submit(ttlSecondsAfterFinished=60)
    operator = Operator(simulation)
    await run_to_end(simulation, operator)
    simulation.wait(70)
    operator.relist()
    create = simulation.cluster.create

    async def post(resource: Resource, obj: Raw) -> Raw:
        if obj.get("reason") == "Expired":
            simulation.cluster.create = create  # type: ignore[method-assign] # only once
            meanwhile(simulation, operator)
        return await create(resource, obj)

    simulation.cluster.create = post  # type: ignore[method-assign] # as above
    await operator.work()
    return simulation, operator


async def test_reconcile_expiry_spares_a_job_whose_time_to_live_is_raised_at_the_last_moment() -> (
    None
):
    def raise_ttl(simulation: SimulatedCluster, operator: Operator) -> None:
        raw = simulation.job()
        raw["spec"]["ttlSecondsAfterFinished"] = 3600
        simulation._put(TRAINING_JOBS, raw)
        operator.store.put_job(simulation.job())

    simulation, operator = await expiring(raise_ttl)
    assert simulation.cluster.read(TRAINING_JOBS, NAMESPACE, JOB) is not None
    await operator.work()
    assert simulation.status()["observedGeneration"] == 2
    assert simulation.cluster.read(TRAINING_JOBS, NAMESPACE, JOB) is not None


async def test_reconcile_expiry_of_a_job_deleted_at_the_last_moment_is_no_failure() -> None:
    def delete(simulation: SimulatedCluster, operator: Operator) -> None:
        raw = simulation.job()
        simulation.delete_job()
        operator.store.drop_job(KEY, raw["metadata"]["uid"])

    _, operator = await expiring(delete)
    assert operator.queue.failures(KEY) == 0


async def test_reconcile_first_start_on_an_old_state_reads_the_job() -> None:
    simulation = SimulatedCluster({1: "vanish", 2: "stay"})
    simulation.submit()
    behind = Operator(simulation)
    behind.relist()
    await live_vanished(simulation)
    before = len(simulation.alive())
    await behind.work()
    assert len(simulation.alive()) == before
    assert Request("get", names.KIND, JOB) in simulation.cluster.requests


async def live_vanished(simulation: SimulatedCluster) -> None:
    """Attempt 1 runs and vanishes, attempt 2 runs."""
    ahead = Operator(simulation)
    for _ in range(12):
        await turn(simulation, ahead)
        simulation.step()
    assert simulation.status()["attempt"] == 2


async def test_reconcile_failed_create_is_not_put_on_a_job_created_meanwhile() -> None:
    """The user deletes the job and applies a corrected one while the pod is being created."""
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit()
    operator = Operator(simulation)
    operator.relist()
    create = simulation.cluster.create

    async def refuse(resource: Resource, obj: Raw) -> Raw:
        if resource != PODS:
            return await create(resource, obj)
        simulation.cluster.create = create  # type: ignore[method-assign] # only once
        simulation.delete_job()
        simulation.submit()
        operator.relist()
        raise Invalid(422, "Invalid", 'Pod "fx-1-0" is invalid: spec.nodeSelector: a b')

    simulation.cluster.create = refuse  # type: ignore[method-assign] # as above
    await operator.work()
    assert simulation.status()["observedGeneration"] == -1
    assert KEY in operator.queue._due
    await turn(simulation, operator)
    assert simulation.alive() == ["fx-1-0"]


async def test_reconcile_forgets_the_backoff_of_a_key_after_a_success() -> None:
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit()
    operator = Operator(simulation)
    simulation.cluster.fail_next("create", ApiError(500, "InternalError", "x"), resource=PODS)
    await turn(simulation, operator)
    assert operator.queue.failures(KEY) == 1
    await turn(simulation, operator)
    assert operator.queue.failures(KEY) == 0


async def test_reconcile_concurrent_first_jobs_of_a_namespace_create_its_account_once() -> None:
    cluster = SimulatedCluster()
    operator = Operator(cluster)
    for number in range(5):
        raw = job_raw(f"job-{number}", uid=f"uid-job-{number}")
        del raw["metadata"]["resourceVersion"]
        cluster.cluster.put(TRAINING_JOBS, raw)
    operator.relist()
    operator.client.pause = lambda: asyncio.sleep(0)
    await asyncio.gather(*(operator.work(JobKey(NAMESPACE, f"job-{n}")) for n in range(5)))
    kinds = [r.kind for r in cluster.cluster.requests if r.method == "create"]
    assert sorted(kinds) == ["Pod"] * 5 + ["RoleBinding", "ServiceAccount"]
