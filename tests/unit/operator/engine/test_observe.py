"""Live reads: where a store that is behind could do harm, the API server is asked first."""

import asyncio
import logging
from typing import Any

import pytest

from engine_builders import JOB, NAMESPACE, Raw, progress
from ktrdr_api import names
from ktrdr_client.cluster import CONFIG_MAPS, PODS, TRAINING_JOBS, ApiError
from ktrdr_client.testing import Request
from ktrdr_operator.intake import Intake
from ktrdr_operator.observe import FRESH_SECONDS
from ktrdr_operator.store import JobKey
from simulated_cluster import KEY, Operator, SimulatedCluster, run_to_end

GET_JOB = Request("get", names.KIND, JOB)
GET_POD = Request("get", "Pod", "fx-1-0")


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="ktrdr_operator")


async def running(act: str = "stay", **spec: Any) -> tuple[SimulatedCluster, Operator]:
    """Attempt 1 runs and has reported, and the operator knows it; what it does next is `act`."""
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit(**spec)
    operator = Operator(simulation)
    for _ in range(4):
        operator.relist()
        await operator.work()
        simulation.step()
    operator.relist()
    await operator.work()
    assert simulation.status()["phase"] == "Running"
    simulation.script[1] = act
    simulation.cluster.requests.clear()
    return simulation, operator


def trainers(simulation: SimulatedCluster) -> list[str]:
    return [pod["metadata"]["name"] for pod in simulation.pods()]


def asked(simulation: SimulatedCluster, request: Request) -> int:
    return simulation.cluster.requests.count(request)


# A pod that seems to be missing.


async def test_observe_missing_pod_of_attempt_that_ran_is_read() -> None:
    """A new operator hears of the job before it hears of the pod: no second trainer."""
    simulation, _ = await running()
    operator = Operator(simulation)
    operator.store.put_job(simulation.job())
    await operator.work()
    await operator.work()
    assert trainers(simulation) == ["fx-1-0"]
    assert asked(simulation, GET_POD) == 1
    assert simulation.status()["phase"] == "Running"


async def test_observe_missing_pod_of_attempt_that_reported_is_read() -> None:
    """Attempt 1 may run before it is on record: its report proves that it has started."""
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit()
    first = Operator(simulation)
    first.relist()
    await first.work()
    assert simulation.status().get("attempt", 0) == 0
    raw = simulation.job()
    raw["status"]["progress"] = progress(1)
    simulation._put(TRAINING_JOBS, raw)
    simulation.cluster.requests.clear()
    second = Operator(simulation)
    second.store.put_job(simulation.job())
    snapshot = await second.observe()
    assert asked(simulation, GET_POD) == 1
    assert snapshot.current() is not None


async def test_observe_pod_that_does_not_exist_is_followed_by_the_next_attempt() -> None:
    simulation, operator = await running()
    simulation.cluster.remove(PODS, NAMESPACE, "fx-1-0")
    operator.relist()
    await operator.work()
    assert asked(simulation, GET_POD) == 1
    assert (simulation.status()["phase"], simulation.status()["reason"]) == (
        "Retrying",
        "Disrupted",
    )
    simulation.wait(60)
    await operator.work()
    assert trainers(simulation) == ["fx-2-0"]


async def test_observe_unreachable_server_does_not_make_a_pod_missing() -> None:
    simulation, _ = await running()
    operator = Operator(simulation)
    operator.store.put_job(simulation.job())
    simulation.cluster.fail_next("get", ApiError(500, "InternalError", "x"), resource=PODS)
    with pytest.raises(ApiError):
        await operator.observe()
    simulation.cluster.fail_next("get", ApiError(500, "InternalError", "x"), resource=PODS)
    await operator.work()
    assert trainers(simulation) == ["fx-1-0"]
    assert simulation.status()["phase"] == "Running"


async def test_observe_pod_that_is_known_or_never_ran_is_not_read() -> None:
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit()
    operator = Operator(simulation)
    for _ in range(5):
        operator.relist()
        await operator.work()
        simulation.step()
    assert simulation.status()["phase"] == "Running"
    assert asked(simulation, GET_POD) == 0


# A pod that lost its label.


def remove_label(simulation: SimulatedCluster) -> Raw:
    """`kubectl label pod fx-1-0 ktrdr.io/job-`; returns what the watch calls deleted."""
    pod = simulation.cluster.read(PODS, NAMESPACE, "fx-1-0")
    assert pod is not None
    del pod["metadata"]["labels"][names.LABEL_JOB]
    simulation._put(PODS, pod)
    deleted = simulation.cluster.read(PODS, NAMESPACE, "fx-1-0")
    assert deleted is not None
    deleted["metadata"]["labels"][names.LABEL_JOB] = JOB  # the event has the old labels
    return deleted


