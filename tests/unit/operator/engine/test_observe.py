"""Live reads: where a store that is behind could do harm, the API server is asked first."""

import asyncio
import logging
from typing import Any

import pytest

from engine_builders import JOB, NAMESPACE, Raw, progress
from engine_world import KEY, Operator, World, live
from ktrdr_api import names
from ktrdr_client.cluster import CONFIG_MAPS, PODS, TRAINING_JOBS, ApiError
from ktrdr_client.testing import Request
from ktrdr_operator.intake import Intake
from ktrdr_operator.observe import FRESH_SECONDS
from ktrdr_operator.store import JobKey

GET_JOB = Request("get", names.KIND, JOB)
GET_POD = Request("get", "Pod", "fx-1-0")


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="ktrdr_operator")


async def running(act: str = "stay", **spec: Any) -> tuple[World, Operator]:
    """Attempt 1 runs and has reported, and the operator knows it; what it does next is `act`."""
    world = World({1: "stay"})
    world.submit(**spec)
    operator = Operator(world)
    for _ in range(4):
        operator.relist()
        await operator.work()
        world.step()
    operator.relist()
    await operator.work()
    assert world.status()["phase"] == "Running"
    world.script[1] = act
    world.cluster.requests.clear()
    return world, operator


def trainers(world: World) -> list[str]:
    return [pod["metadata"]["name"] for pod in world.pods()]


def asked(world: World, request: Request) -> int:
    return world.cluster.requests.count(request)


# A pod that seems to be missing.


async def test_observe_missing_pod_of_an_attempt_that_ran_is_asked_for() -> None:
    """A new operator hears of the job before it hears of the pod: no second trainer."""
    world, _ = await running()
    operator = Operator(world)
    operator.store.put_job(world.job())
    await operator.work()
    await operator.work()
    assert trainers(world) == ["fx-1-0"]
    assert asked(world, GET_POD) == 1
    assert world.status()["phase"] == "Running"


async def test_observe_missing_pod_of_an_attempt_that_ran_without_a_report_is_asked_for() -> None:
    world, _ = await running()
    raw = world.job()
    del raw["status"]["progress"]
    world._put(TRAINING_JOBS, raw)
    operator = Operator(world)
    operator.store.put_job(world.job())
    await operator.work()
    assert trainers(world) == ["fx-1-0"]
    assert asked(world, GET_POD) == 1


async def test_observe_missing_pod_of_an_attempt_that_reported_is_asked_for() -> None:
    """Attempt 1 may run before it is on record: its report proves that it has started."""
    world = World({1: "stay"})
    world.submit()
    first = Operator(world)
    first.relist()
    await first.work()
    assert world.status().get("attempt", 0) == 0
    raw = world.job()
    raw["status"]["progress"] = progress(1)
    world._put(TRAINING_JOBS, raw)
    world.cluster.requests.clear()
    second = Operator(world)
    second.store.put_job(world.job())
    snapshot = await second.observe()
    assert asked(world, GET_POD) == 1
    assert snapshot.current() is not None


async def test_observe_pod_that_is_missing_in_truth_makes_room_for_the_next_attempt() -> None:
    world, operator = await running()
    world.cluster.remove(PODS, NAMESPACE, "fx-1-0")
    operator.relist()
    await operator.work()
    assert asked(world, GET_POD) == 1
    assert (world.status()["phase"], world.status()["reason"]) == ("Retrying", "Disrupted")
    world.wait(60)
    await operator.work()
    assert trainers(world) == ["fx-2-0"]


async def test_observe_server_that_does_not_answer_is_no_proof_that_a_pod_is_missing() -> None:
    world, _ = await running()
    operator = Operator(world)
    operator.store.put_job(world.job())
    world.cluster.fail_next("get", ApiError(500, "InternalError", "x"), resource=PODS)
    with pytest.raises(ApiError):
        await operator.observe()
    world.cluster.fail_next("get", ApiError(500, "InternalError", "x"), resource=PODS)
    await operator.work()
    assert trainers(world) == ["fx-1-0"]
    assert world.status()["phase"] == "Running"


async def test_observe_pod_that_is_known_or_that_never_ran_is_not_asked_for() -> None:
    world = World({1: "stay"})
    world.submit()
    operator = Operator(world)
    for _ in range(5):
        operator.relist()
        await operator.work()
        world.step()
    assert world.status()["phase"] == "Running"
    assert asked(world, GET_POD) == 0


# A pod that lost its label.


