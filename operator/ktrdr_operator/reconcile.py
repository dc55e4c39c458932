"""Reconcile one TrainingJob: observe, decide, apply; and say what went wrong where users look.

The queue's workers call `Reconciler.work` with a key. Level-triggered: it depends on the state it
finds, never on the event that brought it here, so any event may be lost, repeated or late.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Final

from pydantic import ValidationError

from ktrdr_api.conditions import Phase, Reason
from ktrdr_api.training_job import TrainingJobSpec, TrainingJobStatus
from ktrdr_client.cluster import (
    TRAINING_JOBS,
    ApiError,
    ClusterApi,
    Conflict,
    Invalid,
    NotFound,
)
from ktrdr_operator.apply import Applier
from ktrdr_operator.decide import decide, finish
from ktrdr_operator.events import EventRecorder
from ktrdr_operator.executors.cluster_pods import NameConflictError
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.observe import observe
from ktrdr_operator.policies.create_failed import create_failed
from ktrdr_operator.policies.interface import PolicyInput, PolicyResult, format_timestamp
from ktrdr_operator.queue import WorkQueue
from ktrdr_operator.snapshot import JobView, Limits, Plan
from ktrdr_operator.store import JobKey, Store
from ktrdr_operator.views import Raw, sanitize

log: Final = logging.getLogger(__name__)
_REFUSED: Final = frozenset({400, 403, 422})
"""Answers that say the request, not the server, is the trouble."""


_NO_VOLUME: Final = {"persistentVolumeClaim": {"claimName": "unreadable"}}
_NO_SPEC: Final = TrainingJobSpec.model_validate(
    {"strategy": {}, "data": _NO_VOLUME, "output": _NO_VOLUME}
)
"""Stands in for a spec that cannot be read, so that its status can be written."""


@dataclass(frozen=True)
class Reconciler:
    """Brings TrainingJobs, one key at a time, to where their specs want them."""

    cluster: ClusterApi
    store: Store
    queue: WorkQueue[JobKey]
    limits: Limits
    metrics: Metrics
    events: EventRecorder
    now: Callable[[], datetime]
    """The wall clock that stamps status."""

    async def work(self, key: JobKey, waited_seconds: float) -> None:
        """Reconcile one key; errors become conditions, logs and a backoff, never an exception."""
        self.metrics.queue_lag(waited_seconds)
        began = monotonic()
        try:
            await self._reconcile(key)
        except Exception as error:  # one poisonous object must not end a worker
            delay = self.queue.retry(key)
            self.metrics.reconcile(monotonic() - began, "error")
            self._log_failure(key, error, delay)
            return
        self.queue.forget(key)
        self.metrics.reconcile(monotonic() - began, "ok")

    @property
    def _applier(self) -> Applier:
        return Applier(self.cluster, self.store, self.limits)

    async def _reconcile(self, key: JobKey) -> None:
        try:
            snapshot = await observe(self.cluster, self.store, key)
        except ValidationError as invalid:
            await self._write_invalid(key, invalid)
            return
        plan = decide(snapshot, self.now(), self.limits)
        job = snapshot.job
        try:
            await self._applier.apply(key.namespace, job, plan)
        except (NotFound, Conflict, Invalid):
            await self._refresh(key)  # the store was behind the server
            raise
        if job is not None and plan.start is not None:
            try:
                await self._applier.start(job, plan.start)
            except (ApiError, NameConflictError) as refused:
                if not _is_refusal(refused):
                    raise
                await self._write_create_failure(key, refused)
                return
        if job is not None:
            self._record_events(key, job, plan)
        if plan.requeue_seconds is not None:
            self.queue.add_after(key, plan.requeue_seconds)

    def _record_events(self, key: JobKey, job: JobView, plan: Plan) -> None:
        """Events and counters, after the status they speak of is written."""
        raw = self.store.jobs.get(key)
        for event in plan.events:
            if raw is not None:
                self.events.record(raw, event.kind, event.reason, event.message)
            log.info(
                "%s: %s",
                event.reason,
                event.message,
                extra={"namespace": key.namespace, "job": key.name, "uid": job.uid},
            )
        if plan.start is not None:
            self.metrics.attempt_started()
        if plan.status is not None and plan.events:
            self._measure(plan.status, raw)

    def _measure(self, status: TrainingJobStatus, raw: Raw | None) -> None:
        if status.phase == Phase.RUNNING and status.attempt == 1 and raw is not None:
            created = datetime.fromisoformat(raw["metadata"]["creationTimestamp"])
            self.metrics.time_to_running((self.now() - created).total_seconds())
        receipt = status.cancellation
        if status.phase == Phase.CANCELLED and receipt is not None:
            asked = datetime.fromisoformat(receipt.requested_time)
            self.metrics.cancel((self.now() - asked).total_seconds())

    async def _write_create_failure(
        self, key: JobKey, refused: ApiError | NameConflictError
    ) -> None:
        """The server's words go where the user looks; the next try comes after a while."""
        reason = (
            Reason.NAME_CONFLICT if isinstance(refused, NameConflictError) else Reason.FAILED_CREATE
        )
        snapshot = await observe(self.cluster, self.store, key)
        if snapshot.job is None:
            return
        case = PolicyInput(snapshot=snapshot, job=snapshot.job, now=self.now(), limits=self.limits)
        plan = finish(case.job, create_failed(case, reason, sanitize(str(refused))), case.now)
        await self._applier.write_status(case.job, plan)
        self._record_events(key, case.job, plan)
        self.queue.add_after(key, plan.requeue_seconds or 0.0)

    async def _write_invalid(self, key: JobKey, invalid: ValidationError) -> None:
        """The schema should make this impossible; if not, it is one job's condition."""
        raw = self.store.jobs[key]
        if raw.get("status", {}).get("phase") == Phase.FAILED:
            return
        first = invalid.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        job = _placeholder_view(raw)
        draft = PolicyResult(
            phase=Phase.FAILED,
            reason=Reason.INVALID_REQUEST,
            message=sanitize(f"{where}: {first['msg']}; correct it in a new TrainingJob"),
            changes={"completion_time": format_timestamp(self.now())},
        )
        plan = finish(job, draft, self.now())
        await self._applier.write_status(job, plan)
        self._record_events(key, job, plan)

    async def _refresh(self, key: JobKey) -> None:
        """The store was behind the server: look again before the next try."""
        raw = await self.cluster.get(TRAINING_JOBS, key.namespace, key.name)
        known = self.store.jobs.get(key)
        if raw is not None:
            self.store.put_job(raw)
        elif known is not None:
            self.store.drop_job(key, known["metadata"]["uid"])

    def _log_failure(self, key: JobKey, error: Exception, delay: float) -> None:
        expected = isinstance(error, ApiError | NameConflictError)
        level = logging.WARNING if expected else logging.ERROR
        log.log(
            logging.DEBUG if isinstance(error, Conflict) else level,  # somebody else wrote, too
            "reconcile failed, next try in %.1f s: %s",
            delay,
            error,
            exc_info=None if expected else error,
            extra={"namespace": key.namespace, "job": key.name},
        )


def _is_refusal(error: ApiError | NameConflictError) -> bool:
    """Whether the request is the trouble; otherwise it is the server, and we just try again."""
    return isinstance(error, NameConflictError) or error.status in _REFUSED


def _placeholder_view(raw: Raw) -> JobView:
    """What can be said of a TrainingJob whose spec or status cannot be parsed."""
    metadata = raw["metadata"]
    return JobView(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        deleting="deletionTimestamp" in metadata,
        labels={},
        spec=_NO_SPEC,
        status=TrainingJobStatus(),
        resource_version=metadata["resourceVersion"],
    )
