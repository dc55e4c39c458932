"""Observe: turn raw objects into the one frozen Snapshot that decisions are made on.

Called by `reconcile`. Reads the store, and the API server where a stale store could do harm: a pod
that seems to be missing, a strategy that is about to be used. Parse errors end here.
"""

import logging
import re
from dataclasses import replace
from datetime import datetime
from typing import Final

from pydantic import ValidationError

from ktrdr_api import names
from ktrdr_api.conditions import ConditionType
from ktrdr_api.run_contract import RunResult
from ktrdr_api.training_job import (
    STRATEGY_MAX_BYTES,
    ConfigMapKeyRef,
    Progress,
    TrainingJob,
    TrainingJobStatus,
)
from ktrdr_client.cluster import CONFIG_MAPS, PODS, TRAINING_JOBS, ClusterApi
from ktrdr_operator.snapshot import (
    JobView,
    Obstacle,
    PodView,
    Snapshot,
    StrategyText,
    Termination,
)
from ktrdr_operator.store import JobKey, Raw, Report, Store, training_job_uid

log: Final = logging.getLogger(__name__)

TEXT_MAX_LENGTH: Final = 900
"""Leaves room in a 1,024-character status message for our own words."""
_CONTROL: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[^\S\n]|[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """Foreign text made safe for status: no control characters, bounded, end kept."""
    plain = _CONTROL.sub(" ", text).strip()
    return plain if len(plain) <= TEXT_MAX_LENGTH else "..." + plain[3 - TEXT_MAX_LENGTH :]


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
    job = view_job(raw, store.reports.get(raw["metadata"]["uid"])) if raw else None
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
            problem=clean(
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


def view_job(raw: Raw, report: Report | None = None) -> JobView:
    """Parse a TrainingJob, with the newest progress and version that are known of it."""
    metadata = raw["metadata"]
    status = dict(raw.get("status", {}))
    said = status.pop("progress", None)
    version = metadata["resourceVersion"]
    if report is not None:
        version, said = report
    parsed = TrainingJob.model_validate({"spec": raw.get("spec", {}), "status": status})
    return JobView(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        deleting="deletionTimestamp" in metadata,
        labels=metadata.get("labels", {}),
        spec=parsed.spec,
        status=parsed.status.model_copy(update={"progress": _progress(said, metadata)}),
        resource_version=version,
    )


def _progress(said: Raw | None, metadata: Raw) -> Progress | None:
    """None as well where it cannot be read: it is only a trainer's word, not the job's state."""
    if said is None:
        return None
    try:
        return Progress.model_validate(said)
    except ValidationError as error:
        where = {"namespace": metadata["namespace"], "job": metadata["name"]}
        log.warning("status.progress ignored: %s", clean(str(error)), extra=where)
        return None


def view_pod(raw: Raw, *, gone: bool = False) -> PodView:
    """Parse a pod of ours."""
    metadata, status = raw["metadata"], raw.get("status", {})
    labels = metadata.get("labels", {})
    conditions = {c["type"]: c for c in status.get("conditions", [])}
    container = _trainer_container(status)
    state = container.get("state", {})
    termination = _termination(state.get("terminated"))
    running = state.get("running")
    return PodView(
        name=metadata["name"],
        uid=metadata["uid"],
        owner_uid=training_job_uid(metadata),
        attempt=_label_number(labels, names.LABEL_ATTEMPT),
        rank=_label_number(labels, names.LABEL_RANK),
        node=raw.get("spec", {}).get("nodeName"),
        deleting="deletionTimestamp" in metadata,
        gone=gone,
        disrupted=_disrupted(status, conditions),
        failed=status.get("phase") == "Failed",
        pod_message=clean(status.get("message", "")),
        started=_time(running["startedAt"]) if running else None,
        termination=termination,
        obstacle=None if running or termination else _obstacle(conditions, state),
    )


def _trainer_container(status: Raw) -> Raw:
    for container in status.get("containerStatuses", []):
        if container["name"] == names.TRAINER_CONTAINER:
            found: Raw = container
            return found
    return {}


def _label_number(labels: dict[str, str], name: str) -> int:
    value = labels.get(name, "")
    return int(value) if value.isascii() and value.isdigit() else -1


def _disrupted(status: Raw, conditions: dict[str, Raw]) -> bool:
    target = conditions.get("DisruptionTarget", {}).get("status") == "True"
    return target or status.get("reason") in {"Evicted", "Preempting", "NodeLost", "Shutdown"}


def _termination(terminated: Raw | None) -> Termination | None:
    if terminated is None:
        return None
    message = terminated.get("message", "")
    return Termination(
        exit_code=terminated["exitCode"],
        reason=terminated.get("reason", ""),
        message=clean(message),
        started=_time(terminated.get("startedAt")),
        finished=_time(terminated.get("finishedAt")),
        result=_result(message),
    )


def _result(message: str) -> RunResult | None:
    """None when the trainer was killed before its last word: then this is the end of its log.

    The trainer's image is the user's choice: what it says is foreign text, and two metrics of one
    name would make the API server refuse the status.
    """
    try:
        result = RunResult.model_validate_json(message)
    except ValidationError:
        return None
    metrics = tuple({metric.name: metric for metric in result.metrics}.values())
    return result.model_copy(update={"message": clean(result.message), "metrics": metrics})


def _obstacle(conditions: dict[str, Raw], state: Raw) -> Obstacle | None:
    """None as well where nobody says a word: then it takes its course."""
    scheduled = conditions.get("PodScheduled", {})
    holds = scheduled if scheduled.get("status") == "False" else state.get("waiting") or {}
    message = clean(holds.get("message", ""))
    return Obstacle(holds.get("reason", ""), message) if message else None


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