async def test_observe_pod_that_lost_its_label_is_not_replaced() -> None:
    simulation, operator = await running()
    operator.store.drop_pod(remove_label(simulation))
    for _ in range(3):
        await operator.work()
        assert trainers(simulation) == ["fx-1-0"]
    assert simulation.status()["phase"] == "Running"
    assert simulation.status()["message"].endswith("kubectl label pod fx-1-0 -n ns ktrdr.io/job=fx")
    assert KEY in operator.queue._due  # the watch does not tell its end


async def test_observe_end_of_pod_without_label_is_detected() -> None:
    simulation, operator = await running()
    operator.store.drop_pod(remove_label(simulation))
    await operator.work()
    simulation.script[1] = "succeed"
    simulation.step()
    await operator.work()
    assert simulation.status()["phase"] == "Succeeded"
    assert trainers(simulation) == ["fx-1-0"]


async def test_observe_cancel_reaches_a_pod_that_lost_its_label() -> None:
    simulation, operator = await running(cancellation={"gracePeriodSeconds": 0})
    operator.store.drop_pod(remove_label(simulation))
    simulation.cancel()
    operator.store.put_job(simulation.job())
    await operator.work()
    assert simulation.status()["phase"] == "Cancelling"
    simulation.step()
    await operator.work()
    assert simulation.status()["phase"] == "Cancelled"
    assert trainers(simulation) == []


async def test_observe_end_of_a_cancelled_pod_without_label_is_looked_for() -> None:
    simulation, operator = await running(cancellation={"gracePeriodSeconds": 0})
    operator.store.drop_pod(remove_label(simulation))
    simulation.cancel()
    operator.store.put_job(simulation.job())
    for _ in range(3):
        operator.queue._due.clear()
        await operator.work()
        assert simulation.status()["phase"] == "Cancelling"
        assert operator.queue._due[KEY].time <= simulation.monotonic() + 15
        simulation.wait(20)


async def test_observe_pod_whose_label_names_another_job_stays_with_its_owner() -> None:
    simulation, operator = await running("succeed")
    pod = simulation.cluster.read(PODS, NAMESPACE, "fx-1-0")
    assert pod is not None
    pod["metadata"]["labels"][names.LABEL_JOB] = "other"
    simulation._put(PODS, pod)
    intake = Intake(operator.store, operator.queue)
    intake.take_pod("MODIFIED", simulation.pods()[0])
    await operator.work(JobKey(NAMESPACE, "other"))
    assert not [pod for pod in simulation.pods() if "deletionTimestamp" in pod["metadata"]]
    simulation.step()
    assert intake.take_pod("MODIFIED", simulation.pods()[0])
    await operator.work(JobKey(NAMESPACE, "other"))
    await operator.work()
    assert simulation.status()["phase"] == "Succeeded"
    assert trainers(simulation) == ["fx-1-0"]


async def test_observe_deleted_pod_whose_end_is_known_is_not_read() -> None:
    """Its result came with the DELETED event at the latest."""
    simulation, operator = await running("succeed")
    simulation.step()
    pod = simulation.cluster.read(PODS, NAMESPACE, "fx-1-0")
    assert pod is not None
    simulation.cluster.remove(PODS, NAMESPACE, "fx-1-0")
    operator.store.drop_pod({**pod, "metadata": {**pod["metadata"], "resourceVersion": "999"}})
    await operator.work()
    assert asked(simulation, GET_POD) == 0
    assert simulation.status()["phase"] == "Succeeded"


# An owner that is unknown.


@pytest.mark.parametrize("knows_the_earlier_job", [False, True])
async def test_observe_pods_of_unknown_owner_read_the_job(
    knows_the_earlier_job: bool,
) -> None:
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit()
    operator = Operator(simulation)
    if knows_the_earlier_job:
        operator.relist()
        simulation.delete_job()
        simulation.submit()
    ahead = Operator(simulation)
    for _ in range(3):
        ahead.relist()
        await ahead.work()
        simulation.step()
    for pod in simulation.pods():
        operator.store.put_pod(pod)
    simulation.cluster.requests.clear()
    snapshot = await operator.observe()
    assert asked(simulation, GET_JOB) == 1
    assert snapshot.job is not None
    assert snapshot.job.uid == simulation.job()["metadata"]["uid"]
    await operator.work()
    assert trainers(simulation) == ["fx-1-0"]
    assert simulation.alive() == ["fx-1-0"]


