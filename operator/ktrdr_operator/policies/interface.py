"""Input and result of a policy, and the state transitions of an attempt.

An attempt is Pending (its trainer has not started), Running or Ended, as in `status.attemptState`.
Only the functions at the end of this module change it, together with the fields that depend on it.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from ktrdr_api import names
from ktrdr_api.conditions import ConditionType, Phase, Reason
from ktrdr_api.run_contract import Outcome, RunResult
from ktrdr_api.training_job import (
    AttemptState,
    CheckpointStatus,
    TrainingJobStatus,
    Waiting,
)
from ktrdr_operator.snapshot import AttemptStart, JobView, Limits, PodDeletion, PodView, Snapshot

MESSAGE_MAX_LENGTH: Final = 1024
"""Limit of the CRD."""
CREATE_FAILURES: Final = frozenset({Reason.FAILED_CREATE, Reason.NAME_CONFLICT})
"""Reasons of `status.waiting` after a failed create of a child."""
REWORD_SECONDS: Final = 30.0
"""A message of these reasons is not rewritten more often: with 1,000 pending pods the scheduler's
words change at every change of the cluster."""
REWORDED_SLOWLY: Final = frozenset(
    {Reason.UNSCHEDULABLE, Reason.VOLUME_NOT_READY, Reason.POD_NOT_READY, Reason.STARTING}
)


@dataclass(frozen=True)
class PolicyInput:
    """Snapshot of a TrainingJob that exists and has not finished, with time and settings."""

    snapshot: Snapshot
    job: JobView
    now: datetime
    limits: Limits

    @property
    def status(self) -> TrainingJobStatus:
        """Present status of the job."""
        return self.job.status

    @property
    def pod(self) -> PodView | None:
        """Rank 0 of the current attempt."""
        return self.snapshot.current()

    @property
    def attempt(self) -> int:
        """Number of the current attempt; attempt 1 may run before it is recorded."""
        started = self.pod is not None or self.has_reported
        return self.status.attempt or int(started)

    @property
    def is_waiting_for_retry(self) -> bool:
        """Whether the current attempt has ended and the next one waits for its time."""
        return self.status.attempt_state is AttemptState.ENDED

    @property
    def has_reported(self) -> bool:
        """Whether the trainer of the current attempt has reported progress."""
        progress = self.status.progress
        return progress is not None and progress.attempt == max(self.status.attempt, 1)

    @property
    def has_run(self) -> bool:
        """Whether the trainer of the current attempt is known to have started."""
        running = any(
            c.type == ConditionType.RUNNING and c.status == "True" for c in self.status.conditions
        )
        return self.has_reported or running or self.status.attempt_state is AttemptState.RUNNING

    @property
    def has_ever_run(self) -> bool:
        """Whether a trainer of this job has ever started."""
        return self.status.start_time is not None or self.has_reported

    @property
    def result(self) -> RunResult | None:
        """Run result of the current attempt, if it has the UID of this TrainingJob.

        A failure without a UID counts, too: a trainer that could not read its request does not know
        the UID.
        """
        end = self.pod.termination if self.pod is not None else None
        result = end.result if end is not None else None
        if result is None or result.job_uid == self.job.uid:
            return result
        return result if not result.job_uid and result.outcome is Outcome.FAILED else None

    @property
    def create_failure(self) -> Waiting | None:
        """Latest failed create in `status.waiting`; None once the pod is known."""
        waiting = self.status.waiting
        return waiting if waiting is not None and waiting.reason in CREATE_FAILURES else None

    @property
    def checkpoint(self) -> CheckpointStatus | None:
        """Latest durable checkpoint.

        From the run result if it has one, otherwise from this attempt's progress reports, otherwise
        from `status.checkpoint`.
        """
        if self.result is not None and self.result.checkpoint is not None:
            return CheckpointStatus(**self.result.checkpoint.model_dump())
        progress = self.status.progress if self.has_reported else None
        reported = progress.checkpoint if progress is not None else None
        return reported or self.status.checkpoint

    def unfinished_pods(self) -> tuple[PodView, ...]:
        """Pods of this TrainingJob in which a trainer may still run."""
        return tuple(
            pod for pod in self.snapshot.pods if pod.owner_uid == self.job.uid and not pod.ended
        )

    def pods_of_deleted_job(self) -> tuple[PodView, ...]:
        """Pods of a deleted TrainingJob of the same name that still exist."""
        return tuple(
            pod
            for pod in self.snapshot.pods
            if pod.owner_uid not in ("", self.job.uid) and not pod.gone
        )

    def seconds_until(self, moment: datetime) -> float:
        """Seconds from now, never negative."""
        return max((moment - self.now).total_seconds(), 0.0)

    def waiting(self, reason: Reason, message: str, *, retry_time: str | None = None) -> Waiting:
        """Build `status.waiting`, with the time since which this reason has lasted.

        The message of a reason that is often reworded is kept for `REWORD_SECONDS` after a write;
        these pods are looked at again after that.
        """
        before = self.status.waiting
        if before is None or before.reason != reason:
            before = None
        written = self.snapshot.seconds_since_write
        is_recent = written is not None and written < REWORD_SECONDS
        if before is not None and is_recent and reason in REWORDED_SLOWLY:
            message = before.message
        return Waiting(
            reason=reason,
            message=message[:MESSAGE_MAX_LENGTH],
            since=before.since if before is not None else format_timestamp(self.now),
            retry_time=retry_time,
        )


@dataclass(frozen=True)
class PolicyResult:
    """Decision of a policy: the state of the job, and the actions."""

    phase: Phase
    reason: Reason
    message: str
    changes: dict[str, Any] = field(default_factory=dict)
    """Status fields to set, by their Python names; other fields stay."""
    start: AttemptStart | None = None
    deletions: tuple[PodDeletion, ...] = ()
    requeue_seconds: float | None = None
    is_silent: bool = False
    """Whether to leave the status unchanged, to save a write."""


def format_timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, whole seconds, as the API server writes times."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> datetime:
    """Parse the output of `format_timestamp`."""
    return datetime.fromisoformat(text)


def end_of_second(text: str) -> datetime:
    """End of the second of a timestamp, so that a deadline computed from it is never early."""
    return parse_timestamp(text) + timedelta(seconds=1)


def deletion_of(pod: PodView) -> tuple[PodDeletion, ...]:
    """Deletion of a pod; empty if it is being deleted or no longer exists."""
    return () if pod.deleting or pod.gone else (PodDeletion(pod.name, pod.uid),)


def starting_message(policy_input: PolicyInput, attempt: int) -> str:
    """Message of a starting pod, the same before and after the pod is known."""
    return f'Pod "{names.pod_name(policy_input.job.name, attempt)}" is starting'


def seconds_until_overdue(policy_input: PolicyInput, *pods: PodView) -> float | None:
    """Reconcile again once one of these pods should have ended, to name the remedy."""
    times = [pod.deletion_time for pod in pods if pod.deletion_time is not None]
    waits = [policy_input.seconds_until(moment) for moment in times if moment >= policy_input.now]
    return min(waits) + 1.0 if waits else None


def terminating_message(policy_input: PolicyInput, pod: PodView) -> str:
    """Message of a pod that is being deleted, with the remedy after its grace period."""
    deadline = pod.deletion_time
    if deadline is None or policy_input.now <= deadline:
        until = f" until {format_timestamp(deadline)}" if deadline else ""
        return f'Pod "{pod.name}" is being deleted; its trainer has{until} to stop'
    return (
        f'Pod "{pod.name}" is being deleted, but node "{pod.node}" has not confirmed that its '
        "process ended; no other attempt starts before that. If the node is lost, add the taint "
        "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute to it, or run kubectl delete "
        f"pod {pod.name} -n {policy_input.job.namespace} --force --grace-period=0"
    )


# State transitions of an attempt.


def pending(policy_input: PolicyInput, attempt: int) -> dict[str, Any]:
    """Status fields of a recorded attempt whose trainer has not started."""
    is_same = attempt == policy_input.status.attempt
    return {
        "attempt": attempt,
        "attempt_state": AttemptState.PENDING,
        "pod_name": names.pod_name(policy_input.job.name, attempt),
        "host": policy_input.status.host if is_same else None,
        "retry_time": None,
    }


def running(policy_input: PolicyInput, pod: PodView) -> dict[str, Any]:
    """Status fields of an attempt whose trainer has started."""
    start = policy_input.status.start_time
    return {
        "attempt": pod.attempt,
        "attempt_state": AttemptState.RUNNING,
        "pod_name": pod.name,
        "host": pod.node,
        "start_time": start or (format_timestamp(pod.started) if pod.started else None),
        "retry_time": None,
    }


def ended(policy_input: PolicyInput, retry_time: datetime | None = None) -> dict[str, Any]:
    """Status fields of an ended attempt, with the time of the next one if there is one."""
    pod, result = policy_input.pod, policy_input.result
    end = pod.termination if pod is not None else None
    start = policy_input.status.start_time
    attempt = policy_input.attempt
    return {
        "attempt": attempt,
        "attempt_state": AttemptState.ENDED if attempt else None,
        "pod_name": names.pod_name(policy_input.job.name, attempt) if attempt else None,
        "host": (pod.node if pod is not None else None) or policy_input.status.host,
        "start_time": start or (format_timestamp(end.started) if end and end.started else None),
        "retry_time": format_timestamp(retry_time) if retry_time else None,
        "waiting": None,
        "checkpoint": policy_input.checkpoint,
        "warnings": result.warnings if result is not None else policy_input.status.warnings,
    }


def finished(policy_input: PolicyInput) -> dict[str, Any]:
    """Status fields of a finished job; its last attempt ended at the time its container has."""
    pod = policy_input.pod
    end = pod.termination if pod is not None else None
    moment = end.finished if end and end.finished else policy_input.now
    return {**ended(policy_input), "completion_time": format_timestamp(moment)}
