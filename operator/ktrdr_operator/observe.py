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
    PodView,
    Snapshot,
    StrategyText,
)
from ktrdr_operator.store import JobKey, Store
from ktrdr_operator.views import Raw, sanitize, training_job_uid, view_job, view_pod

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
    raw = store.jobs.get(key)
    job = view_job(_with_latest_progress(store, raw)) if raw else None
    snapshot = Snapshot(
        job=job,
        pods=_view_pods(store, key),
        strategy=None,
        report_period_seconds=store.report_period_seconds,
    )
    if job is None:
        return snapshot
    if await _fetch_missing_pod(cluster, store, snapshot, job):
        snapshot = replace(snapshot, pods=_view_pods(store, key))
    if not _may_start(snapshot, job):
        return snapshot
    return replace(snapshot, strategy=await _read_strategy(cluster, job))


def _with_latest_progress(store: Store, raw: Raw) -> Raw:
    latest = store.latest_progress.get(raw["metadata"]["uid"])
    if latest is None:
        return raw
    version, progress = latest
    return {
        **raw,
        "metadata": {**raw["metadata"], "resourceVersion": version},
        "status": {**raw.get("status", {}), "progress": progress},
    }


def _view_pods(store: Store, key: JobKey) -> tuple[PodView, ...]:
    return (
        *(view_pod(pod) for pod in store.pods.get(key, {}).values()),
        *(view_pod(pod, gone=True) for pod in store.gone.get(key, {}).values()),
    )


async def _fetch_owner(cluster: ClusterApi, store: Store, key: JobKey) -> None:
    """Ask the API server before believing that pods have outlived their TrainingJob."""
    raw = store.jobs.get(key)
    known = raw["metadata"]["uid"] if raw else None
    staying = (pod["metadata"] for pod in store.pods.get(key, {}).values())
    owners = {training_job_uid(pod) for pod in staying if "deletionTimestamp" not in pod}
    if not owners - {"", known} - store.dead:
        return
    newest = await cluster.get(TRAINING_JOBS, key.namespace, key.name)
    if newest is not None:
        store.put_job(newest)
    elif known is not None:
        store.drop_job(key, known)


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
    pod = await cluster.get(PODS, job.namespace, name)
    if pod is not None:
        store.put_pod(pod)
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