async def test_observe_pods_of_deleted_owner_are_deleted_after_one_read_at_most() -> None:
    simulation, operator = await running()
    simulation.delete_job()
    fresh = Operator(simulation)
    fresh.store.replace([], simulation.cluster.read_all(PODS))
    await fresh.work()
    assert asked(simulation, GET_JOB) == 1
    simulation.step()
    assert trainers(simulation) == []
    simulation.cluster.requests.clear()
    operator.store.drop_job(KEY, operator.store.jobs[KEY].uid)
    await operator.work()
    assert asked(simulation, GET_JOB) == 0


# A start on an old state.


async def behind_and_ahead() -> tuple[SimulatedCluster, Operator]:
    """An operator that knows the new job only; another one has brought it to attempt 2."""
    simulation = SimulatedCluster({1: "vanish", 2: "stay"})
    simulation.submit()
    behind, ahead = Operator(simulation), Operator(simulation)
    behind.relist()
    for _ in range(12):
        ahead.relist()
        await ahead.work()
        simulation.step()
    assert simulation.alive() == ["fx-2-0"]
    simulation.cluster.requests.clear()
    return simulation, behind


async def test_observe_first_start_on_an_old_state_reads_the_job() -> None:
    simulation, behind = await behind_and_ahead()
    await behind.work()
    assert asked(simulation, GET_JOB) == 1
    assert simulation.alive() == ["fx-2-0"]


async def recorded_and_missing() -> tuple[SimulatedCluster, Operator, Operator]:
    """Attempt 1 is on record, its pod was deleted before it ran, and both operators know it."""
    simulation = SimulatedCluster({1: "vanish", 2: "stay"})
    simulation.submit()
    behind, ahead = Operator(simulation), Operator(simulation)
    ahead.relist()
    await ahead.work()
    simulation.wait(4)
    ahead.relist()
    await ahead.work()
    assert (simulation.status()["attempt"], simulation.status()["attemptState"]) == (1, "Pending")
    simulation.cluster.remove(PODS, NAMESPACE, "fx-1-0")
    behind.relist()
    ahead.relist()
    return simulation, behind, ahead


async def test_observe_start_of_recorded_attempt_on_an_old_state_reads_the_job() -> None:
    """No status write comes before it that the server could refuse."""
    simulation, behind, ahead = await recorded_and_missing()
    for _ in range(12):
        await ahead.work()
        simulation.step()
        ahead.relist()
    assert simulation.alive() == ["fx-2-0"]
    simulation.cluster.requests.clear()
    await behind.work()
    assert asked(simulation, GET_JOB) >= 1
    assert simulation.alive() == ["fx-2-0"]


async def test_observe_first_start_after_waiting_on_an_old_state_reads_the_job() -> None:
    """It has a status (its strategy was missing), and attempt 1 is not on record."""
    simulation = SimulatedCluster({1: "vanish", 2: "stay"})
    source = {"configMapKeyRef": {"name": "strategies", "key": "fx.yaml"}}
    simulation.submit(strategy=source)
    behind, ahead = Operator(simulation), Operator(simulation)
    ahead.relist()
    await ahead.work()
    assert simulation.status()["reason"] == "StrategyNotFound"
    behind.relist()
    metadata = {"namespace": NAMESPACE, "name": "strategies"}
    simulation.cluster.put(CONFIG_MAPS, {"metadata": metadata, "data": {"fx.yaml": "name: fx\n"}})
    for _ in range(12):
        simulation.step()
        ahead.relist()
        await ahead.work()
    assert simulation.alive() == ["fx-2-0"]
    await behind.work()
    assert simulation.alive() == ["fx-2-0"]


async def test_observe_first_start_of_a_new_job_costs_no_read() -> None:
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit()
    operator = Operator(simulation)
    operator.relist()
    simulation.wait(FRESH_SECONDS)
    await operator.work()
    assert trainers(simulation) == ["fx-1-0"]
    assert [r for r in simulation.cluster.requests if r.method == "get"] == []


async def test_observe_later_attempts_cost_no_read_of_the_job() -> None:
    """Their status write is refused if the job has changed."""
    simulation = SimulatedCluster({1: "fail", 2: "fail"})
    simulation.submit()
    operator = Operator(simulation)
    await run_to_end(simulation, operator)
    starts = [r for r in simulation.cluster.requests if (r.method, r.kind) == ("create", "Pod")]
    assert len(starts) == 3
    assert asked(simulation, GET_JOB) <= 1  # of the finished one, whose body is not kept


# A job that is finished and settled: the store keeps no body of it.


