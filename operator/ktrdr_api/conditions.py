"""Condition types, phases and reasons of a TrainingJob, each with its meaning.

The operator's policies set them; `reference.py` generates docs/reference/conditions.md from the
docstrings here. All of these values are API: scripts and alerts match on them.
"""

from enum import StrEnum
from typing import Final


class ConditionType(StrEnum):
    """The eight conditions of a TrainingJob; all are present from the operator's first update."""

    RECONCILING = "Reconciling"
    """The operator is working towards the spec (kstatus: InProgress)."""
    STALLED = "Stalled"
    """The job has failed and will not be retried (kstatus: Failed)."""
    SUSPENDED = "Suspended"
    """The job has no pod because it is suspended; always False in this version."""
    RUNNING = "Running"
    """The trainer has started and has not ended."""
    COMPLETE = "Complete"
    """The trained model is on the output volume."""
    FAILED = "Failed"
    """The job has ended without a model: it failed or was cancelled."""
    CANCELLED = "Cancelled"
    """The job has ended because a user cancelled it; the receipt is in `status.cancellation`."""
    FINISHED = "Finished"
    """The job has ended, with any outcome, and will never run again."""


TERMINAL: Final = (
    ConditionType.COMPLETE,
    ConditionType.FAILED,
    ConditionType.CANCELLED,
    ConditionType.FINISHED,
)
"""Conditions that stay True once they are True; a CEL rule of the CRD enforces it."""


class Reason(StrEnum):
    """Reasons of conditions, of `status.reason`, of `status.waiting` and of Events."""

    PENDING = "Pending"
    """Waiting for a pod of a deleted TrainingJob with the same name to terminate."""
    STARTING = "Starting"
    """The pod of the current attempt is being created, scheduled or pulled."""
    UNSCHEDULABLE = "Unschedulable"
    """No node can run the pod; `waiting.message` has the scheduler's message."""
    IMAGE_PULL_FAILED = "ImagePullFailed"
    """The kubelet cannot pull the image. A job that has never run fails after a grace period; a job
    that has run waits until the image can be pulled."""
    VOLUME_NOT_READY = "VolumeNotReady"
    """A PersistentVolumeClaim does not exist or is not bound; the job starts once it is."""
    STRATEGY_NOT_FOUND = "StrategyNotFound"
    """The ConfigMap with the strategy, or its key, does not exist; the job starts once it does."""
    FAILED_CREATE = "FailedCreate"
    """The API server rejected the pod or another object of the job (quota, admission, Pod
    Security) or could not be reached; retried at `waiting.retryTime`, and `waiting.message` has the
    API server's message."""
    POD_NOT_READY = "PodNotReady"
    """The pod exists but cannot start: a volume, the sandbox, an init container, a device or a
    scheduling gate holds it up; `waiting.message` has the kubelet's message."""
    NAME_CONFLICT = "NameConflict"
    """An object with the name that the job needs belongs to another owner; it is left unchanged.
    Delete it, or use another name for the TrainingJob."""
    RUNNING = "Running"
    """The trainer is running."""
    NOT_REPORTING = "NotReporting"
    """The trainer is running but has not reported progress for a while; it may hang."""
    TERMINATING = "Terminating"
    """The pod is being deleted, and its node has not confirmed that the process has ended."""
    RETRYING = "Retrying"
    """An attempt has ended; the next one starts at `status.retryTime`."""
    CANCELLING = "Cancelling"
    """A user has cancelled the job; the trainer has not ended yet."""
    CANCELLED = "Cancelled"
    """The job was cancelled by a user."""
    COMPLETED = "Completed"
    """The trained model is on the output volume."""
    INVALID_STRATEGY = "InvalidStrategy"
    """The strategy is invalid (exit code 2); not retried."""
    INVALID_REQUEST = "InvalidRequest"
    """The trainer cannot run with this request (exit code 2), the pod is invalid, or the operator
    cannot read the spec; not retried."""
    INVALID_DATA = "InvalidData"
    """Market data are missing or invalid (exit code 3); not retried."""
    OOM_KILLED = "OOMKilled"
    """The trainer was killed for lack of memory, at its limit or on its node; not retried."""
    BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"
    """The job has failed more often than `spec.backoffLimit` allows."""
    DISRUPTION_LIMIT_EXCEEDED = "DisruptionLimitExceeded"
    """The job was disrupted more often in a row, without a new checkpoint, than
    `spec.disruptionLimit` allows."""
    TRAINER_FAILED = "TrainerFailed"
    """The trainer exited with an error; retried up to `spec.backoffLimit` times."""
    DISRUPTED = "Disrupted"
    """The pod was evicted, preempted, drained, deleted, rejected by the kubelet or lost with its
    node; retried, and not counted in `status.retries`."""
    TRAINER_WARNING = "TrainerWarning"
    """Event only: a warning of the trainer, which is also in `status.warnings`."""
    EXPIRED = "Expired"
    """Event only: `spec.ttlSecondsAfterFinished` has passed, so the operator deletes the job."""
    NOT_APPLICABLE = "NotApplicable"
    """The condition is False in the current phase."""


class Phase(StrEnum):
    """State in one word, for users; programs read the conditions, from which it is derived."""

    PENDING = "Pending"
    """The job has no pod yet; `status.message` says what is missing."""
    STARTING = "Starting"
    """The pod of the current attempt is being created, scheduled or pulled."""
    RUNNING = "Running"
    """The trainer is running."""
    CANCELLING = "Cancelling"
    """A user has cancelled the job; the trainer has not ended yet."""
    RETRYING = "Retrying"
    """An attempt has ended; the next one starts at `status.retryTime`."""
    SUCCEEDED = "Succeeded"
    """The trained model is on the output volume; see `status.result`."""
    FAILED = "Failed"
    """The job has ended without a model; `status.failure` says why."""
    CANCELLED = "Cancelled"
    """The job was cancelled by a user; the receipt is in `status.cancellation`."""


CONDITIONS_OF_PHASE: Final[dict[Phase, frozenset[ConditionType]]] = {
    Phase.PENDING: frozenset({ConditionType.RECONCILING}),
    Phase.STARTING: frozenset({ConditionType.RECONCILING}),
    Phase.RUNNING: frozenset({ConditionType.RUNNING}),
    Phase.CANCELLING: frozenset({ConditionType.RECONCILING}),
    Phase.RETRYING: frozenset({ConditionType.RECONCILING}),
    Phase.SUCCEEDED: frozenset({ConditionType.COMPLETE, ConditionType.FINISHED}),
    Phase.FAILED: frozenset({ConditionType.STALLED, ConditionType.FAILED, ConditionType.FINISHED}),
    Phase.CANCELLED: frozenset(
        {ConditionType.FAILED, ConditionType.CANCELLED, ConditionType.FINISHED}
    ),
}
"""Conditions that are True in each phase; all others are False. While a running trainer is being
cancelled, `Running` stays True until its process has ended."""