def remove_label(world: World) -> Raw:
    """`kubectl label pod fx-1-0 ktrdr.io/job-`; returns what the watch calls deleted."""
    pod = world.cluster.read(PODS, NAMESPACE, "fx-1-0")
    assert pod is not None
    del pod["metadata"]["labels"][names.LABEL_JOB]
    world._put(PODS, pod)
    deleted = world.cluster.read(PODS, NAMESPACE, "fx-1-0")
    assert deleted is not None
    deleted["metadata"]["labels"][names.LABEL_JOB] = JOB  # the event has the old labels
    return deleted


async def test_observe_pod_that_lost_its_label_is_no_reason_for_a_second_trainer() -> None:
    world, operator = await running()
    operator.store.drop_pod(remove_label(world))
    for _ in range(3):
        await operator.work()
        assert trainers(world) == ["fx-1-0"]
    assert world.status()["phase"] == "Running"
    assert "has lost its label ktrdr.io/job" in world.status()["message"]
    assert KEY in operator.queue._due  # the watch does not tell its end


async def test_observe_end_of_a_pod_without_label_is_seen_all_the_same() -> None:
    world, operator = await running()
    operator.store.drop_pod(remove_label(world))
    await operator.work()
    world.script[1] = "succeed"
    world.step()
    await operator.work()
    assert world.status()["phase"] == "Succeeded"
    assert trainers(world) == ["fx-1-0"]


async def test_observe_cancel_reaches_a_pod_that_lost_its_label() -> None:
    world, operator = await running(cancellation={"gracePeriodSeconds": 0})
    operator.store.drop_pod(remove_label(world))
    world.cancel()
    operator.store.put_job(world.job())
    await operator.work()
    assert world.status()["phase"] == "Cancelling"
    world.step()
    await operator.work()
    assert world.status()["phase"] == "Cancelled"
    assert trainers(world) == []


async def test_observe_pod_whose_label_names_another_job_stays_with_its_owner() -> None:
    world, operator = await running("succeed")
    pod = world.cluster.read(PODS, NAMESPACE, "fx-1-0")
    assert pod is not None
    pod["metadata"]["labels"][names.LABEL_JOB] = "other"
    world._put(PODS, pod)
    intake = Intake(operator.store, operator.queue)
    intake.take_pod("MODIFIED", world.pods()[0])
    await operator.work(JobKey(NAMESPACE, "other"))
    assert not [pod for pod in world.pods() if "deletionTimestamp" in pod["metadata"]]
    world.step()
    assert intake.take_pod("MODIFIED", world.pods()[0])
    await operator.work(JobKey(NAMESPACE, "other"))
    await operator.work()
    assert world.status()["phase"] == "Succeeded"
    assert trainers(world) == ["fx-1-0"]


async def test_observe_pod_whose_end_is_known_is_not_asked_for_when_it_is_deleted() -> None:
    """Its result came with the DELETED event at the latest."""
    world, operator = await running("succeed")
    world.step()
    pod = world.cluster.read(PODS, NAMESPACE, "fx-1-0")
    assert pod is not None
    world.cluster.remove(PODS, NAMESPACE, "fx-1-0")
    operator.store.drop_pod({**pod, "metadata": {**pod["metadata"], "resourceVersion": "999"}})
    await operator.work()
    assert asked(world, GET_POD) == 0
    assert world.status()["phase"] == "Succeeded"


# An owner that is unknown.


@pytest.mark.parametrize("knows_the_earlier_job", [False, True])
async def test_observe_pods_of_an_unknown_owner_are_asked_about(
    knows_the_earlier_job: bool,
) -> None:
    world = World({1: "stay"})
    world.submit()
    operator = Operator(world)
    if knows_the_earlier_job:
        operator.relist()
        world.delete_job()
        world.submit()
    ahead = Operator(world)
    for _ in range(3):
        ahead.relist()
        await ahead.work()
        world.step()
    for pod in world.pods():
        operator.store.put_pod(pod)
    world.cluster.requests.clear()
    snapshot = await operator.observe()
    assert asked(world, GET_JOB) == 1
    assert snapshot.job is not None
    assert snapshot.job.uid == world.job()["metadata"]["uid"]
    await operator.work()
    assert trainers(world) == ["fx-1-0"]
    assert world.alive() == ["fx-1-0"]


async def test_observe_pods_of_a_deleted_owner_are_deleted_after_one_question_at_most() -> None:
    world, operator = await running()
    world.delete_job()
    fresh = Operator(world)
    fresh.store.replace([], world.cluster.read_all(PODS))
    await fresh.work()
    assert asked(world, GET_JOB) == 1
    world.step()
    assert trainers(world) == []
    world.cluster.requests.clear()
    operator.store.drop_job(KEY, operator.store.jobs[KEY].uid)
    await operator.work()
    assert asked(world, GET_JOB) == 0


