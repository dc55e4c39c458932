"""Snapshot: everything a decision may depend on, frozen; and the Plan that a decision returns.

Built by `observe`, read by `decide` and its policies; the Plan goes on to `apply`. No I/O and no
clock here, so that every decision can be reproduced from its Snapshot.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal

from ktrdr_api import names
from ktrdr_api.run_contract import RunResult
from ktrdr_api.training_job import TrainingJobSpec, TrainingJobStatus


@dataclass(frozen=True)
class Limits:
    """Operator-wide settings that policies depend on."""

    image_pull_grace_seconds: float
    retry_base_seconds: float
    retry_cap_seconds: float
    no_report_seconds: float = 300.0
    """Seconds without a progress report after which a running job gets the reason NotReporting."""


@dataclass(frozen=True, slots=True)
class Termination:
    """End of the trainer container."""

    exit_code: int
    reason: str
    """The kubelet's reason, for example OOMKilled."""
    message: str
    """Termination message, or the end of the log if the trainer wrote none."""
    started: datetime | None
    """None when the container never started."""
    finished: datetime | None
    result: RunResult | None
    """Run result; None when the message is not one."""


@dataclass(frozen=True, slots=True)
class WaitReason:
    """Why a pod has not started, with the message of the scheduler or the kubelet."""

    reason: str
    message: str
    is_progress: bool = False
    """Whether the pod gets further (an image is pulled, an init container runs)."""


@dataclass(frozen=True, slots=True)
class PodView:
    """One pod of a TrainingJob."""

    name: str
    uid: str
    owner_uid: str
    """UID of the TrainingJob that controls it; empty for a pod of another owner."""
    attempt: int
    rank: int
    node: str | None
    created: datetime | None
    deletion_time: datetime | None
    """When its grace period ends; None unless it is being deleted."""
    gone: bool
    """Whether the pod is deleted; this is its last known state."""
    unlabelled: bool
    """Whether the pod lacks the job's label, so that the watch does not report it."""
    disrupted: bool
    """Whether the pod was evicted, preempted or drained."""
    phase: str
    message: str
    """The pod's own message, for example why the kubelet rejected it."""
    scheduler: str
    started: datetime | None
    """When the trainer container started, while it runs."""
    termination: Termination | None
    others_alive: bool
    """Whether a container other than the trainer, init containers excluded, has not ended."""
    wait_reason: WaitReason | None

    @property
    def deleting(self) -> bool:
        """Whether its deletion has been requested."""
        return self.deletion_time is not None

    @property
    def ended(self) -> bool:
        """Whether no trainer process of this pod can run now or later."""
        return self.gone or self.termination is not None or self.phase in ("Succeeded", "Failed")

    @property
    def lingers(self) -> bool:
        """Whether the trainer has ended and another container keeps the pod running.

        The phase alone is not enough: the kubelet reports Running for a moment after the last
        container has ended.
        """
        over = self.gone or self.deleting or self.phase in ("Succeeded", "Failed")
        return self.termination is not None and self.others_alive and not over

    @property
    def never_started(self) -> bool:
        """Whether the pod ended before its trainer container started."""
        end = self.termination
        return self.phase == "Failed" and (end is None or end.started is None)


@dataclass(frozen=True)
class StrategyText:
    """Strategy of the attempt to be started, or the problem why there is none."""

    text: str = ""
    digest: str = ""
    """Digest of the text, if only that is known because the text is in the job's own ConfigMap."""
    problem: str = ""
    is_stored: bool = False
    """Whether the job's own ConfigMap contains the text already."""
    retry_seconds: float = 60.0
    """Seconds until the ConfigMap is read again; only with a problem."""


@dataclass(frozen=True)
class JobView:
    """TrainingJob, parsed."""

    namespace: str
    name: str
    uid: str
    generation: int
    deleting: bool
    orphaning: bool
    """Whether it is deleted with `--cascade=orphan`: its pods stay."""
    labels: dict[str, str]
    annotations: dict[str, str]
    spec: TrainingJobSpec
    status: TrainingJobStatus
    """Status, with the latest known progress."""
    resource_version: str
    """Latest known `metadata.resourceVersion`."""
    unreadable: str = ""
    """Why the spec cannot be parsed; `spec` then has only the fields that could be read."""

    @property
    def gpus(self) -> int:
        """GPUs that each pod requests."""
        limits = self.spec.trainer.resources.limits
        return sum(int(count) for name, count in limits.items() if names.is_gpu_resource(name))


class CreateFailureKind(StrEnum):
    """Consequence of a failed create of a child."""

    INVALID = "Invalid"
    """The API server has rejected the object as invalid; a retry cannot succeed."""
    REFUSED = "Refused"
    """Rejected or failed for a reason that may disappear: quota, admission, a webhook."""
    NAME_CONFLICT = "NameConflict"
    """An object of another owner has the name."""


@dataclass(frozen=True)
class CreateFailure:
    """Failure to create a child of the attempt that is being started."""

    kind: CreateFailureKind
    message: str


@dataclass(frozen=True)
class Snapshot:
    """Everything a decision may depend on."""

    job: JobView | None
    """None when it does not exist."""
    pods: tuple[PodView, ...] = ()
    """All pods with the job's label, including those of a deleted job of the same name."""
    strategy: StrategyText | None = None
    """None unless an attempt may start now."""
    report_interval_seconds: int | None = None
    """Minimum seconds between progress reports, for all trainers; None without a limit."""
    unwritten_jobs: int = 0
    """TrainingJobs of the whole cluster whose status nobody has written yet."""
    seconds_since_report: float | None = None
    """Seconds since the operator received the trainer's latest report."""
    seconds_since_write: float | None = None
    """Seconds since this process last wrote the job's status; None if it has not."""
    create_failure: CreateFailure | None = None
    """Failure of the start that was just tried; None without one."""
    status_refused: str = ""
    """Why the API server has rejected the status that was just decided (422)."""

    def current(self) -> PodView | None:
        """Rank 0 of the current attempt; of attempt 1 if no attempt is recorded.

        Selected by its full name: any user may create other pods with the job's label and owner
        reference.
        """
        job = self.job
        if job is None:
            return None
        name = names.pod_name(job.name, max(job.status.attempt, 1))
        mine = [pod for pod in self.pods if (pod.owner_uid, pod.name) == (job.uid, name)]
        return min(mine, key=lambda pod: pod.gone, default=None)


@dataclass(frozen=True)
class PodDeletion:
    """Pod to delete; the UID protects a newer pod of the same name."""

    name: str
    uid: str


@dataclass(frozen=True)
class PlannedEvent:
    """A Kubernetes Event to post."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class AttemptStart:
    """Children to create for one attempt."""

    attempt: int
    strategy: StrategyText


@dataclass(frozen=True)
class Plan:
    """Actions to take now. An empty plan means that nothing has to change."""

    status: TrainingJobStatus | None = None
    """Status to write; None when there is no TrainingJob to write to."""
    start: AttemptStart | None = None
    deletions: tuple[PodDeletion, ...] = ()
    events: tuple[PlannedEvent, ...] = ()
    expire: bool = False
    """Whether to delete the TrainingJob, because its TTL is over."""
    requeue_seconds: float | None = field(default=None)
    """Seconds until the next reconcile if no event comes first. It recomputes deadlines from stored
    times."""
