"""Store: latest known state of every TrainingJob and its pods, small enough for 10,000 of each.

Written by `intake` (watch events), `resync` (lists), `apply` (answers to the operator's own writes)
and `observe` (live GETs); read by `observe`, `metrics` and `report_interval`. `latest` decides
which of two states is newer. Rebuilt from a list at every start. The store may be outdated, so
`observe` asks the API server before a decision that an outdated state would make harmful.

Objects are kept as `projections`, not as parsed JSON. A settled TrainingJob is kept without its
body, and its finished pods are not kept at all.
"""

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Final

from ktrdr_api.conditions import Phase
from ktrdr_operator.latest import Latest, Listing
from ktrdr_operator.projections import JobKey as JobKey
from ktrdr_operator.projections import KnownJob as KnownJob
from ktrdr_operator.projections import KnownPod as KnownPod
from ktrdr_operator.projections import PodKey as PodKey
from ktrdr_operator.projections import (
    is_decisive_progress,
    known_pod,
    pod_essence,
    progress_of,
)
from ktrdr_operator.projections import job_key as job_key
from ktrdr_operator.projections import known_job as known_job
from ktrdr_operator.projections import owner_key as owner_key
from ktrdr_operator.snapshot import PodView
from ktrdr_operator.views import Raw, view_pod

DELETED_PODS_PER_JOB: Final = 8
"""Maximum of deleted pods remembered per job: any user may create and delete pods with its
label."""


@dataclass(slots=True)
class ResyncToken:
    """Full lists of TrainingJobs and pods in progress."""

    jobs: Listing[JobKey]
    pods: Listing[PodKey]