# A start on an old state.


async def behind_and_ahead() -> tuple[World, Operator]:
    """An operator that knows the new job only; another one has brought it to attempt 2."""
    world = World({1: "vanish", 2: "stay"})
    world.submit()
    behind, ahead = Operator(world), Operator(world)
    behind.relist()
    for _ in range(12):
        ahead.relist()
        await ahead.work()
        world.step()
    assert world.alive() == ["fx-2-0"]
    world.cluster.requests.clear()
    return world, behind


async def test_observe_first_start_on_an_old_state_is_asked_about() -> None:
    world, behind = await behind_and_ahead()
    await behind.work()
    assert asked(world, GET_JOB) == 1
    assert world.alive() == ["fx-2-0"]


async def recorded_and_missing() -> tuple[World, Operator, Operator]:
    """Attempt 1 is on record, its pod was deleted before it ran, and both operators know it."""
    world = World({1: "vanish", 2: "stay"})
    world.submit()
    behind, ahead = Operator(world), Operator(world)
    ahead.relist()
    await ahead.work()
    world.wait(4)
    ahead.relist()
    await ahead.work()
    assert (world.status()["attempt"], world.status()["attemptState"]) == (1, "Pending")
    world.cluster.remove(PODS, NAMESPACE, "fx-1-0")
    behind.relist()
    ahead.relist()
    return world, behind, ahead


async def test_observe_start_of_a_recorded_attempt_on_an_old_state_is_asked_about() -> None:
    """No status write comes before it that the server could refuse."""
    world, behind, ahead = await recorded_and_missing()
    for _ in range(12):
        await ahead.work()
        world.step()
        ahead.relist()
    assert world.alive() == ["fx-2-0"]
    world.cluster.requests.clear()
    await behind.work()
    assert asked(world, GET_JOB) >= 1
    assert world.alive() == ["fx-2-0"]


async def test_observe_first_start_of_a_job_that_waited_on_an_old_state_is_asked_about() -> None:
    """It has a status (its strategy was missing), and attempt 1 is not on record."""
    world = World({1: "vanish", 2: "stay"})
    source = {"configMapKeyRef": {"name": "strategies", "key": "fx.yaml"}}
    world.submit(strategy=source)
    behind, ahead = Operator(world), Operator(world)
    ahead.relist()
    await ahead.work()
    assert world.status()["reason"] == "StrategyNotFound"
    behind.relist()
    metadata = {"namespace": NAMESPACE, "name": "strategies"}
    world.cluster.put(CONFIG_MAPS, {"metadata": metadata, "data": {"fx.yaml": "name: fx\n"}})
    for _ in range(12):
        world.step()
        ahead.relist()
        await ahead.work()
    assert world.alive() == ["fx-2-0"]
    await behind.work()
    assert world.alive() == ["fx-2-0"]


async def test_observe_first_start_of_a_new_job_costs_no_read() -> None:
    world = World({1: "stay"})
    world.submit()
    operator = Operator(world)
    operator.relist()
    world.wait(FRESH_SECONDS)
    await operator.work()
    assert trainers(world) == ["fx-1-0"]
    assert [r for r in world.cluster.requests if r.method == "get"] == []


async def test_observe_later_attempts_cost_no_read_of_the_job() -> None:
    """Their status write is refused if the job has changed."""
    world = World({1: "fail", 2: "fail"})
    world.submit()
    operator = Operator(world)
    await live(world, operator)
    starts = [r for r in world.cluster.requests if (r.method, r.kind) == ("create", "Pod")]
    assert len(starts) == 3
    assert asked(world, GET_JOB) <= 1  # of the finished one, whose body is not kept


# A job that is finished and settled: the store keeps no body of it.


async def test_observe_finished_job_is_read_and_not_taken_for_deleted() -> None:
    world, operator = await running("succeed")
    world.step()
    operator.relist()
    await operator.work()
    assert operator.store.jobs[KEY].is_settled
    world.cluster.requests.clear()
    snapshot = await operator.observe()
    assert asked(world, GET_JOB) == 1
    assert snapshot.job is not None
    assert snapshot.job.resource_version == world.job()["metadata"]["resourceVersion"]
    assert snapshot.job.status.phase == "Succeeded"


async def test_observe_finished_job_that_is_deleted_does_not_exist() -> None:
    world, operator = await running("succeed")
    world.step()
    operator.relist()
    await operator.work()
    world.delete_job()
    assert (await operator.observe()).job is None
    assert KEY not in operator.store.jobs