async def test_observe_finished_job_without_body_is_read() -> None:
    simulation, operator = await running("succeed")
    simulation.step()
    operator.relist()
    await operator.work()
    assert operator.store.jobs[KEY].is_settled
    simulation.cluster.requests.clear()
    snapshot = await operator.observe()
    assert asked(simulation, GET_JOB) == 1
    assert snapshot.job is not None
    assert snapshot.job.resource_version == simulation.job()["metadata"]["resourceVersion"]
    assert snapshot.job.status.phase == "Succeeded"


async def test_observe_finished_job_that_is_deleted_does_not_exist() -> None:
    simulation, operator = await running("succeed")
    simulation.step()
    operator.relist()
    await operator.work()
    simulation.delete_job()
    assert (await operator.observe()).job is None
    assert KEY not in operator.store.jobs


async def test_reconcile_finished_job_is_recorded_as_event() -> None:
    simulation, operator = await running("succeed")
    simulation.step()
    operator.relist()
    await operator.work()
    told = operator.events.take_pending()
    assert [event["reason"] for event in told] == ["Running", "Completed"]
    assert told[-1]["involvedObject"]["uid"] == simulation.job()["metadata"]["uid"]


# Answers that come late.


async def late(simulation: SimulatedCluster, operator: Operator, meanwhile: Any) -> None:
    """A live read of the job, during which something happens."""
    gate, sent = asyncio.Event(), asyncio.Event()

    async def pause() -> None:
        sent.set()
        await gate.wait()

    client = operator.client
    original = client._serve

    async def serve(*args: Any, **kwargs: Any) -> Any:
        answer = await original(*args, **kwargs)
        await pause()
        return answer

    client._serve = serve  # type: ignore[method-assign] # the answer is under way
    read = asyncio.create_task(operator.reconciler._refresh(KEY))
    await sent.wait()
    meanwhile()
    gate.set()
    await read
    client._serve = original  # type: ignore[method-assign]


async def test_observe_late_not_found_answer_keeps_recreated_job() -> None:
    simulation, operator = await running()
    simulation.delete_job()

    def recreate() -> None:
        simulation.submit()
        operator.store.put_job(simulation.job())

    await late(simulation, operator, recreate)
    uid = simulation.job()["metadata"]["uid"]
    assert operator.store.jobs[KEY].uid == uid
    assert not operator.store.is_deleted(uid)


async def test_observe_late_answer_does_not_restore_an_older_state() -> None:
    simulation, operator = await running()

    def cancel() -> None:
        simulation.cancel()
        operator.store.put_job(simulation.job())

    await late(simulation, operator, cancel)
    assert operator.store.jobs[KEY].is_stop_requested


async def test_observe_late_answer_does_not_restore_a_deleted_job() -> None:
    simulation, operator = await running()

    def delete() -> None:
        raw = simulation.job()
        simulation.delete_job()
        version = int(raw["metadata"]["resourceVersion"]) + 1
        operator.store.drop_job(KEY, raw["metadata"]["uid"], version)

    await late(simulation, operator, delete)
    assert KEY not in operator.store.jobs


# What a Snapshot has besides.


async def test_observe_unknown_job_is_none_without_a_request() -> None:
    simulation = SimulatedCluster()
    operator = Operator(simulation)
    snapshot = await operator.observe(JobKey(NAMESPACE, "nobody"))
    assert (snapshot.job, snapshot.pods) == (None, ())
    assert simulation.cluster.requests == []


async def test_observe_strategy_is_read_only_for_an_attempt_that_may_start() -> None:
    simulation, operator = await running()
    assert (await operator.observe()).strategy is None
    simulation.cancel()
    operator.relist()
    assert (await operator.observe()).strategy is None
    simulation.cluster.remove(PODS, NAMESPACE, "fx-1-0")
    operator.relist()
    assert (await operator.observe()).strategy is None


async def test_observe_strategy_is_not_read_during_a_backoff() -> None:
    simulation, operator = await running("fail", backoffLimit=5)
    simulation.step()
    operator.relist()
    await operator.work()
    assert simulation.status()["phase"] == "Retrying"
    assert (await operator.observe()).strategy is None
    simulation.wait(60)
    assert (await operator.observe()).strategy is not None


async def test_observe_has_age_of_report_and_own_write() -> None:
    simulation, operator = await running()
    simulation.wait(100)
    first = await operator.observe()
    assert first.seconds_since_report == pytest.approx(100, abs=10)
    assert first.seconds_since_write is not None
    assert (await Operator(simulation).observe()).job is None
    raw = simulation.job()
    raw["status"]["progress"] = progress(1, currentBatch=18)
    simulation._put(TRAINING_JOBS, raw)
    operator.store.put_job(simulation.job())
    simulation.wait(3)
    assert (await operator.observe()).seconds_since_report == 3