class Store:
    """Latest known TrainingJobs and pods, and the report interval of all of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Create an empty store.

        Args:
            clock: monotonic seconds.
        """
        self._clock = clock
        self._jobs: Latest[JobKey, KnownJob] = Latest(clock, self._on_job)
        self._pods: Latest[PodKey, KnownPod] = Latest(clock, self._on_pod)
        self._pods_of: dict[JobKey, set[PodKey]] = {}
        self._deleted_pods: dict[JobKey, dict[str, PodView]] = {}
        self.report_interval_seconds: int | None = None
        """Minimum seconds between progress reports of each trainer; see `report_interval`."""
        self.unwritten_jobs: int = 0
        """TrainingJobs whose status nobody has written yet: how large a burst of new ones is."""
        self.silence_seconds: float = 300.0
        """A report after a longer silence asks for a decision: status may say NotReporting."""

    @property
    def jobs(self) -> dict[JobKey, KnownJob]:
        """TrainingJobs that exist; read only."""
        return self._jobs.records

    def job_raw(self, key: JobKey) -> Raw | None:
        """Decode a TrainingJob; None when it is unknown or its body is not kept."""
        known = self.jobs.get(key)
        if known is None or not known.body:
            return None
        return known.decode()

    def pods_of(self, key: JobKey) -> tuple[PodView, ...]:
        """Pods of a TrainingJob that exist, then deleted ones of its current attempt."""
        existing = (self._pods.records[pod].view for pod in sorted(self._pods_of.get(key, ())))
        return (*existing, *self._deleted_pods.get(key, {}).values())

    def pod(self, key: JobKey, name: str) -> KnownPod | None:
        """A pod that exists."""
        return self._pods.records.get(PodKey(key.namespace, name))

    def is_deleted(self, uid: str) -> bool:
        """Whether the TrainingJob with this UID was deleted in the last ten minutes."""
        return self._jobs.is_deleted(uid)

    def seconds_since_report(self, key: JobKey) -> float | None:
        """Seconds since the latest progress, or else the object, was received."""
        known = self.jobs.get(key)
        return None if known is None else self._clock() - known.reported_at

    def progress_age_seconds(self) -> float:
        """Longest time since the last report of a running TrainingJob, by the operator's clock."""
        now = self._clock()
        running = (job for job in self.jobs.values() if job.phase == Phase.RUNNING)
        return max((now - job.reported_at for job in running), default=0.0)

    # Watch events.

    def put_job(self, raw: Raw, size_bytes: int = 0) -> bool:
        """Store an event of a TrainingJob.

        Args:
            raw: the object.
            size_bytes: its size on the wire; 0 measures it.

        Returns:
            Whether a decision may depend on it. False when it is older than the record, changed
            only the progress, or is the first event of a settled job.
        """
        key, metadata = job_key(raw), raw["metadata"]
        if not self._jobs.is_news(key, metadata["uid"], int(metadata["resourceVersion"])):
            return False
        known = self.jobs.get(key)
        record = self._project(key, raw, size_bytes)
        self._jobs.put(key, record)
        return self._asks_for_decision(known, record)

    def drop_job(self, key: JobKey, uid: str, version: int = 0) -> bool:
        """Store the deletion of a TrainingJob; a newer one of the same name stays."""
        return self._jobs.drop(key, uid, version)

    def put_pod(self, raw: Raw) -> bool:
        """Store an event of a pod.

        Returns:
            Whether a decision may depend on it.

        Raises:
            KeyError, TypeError, ValueError: the pod is not readable.
        """
        key, metadata = owner_key(raw), raw["metadata"]
        pod, version = PodKey(metadata["namespace"], metadata["name"]), metadata["resourceVersion"]
        if key is None or not self._pods.is_news(pod, metadata["uid"], int(version)):
            return False
        known, record = self._pods.records.get(pod), known_pod(key, raw)
        if not self._is_kept(record):
            self._pods.forget(pod)
            return known is not None
        self._pods.put(pod, record)
        if known is None:
            return True
        # A deleted TrainingJob has already been reconciled: its pods are being deleted.
        is_over = self.is_deleted(record.view.owner_uid)
        return not is_over and pod_essence(known.view) != pod_essence(record.view)

    def drop_pod(self, raw: Raw) -> bool:
        """Store the deletion of a pod.

        Returns:
            Whether a decision may depend on it: not if its TrainingJob is deleted or settled.

        Raises:
            KeyError, TypeError, ValueError: the pod is not readable.
        """
        key, metadata = owner_key(raw), raw["metadata"]
        if key is None:
            return False
        pod = PodKey(metadata["namespace"], metadata["name"])
        if self._pods.drop(pod, metadata["uid"], int(metadata["resourceVersion"])):
            self._remember_deleted(key, view_pod(raw, gone=True))
        job = self.jobs.get(key)
        return job is not None and not job.is_settled

    # Answers to the operator's own requests.

    def put_live_job(self, key: JobKey, raw: Raw | None, before: KnownJob | None) -> None:
        """Store the answer of a GET that was sent when `before` was the record.

        The body of a settled job is kept until the next resync, because it was requested.
        """
        record = None if raw is None else self._project(key, raw, 0, keep_body=True)
        self._jobs.put_live(key, record, before)

    def put_live_pod(
        self, key: JobKey, name: str, raw: Raw | None, before: KnownPod | None
    ) -> None:
        """Store the answer of a GET that was sent when `before` was the record.

        A pod that exists is kept even if it has lost the label by which the watch selects.
        """
        pod = PodKey(key.namespace, name)
        record = None if raw is None else known_pod(key, raw)
        if record is not None and not self._is_kept(record):
            self._pods.forget(pod)
            return
        self._pods.put_live(pod, record, before)
        if before is not None and self._pods.records.get(pod) is None:
            self._remember_deleted(before.job, replace(before.view, gone=True))

    def put_own_write(self, raw: Raw) -> None:
        """Store the answer to an own status write, so that its echo on the watch is not newer."""
        self.put_job(raw)

    def put_created_pod(self, key: JobKey, raw: Raw) -> None:
        """Store a pod as the API server created it, so that its ADDED event is not newer."""
        metadata = raw["metadata"]
        pod = PodKey(metadata["namespace"], metadata["name"])
        self._pods.put(pod, known_pod(key, raw))

    # Full lists.

    def begin_resync(self) -> ResyncToken:
        """Begin a full list, before its first request is sent."""
        return ResyncToken(self._jobs.begin_list(), self._pods.begin_list())

    def put_listed_job(self, token: ResyncToken, raw: Raw, size_bytes: int = 0) -> bool:
        """Store a TrainingJob of a list; returns whether a decision may depend on it."""
        key, metadata = job_key(raw), raw["metadata"]
        version = (metadata["uid"], int(metadata["resourceVersion"]))
        if not self._jobs.is_listed_news(token.jobs, key, version):
            return False
        known, record = self.jobs.get(key), self._project(key, raw, size_bytes)
        self._jobs.put_listed(token.jobs, key, record)
        return self._asks_for_decision(known, record)

    def put_listed_pod(self, token: ResyncToken, raw: Raw) -> JobKey | None:
        """Store a pod of a list; returns its TrainingJob if a decision may depend on it.

        Raises:
            KeyError, TypeError, ValueError: the pod is not readable.
        """
        key, metadata = owner_key(raw), raw["metadata"]
        pod = PodKey(metadata["namespace"], metadata["name"])
        version = (metadata["uid"], int(metadata["resourceVersion"]))
        if key is None or not self._pods.is_listed_news(token.pods, pod, version):
            return None
        record, known = known_pod(key, raw), self._pods.records.get(pod)
        if not self._is_kept(record):
            self._pods.forget(pod)
            return None if known is None else key
        self._pods.put_listed(token.pods, pod, record)
        is_same = known is not None and pod_essence(known.view) == pod_essence(record.view)
        return None if is_same else key

    def finish_resync(
        self, token: ResyncToken, skipped_namespaces: Collection[str] = ()
    ) -> set[JobKey]:
        """Drop objects that were in no list; returns the TrainingJobs that this concerns.

        Args:
            token: what `begin_resync` returned.
            skipped_namespaces: namespaces that could not be listed; they stay as they are.
        """
        pods_before = dict(self._pods.records)
        jobs = self._jobs.finish_list(token.jobs, lambda k: k.namespace not in skipped_namespaces)
        pods = self._pods.finish_list(token.pods, lambda k: k.namespace not in skipped_namespaces)
        self._drop_bodies()
        for known in (pods_before[pod] for pod in pods):
            self._remember_deleted(known.job, replace(known.view, gone=True))
        return {*jobs, *(pods_before[pod].job for pod in pods)}

    def forget_namespace(self, namespace: str) -> None:
        """Stop keeping objects of a namespace that the operator can no longer read."""
        for job in [key for key in self.jobs if key.namespace == namespace]:
            self._jobs.forget(job)
        for pod in [key for key in self._pods.records if key.namespace == namespace]:
            self._pods.forget(pod)

    def replace(self, jobs: Iterable[Raw], pods: Iterable[Raw]) -> set[JobKey]:
        """Store complete lists; returns every key that changed or disappeared."""
        token = self.begin_resync()
        changed = {job_key(raw) for raw in jobs if self.put_listed_job(token, raw)}
        touched = {self.put_listed_pod(token, raw) for raw in pods}
        return changed | {key for key in touched if key} | self.finish_resync(token)

    def _project(
        self, key: JobKey, raw: Raw, size_bytes: int, *, keep_body: bool = False
    ) -> KnownJob:
        known, progress = self.jobs.get(key), progress_of(raw)
        is_same = known is not None and known.uid == raw["metadata"]["uid"]
        reported_at = self._clock()
        if known is not None and is_same and progress == known.progress:
            reported_at = known.reported_at
        return known_job(raw, size_bytes=size_bytes, reported_at=reported_at, keep_body=keep_body)

    def _asks_for_decision(self, known: KnownJob | None, job: KnownJob) -> bool:
        if known is None:
            return not job.is_settled
        if known.uid != job.uid or known.is_settled or known.body != job.body:
            return True
        is_first_after_silence = job.reported_at - known.reported_at > self.silence_seconds
        return is_first_after_silence or is_decisive_progress(known.progress, job.progress)

    def _drop_bodies(self) -> None:
        for key, job in self.jobs.items():
            if job.is_settled and job.body:
                self.jobs[key] = replace(job, body=b"", progress=b"")

    def _is_kept(self, pod: KnownPod) -> bool:
        job = self.jobs.get(pod.job)
        return not pod.is_over or (job is not None and not job.is_settled)

    def _on_job(self, key: JobKey, before: KnownJob | None, job: KnownJob | None) -> None:
        self.unwritten_jobs += _is_unwritten(job) - _is_unwritten(before)
        if job is not None and not job.is_settled:
            self._forget_deleted_pods(key, job)
            return
        self._deleted_pods.pop(key, None)
        for pod in list(self._pods_of.get(key, ())):
            if self._pods.records[pod].is_over:
                self._pods.forget(pod)

    def _on_pod(self, key: PodKey, before: KnownPod | None, pod: KnownPod | None) -> None:
        if before is not None:
            siblings = self._pods_of[before.job]
            siblings.discard(key)
            if not siblings:
                del self._pods_of[before.job]
        if pod is not None:
            self._pods_of.setdefault(pod.job, set()).add(key)
            self._deleted_pods.get(pod.job, {}).pop(key.name, None)

    def _remember_deleted(self, key: JobKey, view: PodView) -> None:
        """Keep the last state of a deleted pod: it may contain the result of its attempt."""
        job = self.jobs.get(key)
        if job is None or job.is_settled or not _may_matter(view, job):
            return
        deleted = self._deleted_pods.setdefault(key, {})
        deleted.pop(view.name, None)
        deleted[view.name] = view
        if len(deleted) > DELETED_PODS_PER_JOB:
            del deleted[next(iter(deleted))]

    def _forget_deleted_pods(self, key: JobKey, job: KnownJob) -> None:
        deleted = self._deleted_pods.get(key, {})
        for name in [name for name, view in deleted.items() if not _may_matter(view, job)]:
            del deleted[name]
        if not deleted:
            self._deleted_pods.pop(key, None)


def _may_matter(view: PodView, job: KnownJob) -> bool:
    return view.owner_uid == job.uid and view.attempt >= job.attempt


def _is_unwritten(job: KnownJob | None) -> int:
    return int(job is not None and not job.phase)
