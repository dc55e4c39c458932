"""Events of pods that do not start: which one counts, of which pods, and how often it is read."""

from dataclasses import replace
from typing import Any

import pytest

from engine_builders import NAMESPACE, Raw, pod_raw, running_pod, waiting_pod
from ktrdr_api.training_job import TrainingJobStatus
from ktrdr_client.cluster import EVENTS, PODS, ApiError, Forbidden, Unreachable
from ktrdr_client.testing import FakeCluster, Request
from ktrdr_operator.pod_events import (
    MAX_REMEMBERED,
    READS_AT_ONCE,
    READS_PER_SECOND,
    PodEventReader,
    latest_reason,
)
from ktrdr_operator.snapshot import WaitReason
from ktrdr_operator.views import view_pod
from simulated_cluster import Operator, SimulatedCluster

POD = view_pod(pod_raw())
LIST = Request("list", "Event", "")


def event(reason: str, second: int, *, kind: str = "Warning", **fields: Any) -> Raw:
    """An Event of the kubelet about POD, last seen at a second of a minute."""
    return {
        "metadata": {"namespace": NAMESPACE, "name": f"{reason}.{second}"},
        "involvedObject": {"uid": POD.uid},
        "type": kind,
        "reason": reason,
        "message": f"{reason} at {second}",
        "lastTimestamp": at(second),
        **fields,
    }


def at(second: float) -> str:
    whole, _, fraction = f"{second:09.6f}".partition(".")
    return f"2026-01-01T12:00:{whole}" + (f".{fraction}Z" if int(fraction) else "Z")


SCHEDULED = event("Scheduled", 1, kind="Normal")
PULLING = event("Pulling", 5, kind="Normal")
OF_THE_SCHEDULER = event("FailedScheduling", 0, lastTimestamp=None, eventTime=at(30.5))
IN_SERIES = event(
    "FailedScheduling", 0, lastTimestamp=None, eventTime=at(1), series={"lastObservedTime": at(40)}
)


@pytest.mark.parametrize(
    ("events", "want"),
    [
        ([], None),
        ([SCHEDULED], None),
        ([SCHEDULED, PULLING], WaitReason("Pulling", "Pulling at 5", is_progress=True)),
        ([SCHEDULED, event("FailedMount", 9)], WaitReason("FailedMount", "FailedMount at 9")),
        (
            [event("FailedMount", 20), event("FailedAttachVolume", 9)],
            WaitReason("FailedMount", "FailedMount at 20"),
        ),
        (
            [event("FailedAttachVolume", 9), event("FailedMount", 20)],
            WaitReason("FailedMount", "FailedMount at 20"),
        ),
        (
            [event("FailedCreatePodSandBox", 9), event("SandboxChanged", 10, kind="Normal")],
            WaitReason("FailedCreatePodSandBox", "FailedCreatePodSandBox at 9"),
        ),
        ([event("FailedMount", 1), SCHEDULED], WaitReason("FailedMount", "FailedMount at 1")),
        ([event("FailedScheduling", 0), SCHEDULED], None),
        (
            [event("FailedMount", 3), PULLING],
            WaitReason("Pulling", "Pulling at 5", is_progress=True),
        ),
        (
            [event("SuccessfulAttachVolume", 3, kind="Normal")],
            WaitReason("SuccessfulAttachVolume", "SuccessfulAttachVolume at 3", is_progress=True),
        ),
        (
            [event("FailedMount", 20), OF_THE_SCHEDULER],
            WaitReason("FailedScheduling", "FailedScheduling at 0"),
        ),
        (
            [event("FailedMount", 20), IN_SERIES],
            WaitReason("FailedScheduling", "FailedScheduling at 0"),
        ),
        (
            [
                event("FailedMount", 9, lastTimestamp=None, metadata={"creationTimestamp": at(50)}),
                event("FailedAttachVolume", 20),
            ],
            WaitReason("FailedMount", "FailedMount at 9"),
        ),
        ([event("FailedMount", 9, message="")], None),
        (
            [event("FailedMount", 9, message="\x1b[31mno\u202e")],
            WaitReason("FailedMount", "no"),
        ),
        ([{"metadata": {}, "message": "x"}], WaitReason("", "x", is_progress=True)),
    ],
    ids=[
        "no events",
        "scheduled only",
        "image is pulled",
        "mount fails",
        "latest warning first",
        "latest warning last",
        "sandbox changed is no step",
        "warning in the second of a step",
        "scheduled at last",
        "mounted at last",
        "volume attached",
        "time of an event without lastTimestamp",
        "time of a series",
        "time of creation",
        "no message",
        "unsafe text",
        "nothing but a message",
    ],
)
def test_latest_reason_is_the_latest_warning_since_the_latest_step(
    events: list[Raw], want: WaitReason | None
) -> None:
    assert latest_reason(events) == want


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def reader(*events: Raw) -> tuple[PodEventReader, FakeCluster, Clock]:
    cluster, clock = FakeCluster(), Clock()
    for raw in events:
        cluster.put(EVENTS, raw)
    return PodEventReader(cluster, clock), cluster, clock


FAILED = WaitReason("FailedMount", "FailedMount at 9")


