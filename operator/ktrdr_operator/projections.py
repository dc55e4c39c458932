"""Projections: the fields of TrainingJobs and pods that the store keeps instead of parsed JSON.

A TrainingJob and its pod are 96 kB as Python dicts with managedFields, 48 kB without (measured),
and 2 to 6 kB as kept here. Pure; used by `store`, from which other modules import these names.
"""

from dataclasses import dataclass, replace
from sys import intern
from typing import Final, NamedTuple

import orjson

from ktrdr_api import names
from ktrdr_api.conditions import ConditionType
from ktrdr_operator.snapshot import PodView
from ktrdr_operator.views import Raw, training_job_owner, view_pod

LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
_DROPPED_METADATA: Final = frozenset({"managedFields", "resourceVersion"})
_POD_OVER: Final = ("Succeeded", "Failed")
_CANCELLING: Final = "Cancelling"


class JobKey(NamedTuple):
    """Identity of a TrainingJob as a queue key."""

    namespace: str
    name: str


class PodKey(NamedTuple):
    """Identity of a pod in the store."""

    namespace: str
    name: str


def job_key(raw: Raw) -> JobKey:
    """Key of a TrainingJob."""
    metadata = raw["metadata"]
    return JobKey(intern(metadata["namespace"]), metadata["name"])


def owner_key(pod: Raw) -> JobKey | None:
    """Key of the TrainingJob that controls a pod, whatever its label says: labels can be changed.

    Of a pod of another owner, the key that its label names; None when it has no label either.
    """
    metadata = pod["metadata"]
    owner = training_job_owner(metadata)
    job = owner["name"] if owner is not None else metadata.get("labels", {}).get(names.LABEL_JOB)
    return JobKey(intern(metadata["namespace"]), job) if job else None


@dataclass(frozen=True, slots=True)
class KnownJob:
    """Record of one TrainingJob, in one version. Replaced as a whole, never changed in place."""

    uid: str
    version: int
    """`metadata.resourceVersion`; body and progress are both of this version."""
    generation: int
    phase: str
    """Empty until the operator has written a status."""
    is_finished: bool
    """Whether condition Finished is True."""
    is_stop_requested: bool
    """Not finished, and cancelled or deleted by a user."""
    size_bytes: int
    """JSON size as the API server stores it, managedFields and last-applied included."""
    reported_at: float
    """Monotonic seconds when the latest progress, or else the object, was received."""
    body: bytes
    """JSON without managedFields, last-applied, resourceVersion and status.progress. Empty for a
    settled job, unless it was read by a live GET since the latest resync."""
    progress: bytes
    """JSON of status.progress; empty when there is none, or no body."""
    attempt: int = 0
    """`status.attempt`."""
    is_waiting: bool = False
    """Whether status.waiting is present: no trainer runs or is about to."""
    report_period_seconds: int | None = None
    """`status.reportPeriodSeconds`: the report interval that its trainer has been told."""
    finished_time: str = ""
    """When condition Finished became True, by the operator's clock; empty before."""
    ttl_seconds: int | None = None
    """`spec.ttlSecondsAfterFinished`."""
    is_settled: bool = False
    """Finished, `status.observedGeneration` is the generation, and no user has deleted it: only its
    deletion when its TTL is over is left to do."""

    def decode(self) -> Raw:
        """Decode the body, with the latest version and progress."""
        raw: Raw = orjson.loads(self.body)
        raw["metadata"]["resourceVersion"] = str(self.version)
        if self.progress:
            raw["status"]["progress"] = orjson.loads(self.progress)
        return raw


@dataclass(frozen=True, slots=True)
class KnownPod:
    """One pod that exists."""

    view: PodView
    version: int
    job: JobKey
    """The TrainingJob that controls it, otherwise the one whose label it has, or had."""
    is_over: bool
    """Phase Succeeded or Failed: none of its processes can run."""

    @property
    def uid(self) -> str:
        """UID of the pod."""
        return self.view.uid


def _finished_condition(status: Raw) -> Raw | None:
    """Condition Finished, where it is True."""
    for condition in status.get("conditions") or ():
        if condition.get("type") == ConditionType.FINISHED and condition.get("status") == "True":
            found: Raw = condition
            return found
    return None


def _body(raw: Raw) -> bytes:
    """JSON of everything a decision may depend on, except progress; comparable as bytes."""
    metadata = {k: v for k, v in raw["metadata"].items() if k not in _DROPPED_METADATA}
    annotations = metadata.get("annotations")
    if annotations and LAST_APPLIED in annotations:
        metadata["annotations"] = {k: v for k, v in annotations.items() if k != LAST_APPLIED}
    status = {k: v for k, v in (raw.get("status") or {}).items() if k != "progress"}
    body = {**raw, "metadata": metadata, "status": status}
    return orjson.dumps(body, option=orjson.OPT_SORT_KEYS)


def progress_of(raw: Raw) -> bytes:
    """JSON of status.progress; empty when there is none."""
    progress = (raw.get("status") or {}).get("progress")
    return orjson.dumps(progress) if progress else b""


def is_decisive_progress(before: bytes, now: bytes) -> bool:
    """Whether a decision depends on the difference between two progress reports."""
    if before == now:
        return False
    old, new = (orjson.loads(progress) if progress else {} for progress in (before, now))
    is_cancelling = [progress.get("stage") == _CANCELLING for progress in (old, new)]
    return bool(old.get("attempt") != new.get("attempt")) or is_cancelling[0] != is_cancelling[1]


def known_job(
    raw: Raw, *, size_bytes: int, reported_at: float, keep_body: bool = False
) -> KnownJob:
    """Project a TrainingJob; it may be invalid but must have metadata.

    Args:
        raw: the object.
        size_bytes: its size as the API server stores it; 0 measures it.
        reported_at: monotonic seconds of the latest progress.
        keep_body: whether to keep the body even if the job is settled.
    """
    metadata, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    ttl, period = spec.get("ttlSecondsAfterFinished"), status.get("reportPeriodSeconds")
    generation = metadata.get("generation", 0)
    finished = _finished_condition(status)
    is_finished = finished is not None
    is_deleting = "deletionTimestamp" in metadata
    is_settled = is_finished and status.get("observedGeneration") == generation and not is_deleting
    has_body = keep_body or not is_settled
    return KnownJob(
        uid=metadata["uid"],
        version=int(metadata["resourceVersion"]),
        generation=generation,
        phase=intern(str(status.get("phase") or "")),
        is_finished=is_finished,
        is_stop_requested=not is_finished and (is_deleting or bool(spec.get("cancel"))),
        size_bytes=size_bytes or len(orjson.dumps(raw)),
        reported_at=reported_at,
        body=_body(raw) if has_body else b"",
        progress=progress_of(raw) if has_body else b"",
        attempt=status.get("attempt") or 0,
        is_waiting="waiting" in status,
        report_period_seconds=period if isinstance(period, int) else None,
        finished_time=str((finished or {}).get("lastTransitionTime") or ""),
        ttl_seconds=ttl if isinstance(ttl, int) else None,
        is_settled=is_settled,
    )


def known_pod(key: JobKey, raw: Raw) -> KnownPod:
    """Project a pod.

    Raises:
        KeyError, TypeError, ValueError: the pod is not readable.
    """
    is_over = (raw.get("status") or {}).get("phase") in _POD_OVER
    return KnownPod(view_pod(raw), int(raw["metadata"]["resourceVersion"]), key, is_over)


def pod_essence(view: PodView) -> PodView:
    """Leave out the node while a pod waits: no decision depends on it. `essence` is kopf's word."""
    return view if view.started or view.ended else replace(view, node=None)
