"""Decisions about the end of a job and about what it leaves behind."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_builders import (
    CHECKPOINT,
    LIMITS,
    MODEL,
    NOW,
    Raw,
    ago,
    ended_pod,
    job_raw,
    last_word,
    pod_raw,
    progress,
    recorded,
    running_pod,
    snapshot,
    succeeded_pod,
    with_sidecar,
)
from ktrdr_api.conditions import ConditionType as C
from ktrdr_api.run_contract import Outcome
from ktrdr_api.training_job import TrainingJobStatus
from ktrdr_operator.decide import decide
from ktrdr_operator.snapshot import Plan, Snapshot
from ktrdr_operator.views import view_job

SUCCEEDED = (C.COMPLETE, C.FINISHED)
ENDED_FIELDS = {"phase": "Succeeded", "reason": "Completed", "message": "Trained 50 epochs"}


def plan(situation: Snapshot) -> Plan:
    return decide(situation, NOW, LIMITS)


def status(found: Plan) -> TrainingJobStatus:
    assert found.status is not None
    return found.status


def finished(ended: float = 100, **spec: Any) -> Raw:
    """A TrainingJob that succeeded so many seconds ago."""
    state = recorded(1, *SUCCEEDED, **ENDED_FIELDS, completionTime=ago(ended))
    for condition in state["conditions"]:
        condition["lastTransitionTime"] = ago(ended)
    return job_raw(status={**state, "attemptState": "Ended"}, **spec)


@pytest.mark.parametrize(
    ("ttl", "want"),
    [(None, (False, None)), (0, (True, None)), (99, (True, None)), (101, (False, 1.0))],
)
def test_decide_finished_job_is_deleted_when_its_time_to_live_is_over(
    ttl: int | None, want: tuple[bool, float | None]
) -> None:
    spec = {} if ttl is None else {"ttlSecondsAfterFinished": ttl}
    found = plan(snapshot(finished(100, **spec), succeeded_pod()))
    assert (found.expire, found.requeue_seconds) == want


@pytest.mark.parametrize("ahead", [-7200, 7200], ids=["node is behind", "node is ahead"])
def test_decide_time_to_live_does_not_depend_on_the_clock_of_the_node(ahead: float) -> None:
    pod = succeeded_pod(finished=ago(-ahead))
    first = snapshot(job_raw(status=recorded(1, C.RUNNING), ttlSecondsAfterFinished=3600), pod)
    assert first.job is not None
    later = replace(first, job=replace(first.job, status=status(plan(first))))
    assert (plan(later).expire, plan(later).requeue_seconds) == (False, 3600.0)


def test_decide_expiry_tells_the_result_for_the_last_time() -> None:
    found = plan(snapshot(finished(ttlSecondsAfterFinished=0)))
    assert [(e.kind, e.reason, e.message) for e in found.events] == [
        (
            "Normal",
            "Expired",
            "ttlSecondsAfterFinished (0 s) is over, deleting; Succeeded: Trained 50 epochs",
        )
    ]


def test_decide_end_is_looked_at_again_at_once_for_its_time_to_live() -> None:
    first = snapshot(
        job_raw(status=recorded(1, C.RUNNING), ttlSecondsAfterFinished=0), succeeded_pod()
    )
    found = plan(first)
    assert (found.expire, found.requeue_seconds) == (False, 0.0)
    assert first.job is not None
    later = replace(first, job=replace(first.job, status=status(found)))
    assert plan(later).expire


DISPLAY = {"epoch": "4/50", "batch": "17/640", "eta": "4m20s", "loss": "0.61", "progress": "7%"}


@pytest.mark.parametrize(
    ("pod", "cancel", "want"),
    [
        (ended_pod(2), False, {"epoch": "4/50", "batch": "17/640"}),
        (
            ended_pod(10, message=last_word(Outcome.CANCELLED)),
            True,
            {"epoch": "4/50", "batch": "17/640"},
        ),
        (succeeded_pod(), False, {**DISPLAY, "eta": "", "progress": "100%"}),
    ],
    ids=["failed", "cancelled", "succeeded"],
)
def test_decide_columns_of_a_job_that_has_finished_do_not_look_alive(
    pod: Raw, cancel: bool, want: Raw
) -> None:
    reported = progress(display=DISPLAY, estimatedRemainingSeconds=260)
    job = job_raw(status=recorded(1, C.RUNNING, progress=reported), cancel=cancel)
    found = status(plan(snapshot(job, pod))).progress
    assert found is not None
    shown = found.display.model_dump(by_alias=True)
    assert {name: text for name, text in shown.items() if text} == {
        name: text for name, text in want.items() if text
    }
    assert found.estimated_remaining_seconds is None
    assert (found.current_epoch, found.current_batch) == (4, 17)


def test_decide_pod_whose_only_container_has_ended_is_left_for_its_logs() -> None:
    """The kubelet reports the phase Running for a moment after the trainer has ended."""
    situation = snapshot(finished(), succeeded_pod(phase="Running"))
    assert plan(situation).deletions == ()


def test_decide_pod_that_a_sidecar_keeps_running_is_deleted_once_its_result_is_read() -> None:
    lingering = with_sidecar(succeeded_pod(phase="Running"))
    first = snapshot(job_raw(status=recorded(1, C.RUNNING)), lingering)
    found = plan(first)
    assert (status(found).phase, found.deletions) == ("Succeeded", ())
    assert first.job is not None
    later = replace(first, job=replace(first.job, status=status(found)))
    assert [d.name for d in plan(later).deletions] == ["fx-1-0"]


def test_decide_pod_that_a_sidecar_keeps_running_is_deleted_between_attempts() -> None:
    lingering = with_sidecar(ended_pod(1, phase="Running"))
    first = snapshot(job_raw(status=recorded(1, C.RUNNING)), lingering)
    found = plan(first)
    assert (status(found).phase, found.deletions, found.requeue_seconds) == ("Retrying", (), 2.0)
    assert first.job is not None
    later = replace(first, job=replace(first.job, status=status(found)))
    assert [d.name for d in plan(later).deletions] == ["fx-1-0"]


def test_decide_pod_whose_native_sidecar_still_stops_is_left_for_its_logs() -> None:
    """The kubelet stops such a sidecar as soon as the trainer has ended, and the pod ends too."""
    pod = ended_pod(1, phase="Running")
    pod["spec"]["initContainers"] = [{"name": "proxy", "restartPolicy": "Always"}]
    running = {"running": {"startedAt": ago(100)}}
    pod["status"]["initContainerStatuses"] = [{"name": "proxy", "state": running, "started": True}]
    first = snapshot(job_raw(status=recorded(1, C.RUNNING), backoffLimit=0), pod)
    found = plan(first)
    assert "see kubectl logs fx-1-0" in status(found).message
    assert first.job is not None
    later = replace(first, job=replace(first.job, status=status(found)))
    assert plan(later).deletions == ()


@pytest.mark.parametrize(
    ("finalizers", "want"),
    [([], ["fx-1-0"]), (["foregroundDeletion"], ["fx-1-0"]), (["orphan"], [])],
)
def test_decide_deleted_job_stops_its_pods_unless_they_are_to_be_orphaned(
    finalizers: list[str], want: list[str]
) -> None:
    job = job_raw(status=recorded(1, C.RUNNING))
    job["metadata"].update(deletionTimestamp=ago(1), finalizers=finalizers)
    assert [d.name for d in plan(snapshot(job, running_pod())).deletions] == want


UNREADABLE: Raw = {"trainer": {"imagePullPolicy": "Sometimes"}}


@pytest.mark.parametrize(
    ("state", "pod", "want"),
    [
        (None, None, ("Failed", "InvalidRequest")),
        (recorded(2, C.RUNNING, retries=1), running_pod(2), ("Running", "Running")),
        (recorded(2, C.RUNNING, retries=1), succeeded_pod(2), ("Succeeded", "Completed")),
        (recorded(2, C.RUNNING, retries=1), ended_pod(1, 2), ("Failed", "InvalidRequest")),
        (recorded(2, C.RUNNING, retries=1), ended_pod(143, 2), ("Retrying", "Disrupted")),
        (recorded(2, *SUCCEEDED, **ENDED_FIELDS), None, ("Succeeded", "Completed")),
    ],
    ids=["fresh", "running", "succeeded", "failed", "disrupted", "finished"],
)
def test_decide_unreadable_spec_ends_what_it_must_and_takes_nothing_back(
    state: Raw | None, pod: Raw | None, want: tuple[str, str]
) -> None:
    job = job_raw(status=state, **UNREADABLE)
    found = status(plan(snapshot(job, *([pod] if pod else []))))
    assert (found.phase, found.reason) == want
    assert found.attempt == (0 if state is None else 2)
    if want == ("Failed", "InvalidRequest"):
        assert found.message.startswith("spec.trainer.imagePullPolicy: Input should be")


def test_decide_unreadable_spec_can_be_cancelled() -> None:
    job = job_raw(status=recorded(1, C.RUNNING), cancel=True, **UNREADABLE)
    assert status(plan(snapshot(job, running_pod()))).phase == "Cancelling"


def test_view_job_keeps_every_readable_field_of_a_status() -> None:
    state = recorded(3, *SUCCEEDED, retries=-1, retryTime="yesterday", host="node-1")
    state["conditions"].append({"type": "Other", "status": "Perhaps"})
    found = view_job(job_raw(status=state)).status
    assert (found.attempt, found.retries, found.retry_time, found.host) == (3, 0, None, "node-1")
    assert {c.type for c in found.conditions if c.status == "True"} == set(SUCCEEDED)


def test_decide_status_that_the_server_refused_has_nothing_from_outside() -> None:
    word = last_word(artifact=MODEL, checkpoint=CHECKPOINT, metrics=[{"name": "x", "value": "1"}])
    job = job_raw(status=recorded(1, C.RUNNING, host="nöde"))
    refused = replace(snapshot(job, ended_pod(0, message=word)), status_refused="time: ü")
    found = status(plan(refused))
    assert (found.phase, found.attempt, found.attempt_state) == ("Succeeded", 1, "Ended")
    assert found.message == "The API server refused part of this status: time: ?"
    assert (found.checkpoint, found.host, found.warnings) == (None, None, ())
    assert found.result is not None
    assert (found.result.artifact, found.result.metrics) == (None, ())
    assert {c.type for c in found.conditions if c.status == "True"} == set(SUCCEEDED)


def test_decide_warnings_of_the_trainer_are_in_status_and_in_an_event() -> None:
    word = last_word(artifact=MODEL, warnings=["12 rows dropped", "no class 2 in the test split"])
    found = plan(snapshot(job_raw(status=recorded(1, C.RUNNING)), ended_pod(0, message=word)))
    assert status(found).warnings == ("12 rows dropped", "no class 2 in the test split")
    assert [(e.kind, e.reason) for e in found.events] == [
        ("Normal", "Completed"),
        ("Warning", "TrainerWarning"),
    ]


@given(st.integers(0, 999_999), st.integers(1, 3600))
def test_decide_cancel_never_cuts_the_grace_period_short(microsecond: int, grace: int) -> None:
    asked = NOW + timedelta(microseconds=microsecond)
    job = job_raw(
        status=recorded(1, C.RUNNING), cancel=True, cancellation={"gracePeriodSeconds": grace}
    )
    first = snapshot(job, running_pod())
    found = decide(first, asked, LIMITS)
    assert first.job is not None
    later = replace(first, job=replace(first.job, status=status(found)))
    early = asked + timedelta(seconds=grace) - timedelta(milliseconds=1)
    assert decide(later, early, LIMITS).deletions == ()
    assert decide(later, asked + timedelta(seconds=grace + 1), LIMITS).deletions != ()


@pytest.mark.parametrize(
    "situation",
    [
        snapshot(job_raw(status=recorded(1, C.RUNNING)), running_pod(deleting=-1)),
        snapshot(job_raw(status=recorded(1)), pod_raw(deleting=-1)),
        snapshot(job_raw(status=recorded(1, C.RUNNING), cancel=True), running_pod(deleting=-1)),
        snapshot(
            job_raw(status={**recorded(2), "attemptState": "Ended"}), running_pod(1, deleting=-1)
        ),
        snapshot(job_raw(), running_pod(owner="uid-earlier", deleting=-1)),
    ],
    ids=["running", "starting", "cancelling", "between attempts", "of a deleted job"],
)
def test_decide_pod_that_does_not_end_names_the_node_and_the_remedy(situation: Snapshot) -> None:
    found = plan(situation)
    message = status(found).message
    assert 'node "node-1" has not confirmed that its process ended' in message
    assert "node.kubernetes.io/out-of-service" in message
    assert "kubectl delete pod fx-1-0 -n ns --force" in message
    assert found.start is None


def test_decide_pod_that_does_not_end_is_reported_soon_after_the_last_write() -> None:
    state = recorded(1, C.RUNNING)
    state["waiting"] = {"reason": "Terminating", "message": "has until", "since": ago(6)}
    situation = snapshot(job_raw(status=state), running_pod(deleting=-1))
    found = status(plan(replace(situation, seconds_since_write=6.0))).waiting
    assert found is not None
    assert "kubectl delete pod fx-1-0 -n ns --force" in found.message
    assert found.since == ago(6)