async def test_pod_events_are_those_of_the_pod_itself() -> None:
    other = event("FailedAttachVolume", 30, involvedObject={"uid": "another"})
    elsewhere = event("FailedAttachVolume", 31)
    elsewhere["metadata"]["namespace"] = "another"
    events, _, _ = reader(event("FailedMount", 9), other, elsewhere)
    assert await events.wait_reason(NAMESPACE, POD) == FAILED


async def test_pod_events_are_read_at_most_every_eight_seconds_per_pod() -> None:
    events, cluster, clock = reader(event("FailedMount", 9))
    reads = []
    for second in range(20):
        clock.seconds = float(second)
        before = len(cluster.requests)
        assert await events.wait_reason(NAMESPACE, POD) == FAILED
        reads += [second] * (len(cluster.requests) - before)
    assert reads == [0, 8, 16]
    await events.wait_reason(NAMESPACE, replace(POD, uid="another"))
    assert cluster.requests == [LIST] * 4


async def test_pod_events_forbidden_is_no_error_and_not_listed_more_often() -> None:
    """A namespaced installation may lack this right."""
    events, cluster, clock = reader(event("FailedMount", 9))
    for second in range(16):
        clock.seconds = float(second)
        cluster.fail_next("list", Forbidden(403, "Forbidden", "events is forbidden"))
        assert await events.wait_reason(NAMESPACE, POD) is None
    assert cluster.requests == [LIST] * 2


@pytest.mark.parametrize(
    "error", [ApiError(500, "InternalError", "x"), Unreachable(0, "TimeoutError", "x")]
)
async def test_pod_events_error_keeps_the_known_reason(error: ApiError) -> None:
    events, cluster, clock = reader(event("FailedMount", 9))
    cluster.fail_next("list", error)
    assert await events.wait_reason(NAMESPACE, POD) is None
    assert await events.wait_reason(NAMESPACE, POD) == FAILED
    clock.seconds = 9.0
    cluster.fail_next("list", error)
    assert await events.wait_reason(NAMESPACE, POD) == FAILED


async def test_pod_events_remembers_a_bounded_number_of_pods() -> None:
    events, cluster, clock = reader()
    for number in range(MAX_REMEMBERED + 1):
        clock.seconds += 1 / READS_PER_SECOND
        await events.wait_reason(NAMESPACE, replace(POD, uid=f"pod-{number}"))
    before = len(cluster.requests)
    await events.wait_reason(NAMESPACE, replace(POD, uid=f"pod-{MAX_REMEMBERED}"))
    assert len(cluster.requests) == before
    clock.seconds += 1 / READS_PER_SECOND
    await events.wait_reason(NAMESPACE, replace(POD, uid="pod-0"))
    assert len(cluster.requests) == before + 1


@pytest.mark.parametrize(
    ("pod", "want"),
    [
        (pod_raw(age=14), 0),
        (pod_raw(age=15), 1),
        (pod_raw(age=90), 1),
        (pod_raw(age=90, node=None), 1),
        (waiting_pod("ContainerCreating", "", age=90), 1),
        (waiting_pod("ErrImagePull", "not found", age=90), 0),
        (running_pod(age=90), 0),
        (pod_raw(age=90, phase="Failed", reason="OutOfcpu"), 0),
    ],
    ids=[
        "14 s old",
        "15 s old",
        "old",
        "old, no node",
        "container is being created",
        "says why itself",
        "runs",
        "rejected",
    ],
)
async def test_observe_lists_events_only_of_pods_without_reason(pod: Raw, want: int) -> None:
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit()
    operator = Operator(simulation)
    pod["metadata"]["ownerReferences"][0]["uid"] = simulation.job()["metadata"]["uid"]
    del pod["metadata"]["resourceVersion"]
    simulation.cluster.put(PODS, pod)
    simulation.cluster.put(EVENTS, event("FailedMount", 9))
    operator.relist()
    snapshot = await operator.observe()
    assert simulation.cluster.requests.count(LIST) == want
    found = snapshot.current()
    assert found is not None
    assert (found.wait_reason == FAILED) == (want == 1)


async def test_observe_lists_no_events_of_finished_job() -> None:
    simulation = SimulatedCluster({1: "stay"})
    simulation.submit(cancel=True)
    operator = Operator(simulation)
    operator.relist()
    await operator.work()
    assert simulation.is_finished()
    pod = pod_raw(owner=simulation.job()["metadata"]["uid"], age=90)
    del pod["metadata"]["resourceVersion"]
    simulation.cluster.put(PODS, pod)
    operator.relist()
    snapshot = await operator.observe()
    assert snapshot.job is not None
    assert isinstance(snapshot.job.status, TrainingJobStatus)
    assert LIST not in simulation.cluster.requests


async def test_pod_events_of_a_thousand_pods_cost_a_bounded_number_of_lists() -> None:
    cluster, now = FakeCluster(), 0.0
    reader = PodEventReader(cluster, lambda: now)
    pods = [replace(POD, uid=f"pod-{number}") for number in range(1000)]
    for pod in pods:
        await reader.wait_reason(NAMESPACE, pod)
    assert len(cluster.requests) == READS_AT_ONCE
    now = 60.0
    for pod in pods:
        await reader.wait_reason(NAMESPACE, pod)
    assert len(cluster.requests) == 2 * READS_AT_ONCE