async def test_reconcile_end_of_a_job_is_told_in_an_event() -> None:
    world, operator = await running("succeed")
    world.step()
    operator.relist()
    await operator.work()
    told = operator.events.take_pending()
    assert [event["reason"] for event in told] == ["Running", "Completed"]
    assert told[-1]["involvedObject"]["uid"] == world.job()["metadata"]["uid"]


# Answers that come late.


async def late(world: World, operator: Operator, meanwhile: Any) -> None:
    """A live read of the job, during which something happens."""
    gate, sent = asyncio.Event(), asyncio.Event()

    async def pause() -> None:
        sent.set()
        await gate.wait()

    wire = operator.wire
    original = wire._serve

    async def serve(*args: Any, **kwargs: Any) -> Any:
        answer = await original(*args, **kwargs)
        await pause()
        return answer

    wire._serve = serve  # type: ignore[method-assign] # the answer is under way
    read = asyncio.create_task(operator.reconciler._refresh(KEY))
    await sent.wait()
    meanwhile()
    gate.set()
    await read
    wire._serve = original  # type: ignore[method-assign]


async def test_observe_late_answer_that_a_job_is_gone_does_not_bury_its_successor() -> None:
    world, operator = await running()
    world.delete_job()

    def recreate() -> None:
        world.submit()
        operator.store.put_job(world.job())

    await late(world, operator, recreate)
    uid = world.job()["metadata"]["uid"]
    assert operator.store.jobs[KEY].uid == uid
    assert not operator.store.is_deleted(uid)


async def test_observe_late_answer_does_not_bring_an_older_state_back() -> None:
    world, operator = await running()

    def cancel() -> None:
        world.cancel()
        operator.store.put_job(world.job())

    await late(world, operator, cancel)
    assert operator.store.jobs[KEY].is_stop_requested


async def test_observe_late_answer_about_a_deleted_job_does_not_raise_it() -> None:
    world, operator = await running()

    def delete() -> None:
        raw = world.job()
        world.delete_job()
        version = int(raw["metadata"]["resourceVersion"]) + 1
        operator.store.drop_job(KEY, raw["metadata"]["uid"], version)

    await late(world, operator, delete)
    assert KEY not in operator.store.jobs


# What a Snapshot has besides.


async def test_observe_unknown_job_is_none_and_asks_nobody() -> None:
    world = World()
    operator = Operator(world)
    snapshot = await operator.observe(JobKey(NAMESPACE, "nobody"))
    assert (snapshot.job, snapshot.pods) == (None, ())
    assert world.cluster.requests == []


async def test_observe_strategy_is_read_only_for_an_attempt_that_may_start() -> None:
    world, operator = await running()
    assert (await operator.observe()).strategy is None
    world.cancel()
    operator.relist()
    assert (await operator.observe()).strategy is None
    world.cluster.remove(PODS, NAMESPACE, "fx-1-0")
    operator.relist()
    assert (await operator.observe()).strategy is None


@pytest.mark.parametrize(
    "spec",
    [{"cancel": True}, {"trainer": {"imagePullPolicy": "Sometimes"}}],
    ids=["cancelled", "unreadable"],
)
async def test_observe_strategy_of_a_job_that_will_not_start_is_not_read(spec: Raw) -> None:
    world = World()
    world.submit(strategy={"configMapKeyRef": {"name": "strategies", "key": "fx.yaml"}}, **spec)
    operator = Operator(world)
    operator.relist()
    assert (await operator.observe()).strategy is None
    assert world.cluster.requests == []


async def test_observe_strategy_is_not_read_during_a_backoff() -> None:
    world, operator = await running("fail", backoffLimit=5)
    world.step()
    operator.relist()
    await operator.work()
    assert world.status()["phase"] == "Retrying"
    assert (await operator.observe()).strategy is None
    world.wait(60)
    assert (await operator.observe()).strategy is not None
    assert asked(world, GET_JOB) == 0  # the next attempt is recorded first


async def test_observe_knows_when_report_and_own_write_were() -> None:
    world, operator = await running()
    world.wait(100)
    first = await operator.observe()
    assert first.seconds_since_report == pytest.approx(100, abs=10)
    assert first.seconds_since_write is not None
    assert (await Operator(world).observe()).job is None
    raw = world.job()
    raw["status"]["progress"] = progress(1, currentBatch=18)
    world._put(TRAINING_JOBS, raw)
    operator.store.put_job(world.job())
    world.wait(3)
    assert (await operator.observe()).seconds_since_report == 3
