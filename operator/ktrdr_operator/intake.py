"""Event intake: stores each event of a TrainingJob or pod and enqueues the key of the TrainingJob.

The only place where watch events reach `store` and `queue`, in the order in which the API server
sent them, and the only place that chooses priorities. `watch_filter` calls it for every object
event of a watch, `handlers` for events that reach kopf; `resync` uses `priority_of`. The workers of
the queue go on with `reconcile`.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from ktrdr_operator.queue import Priority, WorkQueue
from ktrdr_operator.store import JobKey, KnownJob, Store, job_key, owner_key
from ktrdr_operator.views import Raw

DELETED: Final = "DELETED"


class Cause(Enum):
    """Why a TrainingJob is enqueued."""

    JOB_CHANGED = "job changed"
    JOB_DELETED = "job deleted"
    POD_CHANGED = "pod changed"
    POD_ENDED = "pod ended"
    """Its phase is Succeeded or Failed, or it was deleted."""
    LISTED = "listed"
    """A full list differs from the store."""


def priority_of(cause: Cause, job: KnownJob | None) -> Priority:
    """Return the queue priority of an event.

    Args:
        cause: the event.
        job: the TrainingJob as known now; None when it does not exist.
    """
    if cause is Cause.JOB_DELETED:
        return Priority.STOP
    if job is not None and job.is_stop_requested and cause is not Cause.POD_CHANGED:
        return Priority.STOP
    if cause in (Cause.POD_CHANGED, Cause.LISTED):
        return Priority.STATUS_ONLY
    return Priority.RECONCILE


@dataclass(frozen=True)
class Intake:
    """Stores and enqueues events; has no state of its own."""

    store: Store
    queue: WorkQueue[JobKey]

    def take_job(self, kind: str, raw: Raw, size_bytes: int = 0) -> bool:
        """Take an event of a TrainingJob.

        Args:
            kind: type of the watch event.
            raw: the object.
            size_bytes: its size on the wire; 0 measures it.

        Returns:
            Whether its key was enqueued.
        """
        key, metadata = job_key(raw), raw["metadata"]
        if kind == DELETED:
            self.store.drop_job(key, metadata["uid"], int(metadata["resourceVersion"]))
            self._add(Cause.JOB_DELETED, key)
            return True
        if not self.store.put_job(raw, size_bytes):
            return False
        self._add(Cause.JOB_CHANGED, key)
        return True

    def take_pod(self, kind: str, raw: Raw) -> bool:
        """Take an event of a pod; returns whether the key of its TrainingJob was enqueued."""
        key = owner_key(raw)
        if key is None:
            return False
        is_deleted = kind == DELETED
        if not (self.store.drop_pod if is_deleted else self.store.put_pod)(raw):
            return False
        has_ended = is_deleted or raw.get("status", {}).get("phase") in ("Succeeded", "Failed")
        self._add(Cause.POD_ENDED if has_ended else Cause.POD_CHANGED, key)
        return True

    def _add(self, cause: Cause, key: JobKey) -> None:
        self.queue.add(key, priority_of(cause, self.store.jobs.get(key)))
