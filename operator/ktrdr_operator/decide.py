"""Decide: pure function from Snapshot and time to Plan; the policies are in `policies/`.

The only place where a status is decided, also after a failed create, a rejected status or an
unreadable spec. Called by `reconcile`, which passes the Plan to `apply`.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, Literal

from ktrdr_api.conditions import CONDITIONS_OF_PHASE, ConditionType, Phase, Reason
from ktrdr_api.training_job import AttemptState, Condition, Display, Progress, TrainingJobStatus
from ktrdr_operator.policies import POLICIES
from ktrdr_operator.policies.interface import (
    PolicyInput,
    PolicyResult,
    deletion_of,
    format_timestamp,
    parse_timestamp,
)
from ktrdr_operator.snapshot import (
    JobView,
    Limits,
    Plan,
    PlannedEvent,
    PodDeletion,
    PodView,
    Snapshot,
)

C = ConditionType
UNLABELLED_SECONDS: Final = 15.0
"""How often a pod that lost its label is read: the watch does not report it."""
LINGER_SECONDS: Final = 2.0
"""After this time the status of an ended attempt is written, and a pod that another container keeps
running may be deleted."""
_WARNING_REASONS: Final = frozenset(
    {
        Reason.UNSCHEDULABLE,
        Reason.IMAGE_PULL_FAILED,
        Reason.VOLUME_NOT_READY,
        Reason.POD_NOT_READY,
        Reason.STRATEGY_NOT_FOUND,
        Reason.FAILED_CREATE,
        Reason.NAME_CONFLICT,
        Reason.NOT_REPORTING,
        Reason.TERMINATING,
        Reason.RETRYING,
        Reason.DISRUPTED,
    }
)


def decide(snapshot: Snapshot, now: datetime, limits: Limits) -> Plan:
    """Decide what to do about one TrainingJob now. The same arguments give the same plan."""
    job = snapshot.job
    if job is None:
        return Plan(deletions=_orphaned_pods(snapshot, keep_own=False))
    if job.deleting:
        # `--cascade=orphan`: the garbage collector removes the owner references; the pods stay.
        return Plan() if job.orphaning else Plan(deletions=_orphaned_pods(snapshot, keep_own=False))
    deletions = _orphaned_pods(snapshot, keep_own=True) + _unneeded_pods(snapshot, job)
    if is_true(job.status, C.FINISHED):
        return _finished(snapshot, job, now, deletions)
    result = _first_result(PolicyInput(snapshot=snapshot, job=job, now=now, limits=limits))
    plan = _plan(snapshot, job, result, now)
    return replace(plan, deletions=deletions + plan.deletions)


def is_true(status: TrainingJobStatus, kind: ConditionType) -> bool:
    """Whether a condition holds."""
    return any(c.type == kind and c.status == "True" for c in status.conditions)


def _first_result(policy_input: PolicyInput) -> PolicyResult:
    for policy in POLICIES:
        result = policy(policy_input)
        if result is not None:
            return result
    raise AssertionError("the last policy always decides")


def _plan(snapshot: Snapshot, job: JobView, result: PolicyResult, now: datetime) -> Plan:
    """Build the plan from the result of a policy: status with conditions, Events, requeue."""
    requeue = result.requeue_seconds
    if result.is_silent:
        return Plan(status=job.status, start=result.start, requeue_seconds=requeue)
    status = job.status.model_copy(
        update={
            "report_period_seconds": None,  # only a trainer that runs reports
            **result.changes,
            "observed_generation": job.generation,
            "phase": result.phase.value,
            "reason": result.reason.value,
            "message": result.message,
            "gpus": job.gpus,
            "conditions": _conditions(job, result, now),
        }
    )
    if is_true(status, C.FINISHED):
        status = status.model_copy(update={"progress": _final_progress(status)})
        requeue = None if job.spec.ttl_seconds_after_finished is None else 0.0
    if any(pod.lingers for pod in snapshot.pods):
        requeue = _earlier(requeue, LINGER_SECONDS)
    elif any(pod.unlabelled for pod in _unfinished(snapshot, job)):
        requeue = _earlier(requeue, UNLABELLED_SECONDS)
    if snapshot.status_refused:
        status = _minimal_status(status, snapshot.status_refused)
    return Plan(
        status=status,
        start=result.start,
        deletions=result.deletions,
        events=_events(job.status, status, result),
        requeue_seconds=requeue,
    )


def _earlier(seconds: float | None, limit: float) -> float:
    return limit if seconds is None else min(seconds, limit)


def _finished(
    snapshot: Snapshot, job: JobView, now: datetime, deletions: tuple[PodDeletion, ...]
) -> Plan:
    """Keep the status, delete pods that still run, and delete the job when its TTL is over."""
    unfinished = tuple(d for pod in _unfinished(snapshot, job) for d in deletion_of(pod))
    plan = Plan(status=_restamp(job), deletions=deletions + unfinished)
    ttl = job.spec.ttl_seconds_after_finished
    if ttl is None:
        return plan
    due = _finish_time(job) + timedelta(seconds=ttl)
    if now < due:
        return replace(plan, requeue_seconds=(due - now).total_seconds())
    status = job.status
    if plan.status != status:
        return replace(plan, requeue_seconds=0.0)  # the deletion names the version decided on
    words = f"ttlSecondsAfterFinished ({ttl} s) is over, deleting; {status.phase}: {status.message}"
    event = PlannedEvent("Normal", Reason.EXPIRED.value, words)
    return replace(plan, expire=True, events=(event,))


def _finish_time(job: JobView) -> datetime:
    """When condition Finished became True: by our clock, as `now` is.

    `completionTime` may be the time of a node, whose clock may be hours off.
    """
    condition = next(c for c in job.status.conditions if c.type == C.FINISHED)
    return parse_timestamp(condition.last_transition_time)


def _orphaned_pods(snapshot: Snapshot, *, keep_own: bool) -> tuple[PodDeletion, ...]:
    """Pods whose TrainingJob is deleted, being deleted, or a deleted one of the same name."""
    own = snapshot.job.uid if snapshot.job is not None and keep_own else None
    return tuple(
        deletion
        for pod in snapshot.pods
        if pod.owner_uid not in ("", own)  # empty: a pod of another owner with the label
        for deletion in deletion_of(pod)
    )


def _unneeded_pods(snapshot: Snapshot, job: JobView) -> tuple[PodDeletion, ...]:
    """Own pods to delete: superseded, lingering, or beyond `spec.historyLimit`."""
    mine = [pod for pod in snapshot.pods if pod.owner_uid == job.uid and not pod.gone]
    attempt = job.status.attempt
    decided = is_true(job.status, C.FINISHED) or job.status.attempt_state == "Ended"
    earlier = sorted((p.attempt for p in mine if p.ended and p.attempt < attempt), reverse=True)
    kept = set(earlier[: job.spec.history_limit])
    return tuple(
        deletion
        for pod in mine
        # Only one attempt may write: a late request may have created a pod of an earlier one.
        if (not pod.ended and pod.attempt < attempt)
        or (pod.lingers and (decided or pod.attempt < attempt))
        or (pod.ended and pod.attempt < attempt and pod.attempt not in kept)
        for deletion in deletion_of(pod)
    )


def _unfinished(snapshot: Snapshot, job: JobView) -> list[PodView]:
    return [p for p in snapshot.pods if p.owner_uid == job.uid and not p.ended]


def _restamp(job: JobView) -> TrainingJobStatus:
    """Leave the status of a finished job unchanged except for `observedGeneration`."""
    stamped = tuple(
        c.model_copy(update={"observed_generation": job.generation}) for c in job.status.conditions
    )
    return job.status.model_copy(
        update={"observed_generation": job.generation, "conditions": stamped}
    )


def _final_progress(status: TrainingJobStatus) -> Progress | None:
    """Progress of a finished job: the printer columns must not look as if it were running."""
    progress = status.progress
    if progress is None:
        return None
    shown = progress.display
    if status.phase == Phase.SUCCEEDED:
        display = shown.model_copy(update={"eta": "", "progress": "100%"})
        changes: dict[str, object] = {"percentage": 100, "estimated_remaining_seconds": None}
        return progress.model_copy(update={**changes, "display": display})
    display = Display(epoch=shown.epoch, batch=shown.batch)
    return progress.model_copy(update={"display": display, "estimated_remaining_seconds": None})


def _minimal_status(status: TrainingJobStatus, why: str) -> TrainingJobStatus:
    """The same status without foreign values: the API server has rejected one of them."""
    words = f"The API server rejected part of this status: {why}"
    plain = words.encode("ascii", errors="replace").decode()[:1024]
    failure, result, receipt = status.failure, status.result, status.cancellation
    if result is not None:
        result = result.model_copy(update={"metrics": (), "artifact": None})
    return status.model_copy(
        update={
            "message": plain,
            "conditions": tuple(
                c.model_copy(update={"message": plain if c.message else ""})
                for c in status.conditions
            ),
            "host": None,
            "waiting": None,
            "warnings": (),
            "checkpoint": None,
            "failure": failure.model_copy(update={"message": plain}) if failure else None,
            "result": result,
            "cancellation": receipt.model_copy(update={"checkpoint": None}) if receipt else None,
        }
    )


def _conditions(job: JobView, result: PolicyResult, now: datetime) -> tuple[Condition, ...]:
    before = {c.type: c for c in job.status.conditions}
    true = CONDITIONS_OF_PHASE[result.phase]
    is_running = result.changes.get("attempt_state") is AttemptState.RUNNING
    if result.phase is Phase.CANCELLING and (is_running or is_true(job.status, C.RUNNING)):
        true |= {C.RUNNING}  # until the process has ended
    # Programs wait for the reason Retrying, whatever the cause; `status.reason` has the cause.
    reason = Reason.RETRYING if result.phase is Phase.RETRYING else result.reason
    conditions = []
    for kind in ConditionType:
        holds, old = kind in true, before.get(kind)
        value: Literal["True", "False"] = "True" if holds else "False"
        since = old.last_transition_time if old and old.status == value else format_timestamp(now)
        conditions.append(
            Condition(
                type=kind,
                status=value,
                reason=reason if holds else Reason.NOT_APPLICABLE,
                message=result.message if holds else "",
                last_transition_time=since,
                observed_generation=job.generation,
            )
        )
    return tuple(conditions)


def _events(
    before: TrainingJobStatus, after: TrainingJobStatus, result: PolicyResult
) -> tuple[PlannedEvent, ...]:
    """One Event per transition, and one for the warnings of an ended trainer."""
    events = []
    is_known = (before.phase, before.reason) == (after.phase, after.reason)
    if not is_known and result.reason is not Reason.STARTING:
        is_bad = result.phase is Phase.FAILED or result.reason in _WARNING_REASONS
        kind: Literal["Normal", "Warning"] = "Warning" if is_bad else "Normal"
        events.append(PlannedEvent(kind, result.reason.value, after.message))
    if after.warnings and after.warnings != before.warnings:
        words = "; ".join(after.warnings)
        events.append(PlannedEvent("Warning", Reason.TRAINER_WARNING.value, words))
    return tuple(events)
