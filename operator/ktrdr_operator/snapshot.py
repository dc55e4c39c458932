"""What a decision may depend on, frozen: one TrainingJob, its pods, its strategy, and the limits.

Made by `observe`, read by `decide` and its policies. No I/O and no clock here, so that every
decision can be repeated on paper.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from ktrdr_api.run_contract import RunResult
from ktrdr_api.training_job import TrainingJobSpec, TrainingJobStatus


@dataclass(frozen=True)
class Limits:
    """Operator-wide settings that decisions obey."""

    trainer_image: str
    image_pull_policy: str
    image_pull_grace_seconds: float
    retry_base_seconds: float
    retry_cap_seconds: float


@dataclass(frozen=True)
class Termination:
    """How the trainer container ended."""

    exit_code: int
    reason: str
    """The kubelet's word, for example OOMKilled."""
    message: str
    """Termination message, or the end of the log when the trainer wrote none."""
    started: datetime | None
    finished: datetime | None
    result: RunResult | None
    """The message, when it is a RunResult."""


@dataclass(frozen=True)
class WaitReason:
    """Why a pod has not started, in the words of whoever holds it up."""

    reason: str
    message: str


@dataclass(frozen=True)
class PodView:
    """One pod of a TrainingJob."""

    name: str
    uid: str
    owner_uid: str
    """UID of the TrainingJob that controls it; empty for a pod of somebody else."""
    attempt: int
    rank: int
    node: str | None
    deleting: bool
    gone: bool
    """Known only from the watch's DELETED event."""
    disrupted: bool
    """Evicted, preempted or drained."""
    failed: bool
    """Phase Failed, with or without a container's verdict."""
    pod_message: str
    started: datetime | None
    """When the trainer container started."""
    termination: Termination | None
    wait_reason: WaitReason | None

    @property
    def ended(self) -> bool:
        """Whether no process of this pod can run any more."""
        return self.gone or self.termination is not None or self.failed


@dataclass(frozen=True)
class StrategyText:
    """The strategy of the attempt to be started; `problem` says why there is none."""

    text: str = ""
    problem: str = ""


@dataclass(frozen=True)
class JobView:
    """The TrainingJob itself."""

    namespace: str
    name: str
    uid: str
    generation: int
    deleting: bool
    labels: dict[str, str]
    spec: TrainingJobSpec
    status: TrainingJobStatus
    """With the newest known progress."""
    resource_version: str
    """The newest known one."""


@dataclass(frozen=True)
class Snapshot:
    """Everything a decision may depend on."""

    job: JobView | None
    """None when it no longer exists."""
    pods: tuple[PodView, ...]
    """All pods that carry the job's label, those of an earlier same-named job included."""
    strategy: StrategyText | None
    """Read only when an attempt may start now."""
    report_period_seconds: int | None = None
    """How long trainers should wait between reports, for all jobs; None when as they like."""

    def current(self) -> PodView | None:
        """Rank 0 of the attempt recorded in status, if its pod is known."""
        job = self.job
        if job is None or job.status.attempt == 0:
            return None
        mine = [
            pod
            for pod in self.pods
            if pod.owner_uid == job.uid and pod.attempt == job.status.attempt and pod.rank == 0
        ]
        return min(mine, key=lambda pod: pod.gone, default=None)


@dataclass(frozen=True)
class PodDeletion:
    """A pod to delete; the UID keeps a same-named newer one safe."""

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
    strategy: str


@dataclass(frozen=True)
class Plan:
    """What to do now. An empty plan means: all is as it should be."""

    status: TrainingJobStatus | None = None
    """The status to have; None when there is no TrainingJob to write to."""
    start: AttemptStart | None = None
    deletions: tuple[PodDeletion, ...] = ()
    events: tuple[PlannedEvent, ...] = ()
    requeue_seconds: float | None = None
    """Come back then even if nothing happens; deadlines are recomputed from stored times."""
