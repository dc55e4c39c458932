"""What a policy is given and what it answers."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from ktrdr_api.conditions import Phase, Reason
from ktrdr_api.run_contract import Outcome, RunResult
from ktrdr_api.training_job import CheckpointStatus, TrainingJobStatus, Waiting
from ktrdr_operator.snapshot import AttemptStart, JobView, Limits, PodDeletion, PodView, Snapshot

_REFUSALS: Final = frozenset({Reason.FAILED_CREATE, Reason.NAME_CONFLICT})


@dataclass(frozen=True)
class PolicyInput:
    """One TrainingJob that exists and has not finished, at one moment."""

    snapshot: Snapshot
    job: JobView
    now: datetime
    limits: Limits

    @property
    def status(self) -> TrainingJobStatus:
        """Status as it stands."""
        return self.job.status

    @property
    def pod(self) -> PodView | None:
        """Rank 0 of the current attempt."""
        return self.snapshot.current()

    @property
    def result(self) -> RunResult | None:
        """The last word of the current attempt, if it speaks of this very TrainingJob.

        Or of none: a trainer that could not read its request does not know whose it was.
        """
        end = self.pod.termination if self.pod is not None else None
        result = end.result if end is not None else None
        if result is None or result.job_uid == self.job.uid:
            return result
        return result if not result.job_uid and result.outcome is Outcome.FAILED else None

    @property
    def create_failure(self) -> Waiting | None:
        """Why a child of the recorded attempt could not be created, until its pod is seen."""
        waiting = self.status.waiting
        return waiting if waiting is not None and waiting.reason in _REFUSALS else None

    @property
    def is_waiting_for_retry(self) -> bool:
        """Whether the current attempt is over and the next one only waits for its time."""
        return self.status.retry_time is not None and self.create_failure is None

    @property
    def has_reported(self) -> bool:
        """Whether the trainer of the current attempt got as far as reporting progress."""
        progress = self.status.progress
        return progress is not None and progress.attempt == self.status.attempt

    @property
    def checkpoint(self) -> CheckpointStatus | None:
        """The last durable one: of the last word, else of this attempt's reports, else as known."""
        if self.result is not None and self.result.checkpoint is not None:
            return CheckpointStatus(**self.result.checkpoint.model_dump())
        progress = self.status.progress if self.has_reported else None
        reported = progress.checkpoint if progress is not None else None
        return reported or self.status.checkpoint

    def unfinished_pods(self) -> tuple[PodView, ...]:
        """Pods of this very TrainingJob in which a process may still run."""
        return tuple(
            pod for pod in self.snapshot.pods if pod.owner_uid == self.job.uid and not pod.ended
        )

    def pods_of_deleted_job(self) -> tuple[PodView, ...]:
        """Pods of an earlier TrainingJob of the same name that still hold their names."""
        return tuple(
            pod
            for pod in self.snapshot.pods
            if pod.owner_uid not in ("", self.job.uid) and not pod.gone
        )

    def seconds_until(self, moment: datetime) -> float:
        """Seconds from now, never negative."""
        return max((moment - self.now).total_seconds(), 0.0)


@dataclass(frozen=True)
class PolicyResult:
    """The state a policy found, and what is to be done about it."""

    phase: Phase
    reason: Reason
    message: str
    changes: dict[str, Any] = field(default_factory=dict)
    """Status fields to set, by their Python names; what is not named stays."""
    start: AttemptStart | None = None
    deletions: tuple[PodDeletion, ...] = ()
    requeue_seconds: float | None = None


def format_timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, whole seconds, as the API server writes times."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> datetime:
    """The inverse of `timestamp`."""
    return datetime.fromisoformat(text)


def deletion_of(pod: PodView) -> tuple[PodDeletion, ...]:
    """The deletion of a pod, unless it is under way already."""
    return () if pod.deleting or pod.gone else (PodDeletion(pod.name, pod.uid),)


def starting_message(pod_name: str) -> str:
    """The same words before and after the pod is known: a start costs one status write, not two."""
    return f'Pod "{pod_name}" is starting'
