import json
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest

from engine_builders import (
    CHECKPOINT,
    DIGEST,
    LIMITS,
    MODEL,
    NOW,
    STRATEGY,
    UID,
    Raw,
    ago,
    ended_pod,
    job_raw,
    pod_raw,
    progress,
    recorded,
    running_pod,
    snapshot,
    succeeded_pod,
    termination_message,
    unscheduled_pod,
    waiting_pod,
)
from ktrdr_api import names
from ktrdr_api.conditions import ConditionType, Phase, Reason
from ktrdr_api.run_contract import Outcome
from ktrdr_api.training_job import TrainingJobStatus, Waiting
from ktrdr_operator.decide import decide
from ktrdr_operator.policies.interface import MESSAGE_MAX_LENGTH
from ktrdr_operator.snapshot import (
    CreateFailure,
    CreateFailureKind,
    Plan,
    Snapshot,
    StrategyText,
    WaitReason,
)

C = ConditionType
RECONCILING = {C.RECONCILING}
RUNNING = {C.RUNNING}
SUCCEEDED = {C.COMPLETE, C.FINISHED}
FAILED = {C.STALLED, C.FAILED, C.FINISHED}
CANCELLED = {C.FAILED, C.CANCELLED, C.FINISHED}
DISRUPTION_TARGET = ({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByAPI"},)


@dataclass(frozen=True)
class Want:
    """The whole outcome of a decision, except for its words."""

    phase: Phase | None
    reason: Reason | None
    true: set[ConditionType]
    deletions: tuple[str, ...] = ()
    start: int | None = None
    retries: int = 0
    requeue: float | None = None


def plan(situation: Snapshot) -> Plan:
    return decide(situation, NOW, LIMITS)


def outcome(found: Plan) -> Want:
    assert found.status is not None
    return Want(
        phase=Phase(found.status.phase) if found.status.phase else None,
        reason=Reason(found.status.reason) if found.status.reason else None,
        true={ConditionType(c.type) for c in found.status.conditions if c.status == "True"},
        deletions=tuple(d.name for d in found.deletions),
        start=found.start.attempt if found.start else None,
        retries=found.status.retries,
        requeue=found.requeue_seconds,
    )


def status(found: Plan) -> TrainingJobStatus:
    assert found.status is not None
    return found.status


def ran(pod: Raw, **spec: Any) -> Snapshot:
    """Attempt 1 was seen running, has reported, and its pod is now as given."""
    return snapshot(job_raw(status=recorded(1, C.RUNNING, progress=progress()), **spec), pod)


def started(pod: Raw, **fields: Any) -> Snapshot:
    """Attempt 1 is on record, and its pod is as given."""
    return snapshot(job_raw(status=recorded(1, C.RECONCILING, **fields)), pod)


def cancelling(pod: Raw | None, status: Raw, **spec: Any) -> Snapshot:
    pods = [pod] if pod else []
    return snapshot(job_raw(status=status, cancel=True, **spec), *pods)


def unlabelled(pod: Raw) -> Raw:
    del pod["metadata"]["labels"][names.LABEL_JOB]
    return pod


NEWER = {**CHECKPOINT, "epoch": 9, "step": 900}
RECEIPT = {"requestedTime": ago(10)}
LATE = {"requestedTime": ago(32)}
BACKOFF = {
    "attemptState": "Ended",
    "retries": 1,
    "retryTime": ago(-20),
    "reason": "Retrying",
    "message": "Retry 1",
}
SILENT = Want(None, None, set(), start=1, requeue=3.0)
"""A first attempt is started without a status write."""

TABLE: dict[str, tuple[Snapshot, Want]] = {
    "fresh": (
        snapshot(job_raw()),
        SILENT,
    ),
    "recorded, never created": (
        snapshot(job_raw(status=recorded(1, C.RECONCILING))),
        Want(Phase.STARTING, Reason.STARTING, RECONCILING, start=1, requeue=3.0),
    ),
    "pod pending, no reason given, just created": (
        snapshot(job_raw(), pod_raw(age=1)),
        Want(None, None, set(), requeue=2.0),
    ),
    "pod pending, no reason given, after 4 s": (
        snapshot(job_raw(), pod_raw(age=4)),
        Want(Phase.STARTING, Reason.STARTING, RECONCILING, requeue=11.0),
    ),
    "pod pending, no reason given, after 4 s, in a burst": (
        replace(snapshot(job_raw(), pod_raw(age=4)), unwritten_jobs=21),
        Want(None, None, set(), requeue=11.0),
    ),
    "pod pending, no reason given, after 20 s, in a burst": (
        replace(snapshot(job_raw(), pod_raw(age=20)), unwritten_jobs=500),
        Want(Phase.STARTING, Reason.STARTING, RECONCILING, requeue=10.0),
    ),
    "pod pending, no reason given, after 90 s": (
        started(pod_raw()),
        Want(Phase.STARTING, Reason.POD_NOT_READY, RECONCILING, requeue=60.0),
    ),
    "pod pending, ignored by its scheduler": (
        started(pod_raw(node=None)),
        Want(Phase.STARTING, Reason.POD_NOT_READY, RECONCILING, requeue=60.0),
    ),
    "pod pending on a lost node, being deleted": (
        started(pod_raw(deleting=20)),
        Want(Phase.STARTING, Reason.TERMINATING, RECONCILING, requeue=21.0),
    ),
    "unschedulable": (
        started(unscheduled_pod("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")),
        Want(Phase.STARTING, Reason.UNSCHEDULABLE, RECONCILING, requeue=60.0),
    ),
    "unschedulable, not on record yet": (
        snapshot(job_raw(), unscheduled_pod("0/1 nodes are available")),
        Want(Phase.STARTING, Reason.UNSCHEDULABLE, RECONCILING, requeue=60.0),
    ),
    "claim missing": (
        started(unscheduled_pod('0/1 nodes: persistentvolumeclaim "market-data" not found.')),
        Want(Phase.STARTING, Reason.VOLUME_NOT_READY, RECONCILING, requeue=60.0),
    ),
    "image pull, within grace": (
        started(waiting_pod("ErrImagePull", "not found")),
        Want(Phase.STARTING, Reason.IMAGE_PULL_FAILED, RECONCILING, requeue=300.0),
    ),
    **{
        f"image: {word}": (
            started(waiting_pod(word, "words")),
            Want(Phase.STARTING, Reason.IMAGE_PULL_FAILED, RECONCILING, requeue=300.0),
        )
        for word in ("InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
    },
    "image pull, after grace, has run before": (
        snapshot(
            job_raw(
                status=recorded(
                    4,
                    C.RECONCILING,
                    startTime=ago(86400),
                    waiting={"reason": "ImagePullFailed", "message": "x", "since": ago(301)},
                )
            ),
            waiting_pod("ImagePullBackOff", "Back-off", 4),
        ),
        Want(Phase.STARTING, Reason.IMAGE_PULL_FAILED, RECONCILING, requeue=60.0),
    ),
    "image pull, after grace": (
        started(
            waiting_pod("ImagePullBackOff", "Back-off"),
            waiting={"reason": "ImagePullFailed", "message": "not found", "since": ago(300)},
        ),
        Want(Phase.FAILED, Reason.IMAGE_PULL_FAILED, FAILED, deletions=("fx-1-0",)),
    ),
    "container cannot be made": (
        started(waiting_pod("CreateContainerConfigError", 'secret "x" not found')),
        Want(Phase.STARTING, Reason.POD_NOT_READY, RECONCILING, requeue=60.0),
    ),
    "running": (
        started(running_pod()),
        Want(Phase.RUNNING, Reason.RUNNING, RUNNING, requeue=240.0),
    ),
    "running, not on record yet": (
        snapshot(job_raw(), running_pod()),
        Want(Phase.RUNNING, Reason.RUNNING, RUNNING, requeue=240.0),
    ),
    "running, silent since it started": (
        started(running_pod(startedAt=ago(301))),
        Want(Phase.RUNNING, Reason.NOT_REPORTING, RUNNING),
    ),
    "running, silent after reports": (
        replace(ran(running_pod(startedAt=ago(9000))), seconds_since_report=301.0),
        Want(Phase.RUNNING, Reason.NOT_REPORTING, RUNNING),
    ),
    "running, told to report rarely": (
        replace(
            ran(running_pod(startedAt=ago(9000))),
            seconds_since_report=301.0,
            report_interval_seconds=600,
        ),
        Want(Phase.RUNNING, Reason.RUNNING, RUNNING, requeue=1499.0),
    ),
    "running, its label was removed": (
        ran(unlabelled(running_pod())),
        Want(Phase.RUNNING, Reason.RUNNING, RUNNING, requeue=15.0),
    ),
    "exit 0 with a result": (
        ran(succeeded_pod()),
        Want(Phase.SUCCEEDED, Reason.COMPLETED, SUCCEEDED),
    ),
    "exit 0 before it was seen running": (
        started(succeeded_pod()),
        Want(Phase.SUCCEEDED, Reason.COMPLETED, SUCCEEDED),
    ),
    "exit 0 without a result": (
        ran(ended_pod(0, message="hello")),
        Want(Phase.RETRYING, Reason.RETRYING, RECONCILING, retries=1, requeue=10.0),
    ),
    "exit 2": (
        ran(ended_pod(2, message=termination_message(Outcome.FAILED, reason="InvalidStrategy"))),
        Want(Phase.FAILED, Reason.INVALID_STRATEGY, FAILED),
    ),
    "exit 3": (
        ran(ended_pod(3, message=termination_message(Outcome.FAILED, reason="InvalidData"))),
        Want(Phase.FAILED, Reason.INVALID_DATA, FAILED),
    ),
    "exit 10 without a cancel request": (
        ran(ended_pod(10, message=termination_message(Outcome.CANCELLED))),
        Want(Phase.RETRYING, Reason.DISRUPTED, RECONCILING, requeue=10.0),
    ),
    "exit 75": (
        ran(ended_pod(75, message=termination_message(Outcome.FAILED, exitCode=75))),
        Want(Phase.RETRYING, Reason.RETRYING, RECONCILING, retries=1, requeue=10.0),
    ),
    "exit 1": (
        ran(ended_pod(1)),
        Want(Phase.RETRYING, Reason.RETRYING, RECONCILING, retries=1, requeue=10.0),
    ),
    "exit 1, third failure": (
        snapshot(job_raw(status=recorded(3, C.RUNNING, retries=2)), ended_pod(1, 3)),
        Want(Phase.RETRYING, Reason.RETRYING, RECONCILING, retries=3, requeue=40.0),
    ),
    "exit 1, fourth failure": (
        snapshot(job_raw(status=recorded(4, C.RUNNING, retries=3)), ended_pod(1, 4)),
        Want(Phase.FAILED, Reason.BACKOFF_LIMIT_EXCEEDED, FAILED, retries=3),
    ),
    "exit 1, no retries allowed": (
        ran(ended_pod(1), backoffLimit=0),
        Want(Phase.FAILED, Reason.BACKOFF_LIMIT_EXCEEDED, FAILED),
    ),
    "many retries, capped delay": (
        snapshot(
            job_raw(status=recorded(100, C.RUNNING, retries=99), backoffLimit=100),
            ended_pod(1, 100),
        ),
        Want(Phase.RETRYING, Reason.RETRYING, RECONCILING, retries=100, requeue=360.0),
    ),
    "exit 137, SIGKILL": (
        ran(ended_pod(137)),
        Want(Phase.RETRYING, Reason.RETRYING, RECONCILING, retries=1, requeue=10.0),
    ),
    "exit 137 while being deleted": (
        ran(ended_pod(137, deleting=20)),
        Want(Phase.RETRYING, Reason.DISRUPTED, RECONCILING, requeue=10.0),
    ),
    "exit 137, lost by its node": (
        ran(ended_pod(137, reason="ContainerStatusUnknown")),
        Want(Phase.RETRYING, Reason.DISRUPTED, RECONCILING, requeue=10.0),
    ),
    "exit 143": (
        ran(ended_pod(143, message=termination_message(Outcome.TERMINATED))),
        Want(Phase.RETRYING, Reason.DISRUPTED, RECONCILING, requeue=10.0),
    ),
    "exit 143 before any report": (
        started(ended_pod(143)),
        Want(Phase.RETRYING, Reason.DISRUPTED, RECONCILING, requeue=10.0),
    ),
    "OOM": (
        ran(ended_pod(137, reason="OOMKilled")),
        Want(Phase.FAILED, Reason.OOM_KILLED, FAILED),
    ),
    "OOM with a run result": (
        ran(
            ended_pod(
                137, reason="OOMKilled", message=termination_message(Outcome.FAILED, exitCode=137)
            )
        ),
        Want(Phase.FAILED, Reason.OOM_KILLED, FAILED),
    ),
    "exit 1 with an unknown reason": (
        ran(ended_pod(1, message=termination_message(Outcome.FAILED, reason="Weird"))),
        Want(Phase.RETRYING, Reason.RETRYING, RECONCILING, retries=1, requeue=10.0),
    ),
    "evicted": (
        ran(ended_pod(137, conditions=DISRUPTION_TARGET)),
        Want(Phase.RETRYING, Reason.DISRUPTED, RECONCILING, requeue=10.0),
    ),
    "evicted, no container left": (
        ran(pod_raw(phase="Failed", reason="Evicted", message="The node was low on memory.")),
        Want(Phase.RETRYING, Reason.DISRUPTED, RECONCILING, requeue=10.0),
    ),
    "evicted before any report": (
        started(pod_raw(phase="Failed", reason="Evicted")),
        Want(Phase.RETRYING, Reason.DISRUPTED, RECONCILING, requeue=10.0),
    ),
    "evicted after completion": (
        ran(succeeded_pod(conditions=DISRUPTION_TARGET)),
        Want(Phase.SUCCEEDED, Reason.COMPLETED, SUCCEEDED),
    ),
    **{
        f"rejected by the kubelet: {reason}": (
            started(pod_raw(phase="Failed", reason=reason, message="Pod was rejected")),
            Want(Phase.RETRYING, Reason.DISRUPTED, RECONCILING, requeue=10.0),
        )
        for reason in (
            "UnexpectedAdmissionError",
            "OutOfcpu",
            "NodeAffinity",
            "NodeShutdown",
            "Preempting",
            "SomethingNew",
        )
    },
    "container could not be started": (
        started(ended_pod(128, reason="StartError", startedAt="1970-01-01T00:00:00Z")),
        Want(Phase.RETRYING, Reason.DISRUPTED, RECONCILING, requeue=10.0),
    ),
    "disrupted after a new checkpoint": (
        snapshot(
            job_raw(
                status=recorded(
                    1, C.RUNNING, progress=progress(checkpoint=NEWER), checkpoint=CHECKPOINT
                )
            ),
            ended_pod(143),
        ),
        Want(Phase.RETRYING, Reason.DISRUPTED, RECONCILING, requeue=0.0),
    ),
    "disrupted, third time without a new checkpoint": (
        snapshot(
            job_raw(
                status=recorded(
                    3,
                    C.RUNNING,
                    progress=progress(3, checkpoint=CHECKPOINT),
                    checkpoint=CHECKPOINT,
                    disruptionsSinceCheckpoint=2,
                )
            ),
            ended_pod(143, 3),
        ),
        Want(Phase.RETRYING, Reason.DISRUPTED, RECONCILING, requeue=40.0),
    ),
    "disrupted more often than disruptionLimit": (
        snapshot(
            job_raw(status=recorded(3, C.RUNNING, disruptionsSinceCheckpoint=2), disruptionLimit=2),
            ended_pod(143, 3),
        ),
        Want(Phase.FAILED, Reason.DISRUPTION_LIMIT_EXCEEDED, FAILED),
    ),
    "disrupted at the limit, with a new checkpoint": (
        snapshot(
            job_raw(
                status=recorded(
                    3,
                    C.RUNNING,
                    progress=progress(3, checkpoint=CHECKPOINT),
                    disruptionsSinceCheckpoint=2,
                ),
                disruptionLimit=2,
            ),
            ended_pod(143, 3),
        ),
        Want(Phase.RETRYING, Reason.DISRUPTED, RECONCILING, requeue=0.0),
    ),
    "deleted by a user, observed": (
        snapshot(
            job_raw(status=recorded(1, C.RUNNING, progress=progress())), gone=(running_pod(),)
        ),
        Want(Phase.RETRYING, Reason.DISRUPTED, RECONCILING, requeue=10.0),
    ),
    "deleted by a user and created again": (
        snapshot(
            job_raw(status=recorded(1, C.RUNNING)), running_pod(), gone=(running_pod(uid="first"),)
        ),
        Want(Phase.RUNNING, Reason.RUNNING, RUNNING, requeue=240.0),
    ),
    "deleted by a user after completion": (
        snapshot(job_raw(status=recorded(1, C.RUNNING)), gone=(succeeded_pod(),)),
        Want(Phase.SUCCEEDED, Reason.COMPLETED, SUCCEEDED),
    ),
    "pod missing, end unknown, had reported": (
        snapshot(job_raw(status=recorded(1, C.RECONCILING, progress=progress()))),
        Want(Phase.RETRYING, Reason.DISRUPTED, RECONCILING, requeue=10.0),
    ),
    "pod missing, end unknown, had run": (
        snapshot(job_raw(status=recorded(1, C.RUNNING))),
        Want(Phase.RETRYING, Reason.DISRUPTED, RECONCILING, requeue=10.0),
    ),
    "node lost, pod terminating": (
        ran(running_pod(deleting=20)),
        Want(Phase.RUNNING, Reason.TERMINATING, RUNNING, requeue=21.0),
    ),
    "node lost, pod terminating for long": (
        ran(running_pod(deleting=-20)),
        Want(Phase.RUNNING, Reason.TERMINATING, RUNNING),
    ),
    "backoff": (
        started(ended_pod(1), phase="Retrying", **BACKOFF),
        Want(Phase.RETRYING, Reason.RETRYING, RECONCILING, retries=1, requeue=20.0),
    ),
    "backoff over": (
        started(ended_pod(1), **{**BACKOFF, "retryTime": ago(0)}),
        Want(Phase.STARTING, Reason.STARTING, RECONCILING, start=2, retries=1, requeue=3.0),
    ),
    "backoff over, pod still alive": (
        started(running_pod(0, deleting=20), **{**BACKOFF, "retryTime": ago(0)}),
        Want(Phase.RETRYING, Reason.TERMINATING, RECONCILING, retries=1, requeue=21.0),
    ),
    "superseded attempt alive": (
        snapshot(job_raw(status=recorded(2, C.RUNNING)), running_pod(1), running_pod(2)),
        Want(Phase.RUNNING, Reason.RUNNING, RUNNING, deletions=("fx-1-0",), requeue=240.0),
    ),
    "attempt that the store does not know yet": (
        snapshot(job_raw(status=recorded(1, C.RECONCILING)), running_pod(2)),
        Want(Phase.RETRYING, Reason.RETRYING, RECONCILING),
    ),
    "more ended pods than the history keeps": (
        snapshot(
            job_raw(status=recorded(4, C.RUNNING), historyLimit=1),
            ended_pod(1),
            ended_pod(1, 2),
            ended_pod(1, 3),
            running_pod(4),
        ),
        Want(Phase.RUNNING, Reason.RUNNING, RUNNING, deletions=("fx-1-0", "fx-2-0"), requeue=240.0),
    ),
    "cancel at creation": (
        cancelling(None, {"observedGeneration": -1}),
        Want(Phase.CANCELLED, Reason.CANCELLED, CANCELLED),
    ),
    "cancel before the pod": (
        cancelling(None, recorded(1, C.RECONCILING)),
        Want(Phase.CANCELLED, Reason.CANCELLED, CANCELLED),
    ),
    "cancel while pending": (
        cancelling(pod_raw(), recorded(1, C.RECONCILING)),
        Want(Phase.CANCELLING, Reason.CANCELLING, RECONCILING, deletions=("fx-1-0",)),
    ),
    "cancel while running": (
        cancelling(running_pod(), recorded(1, C.RUNNING)),
        Want(Phase.CANCELLING, Reason.CANCELLING, RECONCILING | RUNNING, requeue=31.0),
    ),
    "cancel while running, 10 s later": (
        cancelling(running_pod(), recorded(1, C.RUNNING, cancellation=RECEIPT)),
        Want(Phase.CANCELLING, Reason.CANCELLING, RECONCILING | RUNNING, requeue=21.0),
    ),
    "cancel while running, grace over": (
        cancelling(running_pod(), recorded(1, C.RUNNING, cancellation=LATE)),
        Want(Phase.CANCELLING, Reason.CANCELLING, RECONCILING | RUNNING, deletions=("fx-1-0",)),
    ),
    "cancel while running, no grace": (
        cancelling(running_pod(), recorded(1, C.RUNNING), cancellation={"gracePeriodSeconds": 0}),
        Want(Phase.CANCELLING, Reason.CANCELLING, RECONCILING | RUNNING, deletions=("fx-1-0",)),
    ),
    "cancel while running, being deleted": (
        cancelling(running_pod(deleting=20), recorded(1, C.RUNNING, cancellation=LATE)),
        Want(Phase.CANCELLING, Reason.CANCELLING, RECONCILING | RUNNING, requeue=21.0),
    ),
    "cancel, trainer stopped": (
        cancelling(
            ended_pod(10, message=termination_message(Outcome.CANCELLED, epoch=4, batch=17)),
            recorded(1, C.RUNNING, cancellation=RECEIPT),
        ),
        Want(Phase.CANCELLED, Reason.CANCELLED, CANCELLED),
    ),
    "cancel, trainer failed instead": (
        cancelling(ended_pod(1), recorded(1, C.RUNNING, cancellation=RECEIPT)),
        Want(Phase.CANCELLED, Reason.CANCELLED, CANCELLED),
    ),
    "cancel, trainer completed first": (
        cancelling(succeeded_pod(), recorded(1, C.RUNNING, cancellation=RECEIPT)),
        Want(Phase.SUCCEEDED, Reason.COMPLETED, SUCCEEDED),
    ),
    "cancel, pod deleted unobserved": (
        cancelling(None, recorded(1, C.RUNNING, cancellation=RECEIPT)),
        Want(Phase.CANCELLED, Reason.CANCELLED, CANCELLED),
    ),
    "cancel during backoff": (
        cancelling(ended_pod(1), recorded(1, C.RECONCILING, **BACKOFF)),
        Want(Phase.CANCELLED, Reason.CANCELLED, CANCELLED, retries=1),
    ),
    "completed for another TrainingJob": (
        ran(ended_pod(0, message=termination_message(jobUid="uid-other", artifact=MODEL))),
        Want(Phase.RETRYING, Reason.RETRYING, RECONCILING, retries=1, requeue=10.0),
    ),
    "completed for another TrainingJob, cancelled": (
        cancelling(
            ended_pod(0, message=termination_message(jobUid="uid-other")), recorded(1, C.RUNNING)
        ),
        Want(Phase.CANCELLED, Reason.CANCELLED, CANCELLED),
    ),
    "pod of a deleted job of the same name": (
        snapshot(job_raw(), running_pod(owner="uid-earlier")),
        Want(Phase.PENDING, Reason.PENDING, RECONCILING, deletions=("fx-1-0",)),
    ),
    "ended pod of a deleted job of the same name": (
        snapshot(job_raw(), ended_pod(1, owner="uid-earlier")),
        Want(Phase.PENDING, Reason.PENDING, RECONCILING, deletions=("fx-1-0",)),
    ),
    "run result of a deleted job of the same name": (
        snapshot(job_raw(), gone=(succeeded_pod(owner="uid-earlier"),)),
        SILENT,
    ),
    "pod of another owner with the job's label": (
        snapshot(job_raw(), running_pod(owner=None)),
        SILENT,
    ),
}


@pytest.mark.parametrize(("situation", "want"), TABLE.values(), ids=TABLE)
def test_decide_in_situation_returns_the_wanted_plan(situation: Snapshot, want: Want) -> None:
    assert outcome(plan(situation)) == want


TELLING = {name: row[0] for name, row in TABLE.items() if row[1].phase is not None}
"""Situations in which status is written."""


@pytest.mark.parametrize("situation", TELLING.values(), ids=TELLING)
def test_decide_in_any_situation_has_all_conditions_of_this_generation(situation: Snapshot) -> None:
    found = status(plan(situation))
    assert [c.type for c in found.conditions] == list(ConditionType)
    assert {c.observed_generation for c in found.conditions} == {1}
    reason = "Retrying" if found.phase == "Retrying" else found.reason
    assert {c.reason for c in found.conditions if c.status == "True"} <= {reason}


@pytest.mark.parametrize("situation", [row[0] for row in TABLE.values()], ids=TABLE)
def test_decide_repeated_on_its_own_status_changes_nothing(situation: Snapshot) -> None:
    first = plan(situation)
    assert situation.job is not None
    job = replace(situation.job, status=status(first))
    again = plan(replace(situation, job=job))
    is_waiting_for_retry = status(first).retry_time is not None and status(first).retry_time == ago(
        0
    )
    if is_waiting_for_retry:
        assert again.start is not None or again.status == first.status
    else:
        assert again.status == first.status
        assert again.events == ()


@pytest.mark.parametrize("situation", TELLING.values(), ids=TELLING)
def test_decide_running_or_finished_job_has_no_waiting(
    situation: Snapshot,
) -> None:
    waiting = Waiting(reason=Reason.UNSCHEDULABLE, message="0/1 nodes", since=ago(60))
    assert situation.job is not None
    before = situation.job.status.model_copy(update={"waiting": waiting})
    found = status(plan(replace(situation, job=replace(situation.job, status=before))))
    finished = Phase(found.phase) in (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)
    assert (found.completion_time is not None) == finished
    if finished or found.reason in (Reason.RUNNING, Reason.CANCELLING):
        assert (found.waiting, found.retry_time) == (None, None)
    if found.retry_time is not None:
        assert found.attempt_state == "Ended"


def test_decide_strategy_missing_waits_and_recovers() -> None:
    situation = snapshot(job_raw())
    problem = StrategyText(problem='ConfigMap "s" does not exist', retry_seconds=42.0)
    found = plan(replace(situation, strategy=problem))
    assert outcome(found) == Want(
        Phase.PENDING, Reason.STRATEGY_NOT_FOUND, RECONCILING, requeue=42.0
    )
    assert status(found).waiting is not None
    later = after(situation, found)
    assert plan(later).start is not None
    running = status(plan(replace(later, pods=snapshot(None, running_pod()).pods)))
    assert (running.phase, running.waiting) == ("Running", None)


def after(situation: Snapshot, found: Plan) -> Snapshot:
    """The same situation once the status of a plan is written."""
    assert situation.job is not None
    return replace(situation, job=replace(situation.job, status=status(found)))


def test_decide_strategy_missing_between_attempts_keeps_the_count() -> None:
    backoff_over = started(ended_pod(1), **{**BACKOFF, "retryTime": ago(0)})
    missing = replace(backoff_over, strategy=StrategyText(problem="gone"))
    found = plan(missing)
    assert backoff_over.job is not None
    later = replace(backoff_over, job=replace(backoff_over.job, status=status(found)))
    assert outcome(plan(later)).start == 2


def failed_create(
    situation: Snapshot,
    kind: CreateFailureKind = CreateFailureKind.REFUSED,
    words: str = "exceeded quota",
) -> Snapshot:
    return replace(situation, create_failure=CreateFailure(kind, words))


@pytest.mark.parametrize("reason", ["FailedCreate", "NameConflict"])
def test_decide_failed_create_keeps_attempt_and_message_until_the_pod_is_known(reason: str) -> None:
    waiting = {"reason": reason, "message": "exceeded quota", "since": ago(60)}
    failed = recorded(
        1,
        C.RECONCILING,
        phase="Pending",
        reason=reason,
        message="exceeded quota",
        waiting={**waiting, "retryTime": ago(-5)},
    )
    assert outcome(plan(snapshot(job_raw(status=failed)))) == Want(
        Phase.PENDING, Reason(reason), RECONCILING, requeue=5.0
    )
    due = {**failed, "waiting": {**waiting, "retryTime": ago(0)}}
    trying = plan(snapshot(job_raw(status=due)))
    assert outcome(trying) == Want(
        Phase.PENDING, Reason(reason), RECONCILING, start=1, requeue=60.0
    )
    assert trying.events == ()
    assert status(trying).waiting == Waiting(
        reason=reason, message="exceeded quota", since=ago(60), retry_time=ago(-60)
    )
    for pod in (pod_raw(age=4), running_pod(), succeeded_pod()):
        assert status(plan(snapshot(job_raw(status=due), pod))).waiting is None
    completed = outcome(plan(snapshot(job_raw(status=due), succeeded_pod())))
    assert completed == Want(Phase.SUCCEEDED, Reason.COMPLETED, SUCCEEDED)


@pytest.mark.parametrize(
    ("lasted", "want"), [(None, 1.0), (0, 1.0), (7, 7.0), (59, 59.0), (3600, 60.0)]
)
def test_decide_failed_create_is_retried_after_as_long_as_it_has_lasted(
    lasted: float | None, want: float
) -> None:
    before = None
    if lasted is not None:
        before = {"reason": "FailedCreate", "message": "quota", "since": ago(lasted)}
    job = job_raw(status=recorded(1, C.RECONCILING, waiting=before))
    found = plan(failed_create(snapshot(job)))
    assert outcome(found) == Want(Phase.PENDING, Reason.FAILED_CREATE, RECONCILING, requeue=want)
    waiting = status(found).waiting
    assert waiting is not None
    assert waiting.retry_time == ago(-want)
    assert waiting.since == ago(lasted or 0)


def test_decide_pod_rejected_as_invalid_fails_the_job() -> None:
    words = "spec.containers[0].resources.requests: Invalid value: must be less than limits"
    found = plan(failed_create(snapshot(job_raw()), CreateFailureKind.INVALID, words))
    assert outcome(found) == Want(Phase.FAILED, Reason.INVALID_REQUEST, FAILED)
    assert status(found).message == f"{words}; correct it in a new TrainingJob"


def test_decide_pod_called_invalid_after_the_job_has_run_is_waited_for() -> None:
    """A webhook that breaks valid pods now must not end what has trained for days."""
    job = job_raw(status=recorded(2, startTime=ago(86400)))
    words = 'Pod "fx-2-0" is invalid: spec.containers[1].image: Required value'
    found = plan(failed_create(snapshot(job), CreateFailureKind.INVALID, words))
    assert outcome(found) == Want(Phase.PENDING, Reason.FAILED_CREATE, RECONCILING, requeue=1.0)


def test_decide_waiting_for_another_reason_restarts_since() -> None:
    before = {"reason": "StrategyNotFound", "message": "gone", "since": ago(90)}
    for situation in (
        started(unscheduled_pod("0/2 nodes"), waiting=before),
        failed_create(snapshot(job_raw(status=recorded(1, waiting=before)))),
    ):
        found = status(plan(situation)).waiting
        assert found is not None
        assert found.since == ago(0)
    missing = replace(
        snapshot(job_raw(status=recorded(0, waiting=before))), strategy=StrategyText(problem="gone")
    )
    still = status(plan(missing)).waiting
    assert still is not None
    assert still.since == ago(90)


def test_decide_waiting_message_is_kept_for_30_seconds_after_a_write() -> None:
    before = {"reason": "Unschedulable", "message": "0/2 nodes", "since": ago(90)}
    situation = started(unscheduled_pod("0/3 nodes"), waiting=before, message="0/2 nodes")
    kept = status(plan(replace(situation, seconds_since_write=29.0))).waiting
    new = status(plan(replace(situation, seconds_since_write=30.0))).waiting
    assert kept is not None
    assert new is not None
    assert kept.message == "0/2 nodes"
    assert new.message.startswith("0/3 nodes; ")


def test_decide_pod_without_reason_is_starting() -> None:
    found = status(plan(started(waiting_pod("ContainerCreating", "", age=5))))
    assert (found.message, found.waiting) == ('Pod "fx-1-0" is starting', None)


@pytest.mark.parametrize(
    ("words", "reason", "want"),
    [
        (WaitReason("FailedMount", "hostPath type check failed"), Reason.POD_NOT_READY, "Warning"),
        (WaitReason("Pulling", 'Pulling "x"', is_progress=True), Reason.STARTING, None),
    ],
)
def test_decide_reason_from_pod_events_is_shown(
    words: WaitReason, reason: Reason, want: str | None
) -> None:
    situation = started(pod_raw(), phase="Starting")
    pods = tuple(replace(pod, wait_reason=words) for pod in situation.pods)
    found = plan(replace(situation, pods=pods))
    assert status(found).reason == reason
    waiting = status(found).waiting
    assert waiting is not None
    assert waiting.message.startswith(words.message)
    assert [event.kind for event in found.events] == ([want] if want else [])


def test_decide_without_job_deletes_only_its_pods() -> None:
    stray, foreign = running_pod(1), running_pod(2, owner=None)
    job_owned = running_pod(3)
    job_owned["metadata"]["ownerReferences"][0].update(kind="Job", apiVersion="batch/v1")
    found = plan(snapshot(None, stray, foreign, job_owned, gone=(succeeded_pod(4),)))
    assert [d.name for d in found.deletions] == ["fx-1-0"]
    assert (found.status, found.start) == (None, None)


def test_decide_job_being_deleted_stops_pods_and_starts_nothing() -> None:
    job = job_raw(status=recorded(1, C.RUNNING))
    job["metadata"]["deletionTimestamp"] = ago(1)
    found = plan(snapshot(job, running_pod()))
    assert [(d.name, d.uid) for d in found.deletions] == [("fx-1-0", "pod-1")]
    assert (found.status, found.start) == (None, None)


def test_decide_finished_job_edited_updates_only_observed_generation() -> None:
    job = job_raw(
        status=recorded(1, *SUCCEEDED, phase="Succeeded", reason="Completed"), cancel=True
    )
    job["metadata"]["generation"] = 2
    found = plan(snapshot(job, succeeded_pod()))
    assert status(found).phase == "Succeeded"
    assert status(found).observed_generation == 2
    assert {c.observed_generation for c in status(found).conditions} == {2}
    assert {c.last_transition_time for c in status(found).conditions} == {ago(600)}
    assert (found.start, found.deletions, found.events) == (None, (), ())


def test_decide_finished_job_with_a_running_pod_deletes_it() -> None:
    job = job_raw(status=recorded(1, *FAILED, phase="Failed"))
    assert [d.name for d in plan(snapshot(job, running_pod())).deletions] == ["fx-1-0"]


def test_decide_condition_time_changes_only_with_its_status() -> None:
    found = status(plan(started(running_pod())))
    times = {c.type: c.last_transition_time for c in found.conditions}
    assert times[C.RUNNING] == times[C.RECONCILING] == ago(0)
    assert times[C.STALLED] == times[C.FINISHED] == ago(600)


def test_decide_running_records_start_host_and_gpus() -> None:
    job = job_raw(
        status=recorded(1, C.RECONCILING, progress=progress(checkpoint=CHECKPOINT)),
        trainer={"resources": {"limits": {"nvidia.com/gpu": "2", "memory": "8Gi"}}},
    )
    found = status(plan(snapshot(job, running_pod())))
    assert (found.start_time, found.host, found.gpus) == (ago(60), "node-1", 2)
    # Later: one write per checkpoint would be most of the writes of a job.
    assert found.checkpoint is None


@pytest.mark.parametrize("pod", [running_pod(2), succeeded_pod(2)], ids=["runs", "has ended"])
def test_decide_start_time_is_that_of_the_first_attempt(pod: Raw) -> None:
    first = snapshot(job_raw(status=recorded(2, C.RECONCILING)), pod)
    later = snapshot(job_raw(status=recorded(2, C.RECONCILING, startTime=ago(500))), pod)
    assert status(plan(first)).start_time in (ago(60), ago(120))
    assert status(plan(later)).start_time == ago(500)
    assert status(plan(first)).host == status(plan(later)).host == "node-1"


def test_decide_next_attempt_has_its_pod_and_no_host_yet() -> None:
    due = {**BACKOFF, "retryTime": ago(0), "host": "node-9"}
    found = status(plan(started(ended_pod(1), **due)))
    assert (found.pod_name, found.host) == ("fx-2-0", None)


@pytest.mark.parametrize(
    "pod",
    [
        succeeded_pod(checkpoint=NEWER),
        ended_pod(75, message=termination_message(Outcome.FAILED, checkpoint=NEWER)),
        ended_pod(143, message=termination_message(Outcome.TERMINATED, checkpoint=NEWER)),
    ],
    ids=["completed", "failed", "disrupted"],
)
def test_decide_ended_pod_uses_checkpoint_of_run_result(pod: Raw) -> None:
    job = job_raw(status=recorded(1, C.RUNNING, checkpoint=CHECKPOINT))
    found = status(plan(snapshot(job, pod)))
    assert found.checkpoint is not None
    assert found.checkpoint.model_dump(by_alias=True) == NEWER


@pytest.mark.parametrize(
    "pod",
    [
        ended_pod(137),
        ended_pod(143),
        ended_pod(2),
        ended_pod(10, message=termination_message(Outcome.CANCELLED)),
    ],
    ids=["killed", "disrupted", "failed for good", "stopped"],
)
@pytest.mark.parametrize("cancel", [False, True])
def test_decide_ended_pod_without_checkpoint_in_run_result_uses_the_reported_one(
    pod: Raw, cancel: bool
) -> None:
    reported = recorded(1, C.RUNNING, checkpoint=CHECKPOINT, progress=progress(checkpoint=NEWER))
    found = status(plan(snapshot(job_raw(status=reported, cancel=cancel), pod)))
    assert found.checkpoint is not None
    assert found.checkpoint.epoch == 9
    if found.phase == Phase.CANCELLED:
        assert found.cancellation is not None
        assert found.cancellation.checkpoint == found.checkpoint


def test_decide_cancelled_before_its_first_report_has_the_latest_checkpoint() -> None:
    earlier = progress(1, checkpoint=CHECKPOINT)
    job = recorded(2, C.RECONCILING, checkpoint=NEWER, progress=earlier)
    found = status(plan(cancelling(None, job)))
    assert found.cancellation is not None
    assert found.cancellation.checkpoint is not None
    assert found.checkpoint == found.cancellation.checkpoint
    assert found.cancellation.checkpoint.epoch == 9
    assert found.cancellation.epoch == 4


def test_decide_running_does_not_write_reported_checkpoints() -> None:
    job = job_raw(
        status=recorded(
            2, C.RECONCILING, checkpoint=NEWER, progress=progress(1, checkpoint=CHECKPOINT)
        )
    )
    found = status(plan(snapshot(job, running_pod(2))))
    assert found.checkpoint is not None
    assert found.checkpoint.epoch == 9


def test_decide_completed_keeps_the_result_after_the_pod_is_deleted() -> None:
    said: Raw = {"durationSeconds": 90, "bestEpoch": 48, "epochsCompleted": 50, "artifact": MODEL}
    metrics = [{"name": "test_loss", "value": "0.5"}]
    found = status(plan(ran(ended_pod(0, message=termination_message(**said, metrics=metrics)))))
    assert found.result is not None
    assert found.result.model_dump(by_alias=True) == {
        "outcome": "Succeeded",
        "metrics": tuple(metrics),
        **said,
    }
    assert found.completion_time == ago(30)
    assert found.message == (
        "Trained 50 epochs; the model is stored at models/fx_momentum/1h_v1; test_loss 0.5"
    )


@pytest.mark.parametrize(
    ("pod", "words", "signal"),
    [
        (
            ended_pod(1, message="ValueError: x"),
            "exited with code 1 without writing a result; last log output: ValueError: x",
            None,
        ),
        (ended_pod(139), "killed by signal 11 (SIGSEGV)", 11),
        (ended_pod(255), "code 255 without writing a result; see kubectl logs fx-1-0", None),
        (
            ended_pod(2, message=termination_message(Outcome.FAILED, jobUid="", message="no file")),
            "no file",
            None,
        ),
        (ended_pod(2, message=termination_message(Outcome.FAILED, message="a: b")), "a: b", None),
        (ended_pod(137, reason="OOMKilled"), "because its node ran out of memory", 9),
    ],
)
def test_decide_failure_names_cause(pod: Raw, words: str, signal: int | None) -> None:
    failure = status(plan(ran(pod))).failure
    assert failure is not None
    assert words in failure.message
    assert (failure.attempt, failure.signal) == (1, signal)


def test_decide_backoff_limit_exceeded_names_count_and_cause() -> None:
    situation = snapshot(job_raw(status=recorded(4, C.RUNNING, retries=3)), ended_pod(1, 4))
    assert status(plan(situation)).message == (
        "Failed 4 times, spec.backoffLimit is 3; last failure: "
        "Trainer exited with code 1 without writing a result; see kubectl logs fx-4-0"
    )


def test_decide_disruption_limit_says_what_to_do_however_long_the_words_of_the_kubelet() -> None:
    pod = pod_raw(phase="Failed", reason="UnexpectedAdmissionError", message="m" * 2000)
    found = plan(snapshot(job_raw(status=recorded(1), disruptionLimit=0), pod)).status
    assert found is not None
    assert found.message.startswith("Disrupted once without a new checkpoint")
    assert found.message.endswith("or a higher disruptionLimit")
    assert len(found.message) <= MESSAGE_MAX_LENGTH


def test_decide_waiting_has_the_message_and_its_start() -> None:
    words = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    before = {"reason": "Unschedulable", "message": "0/2 nodes", "since": ago(90)}
    found = status(plan(started(unscheduled_pod(words), waiting=before)))
    assert found.waiting is not None
    assert found.waiting.model_dump(exclude_none=True) == {
        "reason": "Unschedulable",
        "message": found.message,
        "since": ago(90),
    }
    assert found.message.startswith(words.rstrip("."))


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ('persistentvolumeclaim "x" not found.', "create the claim"),
        ("pod has unbound immediate PersistentVolumeClaims.", "bind the claim"),
    ],
)
def test_decide_volume_not_ready_names_the_remedy(words: str, remedy: str) -> None:
    assert remedy in status(plan(started(unscheduled_pod(words)))).message


def test_decide_image_failure_has_the_first_message_of_the_kubelet() -> None:
    waiting = {"reason": "ImagePullFailed", "message": "ghcr.io/x: not found", "since": ago(301)}
    found = status(plan(started(waiting_pod("ImagePullBackOff", "Back-off"), waiting=waiting)))
    assert found.message.startswith("ghcr.io/x: not found; tried for 300 s")
    assert found.waiting is None
    assert found.failure is not None


def test_decide_cancel_receipt_is_complete_after_a_clean_stop() -> None:
    word = termination_message(Outcome.CANCELLED, epoch=4, batch=17, checkpoint=CHECKPOINT)
    receipt = {**RECEIPT, "acknowledgedTime": ago(9)}
    found = status(
        plan(
            cancelling(
                ended_pod(10, message=word, finished=ago(8)),
                recorded(1, C.RUNNING, cancellation=receipt),
            )
        )
    )
    assert found.cancellation is not None
    assert found.cancellation.model_dump(by_alias=True) == {
        "requestedTime": ago(10),
        "acknowledgedTime": ago(9),
        "stoppedTime": ago(8),
        "epoch": 4,
        "batch": 17,
        "checkpoint": CHECKPOINT,
    }
    assert found.message == ("Cancelled in epoch 4 after batch 17; checkpoint checkpoints/uid-fx/3")


@pytest.mark.parametrize(
    ("reported", "before", "want"),
    [
        (progress(stage="Cancelling"), None, ago(0)),
        (progress(stage="Cancelling"), ago(9), ago(9)),
        (progress(stage="Saving"), None, None),
        (progress(attempt=2, stage="Cancelling"), None, None),
    ],
    ids=["now", "long ago", "busy with something else", "of another attempt"],
)
def test_decide_cancel_is_acknowledged_once_by_the_attempt_that_runs(
    reported: Raw, before: str | None, want: str | None
) -> None:
    receipt = {**RECEIPT, "acknowledgedTime": before}
    job = recorded(1, C.RUNNING, progress=reported, cancellation=receipt)
    found = status(plan(cancelling(running_pod(), job))).cancellation
    assert found is not None
    assert (found.requested_time, found.acknowledged_time) == (ago(10), want)


@pytest.mark.parametrize(
    ("outcome", "want"), [(Outcome.CANCELLED, ago(8)), (Outcome.TERMINATED, None)]
)
def test_decide_cancel_is_acknowledged_by_a_cancelled_run_result(
    outcome: Outcome, want: str | None
) -> None:
    pod = ended_pod(10, message=termination_message(outcome), finished=ago(8))
    found = status(plan(cancelling(pod, recorded(1, C.RUNNING, cancellation=RECEIPT))))
    assert found.cancellation is not None
    assert found.cancellation.acknowledged_time == want
    assert found.cancellation.stopped_time == found.completion_time == ago(8)


def test_decide_cancel_acknowledgement_has_the_operators_clock() -> None:
    hour_off = progress(stage="Cancelling", lastUpdateTime=ago(-3600))
    found = status(plan(cancelling(running_pod(), recorded(1, C.RUNNING, progress=hour_off))))
    assert found.cancellation is not None
    assert found.cancellation.acknowledged_time == ago(0)


def test_decide_cancel_received_by_an_operator_whose_clock_was_ahead_is_not_put_off() -> None:
    receipt = {"requestedTime": ago(-3600)}
    state = recorded(1, C.RUNNING, cancellation=receipt)
    found = plan(snapshot(job_raw(cancel=True, status=state), running_pod()))
    written = status(found).cancellation
    assert written is not None
    assert written.requested_time == ago(0)
    assert found.requeue_seconds == 31.0


def test_decide_cancel_during_backoff_stops_not_before_the_request() -> None:
    receipt = status(
        plan(cancelling(ended_pod(1, finished=ago(30)), recorded(1, C.RECONCILING, **BACKOFF)))
    ).cancellation
    assert receipt is not None
    assert receipt.stopped_time == receipt.requested_time == ago(0)


@pytest.mark.parametrize(
    "fields", [{}, {"progress": progress(stage="Preparing", currentEpoch=0, currentBatch=0)}]
)
def test_decide_cancel_before_training_is_named_in_the_message(fields: Raw) -> None:
    found = status(plan(cancelling(None, recorded(1, C.RECONCILING, **fields))))
    assert found.message == "Cancelled before training began"


def test_decide_with_wrong_trainer_clock_returns_the_same_plan() -> None:
    right = ran(running_pod())
    assert right.job is not None
    skewed = progress(lastUpdateTime=ago(-3600))
    wrong = snapshot(job_raw(status=recorded(1, C.RUNNING, progress=skewed)), running_pod())
    assert outcome(plan(right)) == outcome(plan(wrong))


def test_decide_hostile_run_result_is_bounded_and_sanitized() -> None:
    name = "x" * 63
    metrics = [{"name": name, "value": "nan"}, {"name": name, "value": "1e400"}]
    word = termination_message(
        metrics=metrics, message="\x1b[31mred\x1b[0m\x07 bell", artifact=MODEL, attempt=1
    )
    found = status(plan(ran(ended_pod(0, message=word))))
    assert found.result is not None
    assert [metric.name for metric in found.result.metrics] == [name]
    failed = status(
        plan(
            ran(
                ended_pod(
                    2, message=termination_message(Outcome.FAILED, message="\x1b[31mred\x07!")
                )
            )
        )
    )
    assert failed.message == "red !"


@pytest.mark.parametrize(
    "lie",
    [
        {"epochsCompleted": -1},
        {"durationSeconds": 10**400},
        {"checkpoint": {**CHECKPOINT, "time": "x" * 3000}},
        {"checkpoint": {**CHECKPOINT, "time": "yesterday"}},
        {"checkpoint": {**CHECKPOINT, "epoch": -1}},
        {"artifact": {"path": "p", "digest": DIGEST, "sizeBytes": -1}},
    ],
)
def test_decide_invalid_run_result_is_ignored(lie: Raw) -> None:
    body = {
        "jobUid": UID,
        "attempt": 1,
        "outcome": "Succeeded",
        "exitCode": 0,
        "reason": "Completed",
        **lie,
    }
    found = plan(ran(ended_pod(0, message=json.dumps(body))))
    assert outcome(found).phase is Phase.RETRYING


def test_decide_starts_with_the_strategy_that_was_read() -> None:
    found = plan(snapshot(job_raw()))
    assert found.start is not None
    assert found.start.strategy.text == STRATEGY


def test_decide_one_event_per_transition_with_severity() -> None:
    assert plan(snapshot(job_raw())).events == ()
    events = plan(ran(ended_pod(1))).events
    assert [(e.kind, e.reason) for e in events] == [("Warning", "Retrying")]
    events = plan(ran(ended_pod(2))).events
    assert [(e.kind, e.reason) for e in events] == [("Warning", "TrainerFailed")]
    events = plan(started(unscheduled_pod("0/1 nodes"))).events
    assert [(e.kind, e.reason) for e in events] == [("Warning", "Unschedulable")]
    assert plan(started(pod_raw(age=5))).events == ()


def test_decide_retry_is_due_at_the_stored_time() -> None:
    situation = started(ended_pod(1), **BACKOFF)
    assert decide(situation, NOW, LIMITS).start is None
    later = decide(situation, NOW + timedelta(seconds=20), LIMITS)
    assert later.start is not None
    assert later.start.attempt == 2


def test_decide_sets_report_interval_only_while_the_trainer_runs() -> None:
    told = status(plan(replace(ran(running_pod()), report_interval_seconds=5)))
    assert told.report_period_seconds == 5
    assert status(plan(ran(running_pod()))).report_period_seconds is None
