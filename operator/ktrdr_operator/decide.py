"""Decide: Snapshot and time in, Plan out. Pure; the rules are in `policies/`.

Called by `reconcile`, which hands the Plan to `apply`.
"""

from datetime import datetime
from typing import Final, Literal

from ktrdr_api import names
from ktrdr_api.conditions import CONDITIONS_OF_PHASE, ConditionType, Phase, Reason
from ktrdr_api.training_job import Condition, TrainingJobStatus
from ktrdr_operator.policies import POLICIES
from ktrdr_operator.policies.interface import (
    PolicyInput,
    PolicyResult,
    deletion_of,
    format_timestamp,
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
_WARNING_REASONS: Final = frozenset(
    {
        Reason.UNSCHEDULABLE,
        Reason.IMAGE_PULL_FAILED,
        Reason.VOLUME_NOT_READY,
        Reason.STRATEGY_NOT_FOUND,
        Reason.FAILED_CREATE,
        Reason.NAME_CONFLICT,
        Reason.RETRYING,
        Reason.DISRUPTED,
    }
)


def decide(snapshot: Snapshot, now: datetime, limits: Limits) -> Plan:
    """What to do about one TrainingJob now. The same arguments give the same plan."""
    job = snapshot.job
    if job is None or job.deleting:
        return Plan(deletions=_orphaned_pods(snapshot, keep_own=False))
    strays = _orphaned_pods(snapshot, keep_own=True) + _superseded_pods(snapshot, job)
    if is_true(job.status, C.FINISHED):
        return Plan(
            status=_restamp(job),
            deletions=strays + tuple(d for p in _alive(snapshot, job) for d in deletion_of(p)),
        )
    draft = _first_draft(PolicyInput(snapshot=snapshot, job=job, now=now, limits=limits))
    return finish(job, draft, now, strays)


def finish(
    job: JobView, draft: PolicyResult, now: datetime, strays: tuple[PodDeletion, ...] = ()
) -> Plan:
    """Turn what a policy found into a whole plan: conditions, counters and events."""
    status = job.status.model_copy(
        update={
            "report_period_seconds": None,  # only a trainer that runs reports
            **draft.changes,
            "observed_generation": job.generation,
            "phase": draft.phase.value,
            "reason": draft.reason.value,
            "message": draft.message,
            "gpus": _gpus(job),
            "conditions": _conditions(job, draft, now),
        }
    )
    return Plan(
        status=status,
        start=draft.start,
        deletions=strays + draft.deletions,
        events=_events(job.status, draft),
        requeue_seconds=draft.requeue_seconds,
    )


def is_true(status: TrainingJobStatus, kind: ConditionType) -> bool:
    """Whether a condition holds."""
    return any(c.type == kind and c.status == "True" for c in status.conditions)


def _first_draft(case: PolicyInput) -> PolicyResult:
    for policy in POLICIES:
        draft = policy(case)
        if draft is not None:
            return draft
    raise AssertionError("the last policy always speaks")


def _orphaned_pods(snapshot: Snapshot, *, keep_own: bool) -> tuple[PodDeletion, ...]:
    """Pods whose TrainingJob is gone, or going, or an earlier one of the same name."""
    own = snapshot.job.uid if snapshot.job is not None and keep_own else None
    return tuple(
        deletion
        for pod in snapshot.pods
        if pod.owner_uid not in ("", own)  # empty: somebody else's pod that carries our label
        for deletion in deletion_of(pod)
    )


def _superseded_pods(snapshot: Snapshot, job: JobView) -> tuple[PodDeletion, ...]:
    """Pods that a late request created for an attempt that is over: only one may write."""
    return tuple(
        deletion
        for pod in _alive(snapshot, job)
        if pod.attempt < job.status.attempt
        for deletion in deletion_of(pod)
    )


def _alive(snapshot: Snapshot, job: JobView) -> list[PodView]:
    return [p for p in snapshot.pods if p.owner_uid == job.uid and not p.ended]


def _restamp(job: JobView) -> TrainingJobStatus:
    """The end stays the end; only the generation it speaks of moves on."""
    stamped = tuple(
        c.model_copy(update={"observed_generation": job.generation}) for c in job.status.conditions
    )
    return job.status.model_copy(
        update={"observed_generation": job.generation, "conditions": stamped}
    )


def _conditions(job: JobView, draft: PolicyResult, now: datetime) -> tuple[Condition, ...]:
    before = {c.type: c for c in job.status.conditions}
    true = CONDITIONS_OF_PHASE[draft.phase]
    if draft.phase is Phase.CANCELLING and is_true(job.status, C.RUNNING):
        true |= {C.RUNNING}  # the process lives until it is gone
    # Programs wait for "retrying", whatever the cause; `status.reason` tells which it is.
    reason = Reason.RETRYING if draft.phase is Phase.RETRYING else draft.reason
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
                message=draft.message if holds else "",
                last_transition_time=since,
                observed_generation=job.generation,
            )
        )
    return tuple(conditions)


def _events(before: TrainingJobStatus, draft: PolicyResult) -> tuple[PlannedEvent, ...]:
    """One event per transition."""
    if (before.phase, before.reason) == (draft.phase.value, draft.reason.value):
        return ()
    bad = draft.phase is Phase.FAILED or draft.reason in _WARNING_REASONS
    return (PlannedEvent("Warning" if bad else "Normal", draft.reason.value, draft.message),)


def _gpus(job: JobView) -> int:
    limits = job.spec.trainer.resources.limits
    return sum(int(count) for name, count in limits.items() if names.is_gpu_resource(name))
