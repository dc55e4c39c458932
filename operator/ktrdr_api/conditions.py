"""Condition types, and every reason that can stand in one: the vocabulary of `kubectl describe`.

Used by the operator's policies and by the documentation (`docs/reference/conditions.md` is
generated from this module). A reason is API: scripts and alerts match on it.
"""

from enum import StrEnum
from typing import Final


class ConditionType(StrEnum):
    """The eight conditions of a TrainingJob; all are present from the operator's first visit."""

    RECONCILING = "Reconciling"
    """Not yet where the spec wants it (kstatus: InProgress)."""
    STALLED = "Stalled"
    """Failed for good (kstatus: Failed)."""
    SUSPENDED = "Suspended"
    """Holds no pod on purpose; always False in this version."""
    RUNNING = "Running"
    """The trainer has started and has not ended."""
    COMPLETE = "Complete"
    """The model is stored."""
    FAILED = "Failed"
    """Ended without a model: failure or cancel."""
    CANCELLED = "Cancelled"
    """Ended because a person asked; the receipt is in `status.cancellation`."""
    FINISHED = "Finished"
    """Will never run again, whatever the end was."""


TERMINAL: Final = (
    ConditionType.COMPLETE,
    ConditionType.FAILED,
    ConditionType.CANCELLED,
    ConditionType.FINISHED,
)
"""Once True, True for ever (also by CEL)."""


class Reason(StrEnum):
    """Reasons of conditions and events."""

    PENDING = "Pending"
    """Seen; a pod of an earlier TrainingJob of this name has to go first."""
    STARTING = "Starting"
    """An attempt is on record, the trainer has not started."""
    UNSCHEDULABLE = "Unschedulable"
    """No node takes the pod; `waiting.message` has the scheduler's words."""
    IMAGE_PULL_FAILED = "ImagePullFailed"
    """The image cannot be pulled; the job fails when that lasts longer than the grace time."""
    VOLUME_NOT_READY = "VolumeNotReady"
    """A PersistentVolumeClaim is missing or not bound."""
    STRATEGY_NOT_FOUND = "StrategyNotFound"
    """The ConfigMap or its key is missing; the job starts when it appears."""
    FAILED_CREATE = "FailedCreate"
    """The API server refused a child (quota, admission, PSA); `waiting.message` has its words."""
    POD_NOT_READY = "PodNotReady"
    """The pod is placed but not started: a volume, the sandbox, an init container, a device or a
    scheduling gate holds it up; `waiting.message` has the words of the kubelet."""
    NAME_CONFLICT = "NameConflict"
    """A child's name is taken by an object of another owner, which is left untouched."""
    RUNNING = "Running"
    """The trainer runs."""
    NOT_REPORTING = "NotReporting"
    """The trainer runs but has not reported progress for a while; it may hang."""
    TERMINATING = "Terminating"
    """The pod is being deleted and the end of its process is not confirmed."""
    RETRYING = "Retrying"
    """An attempt ended and another will be made after the backoff."""
    CANCELLING = "Cancelling"
    """Cancel was asked; the trainer has not ended yet."""
    CANCELLED = "Cancelled"
    """Ended on request."""
    COMPLETED = "Completed"
    """Ended with a stored model."""
    INVALID_STRATEGY = "InvalidStrategy"
    """The strategy was refused (exit code 2)."""
    INVALID_REQUEST = "InvalidRequest"
    """The request was refused (exit code 2), or the spec cannot be read."""
    INVALID_DATA = "InvalidData"
    """Market data are missing or bad (exit code 3)."""
    OOM_KILLED = "OOMKilled"
    """The trainer was killed at its memory limit; not retried."""
    BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"
    """Failed more often than `backoffLimit` allows."""
    DISRUPTION_LIMIT_EXCEEDED = "DisruptionLimitExceeded"
    """Disrupted more often in a row, without a new checkpoint, than `disruptionLimit` allows."""
    TRAINER_FAILED = "TrainerFailed"
    """The trainer ended with an error."""
    DISRUPTED = "Disrupted"
    """The pod was evicted, preempted, drained, deleted, rejected by the kubelet or lost with its
    node; retried, not counted in `retries`."""
    TRAINER_WARNING = "TrainerWarning"
    """Event only: a warning of the trainer, also in `status.warnings`."""
    EXPIRED = "Expired"
    """Event only: `ttlSecondsAfterFinished` is over, the TrainingJob is deleted."""
    NOT_APPLICABLE = "NotApplicable"
    """This condition does not apply in the present state."""


class Phase(StrEnum):
    """One word for people, derived from the conditions; programs read conditions."""

    PENDING = "Pending"
    """No pod yet; `message` says what is missing."""
    STARTING = "Starting"
    """The attempt is on record; its pod is being created, placed or pulled."""
    RUNNING = "Running"
    """The trainer runs."""
    CANCELLING = "Cancelling"
    """Cancel was asked and the process has not ended yet."""
    RETRYING = "Retrying"
    """An attempt has ended; the next one follows."""
    SUCCEEDED = "Succeeded"
    """The model is stored."""
    FAILED = "Failed"
    """Ended without a model; `failure` says why."""
    CANCELLED = "Cancelled"
    """Ended on request; the receipt is in `cancellation`."""


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
"""Which conditions hold in which phase; all others are False. While a trainer that ran is being
cancelled, `Running` stays True until its process is gone."""
