"""Reconcile one TrainingJob: observe, decide, apply; and report failures where users look.

The queue's workers call `Reconciler.work` with a key. Level-triggered: it depends on the state it
finds, never on the event that added the key, so any event may be lost, repeated or late.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Final, NamedTuple

from ktrdr_api.conditions import ConditionType, Phase
from ktrdr_api.training_job import TrainingJobStatus
from ktrdr_client.cluster import (
    TRAINING_JOBS,
    ApiError,
    ClusterApi,
    Conflict,
    Invalid,
    NotFound,
)
from ktrdr_operator.apply import Applier
from ktrdr_operator.decide import decide, is_true
from ktrdr_operator.events import EventRecorder
from ktrdr_operator.executors.cluster_pods import ClusterPods, NameConflictError
from ktrdr_operator.manifests import PodDefaults
from ktrdr_operator.metrics import Metrics
from ktrdr_operator.notes import Note, Notes
from ktrdr_operator.observe import Observer
from ktrdr_operator.pod_events import PodEventReader
from ktrdr_operator.queue import WorkQueue
from ktrdr_operator.snapshot import (
    CreateFailure,
    CreateFailureKind,
    JobView,
    Limits,
    Plan,
    Snapshot,
)
from ktrdr_operator.store import JobKey, Store
from ktrdr_operator.strategies import StrategyReader
from ktrdr_operator.views import Raw, sanitize

log: Final = logging.getLogger(__name__)
_REFUSED: Final = frozenset({400, 403, 422})
"""Answers that say the request, not the server, is the trouble."""
_ADMISSION_WORDS: Final = ("admission webhook", "denied request", "denied the request")
"""Of an answer that comes from admission: it may be another one tomorrow, whatever its code."""
_WEBHOOK_WORDS: Final = ("failed calling webhook", "calling webhook")
SHOWN_AFTER_FAILURES: Final = 4
"""Failures in a row of a start, by the server's fault, after which the user is told: the first
retries come within a second."""


class Clocks(NamedTuple):
    """Where times come from."""

    now: Callable[[], datetime]
    """Wall clock, UTC; stamps status."""
    monotonic: Callable[[], float]
    """Seconds, for durations."""


class Reconciler:
    """Brings TrainingJobs, one key at a time, to where their specs want them."""

    def __init__(
        self,
        cluster: ClusterApi,
        store: Store,
        queue: WorkQueue[JobKey],
        *,
        limits: Limits,
        defaults: PodDefaults,
        metrics: Metrics,
        events: EventRecorder,
        clocks: Clocks,
    ) -> None:
        """Wire the parts together.

        Args:
            cluster: The API server.
            store: Latest known objects.
            queue: Where a key is added again.
            limits: Settings that policies depend on.
            defaults: Settings of all trainer pods.
            metrics: Counters.
            events: Posts Kubernetes Events.
            clocks: Wall clock and durations.
        """
        self.store, self.queue, self.cluster = store, queue, cluster
        self.limits, self.metrics, self.events = limits, metrics, events
        self.now, self.clock = clocks
        self.notes = Notes()
        self.pods = ClusterPods(cluster, defaults)
        self.observer = Observer(
            cluster,
            store,
            self.notes,
            StrategyReader(cluster, self.clock),
            PodEventReader(cluster, self.clock),
            self.now,
            self.clock,
        )
        self.applier = Applier(cluster, store, self.notes, self.pods, self.clock)

    async def work(self, key: JobKey, waited_seconds: float) -> None:
        """Reconcile one key; errors become conditions, logs and a backoff, never an exception."""
        self.metrics.queue_lag(waited_seconds)
        began = self.clock()
        try:
            await self._reconcile(key)
        except Exception as error:  # one poisonous object must not end a worker
            delay = self.queue.add_rate_limited(key)
            self.metrics.reconcile(self.clock() - began, "error")
            self._log_failure(key, error, delay)
            return
        self.queue.forget(key)
        self.metrics.reconcile(self.clock() - began, "ok")

    async def _reconcile(self, key: JobKey) -> None:
        snapshot = await self.observer.observe(key)
        plan = decide(snapshot, self.now(), self.limits)
        plan = await self._apply(key, snapshot, plan)
        if snapshot.job is None:
            return
        if plan.start is not None:
            plan = await self._start(key, snapshot, plan)
        if plan.expire:
            await self._expire(key, snapshot.job, plan)
            return
        if plan.requeue_seconds is not None:
            self.queue.add_after(key, plan.requeue_seconds)

    async def _apply(self, key: JobKey, snapshot: Snapshot, plan: Plan) -> Plan:
        """Carry out the plan, except for its start and its expiry.

        A status that the server calls invalid is decided again without foreign parts, so that one
        bad value cannot hold the job.
        """
        job = snapshot.job
        try:
            await self.applier.apply_status(key.namespace, job, plan)
        except Invalid as refused:
            if job is None or plan.status is None:
                raise
            log.error("status refused: %s", refused, extra=_where(key, job))
            words = sanitize(refused.message)[:300]
            plan = decide(replace(snapshot, status_refused=words), self.now(), self.limits)
            await self._write_fresh(key, job, plan)
        except (NotFound, Conflict):
            await self._refresh(key)
            raise
        # Now: when a deletion fails, the next reconcile does not see the transition any more.
        if job is not None and not plan.expire:
            self._record(key, job, plan)
        await self.applier.delete_pods(key.namespace, plan)
        return plan

    async def _write_fresh(self, key: JobKey, job: JobView, plan: Plan) -> None:
        try:
            await self.applier.apply_status(key.namespace, job, plan)
        except (NotFound, Conflict, Invalid):
            await self._refresh(key)
            raise

    async def _start(self, key: JobKey, snapshot: Snapshot, plan: Plan) -> Plan:
        """Create the children of the attempt; a refusal is decided like everything else."""
        job, start = snapshot.job, plan.start
        assert job is not None  # noqa: S101 - a plan with a start has a job
        assert start is not None  # noqa: S101 - as above
        try:
            await self.applier.start(job, start)
        except (ApiError, NameConflictError) as error:
            failure = self._create_failure(key, error)
            if failure is None:
                raise
            observed = await self.observer.observe(key)
            if observed.job is None or observed.job.uid != job.uid:
                return Plan(requeue_seconds=0.0)  # a successor is not to blame for this failure
            failed = replace(observed, create_failure=failure)
            return await self._apply(key, failed, decide(failed, self.now(), self.limits))
        self._count_attempt(job, start.attempt)
        return plan

    def _create_failure(
        self, key: JobKey, error: ApiError | NameConflictError
    ) -> CreateFailure | None:
        """What the user is told about a start that failed; None for a hiccup of the server."""
        if isinstance(error, NameConflictError):
            return CreateFailure(CreateFailureKind.NAME_CONFLICT, sanitize(str(error)))
        words = error.message.lower()
        text = sanitize(error.message)
        from_admission = any(w in words for w in _ADMISSION_WORDS)
        if isinstance(error, Invalid) and not from_admission:
            return CreateFailure(CreateFailureKind.INVALID, text)
        is_webhook = any(w in words for w in _WEBHOOK_WORDS)
        is_lasting = self.queue.failures(key) + 1 >= SHOWN_AFTER_FAILURES
        if error.status in _REFUSED or is_webhook or from_admission or is_lasting:
            return CreateFailure(CreateFailureKind.REFUSED, text)
        return None

    async def _expire(self, key: JobKey, job: JobView, plan: Plan) -> None:
        """Tell the result for the last time, then delete the TrainingJob."""
        for event in plan.events:
            await self.events.post_now(_reference(job), event.kind, event.reason, event.message)
            log.info("%s: %s", event.reason, event.message, extra=_where(key, job))
        if await self.applier.expire(job):
            self.metrics.job_expired()
            return
        await self._refresh(key)
        self.queue.add_after(key, 0.0)

    def _record(self, key: JobKey, job: JobView, plan: Plan) -> None:
        """Events and metrics, once the status that they are about is written."""
        for event in plan.events:
            self.events.record(_reference(job), event.kind, event.reason, event.message)
            log.info("%s: %s", event.reason, event.message, extra=_where(key, job, plan.status))
        if plan.status is not None and plan.status != job.status:
            self._measure(job, plan.status)

    def _measure(self, job: JobView, status: TrainingJobStatus) -> None:
        note, before = self.notes.of(job.uid, self.clock()), job.status
        if job.spec.cancel and note.cancel_seen is None:
            note.cancel_seen = self.clock()
        if status.disruptions > before.disruptions:
            self.metrics.disruption()
        if status.phase == Phase.RUNNING and before.start_time is None:
            self._count_attempt(job, status.attempt)
            self.metrics.time_to_running(self.clock() - note.first_seen)
        if is_true(status, ConditionType.FINISHED) and not is_true(before, ConditionType.FINISHED):
            self.metrics.job_finished(status.phase)
            if status.phase == Phase.CANCELLED and note.cancel_seen is not None:
                self.metrics.cancel(self.clock() - note.cancel_seen)

    def _count_attempt(self, job: JobView, attempt: int) -> None:
        note: Note = self.notes.of(job.uid, self.clock())
        if note.counted_attempt < attempt:
            note.counted_attempt = attempt
            self.metrics.attempt_started()

    async def _refresh(self, key: JobKey) -> None:
        """The store was behind the server, or ahead of a restored one: read the object again."""
        before = self.store.jobs.get(key)
        raw = await self.cluster.get(TRAINING_JOBS, key.namespace, key.name)
        self.store.put_live_job(key, raw, before)

    def _log_failure(self, key: JobKey, error: Exception, delay: float) -> None:
        expected = isinstance(error, ApiError | NameConflictError)
        level = logging.WARNING if expected else logging.ERROR
        known = self.store.jobs.get(key)
        log.log(
            logging.DEBUG if isinstance(error, Conflict) else level,  # another client wrote, too
            "reconcile failed, retrying in %.1f s: %s",
            delay,
            error,
            exc_info=None if expected else error,
            extra={
                "namespace": key.namespace,
                "job": key.name,
                **({"uid": known.uid} if known is not None else {}),
            },
        )


def _reference(job: JobView) -> Raw:
    """What an Event needs of the TrainingJob that it is about; the store may not keep its body."""
    return {"metadata": {"namespace": job.namespace, "name": job.name, "uid": job.uid}}


def _where(key: JobKey, job: JobView, status: TrainingJobStatus | None = None) -> dict[str, object]:
    """Fields by which a log line is found."""
    attempt = (status or job.status).attempt
    return {"namespace": key.namespace, "job": key.name, "uid": job.uid, "attempt": attempt}
