"""Snapshot: everything a decision may depend on, frozen. And the Plan that a decision answers.

Made by `observe`, read by `decide` and its policies. No I/O and no clock here, so that every
decision can be repeated on paper.
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
    """Silence of a running trainer after which the job says so."""


@dataclass(frozen=True, slots=True)
class Termination:
    """End of the trainer container."""

    exit_code: int
    reason: str
    """The kubelet's reason, for example OOMKilled."""
    message: str
    """Termination message, or the end of the log when the trainer wrote none."""
    started: datetime | None
    """None when the container never started."""
    finished: datetime | None
    result: RunResult | None
    """The message, when it is a RunResult."""


@dataclass(frozen=True, slots=True)
class WaitReason:
    """Why a pod has not started, in the words of whoever holds it up."""

    reason: str
    message: str
    is_progress: bool = False
    """Whether it reports work (an image is pulled, an init container runs), not trouble."""


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
    """Known only from a DELETED event."""
    unlabelled: bool
    """Without the job's label: the watch does not report this pod."""
    disrupted: bool
    """Evicted, preempted or drained."""
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
        """Whether no trainer process of this pod can run any more."""
        return self.gone or self.termination is not None or self.phase in ("Succeeded", "Failed")

    @property
    def lingers(self) -> bool:
        """Whether the trainer has ended and another container keeps the pod running.

        Not by the phase: the kubelet reports Running for a moment after the last container ended.
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
    """The strategy of the attempt to be started; `problem` says why there is none."""

    text: str = ""
    digest: str = ""
    """Of the text, where only that is known: the job's own ConfigMap holds the text."""
    problem: str = ""
    is_stored: bool = False
    """Whether the job's own ConfigMap holds the text already."""
    retry_seconds: float = 60.0
    """With a problem: when the ConfigMap is read again."""


@dataclass(frozen=True)
class JobView:
    """The TrainingJob itself."""

    namespace: str
    name: str
    uid: str
    generation: int
    deleting: bool
    orphaning: bool
    """Being deleted with `--cascade=orphan`: its pods stay."""
    labels: dict[str, str]
    annotations: dict[str, str]
    spec: TrainingJobSpec
    status: TrainingJobStatus
    """With the latest known progress."""
    resource_version: str
    """The latest known one."""
    unreadable: str = ""
    """Why the spec cannot be parsed; `spec` then has only what could be read."""


class CreateFailureKind(StrEnum):
    """What a failed create of a child means."""

    INVALID = "Invalid"
    """The API server says that this object can never be valid."""
    REFUSED = "Refused"
    """Refused or failed for a reason that may pass: quota, admission, a webhook."""
    NAME_CONFLICT = "NameConflict"
    """Another owner's object has the name."""


@dataclass(frozen=True)
class CreateFailure:
    """A child of the attempt that is being started could not be created."""

    kind: CreateFailureKind
    message: str


@dataclass(frozen=True)
class Snapshot:
    """Everything a decision may depend on."""

    job: JobView | None
    """None when it does not exist."""
    pods: tuple[PodView, ...] = ()
    """All pods with the job's label, those of an earlier same-named job included."""
    strategy: StrategyText | None = None
    """Read only when an attempt may start now."""
    report_interval_seconds: int | None = None
    """How long trainers should wait between reports, for all jobs; None when as they like."""
    seconds_since_report: float | None = None
    """Since the trainer's latest report arrived here."""
    seconds_since_write: float | None = None
    """Since this process last wrote the job's status; None when it has not."""
    create_failure: CreateFailure | None = None
    """Outcome of the start that was just tried."""
    status_refused: str = ""
    """Why the API server refused the status that was just decided (422)."""

    def current(self) -> PodView | None:
        """Rank 0 of the current attempt; of attempt 1 when none is on record yet.

        By its whole name: anybody may create other pods with the job's label and owner reference.
        """
        job = self.job
        if job is None:
            return None
        name = names.pod_name(job.name, max(job.status.attempt, 1))
        mine = [pod for pod in self.pods if (pod.owner_uid, pod.name) == (job.uid, name)]
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
    strategy: StrategyText


@dataclass(frozen=True)
class Plan:
    """What to do now. An empty plan means: all is as it should be."""

    status: TrainingJobStatus | None = None
    """The status to have; None when there is no TrainingJob to write to."""
    start: AttemptStart | None = None
    deletions: tuple[PodDeletion, ...] = ()
    events: tuple[PlannedEvent, ...] = ()
    expire: bool = False
    """Delete the TrainingJob: its time to live after the end is over."""
    requeue_seconds: float | None = field(default=None)
    """Reconcile again then even if nothing happens; deadlines are recomputed from stored times."""
