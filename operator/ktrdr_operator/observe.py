"""Observe: turn raw objects into the one frozen Snapshot that decisions are made on.

Called by `reconcile`. Reads the store, and the API server where a stale store could do harm: a pod
that seems to be missing, a strategy that is about to be used. Parse errors end here.
"""

import logging
from dataclasses import replace
from typing import Final

from ktrdr_api import names
from ktrdr_api.conditions import ConditionType
from ktrdr_api.training_job import (
    STRATEGY_MAX_BYTES,
    ConfigMapKeyRef,
    TrainingJobStatus,
)
from ktrdr_client.cluster import CONFIG_MAPS, PODS, TRAINING_JOBS, ClusterApi
from ktrdr_operator.snapshot import (
    JobView,
    Snapshot,
    StrategyText,
)
from ktrdr_operator.store import JobKey, Store
from ktrdr_operator.views import Raw, sanitize, training_job_uid, view_job

log: Final = logging.getLogger(__name__)


def is_finished(status: TrainingJobStatus) -> bool:
    """Whether the job has ended for good."""
    return any(c.type == ConditionType.FINISHED and c.status == "True" for c in status.conditions)


async def observe(cluster: ClusterApi, store: Store, key: JobKey) -> Snapshot:
    """Everything known about one TrainingJob now.

    Raises:
        ApiError: the API server did not answer a live read; try again later.
        ValidationError: the object is not a TrainingJob; the caller makes it a condition.
    """
    await _fetch_owner(cluster, store, key)
    raw = await _read_job(cluster, store, key)
    job = view_job(raw) if raw else None
    snapshot = Snapshot(
        job=job,
        pods=store.pods_of(key),
        strategy=None,
        report_period_seconds=store.report_interval_seconds,
    )
    if job is None:
        return snapshot
    if await _fetch_missing_pod(cluster, store, snapshot, job):
        snapshot = replace(snapshot, pods=store.pods_of(key))
    if not _may_start(snapshot, job):
        return snapshot
    return replace(snapshot, strategy=await _read_strategy(cluster, job))


async def _read_job(cluster: ClusterApi, store: Store, key: JobKey) -> Raw | None:
    """The TrainingJob as known; a finished one is read, as its body is not kept."""
    known = store.jobs.get(key)
    if known is None or not known.is_settled:
        return store.job_raw(key)
    raw = await cluster.get(TRAINING_JOBS, key.namespace, key.name)
    store.put_live_job(key, raw, known)
    return raw


async def _fetch_owner(cluster: ClusterApi, store: Store, key: JobKey) -> None:
    """Ask the API server before believing that pods have outlived their TrainingJob."""
    known = store.jobs.get(key)
    staying = (pod for pod in store.pods_of(key) if not pod.gone and not pod.deleting)
    owners = {pod.owner_uid for pod in staying} - {"", known.uid if known else ""}
    if all(store.is_deleted(uid) for uid in owners):
        return
    newest = await cluster.get(TRAINING_JOBS, key.namespace, key.name)
    store.put_live_job(key, newest, known)


def _may_start(snapshot: Snapshot, job: JobView) -> bool:
    current = snapshot.current()
    idle = current is None or current.ended
    return idle and not (job.deleting or job.spec.cancel or is_finished(job.status))


async def _fetch_missing_pod(
    cluster: ClusterApi, store: Store, snapshot: Snapshot, job: JobView
) -> bool:
    """Ask the API server before believing that the current attempt has no pod; True if it has."""
    if job.status.attempt == 0 or snapshot.current() is not None or is_finished(job.status):
        return False
    name = names.pod_name(job.name, job.status.attempt)
    key = JobKey(job.namespace, job.name)
    known = store.pod(key, name)
    pod = await cluster.get(PODS, job.namespace, name)
    store.put_live_pod(key, name, pod, known)
    return pod is not None


async def _read_strategy(cluster: ClusterApi, job: JobView) -> StrategyText:
    source = job.spec.strategy
    if source.inline is not None:
        return StrategyText(text=source.inline)
    ref = source.config_map_key_ref
    if ref is None:
        return StrategyText(problem="spec.strategy names no source; set inline or configMapKeyRef")
    if (resolved := await _read_resolved(cluster, job)) is not None:
        return StrategyText(text=resolved)
    return _find_strategy(job, ref, await cluster.get(CONFIG_MAPS, job.namespace, ref.name))


def _find_strategy(job: JobView, ref: ConfigMapKeyRef, config_map: Raw | None) -> StrategyText:
    if config_map is None:
        return StrategyText(
            problem=f'ConfigMap "{ref.name}" does not exist in namespace "{job.namespace}"; '
            "create it and the job starts"
        )
    text = config_map.get("data", {}).get(ref.key)
    if text is None:
        present = ", ".join(sorted(config_map.get("data", {}))) or "none"
        return StrategyText(
            problem=sanitize(
                f'ConfigMap "{ref.name}" has no key "{ref.key}" (keys: {present}); '
                "add the key and the job starts"
            )
        )
    if len(text.encode()) > STRATEGY_MAX_BYTES:
        return StrategyText(
            problem=f'Key "{ref.key}" of ConfigMap "{ref.name}" is larger than '
            f"{STRATEGY_MAX_BYTES} bytes; make the strategy smaller"
        )
    return StrategyText(text=text)


async def _read_resolved(cluster: ClusterApi, job: JobView) -> str | None:
    """The strategy of the newest attempt that has one: later edits must not change a job."""
    for attempt in (job.status.attempt, job.status.attempt - 1):
        if attempt < 1:
            break
        run = await cluster.get(CONFIG_MAPS, job.namespace, names.run_name(job.name, attempt))
        if run is not None and training_job_uid(run["metadata"]) == job.uid:
            return str(run["data"][names.STRATEGY_FILE])
    return None
