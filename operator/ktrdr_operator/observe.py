"""Observe: builds the frozen Snapshot that decisions depend on.

Called by `reconcile`. Reads the store, and asks the API server where an outdated store could do
harm: about a pod that seems to be missing, an owner that seems to be deleted, a first start on an
old state. Also reads the strategy of an attempt that may start, and the Events of a pod that does
not.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from ktrdr_api import names
from ktrdr_api.conditions import ConditionType
from ktrdr_api.training_job import AttemptState, TrainingJobStatus
from ktrdr_client.cluster import PODS, TRAINING_JOBS, ClusterApi
from ktrdr_operator.notes import Notes
from ktrdr_operator.pod_events import PodEventReader
from ktrdr_operator.snapshot import JobView, PodView, Snapshot, StrategyText
from ktrdr_operator.store import JobKey, Store
from ktrdr_operator.strategies import StrategyReader
from ktrdr_operator.views import Raw, view_job

EVENTS_AFTER_SECONDS: Final = 15.0
"""Age of a pod from which its Events are read: most pods have started by then."""
FRESH_SECONDS: Final = 30.0
"""A job that was received longer ago is read again before a start that no status write precedes."""


def is_finished(status: TrainingJobStatus) -> bool:
    """Whether the job has finished."""
    return any(c.type == ConditionType.FINISHED and c.status == "True" for c in status.conditions)


@dataclass
class Observer:
    """Builds Snapshots."""

    cluster: ClusterApi
    store: Store
    notes: Notes
    strategies: StrategyReader
    pod_events: PodEventReader
    now: Callable[[], datetime]
    """Wall clock, UTC."""
    clock: Callable[[], float]
    """Monotonic seconds."""

    async def observe(self, key: JobKey, *, is_fresh: bool = False) -> Snapshot:
        """Build the Snapshot of one TrainingJob.

        Args:
            key: The TrainingJob.
            is_fresh: Whether it has just been read from the API server.

        Raises:
            ApiError: The API server did not answer a live GET; retry later.
        """
        job = await self._read_job(key)
        if job is None:
            return Snapshot(job=None, pods=self.store.pods_of(key))
        snapshot = self._snapshot(key, job)
        if await self._fetch_pod_if_needed(key, snapshot, job):
            snapshot = self._snapshot(key, job)
        if is_finished(job.status) or job.deleting:
            return snapshot
        snapshot = await self._with_pod_events(snapshot, job)
        if not _may_start(snapshot, job, self.now()):
            return snapshot
        if not is_fresh and self._is_stale_start(key, job):
            await self._fetch_job(key)
            return await self.observe(key, is_fresh=True)
        return replace(snapshot, strategy=await self._read_strategy(job))

    def _snapshot(self, key: JobKey, job: JobView) -> Snapshot:
        written = self.notes.of(job.uid, self.clock()).status_written
        return Snapshot(
            job=job,
            pods=self.store.pods_of(key),
            report_interval_seconds=self.store.report_interval_seconds,
            unwritten_jobs=self.store.unwritten_jobs,
            seconds_since_report=self.store.seconds_since_report(key),
            seconds_since_write=None if written is None else self.clock() - written,
        )

    async def _read_job(self, key: JobKey) -> JobView | None:
        """Read the job from the store, or from the API server if the store has no body of it."""
        if self._has_unknown_owner(key):
            await self._fetch_job(key)
        raw = self.store.job_raw(key)
        if raw is None and key in self.store.jobs:
            live = await self._fetch_job(key)
            raw = self.store.job_raw(key) or live
        return view_job(raw) if raw is not None else None

    def _has_unknown_owner(self, key: JobKey) -> bool:
        """Whether pods belong to a job that the store does not know: it may be outdated."""
        known = self.store.jobs.get(key)
        uid = known.uid if known is not None else None
        owners = {pod.owner_uid for pod in self.store.pods_of(key) if not pod.deleting}
        return any(o not in ("", uid) and not self.store.is_deleted(o) for o in owners)

    async def _fetch_job(self, key: JobKey) -> Raw | None:
        before = self.store.jobs.get(key)
        raw = await self.cluster.get(TRAINING_JOBS, key.namespace, key.name)
        self.store.put_live_job(key, raw, before)
        return raw

    async def _fetch_pod_if_needed(self, key: JobKey, snapshot: Snapshot, job: JobView) -> bool:
        """Read the current pod if it seems to be missing; returns whether it was read.

        A watch by label reports DELETED also when the label is removed.
        """
        if is_finished(job.status) or job.status.attempt_state is AttemptState.ENDED:
            return False
        pod = snapshot.current()
        if pod is None and not _has_run(job):
            return False  # a create finds out
        if pod is not None and not _is_doubtful(pod):
            return False
        name = names.pod_name(job.name, max(job.status.attempt, 1))
        before = self.store.pod(key, name)
        raw = await self.cluster.get(PODS, job.namespace, name)
        self.store.put_live_pod(key, name, raw, before)
        return True

    async def _with_pod_events(self, snapshot: Snapshot, job: JobView) -> Snapshot:
        pod = snapshot.current()
        if pod is None or pod.ended or pod.started or pod.wait_reason or pod.created is None:
            return snapshot
        if (self.now() - pod.created).total_seconds() < EVENTS_AFTER_SECONDS:
            return snapshot
        words = await self.pod_events.wait_reason(job.namespace, pod)
        explained = replace(pod, wait_reason=words)
        return replace(snapshot, pods=tuple(explained if p is pod else p for p in snapshot.pods))

    def _is_stale_start(self, key: JobKey, job: JobView) -> bool:
        """Whether an attempt would be started on an old state without a write that detects it.

        A status write fails if the job has changed. One precedes each attempt after the first, and
        each try after a failed create; none precedes the first try of attempt 1, nor the start of a
        recorded attempt whose pod is missing.
        """
        waiting = job.status.waiting
        is_retry = waiting is not None and waiting.retry_time is not None
        if job.status.attempt_state is AttemptState.ENDED or is_retry:
            return False
        age = self.store.seconds_since_report(key)
        return age is not None and age > FRESH_SECONDS

    async def _read_strategy(self, job: JobView) -> StrategyText:
        note = self.notes.of(job.uid, self.clock())
        if note.strategy_digest:
            return StrategyText(is_stored=True, digest=note.strategy_digest)
        return await self.strategies.read(job, first_seen=note.first_seen)


def _has_run(job: JobView) -> bool:
    progress, state = job.status.progress, job.status.attempt_state
    reported = progress is not None and progress.attempt == max(job.status.attempt, 1)
    return reported or state is AttemptState.RUNNING


def _is_doubtful(pod: PodView) -> bool:
    """Whether the pod was deleted without a known end, or the watch does not report it."""
    return (pod.gone and pod.termination is None) or (pod.unlabelled and not pod.ended)


def _may_start(snapshot: Snapshot, job: JobView, now: datetime) -> bool:
    """Whether the next attempt may start now, so that its strategy is needed."""
    status = job.status
    if job.spec.cancel or job.unreadable:
        return False
    is_between_attempts = status.attempt_state is AttemptState.ENDED
    if not is_between_attempts and (snapshot.current() is not None or _has_run(job)):
        return False  # the attempt continues, or its end has to be decided first
    times = [status.retry_time, status.waiting.retry_time if status.waiting else None]
    return all(time is None or datetime.fromisoformat(time) <= now for time in times)
